"""From a log's readers to a folder of frame pairs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from pipelines.adapt.pairs import FramePairs, PairsError, write_pairs
from pipelines.cues.flow_targets import aim_next
from pipelines.cues.ranges import check_numbers
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

    def __post_init__(self) -> None:
        check_numbers(self, least={"max_width": 1, "limit": 1})


ASPECT_TOLERANCE = 0.05
"""Share by which aspect ratios may differ: KITTI's images (1241x376, 1242x375, 1226x370, ...) lie within 0.4 %."""

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
    """Write the pairs of some scenes into `folder` and return them; one image is in memory at a time.

    All images are stretched to one size, that of the first; so is true flow, each from its own image's size.

    Args:
        log: the reader; true flow is taken where it has some, if `truth`.
        load_image: RGB uint8 (H, W, 3) of a record; raises DataError.
        multiple: of the network's variant.

    Raises:
        PairsError: no pair of images, or images whose aspect ratios are too far apart to be stretched to one size.
        DataError: an image that cannot be read.
    """
    found = [pair for name in scenes for pair in _pairs(log, log.scene(name), settings.between)]
    if not found:
        raise PairsError(f"no pairs of images in {len(scenes)} scenes; scenes of a single frame have none")
    if len(found) > settings.limit:
        found = [found[i] for i in np.linspace(0, len(found) - 1, settings.limit).astype(int)]
    height, width = found[0][3].height, found[0][3].width
    rows, columns = (-(-side // multiple) * multiple for side in working_size(height, width, settings.max_width))
    positions: dict[Path, int] = {}
    records: list[CameraImage] = []
    for record in (record for pair in found for record in pair[3:]):
        _check_shape(record, found[0][3])
        if record.path not in positions:
            positions[record.path] = len(records)
            records.append(record)
    pairs = np.array([[positions[record.path] for record in pair[3:]] for pair in found])
    images = (shrink(load_image(record), (rows, columns)) for record in records)
    flows = _known((_true_flow(log, pair, (rows, columns)) for pair in found), (rows, columns)) if truth else None
    return FramePairs.open(write_pairs(folder, (rows, columns), len(records), images, pairs, flows))


def _check_shape(record: CameraImage, first: CameraImage) -> None:
    aspect = record.width * first.height / (record.height * first.width)
    if not 1 / (1 + ASPECT_TOLERANCE) <= aspect <= 1 + ASPECT_TOLERANCE:
        raise PairsError(
            f"{record.path}: {record.width}x{record.height} pixels, where {first.path} has {first.width}x"
            f"{first.height}; images are stretched to one size, and aspect ratios may differ by "
            f"{ASPECT_TOLERANCE:.0%}: take scenes of one shape at a time (--scenes)"
        )


def _known(
    flows: Iterator[Float[np.ndarray, "2 height width"] | None], size: tuple[int, int]
) -> Iterable[Float[np.ndarray, "2 height width"]] | None:
    """The flows with NaN for those that are not known; None if none is."""
    unknown = np.full((2, *size), np.nan, np.float32)
    for before, flow in enumerate(flows):
        if flow is not None:
            return chain(repeat(unknown, before), [flow], (unknown if one is None else one for one in flows))
    return None


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
