"""What an extraction will take, before it starts: units, bytes, core seconds per cue; and whether the disk holds it."""

import math
import shutil
from dataclasses import dataclass

from pipelines.config import CuesConfig
from pipelines.plan import Plan, Work
from pipelines.scene_table import sweep_slots
from pipelines.workbench import Workbench, workbench
from storage.errors import StoreError
from storage.layout import INIT, blocks
from storage.location import Location, ObjectPath

MB = 1e6

# Measured on real nuScenes images, one core. Bytes and seconds per camera-frame: a constant times the megapixels of
# the network ("H") or render ("h") image, or per keyframe where the unit is "frame". Seconds are dominated by
# decoding the raw image (a 1600x900 JPEG takes about 15 ms) or by the cue's own method.
_RATES: dict[str, tuple[str, float, float]] = {
    "images": ("H", 0.26e6, 0.05),
    "sweeps": ("h", 0.35e6, 0.12),
    "lidar": ("frame", 0.5e6, 0.05),
    "masks": ("H", 0.02e6, 1.5),
    "flow_next": ("h", 2.5e6, 5.0),
    "flow_prev": ("h", 2.5e6, 5.0),
    "flow_aux": ("h", 2.5e6, 5.0),
    "occupancy": ("frame", 0.1e6, 0.05),
    "camera": ("h", 6.0e6, 0.3),
}


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
        by_keyframe = source == "store" or _RATES[name.split()[-1]][0] == "frame"
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
    unit, size, seconds = _RATES[cue]
    height, width = config.sizes.network if unit == "H" else config.sizes.render
    megapixels = 1.0 if unit == "frame" else height * width / MB
    return size * megapixels, seconds * megapixels, "built-in"
