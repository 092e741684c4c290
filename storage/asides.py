"""What lies in a store beside records and data: facts of raw files, the index, journals of runs; is it still whole?

A line of these ends in its own checksum. One that was written before there were checksums has none, and is taken as it
is. Nothing committed depends on any of them: what is damaged is as good as not there.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from storage.backend import backend
from storage.checksum import crc32c
from storage.index import INDEX, index_body
from storage.location import Location

INPUTS = "inputs"
"""Folder of the facts of raw files, one file of one line per scene."""
RUNS = "commits/.runs"
_MARK = b"\t"
"""Between a line's JSON, which never holds a bare tab, and the checksum."""


def seal(body: bytes) -> bytes:
    """The line for JSON in one line: the JSON, a tab, its crc32c in eight hex digits, a newline."""
    return body + _MARK + f"{crc32c(body):08x}".encode() + b"\n"


def unseal(line: bytes) -> bytes:
    """The JSON of a line without its newline. Raises ValueError where it is not what was sealed."""
    body, mark, digest = line.rpartition(_MARK)
    if not mark:
        return line
    if digest != f"{crc32c(body):08x}".encode():
        raise ValueError("not what was written: its checksum differs")
    return body


def damaged_asides(root: Location) -> Iterator[tuple[str, str]]:
    """Key and what is wrong, of every such file that is not whole."""
    place = backend(root)
    with contextlib.suppress(FileNotFoundError):
        if index_body(place.get(INDEX)) is None:
            yield INDEX, "not what was written; it is made anew from the records"
    for name in place.children(INPUTS)[1]:
        if name.endswith(".json") and not _whole(place.get(f"{INPUTS}/{name}").removesuffix(b"\n")):
            yield f"{INPUTS}/{name}", "not what was written: facts of raw files, which are then read anew"
    for name in place.children(RUNS)[1] if isinstance(root, Path) else ():
        if name.endswith(".jsonl") and not _whole_journal(place.get(f"{RUNS}/{name}")):
            yield f"{RUNS}/{name}", "not what was written: the journal of a run"


def _whole_journal(content: bytes) -> bool:
    """Whether every line is; a last one that a kill or a full disk cut off counts as whole."""
    *lines, tail = content.split(b"\n")
    newline_changed = _MARK in tail and _whole(tail[:-1])
    return not newline_changed and all(_whole(line) for line in lines)


def _whole(line: bytes) -> bool:
    try:
        json.loads(unseal(line))
    except ValueError:
        return False
    return True
