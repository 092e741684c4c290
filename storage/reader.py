"""What training and evaluation read: cues of one camera at one keyframe, decoded, checked, and only if committed."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int16, Int32, UInt8, UInt16

from storage.attributes import read_attributes
from storage.chunks import ChunkReader
from storage.commit import CommitRecord
from storage.errors import CueMissing, StoreDamage, StoreError
from storage.layout import INIT, UnitId
from storage.location import ObjectPath, as_location
from storage.schema import CUES, SceneTable, StoreAttributes, decode_flow

_SELDOM_READ = {spec.name for specs in CUES.values() for spec in specs if spec.optional}
"""Arrays that no step of training reads: nothing fetches them beforehand."""


@dataclass(frozen=True)
class FlowCue:
    """Stored optical flow of one camera-frame, on frame t's render pixel grid.

    Attributes:
        flow: int16 (2, h, w), channels u right and v down, 1/64 render pixel, -32768 = no correspondence.
        confidence: uint8 (h, w), 255 = sure.
        target_frame: keyframe index where the flow ends, -1 = there is none.
        target_sweep: slot of the sweep after that keyframe where it ends, -1 = the keyframe itself.
    """

    flow: Int16[np.ndarray, "2 h w"]
    confidence: UInt8[np.ndarray, "h w"]
    target_frame: int
    target_sweep: int

    def pixels(self) -> tuple[Float32[np.ndarray, "2 h w"], Bool[np.ndarray, "h w"]]:
        """Flow in render pixels (nan where there is none), and where there is some."""
        flow = decode_flow(self.flow)
        return flow, ~np.isnan(flow[0])


@dataclass(frozen=True)
class LidarCue:
    """LiDAR points of one keyframe.

    Attributes:
        points: float32 (n, 4), x y z in metres in the ego frame at LiDAR time, intensity as the data set gives it.
        cameras: uint8 (n,), bit c set where camera c sees the point.
        origin: float32 (3,), the sensor's position in the ego frame, metres.
    """

    points: Float32[np.ndarray, "n 4"]
    cameras: UInt8[np.ndarray, " n"]
    origin: Float32[np.ndarray, " 3"]


def decode_jpeg(data: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels of JPEG bytes (uint8, one axis). Raises ValueError."""
    try:
        import cv2
    except ImportError:
        return _decode_jpeg_pillow(data)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("OpenCV cannot decode them")
    return np.asarray(image, np.uint8)


def _decode_jpeg_pillow(data: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data.tobytes())) as image:
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(str(error)) from error


class SceneReader:
    """The committed cues of one scene. Keyframe `t`, camera `c` (order of the attributes), sweep slot `p`.

    Every read raises CueMissing (unit not committed, or no such image), StoreDamage (the disk no longer holds what was
    committed), StoreRebuilt (committed anew since; open the store again), IndexError (outside the scene).
    """

    def __init__(self, source: ChunkReader, attributes: StoreAttributes, name: str) -> None:
        self.name = name
        self._source = source
        self._attributes = attributes
        self._table: SceneTable | None = None
        self._units: dict[tuple[str, int], UnitId] = {}
        self._records: dict[UnitId, CommitRecord] = {}
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

    def unit(self, cue: str, t: int) -> UnitId:
        """The unit that holds a cue at a keyframe. Raises IndexError outside the scene."""
        if not 0 <= t < self.length:
            raise IndexError(f"scene {self.name!r} has keyframes 0 to {self.length - 1}, not {t}")
        key = cue, t // self._attributes.block_keyframes
        if key not in self._units:  # checking a name costs as much as all else that is done before a read
            self._units[key] = UnitId(cue, self.name, key[1])
        return self._units[key]

    def has(self, cue: str, t: int) -> bool:
        """Whether this cue is committed at this keyframe."""
        return self._source.visible(self.unit(cue, t)) is not None

    def record(self, cue: str, t: int) -> CommitRecord:
        """The commit record of the block: provenance, quality figures, notes. Raises CueMissing."""
        unit = self.unit(cue, t)
        found = self._records.get(unit)
        if found is None:  # what the source has once found it keeps, and so may this
            found = self._records[unit] = self._source.require(unit)
        return found

    def prefetch(self, wanted: Iterable[tuple[str, int] | tuple[str, int, int]]) -> None:
        """Fetch (cue, keyframe), or (cue, keyframe, sweep slot), for all cameras: a sample's list, before it is read.

        From a bucket in requests side by side, kept in memory (the last shards.KEPT bytes); on a disk by asking the
        kernel to read ahead, which costs next to nothing where all is in memory. Cues that are not committed are
        passed over. What fails is told when it is read.
        """
        found = [(self._source.visible(self.unit(cue, t)), t, slot[0] if slot else None) for cue, t, *slot in wanted]
        wanted_arrays = ((r, s.layout.name, t, slot) for r, t, slot in found if r is not None for s in r.shards)
        self._source.prefetch(one for one in wanted_arrays if one[1] not in _SELDOM_READ)

    def image(self, t: int, c: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB image at network size."""
        return self._image("images", "images", "images_length", t, c)

    def sweep_image(self, t: int, p: int, c: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB image at render size of the sweep in slot `p` after keyframe `t`."""
        return self._image("sweeps", "sweeps/images", "sweeps/images_length", t, p, c)

    def masks(self, t: int, c: int) -> UInt16[np.ndarray, "H W"]:
        """Instance ids at network size, 0 = background."""
        return self._source.chunk(self.record("masks", t), "masks/instance", t, c)

    def mask_table(self, t: int, c: int) -> Float32[np.ndarray, "m 8"]:
        """Rows in use of the instance table, columns as schema.MASK_TABLE_FIELDS."""
        rows = self._source.chunk(self.record("masks", t), "masks/table", t, c)
        return rows[rows[:, 0] > 0]

    def scene_ids(self, t: int, c: int) -> Int32[np.ndarray, " m"]:
        """Id over the whole scene of each row of `mask_table`, from the cue `instances`."""
        rows = len(self.mask_table(t, c))
        return self._source.chunk(self.record("instances", t), "instances/linked", t, c)[:rows]

    def flow(self, slot: str, t: int, c: int) -> FlowCue:
        """Flow of slot `next`, `prev` or `aux`. Where there is no target frame all of it is invalid."""
        record = self.record(f"flow_{slot}", t)
        self._together(f"flow_{slot}", t)
        read, small = self._source.chunk, self._source.small
        return FlowCue(
            flow=read(record, f"flow/{slot}/flow", t, c),
            confidence=read(record, f"flow/{slot}/confidence", t, c),
            target_frame=int(small(record, f"flow/{slot}/target_frame", t)[c]),
            target_sweep=int(small(record, f"flow/{slot}/target_sweep", t)[c]),
        )

    def flow_source(self, slot: str, t: int, c: int) -> UInt8[np.ndarray, "h w"] | None:
        """Where each pixel's flow is from, see schema.NO_FLOW; None where the block does not say (a single backend)."""
        record, name = self.record(f"flow_{slot}", t), f"flow/{slot}/source"
        if all(shard.layout.name != name for shard in record.shards):
            return None
        return self._source.chunk(record, name, t, c)

    def lidar(self, t: int) -> LidarCue:
        """LiDAR points of a keyframe; none where the sweep is missing."""
        record = self.record("lidar", t)
        self._together("lidar", t)
        read, small = self._source.chunk, self._source.small
        count = int(small(record, "lidar/count", t))
        return LidarCue(
            points=read(record, "lidar/points", t)[:count],
            cameras=read(record, "lidar/cameras", t)[:count],
            origin=small(record, "lidar/origin", t).copy(),
        )

    def _together(self, cue: str, t: int, *slot: int) -> None:
        """In a bucket, have the requests for a cue's arrays under way side by side."""
        if self._source.remote:
            self.prefetch([(cue, t, *slot)])  # type: ignore[list-item]

    def _image(self, cue: str, array: str, lengths: str, t: int, *rest: int) -> UInt8[np.ndarray, "height width 3"]:
        record = self.record(cue, t)
        self._together(cue, t, *rest[:-1])
        length = int(self._source.small(record, lengths, t)[rest])
        data = self._source.borrowed(record, array, t, *rest)

        def where() -> str:
            return f"{self._source.root}: unit {record.unit}, keyframe {t}, {'slot, ' * (len(rest) - 1)}camera {rest}"

        if length == 0:
            raise CueMissing(f"{where()}: the data set has no such image. Ask the scene table's camera_valid before.")
        try:
            return decode_jpeg(data[:length])
        except ValueError as error:
            raise StoreDamage(
                f"{where()}: the committed bytes are no image ({error}). Rebuild the unit with `occflow cues`."
            ) from error


class StoreReader:
    """Reads a cue store without zarr, on a disk or at s3://bucket/prefix. Threads may share it; it pickles as its path,
    and opens files lazily in the process that reads (also after `spawn`).

    Raises:
        StoreError: there is no store here, or it holds truth, which training must not see.
        SchemaVersionError: it has another schema version.
    """

    kind = "cues"

    def __init__(self, path: str | Path | ObjectPath) -> None:
        self.path = as_location(path)
        self._lock = threading.Lock()
        self._source = ChunkReader(self.path, ahead=True)
        self._scenes: dict[str, SceneReader] = {}
        self._attributes: StoreAttributes | None = None
        _ = self.attributes

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])

    @property
    def attributes(self) -> StoreAttributes:
        """Root attributes: data set, cameras, classes, sizes."""
        if self._attributes is None:
            attributes = read_attributes(self.path)
            if attributes.kind != self.kind:
                raise StoreError(
                    f"{self.path}: this store holds {attributes.kind!r}, and this reader reads {self.kind!r} only. "
                    "Give the path of the cue store; evaluation finds the truth beside it."
                )
            self._attributes = attributes
        return self._attributes

    def scenes(self) -> list[str]:
        """Names of the scenes whose init unit is committed, sorted."""
        return self._source.scenes()

    def scene(self, name: str) -> SceneReader:
        """One scene. Raises CueMissing when its init unit is not committed."""
        with self._lock:
            if name not in self._scenes:
                self._scenes[name] = SceneReader(self._source, self.attributes, name)
            return self._scenes[name]
