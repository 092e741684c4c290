"""What a store holds: attributes, the arrays of every cue, and the tables of a scene."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

SCHEMA_VERSION = 1

INVALID_FLOW = -32768
"""Stored flow value for "no correspondence"."""
FLOW_SCALE = 64
"""Stored flow is int16 in 1/64 of a render pixel."""
UNKNOWN_CLASS = 255

NO_FLOW, FLOW_OUTSIDE, FLOW_INSIDE = 0, 1, 2
"""Values of flow/<slot>/source: no correspondence; from what labels the flow outside the masks (UniMatch, DIS); from
what labels it inside them (tracks). The notes of the commit record name the two."""

MASK_TABLE_FIELDS = ("id", "class", "score", "x0", "y0", "x1", "y1", "linked")
"""Columns of masks_table: instance id (0 = row unused), class index (255 unknown), score in [0, 1], box in network
pixels, id linked over the block (0 = not linked); the cue `instances` has the ids that go on over the scene."""
MASK_TABLE_ROWS = 64

BOX_FIELDS = ("track", "class", "x", "y", "z", "length", "width", "height", "yaw", "vx", "vy", "seconds")
"""Columns of boxes/table, labelled 3D boxes in the keyframe's ego frame: track number, class index (255 unknown),
middle of the box's floor (m), extents (m), heading about z (rad, 0 along x), horizontal velocity with the car's own
motion taken out (m/s, nan where unknown), and the time over which that velocity was taken (s)."""
BOX_ROWS = 128


@dataclass(frozen=True)
class StoreAttributes:
    """Root attributes. Sizes are (height, width) in pixels."""

    dataset: str
    cameras: tuple[str, ...]
    classes: tuple[str, ...]
    network_size: tuple[int, int]
    render_size: tuple[int, int]
    keyframe_interval_s: float
    block_keyframes: int
    image_crop: str = "bottom"
    kind: str = "cues"
    """"cues" or "truth"."""
    occupancy_grid: Mapping[str, list[float]] | None = None
    """Truth stores: {"lower": [3], "upper": [3], "shape": [3]} in metres, ego frame (not nuScenes' only)."""
    occupancy_classes: tuple[str, ...] = ()
    profile: str = "fast"
    """Of storage.profiles: how arrays are coded, and what of their precision is kept."""
    schema_version: int = SCHEMA_VERSION
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneTable:
    """Small per-frame facts of a scene, written by its `init` unit; T keyframes, C cameras, P sweep slots.

    A camera missing at a keyframe has camera_valid False and NaN matrices; so has an unused sweep slot. Matrices are
    float64, metres. K is at network resolution for keyframes and at render resolution for sweeps. Poses are each
    image's own.
    """

    tokens: tuple[str, ...]
    timestamp_us: np.ndarray  # int64 (T,), the LiDAR's
    global_from_ego: np.ndarray  # (T, 4, 4) at the LiDAR's time
    camera_valid: np.ndarray  # bool (T, C)
    camera_timestamp_us: np.ndarray  # int64 (T, C)
    camera_global_from_ego: np.ndarray  # (T, C, 4, 4)
    ego_from_cam: np.ndarray  # (T, C, 4, 4)
    K: np.ndarray  # (T, C, 3, 3) network pixels
    image_from_raw: np.ndarray  # (T, C, 3, 3) network from raw pixels
    sweep_valid: np.ndarray  # bool (T, P, C)
    sweep_timestamp_us: np.ndarray  # int64 (T, P, C)
    sweep_global_from_ego: np.ndarray  # (T, P, C, 4, 4)
    sweep_ego_from_cam: np.ndarray  # (T, P, C, 4, 4)
    sweep_K: np.ndarray  # (T, P, C, 3, 3) render pixels
    max_image_bytes: int = 0
    max_sweep_bytes: int = 0
    max_lidar_points: int = 0
    tags: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """T."""
        return len(self.tokens)


# Array shapes after the leading T, in symbols resolved per scene: C cameras, P sweep slots, H W network, h w render,
# L / S image / sweep bytes, N LiDAR points, M mask rows, X Y Z truth voxels. chunk_axes = how many axes after T are
# cut to 1 in a chunk.
@dataclass(frozen=True)
class ArraySpec:
    """One array of a cue: name, dtype, symbolic shape after T, axes (after T) with chunk length 1, codec, fill.

    optional: a block may come without it, and then has nothing of it on disk.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    chunked_axes: int
    codec: str
    fill: float = 0
    optional: bool = False


def _flow(slot: str) -> tuple[ArraySpec, ...]:
    path = f"flow/{slot}"
    return (
        ArraySpec(f"{path}/flow", "int16", ("C", 2, "h", "w"), 1, "blosc-lz4-bitshuffle", INVALID_FLOW),
        ArraySpec(f"{path}/confidence", "uint8", ("C", "h", "w"), 1, "zstd1"),
        ArraySpec(f"{path}/target_frame", "int32", ("C",), 0, "zstd1", -1),
        ArraySpec(f"{path}/target_sweep", "int32", ("C",), 0, "zstd1", -1),
        ArraySpec(f"{path}/source", "uint8", ("C", "h", "w"), 1, "zstd1", NO_FLOW, optional=True),
    )


CUES: dict[str, tuple[ArraySpec, ...]] = {
    "images": (
        ArraySpec("images", "uint8", ("C", "L"), 1, "raw"),
        ArraySpec("images_length", "uint32", ("C",), 0, "zstd1"),
    ),
    "sweeps": (
        ArraySpec("sweeps/images", "uint8", ("P", "C", "S"), 2, "raw"),
        ArraySpec("sweeps/images_length", "uint32", ("P", "C"), 0, "zstd1"),
    ),
    "lidar": (
        ArraySpec("lidar/points", "float32", ("N", 4), 0, "blosc-lz4-shuffle"),
        ArraySpec("lidar/cameras", "uint8", ("N",), 0, "zstd1"),
        ArraySpec("lidar/count", "int32", (), 0, "zstd1"),
        ArraySpec("lidar/origin", "float32", (3,), 0, "zstd1"),
    ),
    "masks": (
        ArraySpec("masks/instance", "uint16", ("C", "H", "W"), 1, "zstd1"),
        ArraySpec("masks/table", "float32", ("C", "M", len(MASK_TABLE_FIELDS)), 1, "zstd1"),
    ),
    "flow_next": _flow("next"),
    "flow_prev": _flow("prev"),
    "flow_aux": _flow("aux"),
    "instances": (ArraySpec("instances/linked", "int32", ("C", "M"), 1, "zstd1", optional=True),),
}
"""Cue name -> its arrays. Flow: render pixels on frame t's render grid; target_frame is a keyframe index (-1: no
target), target_sweep the sweep slot after that keyframe (-1: the keyframe itself). LiDAR points: ego frame at LiDAR
time; cameras: bit c set where camera c sees the point. instances/linked: id over the whole scene of each row of
masks/table, per camera, 0 = row unused."""

DERIVED = frozenset({"instances"})
"""Cues that are made of other cues, where there is need of them."""

TRUTH: dict[str, tuple[ArraySpec, ...]] = {
    "occupancy": (
        ArraySpec("occupancy/semantics", "uint8", ("X", "Y", "Z"), 0, "zstd1", 255),
        ArraySpec("occupancy/flow", "float32", ("X", "Y", "Z", 2), 0, "zstd1"),
        ArraySpec("occupancy/valid", "uint8", (), 0, "zstd1"),
    ),
    "camera": (
        ArraySpec("camera/depth", "float32", ("C", "h", "w"), 1, "blosc-lz4-shuffle"),
        ArraySpec("camera/instance", "uint16", ("C", "H", "W"), 1, "zstd1"),
        ArraySpec("camera/moving", "uint8", ("C", "H", "W"), 1, "zstd1"),
        ArraySpec("camera/flow_next", "int16", ("C", 2, "h", "w"), 1, "blosc-lz4-bitshuffle", INVALID_FLOW),
        ArraySpec("camera/valid", "uint8", ("C",), 0, "zstd1"),
    ),
    "boxes": (
        ArraySpec("boxes/table", "float32", (BOX_ROWS, len(BOX_FIELDS)), 0, "zstd1", optional=True),
        ArraySpec("boxes/count", "int32", (), 0, "zstd1", -1, optional=True),
    ),
}
"""Truth arrays, in the sibling store only. Occupancy: ego frame at LiDAR time, flow in m/s, `valid` 0 where the frame
has none. Camera depth is camera z in metres on the render grid, inf = sky. boxes/count: rows that are used, -1 where
the frame has no labels (0: labels, and nothing there). A data set has some of the three; boxes came later than the
others, and being optional they leave stores without them as they were."""


def encode_flow(flow_px: np.ndarray) -> tuple[np.ndarray, int]:
    """Flow in render pixels to its stored form.

    Args:
        flow_px: float (..., 2, h, w), channels u and v; nan in either channel = no correspondence.

    Returns:
        int16 of the same shape, 1/64 px rounded to nearest, -32768 in both channels where there is none; and how many
        pixels had a correspondence that int16 cannot hold (beyond ±511.98 px, or infinite). Those are stored as none,
        never clipped.
    """
    if flow_px.ndim < 3 or flow_px.shape[-3] != 2:
        raise ValueError(f"flow has shape {flow_px.shape}, expected (..., 2, h, w)")
    scaled = np.rint(flow_px.astype(np.float64) * FLOW_SCALE)
    absent = np.isnan(scaled).any(axis=-3, keepdims=True)
    with np.errstate(invalid="ignore"):
        outside = (np.abs(scaled) > -INVALID_FLOW - 1).any(axis=-3, keepdims=True) & ~absent
    stored = np.where(absent | outside, INVALID_FLOW, scaled).astype(np.int16)
    return stored, int(outside.sum())


def decode_flow(stored: np.ndarray) -> np.ndarray:
    """The inverse of `encode_flow`: int16 (..., 2, h, w) to float32 render pixels, nan where there is none."""
    if stored.dtype != np.int16 or stored.ndim < 3 or stored.shape[-3] != 2:
        raise ValueError(f"stored flow is {stored.dtype} {stored.shape}, expected int16 (..., 2, h, w)")
    invalid = (stored == INVALID_FLOW).any(axis=-3, keepdims=True)
    return np.where(invalid, np.float32(np.nan), stored.astype(np.float32) / np.float32(FLOW_SCALE))
