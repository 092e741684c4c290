"""Reviewers' marks in the file beside the page: made and taken back while the page is served."""

import threading
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from storage.exclusions import ExcludedFrame, excluded_frames, merged, read_exclusions, without, write_exclusions
from storage.reader import StoreReader


class MarkFile:
    """A file of exclusions that changes mark by mark; threads may share it.

    Other marks in it, those of checks and of other reviewers' files that were merged into it, stay as they are.
    """

    def __init__(self, path: Path, store: str) -> None:
        self.path, self.store = path, store
        self._lock = threading.Lock()

    def read(self) -> list[ExcludedFrame]:
        """All marks; none before the first is made. Raises StoreError for a file that cannot be understood."""
        return read_exclusions(self.path) if self.path.exists() else []

    def add(self, marks: list[ExcludedFrame]) -> list[ExcludedFrame]:
        """Write marks beside those that are there; a keyframe's newer one takes the older one's place. Returns all.
        Raises StoreError."""
        with self._lock:  # two marks at once must not both start from the same file
            every = merged(self.read(), marks)
            self._write(every)
        return every

    def withdraw(self, marks: list[ExcludedFrame]) -> list[ExcludedFrame]:
        """Take marks back; one that is not there is no error, for another tab may have taken it back. Returns what is
        left, which may be nothing: the file then lists no keyframe. Raises StoreError."""
        with self._lock:
            kept = without(self.read(), marks)
            self._write(kept)
        return kept

    def _write(self, marks: list[ExcludedFrame]) -> None:
        try:
            write_exclusions(self.path, marks, self.store)
        except OSError as error:  # of a full disk the system does not say which file
            raise StoreError(f"{self.path}: cannot be written ({error.strerror}); make room or give access.") from None


def listed(reader: StoreReader, marks: list[ExcludedFrame]) -> list[dict[str, Any]]:
    """Marks as plain types for a page: `t` is where the keyframe is now, `stale` says why a mark no longer holds and is
    "" for one that does."""
    found = []
    for mark in marks:
        meant = excluded_frames(reader, [mark])
        t = next((t for _, t in meant.frames), mark.t)
        stale = meant.stale[0].partition(": ")[2] if meant.stale else ""
        row = {"scene": mark.scene, "t": t, "token": mark.token, "by": mark.by, "reason": mark.reason}
        found.append({**row, "fingerprints": dict(mark.fingerprints), "stale": stale})
    return found
