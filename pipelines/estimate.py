"""What an extraction will take, before it starts: units, bytes, core seconds per cue; and whether the disk holds it."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config import CuesConfig
from pipelines.plan import Plan, Work
from pipelines.scene_table import sweep_slots
from pipelines.workbench import Workbench, workbench
from storage.errors import StoreError
from storage.layout import INIT, blocks
from storage.location import Location, ObjectPath
from storage.profiles import PLAIN, PROFILES

MB = 1e6


@dataclass(frozen=True)
class Rate:
    """What one cue takes before anything was measured in a store.

    Attributes:
        per: "H" or "h", megapixels of a network or render image (per camera-frame), or "frame", keyframes.
        bytes: on disk, by profile; padding of the scene's longest JPEG and LiDAR sweep included.
        seconds: on one core. Decoding the raw image (1600x900: about 15 ms) or the cue's own method dominates.
    """

    per: str
    bytes: Mapping[str, float]
    seconds: float


def _rate(per: str, fast: float, small: float, seconds: float) -> Rate:
    return Rate(per, {"fast": fast, "small": small}, seconds)


# Measured on real nuScenes images and LiDAR and on flow of real KITTI frames (docs/results/2026-11-26-store.md).
_FLOW = _rate("h", 2.4e6, 0.8e6, 5.0)
_RATES: dict[str, Rate] = {
    "images": _rate("H", 0.28e6, 0.103e6, 0.05),
    "sweeps": _rate("h", 0.37e6, 0.134e6, 0.12),
    "lidar": _rate("frame", 0.37e6, 0.15e6, 0.05),
    "masks": _rate("H", 0.005e6, 0.005e6, 1.5),
    "flow_next": _FLOW,
    "flow_prev": _FLOW,
    "flow_aux": _FLOW,
    "occupancy": _rate("frame", 0.1e6, 0.1e6, 0.05),
    "camera": _rate("h", 6.0e6, 6.0e6, 0.3),
    "boxes": _rate("frame", 0.3e3, 0.3e3, 0.001),
}
_KITTI_LIDAR = _rate("frame", 1.55e6, 0.9e6, 0.05)
_OF_KIND: dict[tuple[str, str], Rate] = {
    ("semantic_kitti", "lidar"): _KITTI_LIDAR,
    ("kitti_mot", "lidar"): _KITTI_LIDAR,
}
"""Rates of one data set, where they are not those of the others: (kind, cue)."""


@dataclass(frozen=True)
class Whole:
    """A data set in full: keyframes in how many scenes, cameras, and sweeps between two keyframes."""

    name: str
    keyframes: int
    scenes: int
    cameras: int
    sweeps: int


WHOLE = {
    "nuscenes": Whole("nuScenes v1.0-trainval", keyframes=34_149, scenes=850, cameras=6, sweeps=5),
    "semantic_kitti": Whole("SemanticKITTI sequences 00 to 10", keyframes=23_201, scenes=11, cameras=1, sweeps=0),
    "kitti_mot": Whole("KITTI tracking, training and testing", keyframes=19_103, scenes=50, cameras=1, sweeps=0),
}
"""By data set kind. nuScenes' cameras run at 12 Hz, its keyframes at 2 Hz."""


@dataclass(frozen=True)
class Estimate:
    """One cue's share: `source` says whether rates were measured in this store or are built in.

    `seconds` are of one core, or of one GPU where `gpu` says that the cue's extractor asks for one.
    """

    cue: str
    units: int
    keyframes: int
    bytes: float
    seconds: float
    source: str
    gpu: bool = False


def estimate(config: CuesConfig, work: Plan) -> list[Estimate]:
    """Per cue, what its open units will take; rates of units that the store holds already are used where there are."""
    bench = workbench(config)
    rows: dict[str, list[int]] = {}
    on_gpu: set[str] = set()
    for item in work.open:
        if item.unit.cue == INIT:
            continue
        name = f"truth {item.unit.cue}" if item.truth else item.unit.cue
        keyframes, frames = _frames(bench, item)
        row = rows.setdefault(name, [0, 0, 0])
        if item.gpu:
            on_gpu.add(name)
        row[0] += 1
        row[1] += keyframes
        row[2] += frames
    out = []
    for name, (units, keyframes, frames) in rows.items():
        per_frame, seconds, source = _rates(bench, name, config)
        by_keyframe = source == "store" or _built_in(config, name.split()[-1]).per == "frame"
        count = keyframes if by_keyframe else frames
        out.append(Estimate(name, units, keyframes, per_frame * count, seconds * count, source, name in on_gpu))
    return out


def free_space(store: Location) -> float:
    """Free bytes of the disk that a store at this path is or will be on; a bucket has no end."""
    if isinstance(store, ObjectPath):
        return math.inf
    folder = store
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(config: CuesConfig, rows: list[Estimate]) -> None:
    """Raise a StoreError naming both figures when the estimate does not fit the free space."""
    needed, free = sum(row.bytes for row in rows), free_space(config.store)
    if needed > free:
        raise StoreError(
            f"{config.store}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free on its disk; free "
            "some, give another path (--store), or extract fewer scenes (--scenes) or cues (--cues)"
        )


def _frames(bench: Workbench, item: Work) -> tuple[int, int]:
    """Keyframes of a unit's block, and camera-frames that it labels."""
    scene = bench.raw_scene(item.unit.scene)
    span = blocks(len(scene.keyframes), bench.config.block_keyframes)[item.unit.block]
    images = len(span) * len(bench.cameras)
    return len(span), images * sweep_slots(scene) if item.unit.cue == "sweeps" else images


def _rates(bench: Workbench, name: str, config: CuesConfig) -> tuple[float, float, str]:
    truth, cue = name.startswith("truth "), name.split()[-1]
    store = bench.open_store(truth)
    found = [] if store is None else [record for record in store.records() if record.unit.cue == cue]
    keyframes = sum(record.frames[1] - record.frames[0] for record in found)
    if keyframes:
        seconds = sum(record.provenance.seconds for record in found)
        return sum(record.bytes for record in found) / keyframes, seconds / keyframes, "store"
    rate = _built_in(config, cue)
    scale = _megapixels(config, rate)
    return rate.bytes[PLAIN if truth else config.profile] * scale, rate.seconds * scale, "built-in"


def _built_in(config: CuesConfig, cue: str) -> Rate:
    return _OF_KIND.get((config.dataset.kind, cue), _RATES[cue])


def _megapixels(config: CuesConfig, rate: Rate) -> float:
    height, width = config.sizes.network if rate.per == "H" else config.sizes.render
    return 1.0 if rate.per == "frame" else height * width / MB


def projection(config: CuesConfig) -> tuple[Whole, dict[str, dict[str, float]]] | None:
    """Bytes that the whole data set would take with these cues and sizes: profile -> cue -> bytes, by built-in rates.

    JPEG quality is each profile's own. None for a data set whose extent is not known here.
    """
    whole = WHOLE.get(config.dataset.kind)
    if whole is None:
        return None
    found: dict[str, dict[str, float]] = {}
    for name in PROFILES:
        found[name] = {}
        for cue in config.cues:
            rate = _built_in(config, cue)
            frames = whole.keyframes
            if cue == "sweeps":  # none follow the last keyframe of a scene
                frames = (whole.keyframes - whole.scenes) * whole.sweeps
            count = frames if rate.per == "frame" else frames * whole.cameras
            found[name][cue] = rate.bytes[name] * _megapixels(config, rate) * count
    return whole, found
