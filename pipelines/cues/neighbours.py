"""The auxiliary previous frame: drawn by a Gaussian over ego distance among the stored frames before a keyframe."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.cues.flow_targets import Aim, Target, aim_keyframe
from pipelines.cues.ranges import check_numbers
from pipelines.datasets.records import CameraImage, Scene


@dataclass(frozen=True)
class DrawRule:
    """Gaussian over the distance driven between the two images, metres (method.md, section 5).

    Frames farther than `max_distance` metres or `max_frames` stored frames back are never drawn. A car that has moved
    less than `standing` metres since the frame just before stands still: that frame is taken.
    """

    mean: float = 0.5
    sigma: float = 0.5
    max_distance: float = 6.0
    max_frames: int = 20
    standing: float = 0.02

    def __post_init__(self) -> None:
        check_numbers(self, least={"max_frames": 1}, above_zero=("sigma",))


NUSCENES_RULE = DrawRule()
KITTI_RULE = DrawRule(sigma=1.0)
RULES = {"nuscenes": NUSCENES_RULE, "semantic_kitti": KITTI_RULE, "kitti_mot": KITTI_RULE}
"""By data set, for a configuration that gives none of its own."""


def seeded_uniform(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the words given."""
    digest = hashlib.sha256("\x00".join(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def draw(distances: np.ndarray, rule: DrawRule, uniform: float) -> int | None:
    """Index of the drawn frame, or None where none is near enough.

    Args:
        distances: metres from the keyframe to each candidate, nearest in time first.
        uniform: the random number in [0, 1) that decides.
    """
    candidates = distances[: rule.max_frames]
    if len(candidates) and candidates[0] < rule.standing:
        return 0
    allowed = candidates <= rule.max_distance
    if not allowed.any():
        return None
    # Relative to the best candidate, so that the weights cannot all underflow when every frame is far from the mean.
    exponent = np.where(allowed, -0.5 * ((candidates - rule.mean) / rule.sigma) ** 2, -np.inf)
    weights = np.exp(exponent - exponent.max())
    cumulative = np.cumsum(weights) / weights.sum()
    return int(np.searchsorted(cumulative, uniform, side="right").clip(max=len(candidates) - 1))


def aim_drawn(scene: Scene, rule: DrawRule, sweep_slots: int) -> Aim:
    """The drawn frame before each keyframe; the draw is seeded by scene and keyframe token, the same for all cameras.

    Only frames that the store holds are drawn: keyframes, and sweeps that have a slot.
    """

    def earlier(t: int, channel: str) -> list[tuple[int, int, CameraImage]]:
        found = []
        for frame in range(max(0, t - rule.max_frames), t):
            stored = [(-1, scene.keyframes[frame]), *enumerate(scene.sweeps_after(frame)[:sweep_slots])]
            found += [(frame, sweep, f.images[channel]) for sweep, f in stored if channel in f.images]
        return found[::-1]

    def aim(t: int, channel: str) -> Target | str:
        keyframe = scene.keyframes[t]
        if channel not in keyframe.images:
            return "the camera has no image at this keyframe"
        candidates = earlier(t, channel)
        if not candidates:
            alone = len(scene.frames) == 1
            return "flow impossible: the scene has a single frame" if alone else "no earlier frame: first of the scene"
        own = keyframe.images[channel]
        here = own.global_from_ego[:3, 3]
        distances = np.array([np.linalg.norm(image.global_from_ego[:3, 3] - here) for _, _, image in candidates])
        chosen = draw(distances, rule, seeded_uniform(scene.name, keyframe.token))
        if chosen is None:
            return f"no earlier frame within {rule.max_distance:g} m of driving"
        frame, sweep, _ = candidates[chosen]
        return Target(frame, sweep, (own, *(image for _, _, image in candidates[: chosen + 1])))

    return aim


def aim_slot(scene: Scene, slot: Literal["next", "prev", "aux"], rule: DrawRule, sweep_slots: int) -> Aim:
    """The target of any flow slot; `rule` and `sweep_slots` are the auxiliary one's."""
    return aim_drawn(scene, rule, sweep_slots) if slot == "aux" else aim_keyframe(scene, slot)
