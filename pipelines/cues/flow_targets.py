"""Which frame a keyframe's flow ends in: the next or the previous keyframe, through what was filmed between."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipelines.datasets.records import CameraImage, Frame, Scene


@dataclass(frozen=True)
class Target:
    """Where a keyframe's flow ends: keyframe `frame`, or sweep slot `sweep` after it (-1: the keyframe itself).

    film: the camera's images from the labelled keyframe to the target, in the order of travel.
    """

    frame: int
    sweep: int
    film: tuple[CameraImage, ...]


Aim = Callable[[int, str], Target | str]
"""From (keyframe index, channel) to the target, or to the reason why there is none."""


def _image(frame: Frame, channel: str) -> list[CameraImage]:
    return [frame.images[channel]] if channel in frame.images else []


def aim_next(scene: Scene) -> Aim:
    """The next keyframe, through the sweeps between."""
    keyframes = scene.keyframes
    between = [scene.sweeps_after(t) for t in range(len(keyframes))]

    def aim(t: int, channel: str) -> Target | str:
        if len(keyframes) == 1:
            return "flow impossible: the scene has a single frame"
        if t + 1 == len(keyframes):
            return "no next keyframe: last of the scene"
        ends = _image(keyframes[t], channel), _image(keyframes[t + 1], channel)
        if not all(ends):
            return "the camera has no image at this or the next keyframe"
        sweeps = [image for frame in between[t] for image in _image(frame, channel)]
        return Target(t + 1, -1, (*ends[0], *sweeps, *ends[1]))

    return aim


def aim_previous(scene: Scene) -> Aim:
    """The previous keyframe, back through the sweeps between."""
    forward = aim_next(scene)

    def aim(t: int, channel: str) -> Target | str:
        if len(scene.keyframes) == 1:
            return "flow impossible: the scene has a single frame"
        if t == 0:
            return "no previous keyframe: first of the scene"
        found = forward(t - 1, channel)
        if isinstance(found, str):
            return "the camera has no image at this or the previous keyframe"
        return Target(t - 1, -1, found.film[::-1])

    return aim


def aim_keyframe(scene: Scene, slot: Literal["next", "prev"]) -> Aim:
    """The keyframe that flow slot `slot` is about."""
    return aim_next(scene) if slot == "next" else aim_previous(scene)
