"""Where a store lies: a path on a disk, or `s3://bucket/prefix`; one type that configurations and calls may carry."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from storage.errors import StoreError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(/+)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")


class ObjectPath:
    """An object, or a prefix of objects: the few things of `pathlib.Path` that a store's path is used for.

    Immutable, hashable, ordered; pickles as its text. It is no `os.PathLike`, so that nothing opens it as a file.
    """

    __slots__ = ("bucket", "key")

    bucket: str
    key: str

    def __init__(self, bucket: str, key: str = "") -> None:
        if not _BUCKET.fullmatch(bucket):
            raise StoreError(
                f"s3://{bucket}/{key}: {bucket!r} is no bucket name (3 to 63 of a-z, 0-9, '.', '-'). Write "
                "s3://bucket/prefix/store.zarr."
            )
        parts = [part for part in key.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise StoreError(f"s3://{bucket}/{key}: '..' means nothing in an object's name. Write the whole prefix.")
        object.__setattr__(self, "bucket", bucket)
        object.__setattr__(self, "key", "/".join(parts))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __lt__(self, other: "ObjectPath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectPath, (self.bucket, self.key))

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.bucket, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name's last suffix, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "ObjectPath":
        """The prefix that holds it."""
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "ObjectPath":
        """Its neighbour of that name."""
        return self.parent / name

    def relative_to(self, other: "Location") -> PurePosixPath:
        """The rest of the key below a prefix. Raises ValueError when it is not below."""
        if not isinstance(other, ObjectPath) or other.bucket != self.bucket:
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    def exists(self) -> bool:
        """Whether there is such an object, or any object below this prefix. Raises StoreError as every request."""
        from storage.objects import client_of

        client = client_of(self)
        return client.size(self.key) is not None or client.any_below(self.key)


Location = Path | ObjectPath


def as_location(value: "str | os.PathLike[str] | ObjectPath") -> Location:
    """The location that a text or path names: `s3://bucket/prefix` an ObjectPath, all else a Path.

    A text that went through `Path` has lost a slash ("s3:/bucket/prefix"); it is taken for what it was.

    Raises:
        StoreError: another scheme than s3 and file, or no bucket.
    """
    if isinstance(value, ObjectPath):
        return value
    text = os.fspath(value)
    match = _SCHEME.fullmatch(text)
    if match is None:
        return Path(text)
    scheme, slashes, rest = match.groups()
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        return ObjectPath(bucket, key)
    if scheme == "file" and len(slashes) in (1, 3):
        return Path(f"/{rest}")
    if len(slashes) == 1 and len(scheme) == 1:
        return Path(text)  # a drive letter
    raise StoreError(f"{text}: a store lies on a disk (a path) or at s3://bucket/prefix; {scheme}: is neither.")
