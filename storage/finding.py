"""What can be wrong with a store, as `verify` tells it and `repair` is told."""

from dataclasses import dataclass

from storage.layout import UnitId
from storage.location import Location


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: `schema` (another schema version), `root` (root zarr.json or its copy), `record` (undecodable or
            misplaced record), `waiting` (a record whose scene's init unit is not committed), `denied` (a file that
            this user may not read, which says nothing about it), `missing`, `size`,
            `digest` (a shard against its record), `metadata` (a zarr.json), `chunk` (does not decode), `value`
            (decodes, but breaks a rule), `orphan` (data without a record), `temporary` (left by a killed writer),
            `aside` (facts of raw files, index or journal, not whole).
        path: the file.
        detail: what was found and what was expected.
        unit: the unit concerned, where there is one.
    """

    kind: str
    path: Location
    detail: str
    unit: UnitId | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.detail}"
