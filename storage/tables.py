"""Checks of what opens a store and a scene: root attributes and scene table, and the digest of the latter."""

import hashlib

import numpy as np

from storage.errors import StoreError
from storage.layout import TABLE_ARRAYS, axis_sizes, cue_layout, cue_specs, generation_path, group_metadata
from storage.location import Location
from storage.schema import SCHEMA_VERSION, SceneTable, StoreAttributes

MASK_BITS = 8
"""Cameras that the LiDAR's uint8 camera bit mask can name."""


def check_attributes(root: Location, attributes: StoreAttributes) -> None:
    """Raise StoreError for attributes that no store can be made with."""
    cue_specs(attributes.kind, attributes.profile)
    (H, W), (h, w) = attributes.network_size, attributes.render_size
    problems = []
    if min(H, W, h, w) < 1 or H % h or W % w or H // h != W // w:
        problems.append(f"render size {h}x{w} must divide network size {H}x{W} by one whole factor")
    if attributes.block_keyframes < 1:
        problems.append(f"block_keyframes is {attributes.block_keyframes}, at least 1 is needed")
    if not 1 <= len(attributes.cameras) <= MASK_BITS or len(set(attributes.cameras)) < len(attributes.cameras):
        problems.append(f"cameras {attributes.cameras} must be 1 to {MASK_BITS} different names")
    if attributes.schema_version != SCHEMA_VERSION:
        problems.append(f"schema_version {attributes.schema_version} is not this program's {SCHEMA_VERSION}")
    if problems:
        raise StoreError(f"{root}: cannot make this store: {'; '.join(problems)}.")


def check_table(scene: str, table: SceneTable, attributes: StoreAttributes) -> None:
    """Raise StoreError unless every field has the shape and dtype of the schema."""
    if table.length == 0:
        raise StoreError(f"scene {scene!r} has no keyframes; there is nothing to store. Leave it out.")
    if table.sweep_valid.ndim != 3:
        raise StoreError(f"scene {scene!r}: sweep_valid has shape {table.sweep_valid.shape}, expected (T, P, C).")
    sizes = axis_sizes(attributes, table)
    for name, (dtype, symbols) in TABLE_ARRAYS.items():
        array = getattr(table, name)
        want = tuple(sizes[n] if isinstance(n, str) else n for n in symbols)
        if array.shape != want or array.dtype != np.dtype(dtype):
            raise StoreError(
                f"scene {scene!r}, table field {name!r}: {array.dtype} {array.shape} given, expected {dtype} {want} "
                f"({', '.join(map(str, symbols))})."
            )
    for name in ("max_image_bytes", "max_sweep_bytes", "max_lidar_points"):
        if getattr(table, name) < 0:
            raise StoreError(f"scene {scene!r}: {name} is {getattr(table, name)}, at least 0 is needed.")


def table_metadata(table: SceneTable) -> bytes:
    """The zarr.json of the group `frames`, which carries what of the table is not an array."""
    return group_metadata(
        {
            "tokens": list(table.tokens),
            "tags": list(table.tags),
            "max_image_bytes": int(table.max_image_bytes),
            "max_sweep_bytes": int(table.max_sweep_bytes),
            "max_lidar_points": int(table.max_lidar_points),
        }
    )


def init_digest(scene: str, table: SceneTable, attributes: StoreAttributes) -> str:
    """Hex SHA-256 of everything a block relies on: the table's content and the arrays' metadata."""
    digest = hashlib.sha256(table_metadata(table))
    for name in TABLE_ARRAYS:
        array = np.ascontiguousarray(getattr(table, name))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    sizes = axis_sizes(attributes, table)
    for specs in cue_specs(attributes.kind, attributes.profile).values():
        for spec in specs:
            if spec.optional:  # nothing relies on it, and stores from before it was there stay what they are
                continue
            layout = cue_layout(spec, sizes, attributes.block_keyframes, generation_path(scene, 0))
            digest.update(layout.metadata())
    return digest.hexdigest()
