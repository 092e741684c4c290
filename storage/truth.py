"""Ground truth beside a cue store, for evaluation only; the training reader has no call that opens it."""

import contextlib
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from storage.attributes import read_attributes
from storage.chunks import ChunkReader
from storage.commit import CommitRecord, read_records
from storage.errors import CueMissing, StoreDamage, StoreError
from storage.layout import INIT, UnitId, generation_path
from storage.location import Location, ObjectPath, as_location
from storage.schema import SceneTable, StoreAttributes, decode_flow


def truth_path(store: str | Path | ObjectPath) -> Location:
    """Path of the truth store that belongs to a cue store: `<store>.truth.zarr` for `<store>.zarr`."""
    path = as_location(store)
    stem = path.name.removesuffix(".zarr")
    return path.with_name(f"{stem}.truth.zarr")


class TruthScene:
    """Truth of one scene; reads raise CueMissing, StoreDamage, StoreRebuilt and IndexError as the cue reader's."""

    def __init__(self, source: ChunkReader, attributes: StoreAttributes, name: str) -> None:
        self.name = name
        self._source = source
        self._attributes = attributes
        self._table: SceneTable | None = None
        self._length = source.require(UnitId(INIT, name)).frames[1]

    @property
    def table(self) -> SceneTable:
        """Poses, calibration and times of the scene."""
        if self._table is None:
            self._table = self._source.table(self.name)
        return self._table

    @property
    def length(self) -> int:
        """T, the number of keyframes."""
        return self._length

    def keyframe(self, token: str) -> int | None:
        """The number of the keyframe with this token, None where the truth has none such."""
        return self._numbers.get(token)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: t for t, token in enumerate(self._source.tokens(self.name))}

    def _unit(self, cue: str, t: int) -> UnitId:
        if not 0 <= t < self.length:
            raise IndexError(f"scene {self.name!r} has keyframes 0 to {self.length - 1}, not {t}")
        return UnitId(cue, self.name, t // self._attributes.block_keyframes)

    def has(self, cue: str, t: int) -> bool:
        """Whether truth `occupancy`, `camera` or `boxes` is committed at this keyframe."""
        return self._source.visible(self._unit(cue, t)) is not None

    def occupancy(self, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Semantics uint8 (X, Y, Z) and flow float32 (X, Y, Z, 2) in m/s, ego frame at LiDAR time; None where the
        keyframe has none."""
        record = self._source.require(self._unit("occupancy", t))
        read = self._source.chunk
        if not int(read(record, "occupancy/valid", t)):
            return None
        return read(record, "occupancy/semantics", t), read(record, "occupancy/flow", t)

    def camera(self, t: int, c: int) -> dict[str, np.ndarray] | None:
        """Per-pixel truth of a camera-frame, None where there is none.

        Keys: depth float32 (h, w), camera z in metres, inf = sky; instance uint16 (H, W), 0 = static; moving uint8
        (H, W); flow_next float32 (2, h, w) in render pixels, nan where the point is hidden or leaves the image.
        """
        record = self._source.require(self._unit("camera", t))
        read = self._source.chunk
        if not int(read(record, "camera/valid", t)[c]):
            return None
        found = {name: read(record, f"camera/{name}", t, c) for name in ("depth", "instance", "moving", "flow_next")}
        return {**found, "flow_next": decode_flow(found["flow_next"])}

    def boxes(self, t: int) -> np.ndarray | None:
        """Labelled boxes of a keyframe, float32 (n, 12) with the columns `storage.schema.BOX_FIELDS`; None where nobody
        labelled it."""
        record = self._source.require(self._unit("boxes", t))
        count = int(self._source.chunk(record, "boxes/count", t))
        return None if count < 0 else self._source.chunk(record, "boxes/table", t)[:count]


class PairedTruth:
    """Truth of one scene by the keyframes of the cue store beside it, paired by token.

    The two stores may hold other keyframes: of another `keyframe_every`, or where truth was not made anew with the
    cues. A keyframe that the truth does not know has none. Errors as those of TruthScene.

    Args:
        scene: the truth.
        tokens: of the cue store's scene table, by keyframe.
    """

    def __init__(self, scene: TruthScene, tokens: Sequence[str]) -> None:
        self._scene, self._tokens = scene, tokens

    def _there(self, t: int) -> int | None:
        if not 0 <= t < len(self._tokens):
            raise IndexError(f"scene {self._scene.name!r} has keyframes 0 to {len(self._tokens) - 1}, not {t}")
        return self._scene.keyframe(self._tokens[t])

    def has(self, cue: str, t: int) -> bool:
        """Whether truth `occupancy`, `camera` or `boxes` of this keyframe is committed."""
        there = self._there(t)
        return there is not None and self._scene.has(cue, there)

    def occupancy(self, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """See TruthScene."""
        there = self._there(t)
        return None if there is None else self._scene.occupancy(there)

    def camera(self, t: int, c: int) -> dict[str, np.ndarray] | None:
        """See TruthScene; `flow_next` is nan where it ends in another keyframe than the cue store's next one."""
        there = self._there(t)
        if there is None:
            return None
        found = self._scene.camera(there, c)
        following = self._there(t + 1) if t + 1 < len(self._tokens) else None
        if found is not None and following != there + 1:
            found["flow_next"] = np.full_like(found["flow_next"], np.nan)
        return found

    def boxes(self, t: int) -> np.ndarray | None:
        """See TruthScene."""
        there = self._there(t)
        return None if there is None else self._scene.boxes(there)


class TruthReader:
    """Reads a truth store. Threads may share it; it pickles as its path.

    Raises:
        StoreError: there is no store here, or it holds cues.
        SchemaVersionError: it has another schema version.
    """

    def __init__(self, path: str | Path | ObjectPath) -> None:
        self.path = as_location(path)
        self.attributes = read_attributes(self.path)
        if self.attributes.kind != "truth":
            raise StoreError(
                f"{self.path}: this store holds {self.attributes.kind!r}, not truth. Give `truth_path(store)`."
            )
        self._lock = threading.Lock()
        self._source = ChunkReader(self.path, ahead=True)
        self._scenes: dict[str, TruthScene] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])

    def scenes(self) -> list[str]:
        """Names of the scenes whose init unit is committed, sorted."""
        return self._source.scenes()

    def scene(self, name: str) -> TruthScene:
        """One scene. Raises CueMissing when its init unit is not committed."""
        with self._lock:
            if name not in self._scenes:
                self._scenes[name] = TruthScene(self._source, self.attributes, name)
            return self._scenes[name]

    def paired(self, name: str, tokens: Sequence[str]) -> PairedTruth | None:
        """One scene by the keyframes of the cue store beside, which have these tokens; None where it has no truth."""
        try:
            return PairedTruth(self.scene(name), tokens)
        except CueMissing:
            return None


def other_keyframes(store: Location, truth: Location, scenes: Sequence[str]) -> dict[str, str]:
    """Scenes whose truth is of other keyframes than the cues, and what is to be done; scenes that cannot be read are
    left out, for that is told elsewhere."""
    units = [UnitId(INIT, scene) for scene in scenes]
    sources = ChunkReader(store), ChunkReader(truth)
    found: dict[str, str] = {}
    for unit, *records in zip(units, *(read_records(source.root, units) for source in sources), strict=True):
        tables = [_table_digest(record) for record in records]
        if None in tables or tables[0] == tables[1]:
            continue
        with contextlib.suppress(StoreError):
            ours, theirs = (source.tokens(unit.scene) for source in sources)
            if ours != theirs:
                found[unit.scene] = (
                    f"of other keyframes than the cues: {len(set(ours) & set(theirs))} of {len(ours)} have truth; run "
                    "the cues' `occflow cues` command with truth among --cues"
                )
    return found


def _table_digest(record: CommitRecord | StoreDamage | None) -> str | None:
    """SHA-256 of the file that holds a scene's tokens, as its init record names it."""
    if not isinstance(record, CommitRecord):
        return None
    return record.metadata.get(f"{generation_path(record.unit.scene, record.generation)}/frames/zarr.json")
