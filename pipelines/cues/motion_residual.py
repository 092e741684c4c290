"""Flow that no still world explains: how far it ends from every place where a still point could have gone."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from geometry.cameras import MIN_DEPTH, camera_directions, pixel_centres
from pipelines.cues.base import ImageSizes
from pipelines.cues.depth_bounds import DepthBounds
from pipelines.cues.motion_witnesses import Witness
from pipelines.cues.ranges import check_numbers
from pipelines.cues.static_flow import second_from_first
from pipelines.datasets.records import CameraImage

BLEED_STEP = 0.06
"""Share by which the depth of a surface beside a pixel may be off."""


@dataclass(frozen=True)
class MotionRule:
    """What counts as a thing's own motion, from one image of a flow to the other.

    least_px: share of the image width; what depth, pose and flow leave unexplained of a still world. relative: share
    of the parallax by which the same grows. least_m: metres sideways. ground: what lies lower than this above the
    ground (m) never counts: shadows move over it. bleed: share of the image width over which the flow of one surface
    may have spilled onto another.
    """

    least_px: float = 0.004
    relative: float = 0.06
    least_m: float = 0.05
    ground: float = 0.25
    bleed: float = 0.012

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("least_px",), free=("ground",))


@dataclass(frozen=True)
class Motion:
    """Unexplained motion in one image, on its render grid; NaN = unknown.

    strength: its length in units of what is allowed; above 1 something moves.
    vector: render pixels, from image to target, turned round where the target lies before the image.
    metres: the vector's length sideways at the pixel's likeliest depth.
    """

    strength: Float[np.ndarray, "height width"]
    vector: Float[np.ndarray, "2 height width"]
    metres: Float[np.ndarray, "height width"]


def unexplained(
    image: CameraImage, seen: Sequence[tuple[Witness, DepthBounds]], sizes: ImageSizes, rule: MotionRule
) -> Motion:
    """What remains of one or more flows of an image; where several know a pixel, the one that sees least motion counts.

    A flow that is wrong in one direction of time is seldom wrong in the other, while what moves does so in both.
    """
    if not seen:
        unknown = np.full(sizes.render, np.nan, np.float32)
        return Motion(unknown, np.stack([unknown, unknown]), unknown)
    motions = [_of_one(image, witness, bounds, sizes, rule) for witness, bounds in seen]
    strength, vector, metres = motions[0].strength, motions[0].vector, motions[0].metres
    for other in motions[1:]:
        vector = np.where(np.isnan(strength), other.vector, vector)
        metres = np.fmin(metres, other.metres)
        strength = np.fmin(strength, other.strength)
    return Motion(strength, vector, metres)


def _of_one(image: CameraImage, witness: Witness, depth: DepthBounds, sizes: ImageSizes, rule: MotionRule) -> Motion:
    width = depth.inverse.shape[1]
    focal = sizes.render_transform(image).intrinsics(image.K)[0, 0]
    strength, vector = np.full(depth.inverse.shape, np.inf), np.zeros_like(witness.flow)
    epipolar = Epipolar(image, witness.target, sizes)
    for k, (lower, upper) in enumerate(_surfaces(depth, rule.bleed)):
        miss, parallax = residual(epipolar, witness.flow, lower, upper)
        length = np.hypot(*miss)
        allowed = np.maximum(
            rule.least_px * width + rule.relative * parallax,
            rule.least_m * focal * np.nan_to_num(depth.inverse, nan=0.0),
        )
        strength = np.fmin(strength, length / allowed)
        vector = miss if k == 0 else vector
    strength = np.where(np.isinf(strength) | np.isnan(vector[0]), np.nan, strength)
    strength = np.where(depth.height < rule.ground, 0.0, strength)
    turned = 1.0 if witness.target.timestamp_us >= image.timestamp_us else -1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        metres = np.hypot(*vector) / (focal * depth.inverse)
    return Motion(strength.astype(np.float32), (turned * vector).astype(np.float32), metres.astype(np.float32))


class Epipolar:
    """Where the points of one image that stand still land in another, pixel by pixel and for any depth.

    A pixel's ray, seen by the second camera, is a line in homogeneous pixels: (start + inverse depth * step).
    """

    def __init__(self, image: CameraImage, target: CameraImage, sizes: ImageSizes) -> None:
        height, width = sizes.render
        self.uv = np.moveaxis(pixel_centres(height, width), -1, 0)
        K = sizes.render_transform(image).intrinsics(image.K)
        K_target = sizes.render_transform(target).intrinsics(target.K)
        pose = second_from_first(image, target)
        rays = camera_directions(K, pixel_centres(height, width).reshape(-1, 2))
        self.start = (rays @ (K_target @ pose[:3, :3]).T).T.reshape(3, height, width)
        self.step = K_target @ pose[:3, 3]

    def land(self, inverse: Float[np.ndarray, "height width"] | float) -> Float[np.ndarray, "2 height width"]:
        """Render pixels of the target; NaN where the point falls behind its camera, or `inverse` (1/m) is NaN."""
        at = [self.start[k] + inverse * self.step[k] for k in range(3)]
        with np.errstate(invalid="ignore"):
            ahead = np.where(at[2] > MIN_DEPTH, at[2], np.nan)
        return np.stack([at[0] / ahead, at[1] / ahead])


def residual(
    epipolar: Epipolar,
    flow: Float[np.ndarray, "2 height width"],
    lower: Float[np.ndarray, "height width"],
    upper: Float[np.ndarray, "height width"],
) -> tuple[Float[np.ndarray, "2 height width"], Float[np.ndarray, "height width"]]:
    """From the nearest point of each pixel's epipolar segment to where its flow ends, and the parallax; render pixels.

    The segment is where still points of inverse depth `lower` to `upper` (1/m) land; the parallax is the way from
    where an infinitely far point lands to its nearer end. NaN = unknown.
    """
    far, near = epipolar.land(lower), epipolar.land(upper)
    end = epipolar.uv + flow
    along = near - far
    share = ((end - far) * along).sum(axis=0) / np.maximum((along**2).sum(axis=0), 1e-12)
    miss = end - (far + np.clip(share, 0.0, 1.0) * along)
    return miss, np.hypot(*(near - epipolar.land(0.0)))


def _surfaces(
    depth: DepthBounds, bleed: float
) -> list[tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]]:
    """Inverse-depth bounds of the pixel itself, and of the nearest and the farthest surface beside it."""
    own = (depth.lower, depth.upper)
    known = ~np.isnan(depth.inverse)
    if bleed <= 0 or not known.any():
        return [own]
    # At least 2 px: what a flow's patch spans does not shrink with the image.
    reach = max(2, round(bleed * depth.inverse.shape[1]))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    near = np.where(known, cv2.dilate(np.where(known, depth.upper, 0.0), kernel), np.nan)
    far = np.where(known, cv2.erode(np.where(known, depth.lower, 1e3), kernel), np.nan)
    return [own, (near * (1 - BLEED_STEP), near), (far, far * (1 + BLEED_STEP))]
