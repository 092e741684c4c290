"""Profiles of a store: what each costs on disk, in decoding and in precision. Chosen once, when a store is made.

A profile changes codecs and rounds values; it changes neither dtypes, shapes nor units, so readers need not know it:
flow stays int16 in 1/64 px, of which `small` uses every fourth value. docs/store.md says what was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from storage.errors import StoreError
from storage.schema import INVALID_FLOW

PLAIN = "fast"
"""The profile of stores that name none."""
FLOW_SLOTS = ("next", "prev", "aux")

LEAST_JPEG_QUALITY, GREATEST_JPEG_QUALITY = 30, 95
"""Of images and sweeps; an image that is too large is encoded anew down to the least."""


@dataclass(frozen=True)
class Profile:
    """How a store keeps its arrays.

    Attributes:
        codecs: array name -> codec, where it is not the schema's.
        jpeg_quality: of images and sweeps, where the extraction's configuration names none.
        flow_step: stored flow is a multiple of so many 1/64 px; the error is at most half of that.
        confidence_levels: flow confidences above 0 are rounded to so many levels, 255 the highest; 0 stays 0.
        lidar_step_m: LiDAR coordinates are multiples of it, in metres; 0 keeps them as they come. A power of two.
    """

    codecs: Mapping[str, str] = field(default_factory=dict)
    jpeg_quality: int = 90
    flow_step: int = 1
    confidence_levels: int = 255
    lidar_step_m: float = 0.0


PROFILES: dict[str, Profile] = {
    PLAIN: Profile(),
    "small": Profile(
        # JPEG bytes do not shrink, but their padding to the scene's longest does: a third of the array and more.
        codecs={
            "images": "zstd1",
            "sweeps/images": "zstd1",
            "lidar/points": "blosc-zstd-shuffle",
            **{f"flow/{slot}/flow": "blosc-zstd-shuffle" for slot in FLOW_SLOTS},
            **{f"flow/{slot}/confidence": "blosc-zstd-bitshuffle" for slot in FLOW_SLOTS},
        },
        jpeg_quality=75,
        flow_step=4,
        confidence_levels=4,
        lidar_step_m=1 / 256,
    ),
}


def profile(name: str) -> Profile:
    """The profile of this name. Raises StoreError."""
    if name not in PROFILES:
        raise StoreError(f"store profile {name!r} is unknown; expected one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def reduced(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """What a profile keeps of a block's arrays, by schema name: the same dtypes and shapes; done twice, done once.

    Arrays that a profile does not change are passed on as they are. Raises StoreError for an unknown profile.
    """
    kept, how = dict(arrays), profile(name)
    for slot in FLOW_SLOTS:
        flow, confidence = f"flow/{slot}/flow", f"flow/{slot}/confidence"
        if flow in kept and how.flow_step > 1:
            kept[flow] = round_flow(kept[flow], how.flow_step)
        if confidence in kept and how.confidence_levels < 255:
            kept[confidence] = round_confidence(kept[confidence], how.confidence_levels)
    if "lidar/points" in kept and how.lidar_step_m:
        points = kept["lidar/points"].copy()
        points[..., :3] = np.rint(points[..., :3] / np.float32(how.lidar_step_m)) * np.float32(how.lidar_step_m)
        kept["lidar/points"] = points
    return kept


def round_flow(flow: np.ndarray, step: int) -> np.ndarray:
    """Stored flow, int16 in 1/64 px, to the nearest multiple of `step`; "no correspondence" stays what it is.

    Halves go up. The few values next to ±512 px whose nearest multiple int16 cannot hold get the next smaller one.
    """
    nearest = (flow.astype(np.int32) + step // 2) // step * step
    largest = 32767 // step * step
    return np.where(flow == INVALID_FLOW, INVALID_FLOW, np.clip(nearest, -largest, largest)).astype(np.int16)


def round_confidence(confidence: np.ndarray, levels: int) -> np.ndarray:
    """Confidences uint8 to the nearest of `levels` even steps up to 255; 0 stays 0, and nothing else becomes 0."""
    table = np.rint(np.clip(np.rint(np.arange(256) * (levels / 255)), 1, None) * (255 / levels)).astype(np.uint8)
    table[0] = 0
    return table[confidence]
