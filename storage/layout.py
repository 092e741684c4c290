"""Where things lie in a store, and the zarr v3 metadata of each array; pure functions of attributes and scene table."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from storage.codecs import zarr_codecs
from storage.errors import StoreError
from storage.profiles import PLAIN, profile
from storage.schema import CUES, MASK_TABLE_ROWS, TRUTH, ArraySpec, SceneTable, StoreAttributes

INIT = "init"
"""The cue name of the unit that opens a scene."""
PENDING = "commits/.pending"
"""Scratch of writers at work, and their locks."""
SPARE_ROOT = "commits/store.json"
"""Second copy of the root zarr.json, from which `verify` restores a damaged one."""
RAGGED = frozenset({"L", "S", "N", "M"})
"""Axes that a block may fill in part; the rest is stored as the fill value."""
TABLE_ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "timestamp_us": ("int64", ("T",)),
    "global_from_ego": ("float64", ("T", 4, 4)),
    "camera_valid": ("bool", ("T", "C")),
    "camera_timestamp_us": ("int64", ("T", "C")),
    "camera_global_from_ego": ("float64", ("T", "C", 4, 4)),
    "ego_from_cam": ("float64", ("T", "C", 4, 4)),
    "K": ("float64", ("T", "C", 3, 3)),
    "image_from_raw": ("float64", ("T", "C", 3, 3)),
    "sweep_valid": ("bool", ("T", "P", "C")),
    "sweep_timestamp_us": ("int64", ("T", "P", "C")),
    "sweep_global_from_ego": ("float64", ("T", "P", "C", 4, 4)),
    "sweep_ego_from_cam": ("float64", ("T", "P", "C", 4, 4)),
    "sweep_K": ("float64", ("T", "P", "C", 3, 3)),
}
"""Array fields of SceneTable: dtype and symbolic shape. The others travel as JSON."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, order=True)
class UnitId:
    """The unit of work: one cue of one block of one scene. `str()` is the stem of its commit file."""

    cue: str
    scene: str
    block: int = 0

    def __post_init__(self) -> None:
        """Refuse names that could leave the store's folder or be read in two ways."""
        for what, name in (("cue", self.cue), ("scene", self.scene)):
            if not _NAME.fullmatch(name) or name == "zarr.json":
                raise StoreError(
                    f"{what} name {name!r} cannot name a folder: letters, digits and '_'; then also '-' and '.'."
                )
        if "-" in self.cue or self.block < 0:
            raise StoreError(f"unit {self.cue!r} block {self.block}: a cue has no '-' and a block is at least 0.")

    def __str__(self) -> str:
        return f"{self.cue}--{self.scene}--{self.block:05d}"

    @classmethod
    def parse(cls, stem: str) -> "UnitId":
        """The inverse of `str()`. Raises StoreError."""
        cue, _, rest = stem.partition("--")
        scene, _, block = rest.rpartition("--")
        if not (cue and scene and block.isdecimal()):
            raise StoreError(f"{stem!r} is no unit; expected <cue>--<scene>--<block>.")
        return cls(cue, scene, int(block))


@dataclass(frozen=True)
class ArrayLayout:
    """One stored array, all symbols resolved. `name` is the spec's, `path` is below the store's root."""

    name: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    codec: str
    fill: float = 0

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Chunks per axis of one shard."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """By how much a chunk's number in its shard grows along each axis."""
        return tuple(math.prod(self.grid[axis + 1 :]) for axis in range(len(self.grid)))

    @cached_property
    def stored(self) -> np.dtype:
        """The dtype as it is stored."""
        return np.dtype(self.dtype).newbyteorder("<")

    def shard_key(self, block: int) -> str:
        """Path of the shard that holds a block, below the store's root; dots spare a folder per axis and block."""
        return f"{self.path}/" + ".".join(["c", str(block), *["0"] * (len(self.shape) - 1)])

    def metadata(self) -> bytes:
        """The array's zarr.json, byte for byte the same on every machine."""
        dtype = np.dtype(self.dtype)
        fill: Any = {"b": bool, "i": int, "u": int, "f": float}[dtype.kind](self.fill)
        sharding = {
            "chunk_shape": list(self.chunk),
            "codecs": zarr_codecs(self.codec, dtype),
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "index_location": "end",
        }
        return encode_json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": self.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.shard)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": fill,
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": {},
                "storage_transformers": [],
            }
        )


def encode_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, one line (an indent would leave Python's fast encoder), equal values equal bytes."""
    return (json.dumps(value, sort_keys=True, allow_nan=False) + "\n").encode()


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """The zarr.json of a group."""
    return encode_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def root_metadata(attributes: StoreAttributes) -> bytes:
    """The store's root zarr.json: its attributes and their digest."""
    plain = json.loads(encode_json(asdict(attributes)))
    if plain["profile"] == PLAIN:  # as it was written before there were profiles, so that older programs read it
        del plain["profile"]
    digest = hashlib.sha256(encode_json(plain)).hexdigest()
    return group_metadata({"occflow": plain, "occflow_sha256": digest})


def cue_specs(kind: str, profile_name: str = PLAIN) -> dict[str, tuple[ArraySpec, ...]]:
    """The cues that a store of this kind and profile may hold. Raises StoreError for an unknown kind or profile."""
    if kind not in ("cues", "truth"):
        raise StoreError(f"store kind {kind!r} is unknown; expected 'cues' or 'truth'.")
    codecs = profile(profile_name).codecs
    return {
        cue: tuple(replace(spec, codec=codecs.get(spec.name, spec.codec)) for spec in specs)
        for cue, specs in (TRUTH if kind == "truth" else CUES).items()
    }


def generation_path(scene: str, generation: int) -> str:
    """Folder of a generation of a scene's arrays, below the store's root; generation 0 is the scene's own folder."""
    base = f"scenes/{scene}"
    return base if generation == 0 else f"{base}/generations/{generation}"


def owner_of(key: str, specs: Mapping[str, tuple[ArraySpec, ...]]) -> tuple[UnitId | None, int]:
    """The unit that a shard's key belongs to (None for a file that is no shard of a known array), and its generation.

    Args:
        key: of a file below `scenes/`.
        specs: of the store's kind, see `cue_specs`.
    """
    scene, *parts = key.split("/")[1:]
    generation = 0
    if parts[:1] == ["generations"] and len(parts) > 2 and parts[1].isdecimal():
        generation, parts = int(parts[1]), parts[2:]
    block = parts[-1].split(".")[1:2]
    if len(parts) < 2 or not block or not block[0].isdecimal():
        return None, generation
    if parts[0] == "frames":
        return UnitId(INIT, scene), generation
    for cue, arrays in specs.items():
        if "/".join(parts[:-1]) in {spec.name for spec in arrays}:
            return UnitId(cue, scene, int(block[0])), generation
    return None, generation


def shard_keys(unit: UnitId, specs: tuple[ArraySpec, ...], generation: int) -> list[str]:
    """Keys of a block's shards in one generation."""
    folder = generation_path(unit.scene, generation)
    return [f"{folder}/{s.name}/" + ".".join(["c", str(unit.block), *["0"] * len(s.shape)]) for s in specs]


def axis_sizes(attributes: StoreAttributes, table: SceneTable) -> dict[str, int]:
    """The value of every symbol of the schema for one scene (T keyframes included)."""
    grid = attributes.occupancy_grid
    volume = [int(n) for n in grid["shape"]] if grid is not None else [0, 0, 0]
    return {
        "T": table.length,
        "C": len(attributes.cameras),
        "P": int(table.sweep_valid.shape[1]),
        "H": attributes.network_size[0],
        "W": attributes.network_size[1],
        "h": attributes.render_size[0],
        "w": attributes.render_size[1],
        "L": max(1, table.max_image_bytes),
        "S": max(1, table.max_sweep_bytes),
        "N": max(1, table.max_lidar_points),
        "M": MASK_TABLE_ROWS,
        "X": volume[0],
        "Y": volume[1],
        "Z": volume[2],
    }


def cue_layout(spec: ArraySpec, sizes: Mapping[str, int], block_keyframes: int, folder: str) -> ArrayLayout:
    """Resolve one array of a cue: a chunk is one camera-frame, a shard one block of keyframes."""
    rest = tuple(sizes[n] if isinstance(n, str) else n for n in spec.shape)
    cut = spec.chunked_axes
    chunk = (1, *[1] * cut, *[max(1, n) for n in rest[cut:]])
    shard = (min(block_keyframes, sizes["T"]), *[max(1, n) for n in rest])
    shape = (sizes["T"], *rest)
    return ArrayLayout(spec.name, f"{folder}/{spec.name}", spec.dtype, shape, chunk, shard, spec.codec, spec.fill)


def table_layout(field: str, sizes: Mapping[str, int], folder: str) -> ArrayLayout:
    """Layout of one array of the scene table: a single chunk."""
    dtype, symbols = TABLE_ARRAYS[field]
    shape = tuple(sizes[n] if isinstance(n, str) else n for n in symbols)
    whole = tuple(max(1, n) for n in shape)
    return ArrayLayout(f"frames/{field}", f"{folder}/frames/{field}", dtype, shape, whole, whole, "zstd1")


def blocks(length: int, block_keyframes: int) -> list[range]:
    """Keyframes of each block of a scene."""
    return [range(start, min(start + block_keyframes, length)) for start in range(0, length, block_keyframes)]


def group_paths(array_paths: list[str], scene: str) -> list[str]:
    """Every group folder between the store's root and these arrays, the scene's own included."""
    found = {"scenes", f"scenes/{scene}"}
    for path in array_paths:
        parts = path.split("/")
        found.update("/".join(parts[:n]) for n in range(1, len(parts)))
    return sorted(found)
