"""The contract between cue extractors and the code that runs them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import UInt8

from geometry.cameras import ImageTransform
from pipelines.datasets.records import CameraImage, LidarSweep, Scene, SceneTruth


@dataclass(frozen=True)
class ImageSizes:
    """Network and render resolution, (height, width) in pixels; render divides network by a whole factor."""

    network: tuple[int, int]
    render: tuple[int, int]
    keep: Literal["bottom", "centre"] = "bottom"

    def transform(self, image: CameraImage) -> ImageTransform:
        """Raw image to network image."""
        return ImageTransform.fit((image.height, image.width), self.network, keep=self.keep)

    def render_transform(self, image: CameraImage) -> ImageTransform:
        """Raw image to render image."""
        return ImageTransform.fit((image.height, image.width), self.render, keep=self.keep)


@dataclass
class BlockContext:
    """All an extractor may touch for one block: keyframes `start`..`stop`-1 of one scene.

    Attributes:
        scene: the whole scene's records (an extractor reads raw frames beyond the block's edges as it needs).
        cameras: the store's camera order; index c everywhere.
        sweep_slots: P, the number of sweep slots after each keyframe.
        load_image: raw RGB uint8 (H, W, 3) of a record, cached; raises DataError.
        load_lidar: (n, 4) float32 in the LiDAR frame; raises DataError.
        upstream: arrays of another cue of this very block, by cue name, as they were committed; raises KeyError
            for a cue that is not in the extractor's `needs`.
        truth: ground truth, for cue `truth` only and for quality figures; never an input of a cue.
        warn: takes one line for the user about something skipped or impossible.
    """

    scene: Scene
    cameras: tuple[str, ...]
    start: int
    stop: int
    sizes: ImageSizes
    sweep_slots: int
    classes: tuple[str, ...]
    load_image: Callable[[CameraImage], UInt8[np.ndarray, "height width 3"]]
    load_lidar: Callable[[LidarSweep], np.ndarray]
    upstream: Callable[[str], Mapping[str, np.ndarray]]
    truth: SceneTruth | None = None
    warn: Callable[[str], None] = print


@dataclass
class CueBlock:
    """What an extractor returns.

    arrays: by the array names of storage.schema.CUES[name], first axis = stop - start.
    quality: small JSON-able figures of this block (goes into the commit record).
    notes: one line per thing that was skipped or impossible (goes into the commit record).
    """

    arrays: dict[str, np.ndarray]
    quality: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class CueExtractor(Protocol):
    """One cue. Instances are cheap to build and picklable; models are loaded on first use.

    Three attributes may be left out. `needs_gpu` (its units go to workers with a GPU) and `loads_model` (an instance
    holds a model once used: each process keeps one, which labels one block at a time) then mean False. `without` maps
    a cue in `needs` to the parameter that spares it; it is told where cues need each other in a circle.
    """

    @property
    def name(self) -> str:
        """The cue's name in the store, a key of storage.schema.CUES."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Cues of the same block that must be committed first."""
        ...

    def config_digest(self) -> str:
        """Hex digest of everything that changes the output: parameters, algorithm version, weights."""
        ...

    def licence(self) -> str:
        """Licence of the labeller, e.g. 'Apache-2.0'; recorded in the store."""
        ...

    def extract(self, context: BlockContext) -> CueBlock:
        """Label one block."""
        ...


def needs_gpu(extractor: CueExtractor) -> bool:
    """Whether this extractor's units have to run where there is a GPU."""
    return bool(getattr(extractor, "needs_gpu", False))


def loads_model(extractor: CueExtractor) -> bool:
    """Whether an instance holds what is worth keeping from unit to unit; so does all that needs a GPU."""
    return needs_gpu(extractor) or bool(getattr(extractor, "loads_model", False))


def parameters_digest(extractor: Any, version: int) -> str:
    """`config_digest` of an extractor that is a dataclass of plain values: its class, algorithm version and fields.
    OpenCV's `threads` change no result and do not count."""
    described = {"class": type(extractor).__name__, "version": version, **asdict(extractor)}
    if "threads" in described:
        described["threads"] = 1  # not left out: stores hold digests made with the default
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
