"""Flow that no still world explains: how far it ends from every place where a still point could have gone."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from geometry.cameras import pixel_centres
from pipelines.cues.base import ImageSizes
from pipelines.cues.depth_bounds import DepthBounds
from pipelines.cues.motion_witnesses import Witness
from pipelines.cues.static_flow import project_inverse_depth, second_from_first
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
    for k, (lower, upper) in enumerate(_surfaces(depth, rule.bleed)):
        miss, parallax = residual(image, witness, lower, upper, sizes)
        length = np.linalg.norm(miss, axis=0)
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
        metres = np.linalg.norm(vector, axis=0) / (focal * depth.inverse)
    return Motion(strength.astype(np.float32), (turned * vector).astype(np.float32), metres.astype(np.float32))


def residual(
    image: CameraImage,
    witness: Witness,
    lower: Float[np.ndarray, "height width"],
    upper: Float[np.ndarray, "height width"],
    sizes: ImageSizes,
) -> tuple[Float[np.ndarray, "2 height width"], Float[np.ndarray, "height width"]]:
    """From the nearest point of each pixel's epipolar segment to where its flow ends, and the parallax; render pixels.

    The segment is where still points of inverse depth `lower` to `upper` (1/m) land; the parallax is the way from
    where an infinitely far point lands to its nearer end. NaN = unknown.
    """
    _, height, width = witness.flow.shape
    uv = pixel_centres(height, width).reshape(-1, 2)
    K = sizes.render_transform(image).intrinsics(image.K)
    K_target = sizes.render_transform(witness.target).intrinsics(witness.target.K)
    pose = second_from_first(image, witness.target)
    far, near, still = (
        project_inverse_depth(K, K_target, pose, uv, rho.ravel()) for rho in (lower, upper, np.zeros_like(lower))
    )
    end = uv + witness.flow.reshape(2, -1).T
    along = near - far
    share = ((end - far) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
    miss = end - (far + np.clip(share, 0.0, 1.0)[:, None] * along)
    parallax = np.linalg.norm(near - still, axis=1)
    return miss.T.reshape(2, height, width), parallax.reshape(height, width)


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
