"""The seam between a store and where it lies: whole files by key, written so that they last, on a disk or in a bucket.

Keys are paths below the store's root, with slashes. What differs beyond bytes (how writers keep out of each other's
way) is in work.py for disks and claims.py for buckets; how chunks are read is in shards.py.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage import files
from storage.layout import PENDING
from storage.location import Location, ObjectPath
from storage.objects import ObjectClient, client_of


class Batch(Protocol):
    """Files of one unit that get into place together; see files.Batch."""

    def add(self, key: str, pieces: Iterable[bytes]) -> tuple[int, str]:
        """Take in a file. Returns (size in bytes, hex SHA-256)."""
        ...

    def add_fixed(self, key: str, content: bytes) -> str:
        """Take in a small file whose content is fixed by its path. Returns its SHA-256."""
        ...

    def land(self) -> None:
        """Return once all of them are in place and will last."""
        ...


class Backend(Protocol):
    """Where a store lies. Reads raise FileNotFoundError; a disk's refusals are OSErrors, a server's StoreErrors."""

    root: Location

    def get(self, key: str) -> bytes:
        """A whole file."""
        ...

    def digest(self, key: str) -> tuple[int, str]:
        """(size in bytes, hex SHA-256) of a file."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Write a small file in one step unless it is there; False where it was."""
        ...

    def replace(self, contents: Mapping[str, bytes]) -> None:
        """Write small files, or replace them, each in one step."""
        ...

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files right below a folder, sorted; none where there is no folder."""
        ...

    def list(self, folder: str) -> Iterator[str]:
        """Keys of all files below a folder, sorted."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder, by key."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""
        ...


@dataclass(frozen=True)
class LocalBackend:
    """A folder of a file system: what files.py does, by key."""

    root: Path

    def get(self, key: str) -> bytes:
        """As Backend."""
        return (self.root / key).read_bytes()

    def digest(self, key: str) -> tuple[int, str]:
        """As Backend."""
        return files.file_digest(self.root / key)

    def exists(self, key: str) -> bool:
        """As Backend."""
        return (self.root / key).exists()

    def create(self, key: str, content: bytes) -> bool:
        """As Backend."""
        folder = self.root / PENDING / f"create-{uuid.uuid4().hex}"
        with files.lock(folder.with_suffix(".lock")), files.scratch_folder(folder) as scratch:
            return files.put(self.root / key, content, scratch, replace=False)

    def replace(self, contents: Mapping[str, bytes]) -> None:
        """As Backend."""
        folder = self.root / PENDING / f"replace-{uuid.uuid4().hex}"
        with files.lock(folder.with_suffix(".lock")), files.scratch_folder(folder) as scratch:
            for key, content in contents.items():
                files.put(self.root / key, content, scratch, replace=True)

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """As Backend."""
        folders: list[str] = []
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.root / folder) as listing:
            for entry in listing:
                (folders if entry.is_dir() else found).append(entry.name)
        return sorted(folders), sorted(found)

    def list(self, folder: str) -> Iterator[str]:
        """As Backend."""
        for path in sorted(p for p in (self.root / folder).rglob("*") if p.is_file()):
            yield path.relative_to(self.root).as_posix()

    def sizes(self, folder: str) -> dict[str, int]:
        """As Backend."""
        found: dict[str, int] = {}
        for key in self.list(folder):
            with contextlib.suppress(FileNotFoundError):
                found[key] = (self.root / key).stat().st_size
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """As Backend."""
        for key in keys:
            files.remove_file(self.root / key)


class ObjectBackend:
    """A prefix of a bucket."""

    def __init__(self, root: ObjectPath) -> None:
        self.root: Location = root
        self.client: ObjectClient = client_of(root)
        self._prefix = f"{root.key}/" if root.key else ""

    def key(self, key: str) -> str:
        """The key in the bucket of a key of the store."""
        return f"{self._prefix}{key}"

    def get(self, key: str) -> bytes:
        """As Backend."""
        return self.client.get(self.key(key))

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """A file and its ETag. Raises FileNotFoundError."""
        return self.client.get_tagged(self.key(key))

    def digest(self, key: str) -> tuple[int, str]:
        """As Backend."""
        data = self.get(key)
        return len(data), hashlib.sha256(data).hexdigest()

    def exists(self, key: str) -> bool:
        """As Backend."""
        return self.client.size(self.key(key)) is not None

    def create(self, key: str, content: bytes) -> bool:
        """As Backend; False also where an equal file is there that somebody else wrote."""
        if self.exists(key):
            return False
        return self.client.put_if(self.key(key), content, None)

    def put_if(self, key: str, content: bytes, tag: str | None) -> bool:
        """As ObjectClient.put_if."""
        return self.client.put_if(self.key(key), content, tag)

    def put(self, key: str, content: bytes) -> None:
        """Write or replace a file of any size, in one step."""
        self.client.put(self.key(key), content)

    def replace(self, contents: Mapping[str, bytes]) -> None:
        """As Backend."""
        for key, content in contents.items():
            self.put(key, content)

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """As Backend."""
        folders, found = self.client.children(self.key(folder).rstrip("/"))
        return sorted(folders), sorted(info.key.rpartition("/")[2] for info in found)

    def list(self, folder: str) -> Iterator[str]:
        """As Backend."""
        for info in self.client.list(self.key(folder)):
            yield info.key.removeprefix(self._prefix)

    def sizes(self, folder: str) -> dict[str, int]:
        """As Backend."""
        return {info.key.removeprefix(self._prefix): info.size for info in self.client.list(self.key(folder))}

    def delete(self, keys: Iterable[str]) -> None:
        """As Backend."""
        self.client.delete(self.key(key) for key in keys)


class ObjectBatch:
    """Files of one unit, each on its way to the bucket as soon as it is added; nobody else writes these keys."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend
        self._under_way: list[Future[None]] = []
        self.added: list[str] = []

    def add(self, key: str, pieces: Iterable[bytes]) -> tuple[int, str]:
        """Start to put a file. Returns (size in bytes, hex SHA-256)."""
        data = b"".join(pieces)
        self.added.append(key)
        self._under_way.append(self._backend.client.pool.submit(self._backend.put, key, data))
        return len(data), hashlib.sha256(data).hexdigest()

    def add_fixed(self, key: str, content: bytes) -> str:
        """Put a small file whose content is fixed by its path, unless it is there already. Returns its SHA-256."""
        self._under_way.append(self._backend.client.pool.submit(self._put_fixed, key, content))
        return hashlib.sha256(content).hexdigest()

    def land(self) -> None:
        """Wait for all of them. Raises OtherContent, ObjectStoreError."""
        pending, self._under_way = self._under_way, []
        errors = [future.exception() for future in pending]
        for error in errors:
            if error is not None:
                raise error

    def _put_fixed(self, key: str, content: bytes) -> None:
        try:
            present: bytes | None = self._backend.get(key)
        except FileNotFoundError:
            present = None
        if present is None and not self._backend.put_if(key, content, None):
            present = self._backend.get(key)
        if present is not None and present != content:
            raise OtherContent(key)


class OtherContent(Exception):
    """A file whose content should follow from its path is there with another: that generation cannot be used."""


def backend(root: Location) -> LocalBackend | ObjectBackend:
    """The backend of a store's location."""
    return ObjectBackend(root) if isinstance(root, ObjectPath) else LocalBackend(root)
