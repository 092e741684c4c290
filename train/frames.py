"""Decoded frames of a store at the sizes training needs, kept in a bounded cache."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, Int64, UInt8, UInt16

from geometry.cameras import in_image, project, scale_intrinsics
from geometry.transforms import invert, transform_points
from storage.errors import CueMissing, StoreError
from storage.queue import put_planes, queue_arrays
from storage.reader import SceneReader, StoreReader
from storage.schema import INVALID_FLOW, MASK_TABLE_FIELDS, MASK_TABLE_ROWS, SceneTable

_ID, _SCORE = MASK_TABLE_FIELDS.index("id"), MASK_TABLE_FIELDS.index("score")


class ByteCache:
    """Least recently used arrays up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._entries: OrderedDict[tuple, tuple[np.ndarray, ...]] = OrderedDict()

    def __contains__(self, key: tuple) -> bool:
        return key in self._entries

    def get(self, key: tuple, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """The arrays kept under `key`, made if they are not there. Read-only: everybody gets the same arrays."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        value = make()
        size = sum(array.nbytes for array in value)
        if size <= self.limit:
            for array in value:
                array.setflags(write=False)
            self._entries[key] = value
            self.size += size
            while self.size > self.limit:
                _, dropped = self._entries.popitem(last=False)
                self.size -= sum(array.nbytes for array in dropped)
        return value


SINGLE_USE = frozenset({"next", "prev", "aux", "sweep"})
"""Kinds of frames that hardly another sample reads than that of their own keyframe."""


@dataclass(frozen=True)
class StoredFlow:
    """A flow cue of one camera: int16 (2, h, w) in 1/64 render pixel, known (h, w), how sure it is (h, w; 255 = sure),
    and the image it ends in."""

    flow: Int16[np.ndarray, "2 h w"]
    known: Bool[np.ndarray, "h w"]
    confidence: UInt8[np.ndarray, "h w"]
    target_frame: int
    target_sweep: int


def _planes(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "3 height width"]:
    out = np.empty((3, *image.shape[:2]), np.uint8)
    put_planes(image, out)
    return out


def average_blocks(image: UInt8[np.ndarray, "*any H W"], factor: int) -> UInt8[np.ndarray, "*any h w"]:
    """Mean of `factor` x `factor` pixels, rounded to the nearest whole number, halves to the even one."""
    if factor == 1:
        return image.copy()
    count = factor * factor
    rows = image[..., ::factor, :].astype(np.uint32 if count > 256 else np.uint16)
    for k in range(1, factor):
        rows += image[..., k::factor, :]
    total: Any = rows[..., ::factor].copy()
    for k in range(1, factor):
        total += rows[..., k::factor]
    if factor == 2:  # the common case, without a division: a half (2 of 4) goes up where the quotient is odd
        return ((total + 1 + ((total >> 2) & 1)) >> 2).astype(np.uint8)
    quotient, rest = np.divmod(total.astype(np.uint32), count)
    return (quotient + ((2 * rest > count) | ((2 * rest == count) & (quotient % 2 == 1)))).astype(np.uint8)


class CachedScene:
    """One scene's decoded frames. `t` keyframe, `c` camera, `p` sweep slot, as in the store."""

    def __init__(
        self,
        scene: SceneReader,
        cache: ByteCache,
        factor: int,
        render_size: tuple[int, int],
        once: frozenset[str] = frozenset(),
    ) -> None:
        """`once`: kinds that are not kept."""
        self.name = scene.name
        self.table: SceneTable = scene.table
        self.render_size = render_size
        self._scene, self._cache, self._factor, self._once = scene, cache, factor, once

    def has(self, cue: str, t: int) -> bool:
        """Whether the cue is committed at this keyframe."""
        return self._scene.has(cue, t)

    def prefetch(self, wanted: Iterable[tuple[str, str, int] | tuple[str, str, int, int]]) -> None:
        """Fetch what a sample is about to read, (cue, kind of cache entry, keyframe[, sweep slot]), all of it at once.

        What is kept decoded for every camera is passed over.
        """
        self._scene.prefetch({(cue, *place) for cue, kind, *place in wanted if not self._kept(kind, *place)})

    def _kept(self, kind: str, t: int, *slot: int) -> bool:
        if kind == "lidar":
            return (self.name, kind, t) in self._cache
        cameras = np.flatnonzero(self.table.camera_valid[t])
        kinds = ("render", "image") if kind == "render" else (kind,)  # one is made of the other
        return all(any((self.name, k, t, *slot, int(c)) in self._cache for k in kinds) for c in cameras)

    def image(self, t: int, c: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB at network size."""
        return self._cache.get((self.name, "image", t, c), lambda: (self._scene.image(t, c),))[0]

    def queue(self, t: int, length: int) -> dict[str, np.ndarray]:
        """The network's input at keyframe t, storage.queue.queue_arrays' keys."""
        return queue_arrays(self, t, length)

    def render_image(self, t: int, c: int) -> UInt8[np.ndarray, "3 h w"]:
        """Keyframe image at render size: network pixels averaged."""

        def make() -> tuple[np.ndarray, ...]:
            return (average_blocks(_planes(self.image(t, c)), self._factor),)

        return self._cache.get((self.name, "render", t, c), make)[0]

    def sweep_image(self, t: int, p: int, c: int) -> UInt8[np.ndarray, "3 h w"]:
        """Sweep image at render size."""

        def make() -> tuple[np.ndarray, ...]:
            return (_planes(self._scene.sweep_image(t, p, c)),)

        return make()[0] if "sweep" in self._once else self._cache.get((self.name, "sweep", t, p, c), make)[0]

    def movable(self, t: int, c: int, min_score: float) -> Bool[np.ndarray, "h w"]:
        """Where a movable thing is, at render size."""
        return self._cache.get((self.name, "movable", t, c), lambda: (self.instances(t, c, min_score) > 0,))[0]

    def instances(self, t: int, c: int, min_score: float) -> UInt16[np.ndarray, "h w"]:
        """Which movable thing is seen, 0 for none, at render size (the network-size mask at each render pixel's
        middle)."""
        f = self._factor

        def make() -> tuple[np.ndarray, ...]:
            instance = np.asarray(self._scene.masks(t, c)[f // 2 :: f, f // 2 :: f], dtype=np.uint16)
            if min_score > 0:
                table = self._scene.mask_table(t, c)
                sure = table[table[:, _SCORE] >= min_score, _ID].astype(instance.dtype)
                instance = np.where(np.isin(instance, sure), instance, np.uint16(0))
            return (np.ascontiguousarray(instance),)

        return self._cache.get((self.name, "instances", t, c), make)[0]

    def numbered(
        self, t: int, c: int, min_score: float
    ) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, " rows"]]:
        """`instances` numbered from 1 on, and the score of each number, 0..1, number 0 (no thing) having 1.

        A score that is not a number, or that no row of the table gives, is that of nothing known: 0.
        """

        def make() -> tuple[np.ndarray, ...]:
            ids, number = np.unique(self.instances(t, c, min_score), return_inverse=True)
            number = number.reshape(self.render_size) + (ids[0] > 0)
            if number.max() > MASK_TABLE_ROWS:
                raise StoreError(
                    f"scene {self.name!r}, keyframe {t}, camera {c}: {number.max()} instances in one mask, and its "
                    f"table holds {MASK_TABLE_ROWS}; extract the masks again (`occflow cues`)"
                )
            table = self._scene.mask_table(t, c)
            known = dict(zip(table[:, _ID].astype(int), table[:, _SCORE], strict=True))
            scores = np.zeros(MASK_TABLE_ROWS + 1, dtype=np.float32)
            things = [known.get(int(name), 0.0) for name in ids[ids > 0]]
            scores[: len(things) + 1] = [1.0, *np.nan_to_num(np.clip(things, 0.0, 1.0), nan=0.0)]
            return number.astype(np.uint8), scores

        number, scores = self._cache.get((self.name, "numbered", t, c), make)
        return number, scores

    def flow(self, slot: str, t: int, c: int, min_confidence: int) -> StoredFlow:
        """Flow cue of a slot; unknown wherever there is no correspondence or too little confidence."""

        def make() -> tuple[np.ndarray, ...]:
            cue = self._scene.flow(slot, t, c)
            known = (cue.flow[0] != INVALID_FLOW) & (cue.confidence >= min_confidence) & (cue.target_frame >= 0)
            return np.array(cue.flow), known, np.array(cue.confidence), np.array([cue.target_frame, cue.target_sweep])

        kept = make() if slot in self._once else self._cache.get((self.name, slot, t, c), make)
        flow, known, confidence, target = kept
        return StoredFlow(flow, known, confidence, int(target[0]), int(target[1]))

    def lidar(self, t: int) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, " 3"]]:
        """Finite LiDAR returns and the sensor's origin, ego frame, metres."""

        def make() -> tuple[np.ndarray, ...]:
            cue = self._scene.lidar(t)
            points = np.ascontiguousarray(cue.points[:, :3])
            return points[np.isfinite(points).all(axis=1)], np.array(cue.origin)

        points, origin = self._cache.get((self.name, "lidar", t), make)
        return points, origin

    def derived(self, what: str, t: int, min_score: float, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` works out from the keyframe and its masks, kept like the frames themselves."""
        return self._cache.get((self.name, what, t, min_score), lambda: (make(),))[0]

    def cameras(self, t: int) -> tuple[Float64[np.ndarray, "cameras 4 4"], Float64[np.ndarray, "cameras 3 3"]]:
        """The keyframe's cameras as they were at their own times: ego (at LiDAR time) from camera, metres; K at render
        size. Of a camera that is missing both mean nothing."""
        global_from_cam = self.table.camera_global_from_ego[t] @ self.table.ego_from_cam[t]
        ego_from_cam = invert(np.asarray(self.table.global_from_ego[t], dtype=np.float64)) @ global_from_cam
        return ego_from_cam, scale_intrinsics(np.asarray(self.table.K[t]), 1 / self._factor, 1 / self._factor)

    def returns_in_image(
        self, t: int, c: int
    ) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, " n"], Int64[np.ndarray, " inside"]]:
        """Where the keyframe's returns (`lidar`) fall in one of its images: render pixels; depth along the camera's
        axis, metres; the indices of those that are in front of the camera and in the image."""
        points = self.lidar(t)[0].astype(np.float64)
        ego_from_cam, K = (array[c] for array in self.cameras(t))
        uv, depth, in_front = project(K, transform_points(invert(ego_from_cam), points))
        return uv, depth, np.flatnonzero(in_front & in_image(uv, *self.render_size))

    def movable_returns(self, t: int, min_score: float) -> Bool[np.ndarray, " n"]:
        """Which of the keyframe's returns (`lidar`) lie on a movable thing in one of its camera images."""

        def make() -> np.ndarray:
            found = np.zeros(len(self.lidar(t)[0]), dtype=bool)
            for c in np.flatnonzero(self.table.camera_valid[t]):
                uv, _, inside = self.returns_in_image(t, int(c))
                u, v = np.floor(uv[inside]).astype(np.int64).T
                found[inside] |= self.movable(t, int(c), min_score)[v, u]
            return found

        return self.derived("movable_returns", t, min_score, make)


def render_factor(reader: StoreReader) -> int:
    """Network size / render size. Raises StoreError unless it is one whole number."""
    (height, width), (h, w) = reader.attributes.network_size, reader.attributes.render_size
    if height % h or width % w or height // h != width // w:
        raise StoreError(
            f"{reader.path}: render size {(h, w)} does not divide network size {(height, width)} by one whole number; "
            "extract the cues with sizes that do"
        )
    return height // h


def require_no_lidar(scene: SceneReader, cues: tuple[str, ...], t: int) -> None:
    """Raise CueMissing when a cue of a camera-only run was made from LiDAR, directly or through its upstream."""
    for cue in cues:
        upstream = scene.record(cue, t).provenance.upstream
        if "lidar" in upstream:
            raise CueMissing(
                f"scene {scene.name!r}: cue {cue!r} was made from LiDAR, and this run is camera only "
                "(ablation.lidar is false). Extract it again with a camera-only cue configuration into another store, "
                "or set ablation.lidar=true (masks alone: data.lidar_masks=true)."
            )
