"""Commit records as one reader sees them: of each unit one, for as long as it reads."""

import os
import threading
import time

from storage.commit import CommitRecord, commit_path, read_record, read_records, record_units
from storage.errors import CueMissing, StoreRebuilt
from storage.layout import INIT, UnitId
from storage.location import Location, ObjectPath

RECORDS_S = 5.0
"""Seconds for which a listing of a bucket's records is believed: so long a new unit may stay unseen."""


class KnownRecords:
    """Records of one store, kept once they are found. Threads may share it.

    Args:
        ahead: in a bucket, read the records of a whole scene when one of them is wanted, several at a time, and
            believe a listing of the records for RECORDS_S: for readers that go through scenes.
    """

    def __init__(self, root: Location, *, ahead: bool = False) -> None:
        self.root = root
        self.ahead = ahead
        self._lock = threading.Lock()
        self._records: dict[UnitId, CommitRecord] = {}
        self._stamps: dict[UnitId, tuple[int, int] | None] = {}
        self._listing_lock = threading.Lock()
        self._listing: tuple[float, set[UnitId]] = (-RECORDS_S, set())

    def record(self, unit: UnitId) -> CommitRecord | None:
        """The unit's record, None when it is not committed. A found record is kept: the reader sees one generation."""
        with self._lock:
            known = self._records.get(unit)
        if known is not None:
            return known
        if self.ahead and isinstance(self.root, ObjectPath):
            return self._record_ahead(unit)
        stamp = _stamp(commit_path(self.root, unit))
        found = read_record(self.root, unit)
        if found is not None:
            with self._lock:
                if unit not in self._records:
                    self._records[unit], self._stamps[unit] = found, stamp
                found = self._records[unit]
        return found

    def _record_ahead(self, unit: UnitId) -> CommitRecord | None:
        """As `record`, with all records of its scene."""
        # Not the other lock: whoever holds that one waits for no request.
        with self._listing_lock:
            listed, present = self._listing
            if time.monotonic() - listed > RECORDS_S:
                present = set(record_units(self.root))
                self._listing = (time.monotonic(), present)
            wanted = [u for u in present if u.scene == unit.scene and u not in self._records]
            if unit in wanted:
                for one, found in zip(wanted, read_records(self.root, wanted), strict=True):
                    if isinstance(found, CommitRecord):
                        self._records[one] = found
                    elif one == unit and found is not None:
                        raise found
            return self._records.get(unit)

    def visible(self, unit: UnitId) -> CommitRecord | None:
        """As `record`, but None also for a block that was committed under another init unit than the scene's."""
        record = self.record(unit)
        if record is None:
            return None
        init = self.record(UnitId(INIT, unit.scene))
        return record if init is not None and init.init == record.init else None

    def require(self, unit: UnitId) -> CommitRecord:
        """As `visible`. Raises CueMissing."""
        record = self.visible(unit)
        if record is None:
            raise CueMissing(
                f"{self.root}: unit {unit} is not committed. Run `occflow cues CONFIG --scenes {unit.scene}"
                + (f" --cues {unit.cue}`." if unit.cue != INIT else "`.")
            )
        return record

    def unchanged(self, record: CommitRecord) -> bool:
        """Whether the record's file is still the one that was read; in a bucket nobody asks."""
        return self._stamps.get(record.unit) == _stamp(commit_path(self.root, record.unit))

    def check_current(self, record: CommitRecord, key: str) -> None:
        """Raise StoreRebuilt, naming a file, unless the unit is still committed with the same data."""
        stamp = _stamp(commit_path(self.root, record.unit))
        current = read_record(self.root, record.unit)
        if current is None or (current.init, current.shards) != (record.init, record.shards):
            state = "was rebuilt" if current is not None else "is no longer committed"
            raise StoreRebuilt(
                f"{self.root / key}: unit {record.unit} {state} since this reader opened it. Open the store again "
                "(a new StoreReader) to read what is committed now."
            )
        with self._lock:
            self._stamps[record.unit] = stamp


def _stamp(path: Location) -> tuple[int, int] | None:
    """What changes when a file is replaced; None without a file, and for an object: nobody asks for it."""
    if isinstance(path, ObjectPath):
        return None
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns
