"""One block for one extractor: the context it works in, the bounds of its scene, and frames that cannot be read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from geometry.cameras import ImageTransform
from pipelines.cues.base import BlockContext, CueBlock, CueExtractor
from pipelines.cues.images import largest_jpeg
from pipelines.datasets.records import CameraImage, DataError, LidarSweep, Scene
from pipelines.inputs import scene_files, without_faults
from pipelines.scene_table import sweep_slots
from pipelines.transient import is_transient
from pipelines.workbench import Workbench
from storage.layout import UnitId, blocks

ENCODED_SAMPLES = 24
"""Images of a scene that `init` encodes to find how long its longest JPEG may be."""
SAMPLE_MARGIN = 1.5
"""What an image that was not sampled may take more than the longest sampled; beyond, its JPEG quality is lowered."""

RecordT = TypeVar("RecordT", CameraImage, LidarSweep)


def jpeg_bounds(bench: Workbench, scene: Scene) -> tuple[int, int]:
    """L and S: bytes that a JPEG of this scene may take, of keyframes (network size) and of sweeps (render size)."""
    images = {
        flag: [i for f in scene.frames if f.is_keyframe is flag for i in f.images.values()] for flag in (True, False)
    }
    return (
        _jpeg_bound(bench, images[True], bench.sizes.transform),
        _jpeg_bound(bench, images[False], bench.sizes.render_transform),
    )


def _jpeg_bound(
    bench: Workbench, images: list[CameraImage], transform_of: Callable[[CameraImage], ImageTransform]
) -> int:
    count = min(len(images), ENCODED_SAMPLES)
    sampled = [images[i] for i in np.linspace(0, len(images) - 1, count).astype(int)] if images else []
    longest = 0
    for image in sampled:
        try:
            pixels = bench.images(image)
        except DataError as error:
            if bench.config.on_error == "fail" or is_transient(error):
                raise
            continue
        longest = max(longest, largest_jpeg([pixels], transform_of(image), bench.config.jpeg_quality))
    return longest if count == len(images) else int(longest * SAMPLE_MARGIN)


@dataclass
class _Loader:
    """Reads records and remembers the file that could not be read."""

    failed: dict[Path, str] = field(default_factory=dict)

    def watch(self, read: Callable[[RecordT], np.ndarray]) -> Callable[[RecordT], np.ndarray]:
        """The same function, that notes the file of a record it fails on."""

        def watched(record: RecordT) -> np.ndarray:
            try:
                return read(record)
            except DataError as error:
                self.failed[record.path] = str(error)
                raise

        return watched


def extract_block(
    bench: Workbench,
    unit: UnitId,
    extractor: CueExtractor,
    upstream: Callable[[str], Mapping[str, np.ndarray]],
) -> tuple[CueBlock, list[str]]:
    """Run an extractor over one block; under on_error skip it runs again without each file that cannot be read.

    Args:
        bench: what the units of this extraction share.
        unit: the block.
        extractor: with the bounds of the scene.
        upstream: arrays of a committed cue of this block, by its name.

    Returns:
        The block, and a line for every file of its own frames that was left out.

    Raises:
        DataError: raw data that cannot be used, unless on_error is skip and it is one file's; also then where the error
            may pass.
    """
    raw = bench.raw_scene(unit.scene)
    faults = dict(bench.inputs(unit.scene).faults)
    if faults and bench.config.on_error == "fail":
        bench.scene(unit.scene)
    frames = blocks(len(raw.keyframes), bench.config.block_keyframes)[unit.block]
    while True:
        loader = _Loader()
        context = BlockContext(
            scene=without_faults(raw, faults),
            cameras=bench.cameras,
            start=frames.start,
            stop=frames.stop,
            sizes=bench.sizes,
            sweep_slots=sweep_slots(raw),
            classes=tuple(bench.log.classes),
            load_image=loader.watch(bench.images),
            load_lidar=loader.watch(bench.log.read_lidar),
            upstream=upstream,
            truth=bench.truth(unit.scene),
        )
        notes: list[str] = []
        context.warn = notes.append
        try:
            block = extractor.extract(context)
        except DataError as error:
            # A file that could not be reached this time is not damaged: left out, it would stay so.
            if bench.config.on_error == "fail" or not loader.failed or is_transient(error):
                raise
            faults |= loader.failed
            continue
        block.notes += [note for note in notes if note not in block.notes]
        return block, [faults[path] for path in _block_files(raw, frames) if path in faults]


def _block_files(scene: Scene, frames: range) -> Iterator[Path]:
    """Raw files of a block's keyframes and of the sweeps after them."""
    for t in frames:
        own = (scene.keyframes[t], *scene.sweeps_after(t))
        yield from (path for path, _ in scene_files(Scene(scene.name, own)))
