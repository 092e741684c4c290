"""Voxels of some keyframes packed into a page, for its own viewer (web/voxels.js): orbit, zoom, colours, no server."""

import base64
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from eval.camera_tiles import FULL_SPEED
from eval.colours import STILL, VERDICTS, flow_wheel, height_colours
from eval.pictures import KeyframePictures, Volume
from eval.sheet import Sides
from eval.volume_errors import exposed
from geometry.grid import VoxelGrid

TRUTH = "truth"
VOXELS = 150_000
"""Voxels of one keyframe, at most; a volume with more is shown with voxels twice as large."""
PAGE_BYTES = 12_000_000
"""Packed voxels of one page, at most; further keyframes are left out, and the page says so."""
FLOW_STEP = 0.25
"""m/s per count of a packed velocity, which is a signed byte."""
_JUDGED_BIT = 7
_WHEEL = 64


@dataclass(frozen=True)
class Packed:
    """One keyframe for the viewer: what its script reads, and the bytes of it that count."""

    entry: dict[str, Any]
    size: int


def pack(title: str, volumes: Mapping[str, Volume], grid: VoxelGrid, limit: int = VOXELS) -> Packed:
    """Every voxel that is on the surface of some volume, with which volumes hold it and how it moves in each.

    Byte planes, one value per voxel in the order of flat indices, deflated: four of the difference to the voxel before
    (little endian), one of memberships (bit i: volume i; bit 7: judged by the truth), two per volume of velocity.

    Raises:
        ValueError: more than seven volumes, or two of different shapes.
    """
    if not 0 < len(volumes) < 8 or len({volume.occupied.shape for volume in volumes.values()}) > 1:
        raise ValueError(f"the viewer takes one to seven volumes of one shape, not {list(volumes)}")
    shown, cells, coarser = dict(volumes), grid, 1
    while True:
        there = np.logical_or.reduce([exposed(volume.occupied) for volume in shown.values()])
        if there.sum() <= limit or min(cells.shape) < 2:
            break
        shown, cells = {name: coarsen(volume) for name, volume in shown.items()}, _halved(cells)
        coarser *= 2
    index = np.flatnonzero(there)
    planes = [np.diff(index, prepend=0).astype("<u4").view(np.uint8).reshape(-1, 4).T]
    planes += [_membership(list(shown.values()), index)[None]]
    planes += [_velocity(volume, index) for volume in shown.values()]
    data = base64.b64encode(zlib.compress(np.concatenate(planes).tobytes(), 9)).decode()
    entry = {
        "title": title,
        "volumes": list(shown),
        "lower": list(cells.lower),
        "size": list(cells.voxel_size),
        "shape": list(cells.shape),
        "count": len(index),
        "coarser": coarser,
        "heights": _ramp(grid, cells),
        "data": data,
    }
    return Packed(entry, len(data))


def coarsen(volume: Volume) -> Volume:
    """Voxels twice as large: occupied where any of the eight is, with their mean motion; judged where any is."""
    weight = volume.occupied.astype(np.float64)
    count = _blocks(weight).sum(axis=(1, 3, 5))
    flow = np.nan_to_num(volume.flow) * weight[..., None]
    total = np.stack([_blocks(flow[..., k]).sum(axis=(1, 3, 5)) for k in (0, 1)], axis=-1)
    judged = None if volume.judged is None else _blocks(volume.judged).any(axis=(1, 3, 5))
    return Volume(count > 0, (total / np.maximum(count, 1)[..., None]).astype(np.float32), judged)


def _halved(grid: VoxelGrid) -> VoxelGrid:
    """The grid of `coarsen`, whose last layer may reach beyond the box."""
    shape = [-(-n // 2) for n in grid.shape]
    upper = [low + 2 * n * size for low, n, size in zip(grid.lower, shape, grid.voxel_size, strict=True)]
    return VoxelGrid(grid.lower, (upper[0], upper[1], upper[2]), (shape[0], shape[1], shape[2]))


def _blocks(values: Float[np.ndarray, "x y z"] | Bool[np.ndarray, "x y z"]) -> np.ndarray:
    even = np.pad(values, [(0, n % 2) for n in values.shape])
    x, y, z = even.shape
    return even.reshape(x // 2, 2, y // 2, 2, z // 2, 2)


def _membership(volumes: Sequence[Volume], index: np.ndarray) -> np.ndarray:
    held = np.stack([volume.occupied.ravel()[index] for volume in volumes])
    judged = next((volume.judged for volume in volumes if volume.judged is not None), None)
    knows = np.ones(len(index), dtype=bool) if judged is None else judged.ravel()[index]
    empty = np.zeros((_JUDGED_BIT - len(volumes), len(index)), dtype=bool)
    return np.packbits(np.concatenate([held, empty, knows[None]]), axis=0, bitorder="little")[0]


def _velocity(volume: Volume, index: np.ndarray) -> np.ndarray:
    held = volume.occupied.ravel()[index]
    flow = np.where(held[:, None], np.nan_to_num(volume.flow.reshape(-1, 2)[index]), 0.0)
    return np.clip(np.rint(flow / FLOW_STEP), -127, 127).astype(np.int8).view(np.uint8).T


def _ramp(grid: VoxelGrid, cells: VoxelGrid) -> list[int]:
    heights = cells.lower[2] + (np.arange(cells.shape[2]) + 0.5) * cells.voxel_size[2]
    return height_colours(heights, grid.lower[2], grid.upper[2]).ravel().tolist()


def viewer(keyframes: Sequence[Sides], limit: int = VOXELS, page_bytes: int = PAGE_BYTES) -> str:
    """The viewer of some keyframes as HTML; nothing without a keyframe."""
    packed, used, left_out = [], 0, 0
    for sides in keyframes:
        found = pack_keyframe(sides, limit)
        if used + found.size > page_bytes:
            left_out += 1
            continue
        used += found.size
        packed.append(found.entry)
    if not packed:
        return ""
    wheel = flow_wheel(_WHEEL)[..., :3]
    data = {
        "frames": packed,
        "truth": TRUTH,
        "step": FLOW_STEP,
        "full": FULL_SPEED,
        "still": STILL,
        "wheel": base64.b64encode(wheel.tobytes()).decode(),
        "verdicts": {name: list(colour) for name, colour in VERDICTS.items()},
    }
    note = f"{left_out} more keyframes would make this page too large; their pictures are below." if left_out else ""
    # In a script element "<" could end it: JSON may spell it as an escape.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    script = (resources.files("eval") / "web" / "voxels.js").read_text(encoding="utf-8")
    return (
        f'<div class="viewer" id="viewer"></div><p class="meaning">{html.escape(note)}</p>'
        f'<script type="application/json" id="voxels">{text}</script><script>{script}</script>'
    )


def pack_keyframe(sides: Sides, limit: int = VOXELS) -> Packed:
    """The volumes of every network at one keyframe, and the truth's where there is some, last."""
    first: KeyframePictures = next(iter(sides.values()))
    volumes = {name: found.predicted_volume for name, found in sides.items()}
    if first.true_volume is not None:
        volumes[TRUTH] = first.true_volume
    return pack(f"{first.scene}, keyframe {first.t}", volumes, first.grid, limit)
