"""Reads a JSON array of records one at a time, in memory bounded by one chunk: nuScenes' tables reach gigabytes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipelines.datasets.records import DataError

CHUNK_CHARACTERS = 1 << 20
MAX_RECORD_CHARACTERS = 4 << 20
"""A record longer than this is taken for damage: without a bound one lost bracket would pull in the whole file."""

_BLANK = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")


def stream_records(path: Path, chunk: int = CHUNK_CHARACTERS) -> Iterator[dict[str, Any]]:
    """Yield the objects of the JSON array in `path`, in order.

    Args:
        path: UTF-8 file that holds one JSON array of objects.
        chunk: characters read at a time. Peak memory is a few chunks, whatever the size of the file.

    Raises:
        DataError: the file is missing, is not an array of objects, ends early, or is not JSON in UTF-8.
    """
    try:
        file = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot read this table ({error.strerror}); unpack the data set's tables") from error
    decoder = json.JSONDecoder()
    with file:
        buffer = _read(file, chunk, path, 0)
        position = _skip(_BLANK, buffer, 0)
        if buffer[position : position + 1] != "[":
            raise DataError(f"{path}: expected a JSON array of records, found {buffer[position : position + 20]!r}")
        position += 1
        count = 0
        while True:
            position = _skip(_SEPARATOR, buffer, position)
            if buffer[position : position + 1] == "]":
                return
            try:
                record, position = decoder.raw_decode(buffer, position)
            except json.JSONDecodeError as error:
                more = _read(file, chunk, path, count)
                if not more or len(buffer) - position > MAX_RECORD_CHARACTERS:
                    raise DataError(_damage(path, count, error, truncated=not more)) from error
                buffer, position = buffer[position:] + more, 0
                continue
            if not isinstance(record, dict):
                raise DataError(f"{path}: record {count} is {record!r:.40}, expected an object; unpack the table again")
            count += 1
            yield record


def _read(file: TextIO, chunk: int, path: Path, count: int) -> str:
    try:
        return file.read(chunk)
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise DataError(
            f"{path}: byte 0x{wrong:02x}, which is not UTF-8, after {count} records or more; unpack the table again"
        ) from error


def _skip(pattern: re.Pattern[str], buffer: str, position: int) -> int:
    match = pattern.match(buffer, position)
    return match.end() if match else position


def _damage(path: Path, count: int, error: json.JSONDecodeError, truncated: bool) -> str:
    what = "the file ends inside the array (truncated)" if truncated else f"not JSON ({error.msg})"
    return f"{path}: {what} after {count} whole records, {path.stat().st_size} bytes on disk; unpack the table again"
