"""From a log's readers to a folder of frame pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from pipelines.adapt.pairs import FramePairs, PairsError
from pipelines.cues.flow_targets import aim_next
from pipelines.cues.resize import shrink, working_size
from pipelines.datasets.records import CameraImage, Log, Scene
from pipelines.datasets.truth import leads_to_next


@dataclass(frozen=True)
class CollectSettings:
    """Which pairs are taken.

    Attributes:
        between: "keyframes": from each keyframe to the next, as the cue is asked for; only these may have true flow.
            "frames": from each image to the next one of its camera, sweeps included.
        max_width: images are shrunk to this many columns, then stretched to the next multiple of the network's step.
        limit: pairs taken at the most, evenly spread over all there are.
    """

    between: Literal["keyframes", "frames"] = "keyframes"
    max_width: int = 1280
    limit: int = 2000


Found = tuple[str, int, str, CameraImage, CameraImage]
"""Scene, keyframe index (-1 for other frames), camera, first and second image."""


def collect_pairs(
    log: Log,
    scenes: list[str],
    load_image: Callable[[CameraImage], np.ndarray],
    multiple: int,
    settings: CollectSettings,
    folder: Path,
    truth: bool = True,
) -> FramePairs:
    """Write the pairs of some scenes into `folder` and return them.

    Args:
        log: the reader; true flow is taken where it has some, if `truth`.
        load_image: RGB uint8 (H, W, 3) of a record; raises DataError.
        multiple: of the network's variant.

    Raises:
        PairsError: no pair of images, or images of several shapes.
        DataError: an image that cannot be read.
    """
    found = [pair for name in scenes for pair in _pairs(log, log.scene(name), settings.between)]
    if not found:
        raise PairsError(f"no pairs of images in {len(scenes)} scenes; scenes of a single frame have none")
    if len(found) > settings.limit:
        found = [found[i] for i in np.linspace(0, len(found) - 1, settings.limit).astype(int)]
    height, width = found[0][3].height, found[0][3].width
    size = tuple(-(-side // multiple) * multiple for side in working_size(height, width, settings.max_width))
    positions: dict[Path, int] = {}
    records: list[CameraImage] = []
    for record in (record for pair in found for record in pair[3:]):
        if (record.height, record.width) != (height, width):
            raise PairsError(
                f"{record.path}: {record.height}x{record.width} pixels, others have {height}x{width}; "
                "adapt to cameras of one size at a time (--cameras)"
            )
        if record.path not in positions:
            positions[record.path] = len(records)
            records.append(record)
    images = np.stack([shrink(load_image(record), (size[0], size[1])) for record in records])
    pairs = np.array([[positions[record.path] for record in pair[3:]] for pair in found])
    flows = [_true_flow(log, pair, (size[0], size[1])) if truth else None for pair in found]
    flow = None
    if any(one is not None for one in flows):
        unknown = np.full((2, *size), np.nan, np.float32)
        flow = np.stack([unknown if one is None else one for one in flows])
    FramePairs(images, pairs, flow).save(folder)
    return FramePairs.open(folder)


def _pairs(log: Log, scene: Scene, between: str) -> Iterator[Found]:
    if between == "frames":
        for channel in log.cameras:
            images = [frame.images[channel] for frame in scene.frames if channel in frame.images]
            for first, second in pairwise(images):
                yield scene.name, -1, channel, first, second
        return
    aim = aim_next(scene)
    for t in range(len(scene.keyframes)):
        for channel in log.cameras:
            target = aim(t, channel)
            if not isinstance(target, str):
                yield scene.name, t, channel, target.film[0], target.film[-1]


def _true_flow(log: Log, pair: Found, size: tuple[int, int]) -> Float[np.ndarray, "2 height width"] | None:
    """True flow on the pairs' grid: that of the raw pixel around each pixel's centre."""
    scene, t, channel, first, _ = pair
    truth = log.truth(scene) if t >= 0 else None
    arrays = None if truth is None else truth.camera(log.scene(scene).keyframes[t].token, channel)
    flow = None if arrays is None else arrays.get("flow_next")
    if truth is None or flow is None or not leads_to_next(truth, log.scene(scene), t):
        return None
    rows = ((np.arange(size[0]) + 0.5) * first.height / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * first.width / size[1]).astype(int)
    scale = np.array([size[1] / first.width, size[0] / first.height], np.float32)
    return flow[:, rows[:, None], columns[None, :]].astype(np.float32) * scale[:, None, None]
