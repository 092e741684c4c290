"""Requests to an S3 bucket: each is repeated with back-off while its failure may pass, and means what it says.

A conditional put whose answer was lost is sent again and then refused, because the first one succeeded: the refusal is
compared with what is there before it counts as one. Needs the package obstore (`pip install 'occflow[s3]'`).
"""

from __future__ import annotations  # the method `list` hides the type in what follows it

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from storage.location import ObjectPath
from storage.object_errors import Failure, ObjectStoreError, explain, failure_of
from storage.object_options import open_bucket, options_of_environment

ATTEMPTS = 10
"""Times a request is sent before it is given up: about half a minute of waiting."""
FIRST_ATTEMPTS = 4
"""The same while the endpoint never answered: a mistyped one is told within seconds."""
BACKOFF_S, BACKOFF_MAX_S = 0.2, 10.0
WHOLE = 64 << 20
"""Bytes up to which an object goes up in one request; larger ones go in parts."""
IN_FLIGHT = 16
"""Requests of one process under way at a time."""
T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing: key, size in bytes, ETag, time of its last change."""

    key: str
    size: int
    tag: str
    changed: datetime


class ObjectClient:
    """One bucket. Threads share it; keys are of the whole bucket. Requests raise ObjectStoreError when they fail for
    good; an object that is not there is FileNotFoundError, or None where the return says so."""

    def __init__(self, bucket: str, options: dict[str, Any]) -> None:
        self.bucket = bucket
        self.endpoint = options.get("endpoint") or f"AWS S3, region {options['region']}"
        self.pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="s3")
        self.conditional: bool | None = None
        """Whether the server honours conditions on puts; None before that was tried."""
        self._reached = False
        self._store = open_bucket(bucket, options, retries=0)
        self._parts = open_bucket(bucket, options, retries=5)

    def get(self, key: str) -> bytes:
        """A whole object. Raises FileNotFoundError."""
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """A whole object and its ETag. Raises FileNotFoundError."""
        import obstore

        def request() -> tuple[bytes, str]:
            answer = obstore.get(self._store, key)
            return bytes(answer.bytes()), str(answer.meta["e_tag"])

        return self._found("GET", key, request)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Some bytes of an object. Raises FileNotFoundError; fewer bytes than asked for where the object ends."""
        import obstore

        def request() -> bytes:
            return bytes(obstore.get_range(self._store, key, start=offset, length=length))

        try:
            return self._attempt("GET", key, request)
        except _Refused as refused:
            if refused.failure.status == 416:  # it ends before the first of these bytes
                return b""
            raise self._error(refused.failure, "GET", key) from None

    def size(self, key: str) -> int | None:
        """Size in bytes, None where there is no such object."""
        import obstore

        try:
            return int(self._found("HEAD", key, lambda: obstore.head(self._store, key))["size"])
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object, in one step."""
        import obstore

        if len(data) > WHOLE:
            part = WHOLE // 4
            self._found("PUT", key, lambda: obstore.put(self._parts, key, data, use_multipart=True, chunk_size=part))
        else:
            self._found("PUT", key, lambda: obstore.put(self._store, key, data, use_multipart=False))

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        """Write an object if none is there (`tag` None), or if the one that is there has this ETag; else False.

        `data` must be unlike what anybody else writes under this key: the same bytes there count as our own success.
        On a server without conditional puts this is a look and then a put, and two writers may both succeed.
        """
        import obstore

        if not self.honours_conditions():
            return self._put_if_looking(key, data, tag)
        mode: Any = "create" if tag is None else {"e_tag": tag}
        try:
            self._attempt("PUT", key, lambda: obstore.put(self._store, key, data, mode=mode, use_multipart=False))
        except _Refused as refused:
            if refused.failure.status == 412 or (tag is not None and refused.failure.absent):
                return self._holds(key, data)
            raise self._explain(refused.failure, "PUT", key) from None
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        import obstore

        wanted = sorted(set(keys))
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            self._found("DELETE", some[0], lambda some=some: obstore.delete(self._store, some))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below `prefix/`, by key."""
        import obstore

        def request() -> list[ObjectInfo]:
            rows = [row for rows in obstore.list(self._store, f"{prefix}/", chunk_size=1000) for row in rows]
            return [ObjectInfo(row["path"], row["size"], str(row["e_tag"]), row["last_modified"]) for row in rows]

        return iter(sorted(self._found("LIST", f"{prefix}/", request), key=lambda info: info.key))

    def children(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Names of the folders, and objects, right below `prefix/`."""
        import obstore

        def request() -> tuple[list[str], list[ObjectInfo]]:
            answer = obstore.list_with_delimiter(self._store, f"{prefix}/" if prefix else None)
            rows = answer["objects"]
            found = [ObjectInfo(row["path"], row["size"], str(row["e_tag"]), row["last_modified"]) for row in rows]
            return [folder.rpartition("/")[2] for folder in answer["common_prefixes"]], found

        return self._found("LIST", f"{prefix}/", request)

    def any_below(self, prefix: str) -> bool:
        """Whether there is any object below `prefix/`."""
        import obstore

        request = lambda: next(iter(obstore.list(self._store, f"{prefix}/", chunk_size=1)), [])  # noqa: E731
        return bool(self._found("LIST", f"{prefix}/", request))

    def each(self, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """`function` of every item, several at a time; the first error is raised."""
        return list(self.pool.map(function, items))

    def honours_conditions(self) -> bool:
        """Whether `put_if` is decided by the server; `probe` finds out, and before it this is assumed."""
        return self.conditional is not False

    def probe(self, key: str) -> bool:
        """Find out, once, whether the server honours If-None-Match: a second put of the same key must be refused."""
        import obstore

        if self.conditional is not None:
            return self.conditional
        put = lambda data: obstore.put(self._store, key, data, mode="create", use_multipart=False)  # noqa: E731
        try:
            self._attempt("PUT", key, lambda: put(b"1"))
        except _Refused as refused:
            if refused.failure.unconditional:
                self.conditional = False
                return False
            if refused.failure.status != 412:  # that was ourselves: the answer to an earlier attempt was lost
                raise self._explain(refused.failure, "PUT", key) from None
        try:
            self._attempt("PUT", key, lambda: put(b"2"))
            self.conditional = False
        except _Refused as refused:
            if refused.failure.status != 412 and not refused.failure.unconditional:
                raise self._explain(refused.failure, "PUT", key) from None
            self.conditional = refused.failure.status == 412
        self.delete([key])
        return self.conditional

    def _put_if_looking(self, key: str, data: bytes, tag: str | None) -> bool:
        try:
            there: str | None = self.get_tagged(key)[1]
        except FileNotFoundError:
            there = None
        if there != tag:
            return False
        self.put(key, data)
        return True

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get(key) == data
        except FileNotFoundError:
            return False

    def _found(self, what: str, key: str, request: Callable[[], T]) -> T:
        """The answer. Raises FileNotFoundError for an object that is not there, ObjectStoreError for all else."""
        try:
            return self._attempt(what, key, request)
        except _Refused as refused:
            raise self._error(refused.failure, what, key) from None

    def _error(self, failure: Failure, what: str, key: str) -> Exception:
        if failure.absent and what != "LIST":
            return FileNotFoundError(errno.ENOENT, "there is no such object", f"s3://{self.bucket}/{key}")
        return self._explain(failure, what, key)

    def _attempt(self, what: str, key: str, request: Callable[[], T]) -> T:
        """The answer, after as many attempts as it takes. Raises _Refused for an answer that will not change."""
        tries = 0
        while True:
            tries += 1
            try:
                answer = request()
            except Exception as error:
                if not _of_obstore(error):
                    raise
                failure = failure_of(error)
                self._reached = self._reached or failure.status is not None
                lapsed = failure.code == "NoCredentials" and self._reached  # there were some: they may be back
                if not failure.transient and not lapsed:
                    raise _Refused(failure) from None
                if tries >= (ATTEMPTS if self._reached else FIRST_ATTEMPTS):
                    final = self._explain(failure, what, key, tries)
                    raise final from final.__cause__
            else:
                self._reached = True
                return answer
            # Half of the delay is drawn: clients that failed together must not come back together.
            delay = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (tries - 1))
            time.sleep(delay * (0.5 + 0.5 * random.random()))

    def _explain(self, failure: Failure, what: str, key: str, tries: int = 1) -> ObjectStoreError:
        return explain(failure, what, f"s3://{self.bucket}/{key}", self.bucket, self.endpoint, tries)


class _Refused(Exception):
    """An answer that says no, and will say so again."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def _of_obstore(error: Exception) -> bool:
    from obstore.exceptions import BaseError

    return isinstance(error, BaseError | FileNotFoundError)


_clients: dict[tuple[Any, ...], ObjectClient] = {}
_opening = threading.Lock()


def client_of(path: ObjectPath) -> ObjectClient:
    """This process's client of a path's bucket, under what the environment says now. Raises StoreError."""
    options = options_of_environment()
    # A client made before a fork is not used after it: its threads are not there.
    key = (os.getpid(), path.bucket, *sorted(options.items()))
    with _opening:
        if key not in _clients:
            _clients[key] = ObjectClient(path.bucket, options)
        return _clients[key]


def age_s(info: ObjectInfo) -> float:
    """Seconds since an object was changed, by this machine's clock."""
    return (datetime.now(UTC) - info.changed).total_seconds()
