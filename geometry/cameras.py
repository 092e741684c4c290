"""Pinhole cameras: projection, back-projection, and how resizing and cropping change K.

Pixel (i, j) covers [i, i+1) x [j, j+1): its centre is at +0.5. K maps camera coordinates (x right, y down,
z forward, metres) to those continuous pixel coordinates (u right, v down).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from geometry.transforms import ArrayT

MIN_DEPTH = 1e-3
"""Camera z, metres, below which a point counts as behind the camera: projecting it would divide by about zero."""


def check_intrinsics(name: str, K: np.ndarray) -> None:
    """Raise a ValueError naming `name` unless K is a finite, invertible upper-triangular 3x3 with positive focals.

    Below the diagonal nothing is read by `project`: a transposed K, or one that is scaled as a whole, would project
    without a word to other pixels.
    """
    K = np.asarray(K)
    if K.shape != (3, 3) or not np.all(np.isfinite(K)):
        raise ValueError(f"{name}: expected a finite 3x3 camera matrix, got {K.tolist()}")
    if K[0, 0] <= 0 or K[1, 1] <= 0 or abs(np.linalg.det(K)) < 1e-9:
        raise ValueError(
            f"{name}: singular camera matrix {K.tolist()}: focal lengths must be positive and the last row (0, 0, 1)"
        )
    below = np.abs(K[[1, 2, 2], [0, 0, 1]]).max()
    if below > 1e-6 or abs(K[2, 2] - 1) > 1e-6:
        hint = "divide it by its last entry" if below <= 1e-6 else "is it transposed?"
        raise ValueError(
            f"{name}: camera matrix {K.tolist()}: expected zeros below the diagonal and the last row (0, 0, 1); {hint}"
        )


def project(K: ArrayT, points: ArrayT) -> tuple[ArrayT, ArrayT, ArrayT]:
    """Project camera-frame points.

    Args:
        K: (..., 3, 3), pixels.
        points: (..., N, 3), camera frame, metres.

    Returns:
        uv (..., N, 2) in pixels, depth (..., N) camera z in metres, valid (..., N) bool, true where z > MIN_DEPTH.
        Where not valid uv is finite but meaningless (z is replaced by MIN_DEPTH before the division), and its
        gradient does not reach z.
    """
    z = points[..., 2]
    valid = z > MIN_DEPTH
    if isinstance(points, torch.Tensor):
        safe_z = torch.where(valid, z, torch.full_like(z, MIN_DEPTH))
    else:
        safe_z = np.where(valid, z, MIN_DEPTH)
    rays = points / safe_z[..., None]
    fx, skew, cx = K[..., None, 0, 0], K[..., None, 0, 1], K[..., None, 0, 2]
    fy, cy = K[..., None, 1, 1], K[..., None, 1, 2]
    u = fx * rays[..., 0] + skew * rays[..., 1] + cx
    v = fy * rays[..., 1] + cy
    if isinstance(points, torch.Tensor):
        return torch.stack([u, v], dim=-1), z, valid
    return np.stack([u, v], axis=-1), z, valid


def unproject(K: ArrayT, uv: ArrayT, depth: ArrayT) -> ArrayT:
    """Camera-frame points (..., N, 3) at pixel positions uv (..., N, 2) and camera-z depth (..., N), metres."""
    return camera_directions(K, uv) * depth[..., None]


def camera_directions(K: ArrayT, uv: ArrayT) -> ArrayT:
    """Camera-frame direction (..., N, 3) with z = 1 through pixel positions uv (..., N, 2); not unit length."""
    fx, skew, cx = K[..., None, 0, 0], K[..., None, 0, 1], K[..., None, 0, 2]
    fy, cy = K[..., None, 1, 1], K[..., None, 1, 2]
    y = (uv[..., 1] - cy) / fy
    x = (uv[..., 0] - cx - skew * y) / fx
    if isinstance(uv, torch.Tensor):
        return torch.stack([x, y, torch.ones_like(x)], dim=-1)
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def in_image(uv: ArrayT, height: int, width: int, border: float = 0.0) -> ArrayT:
    """True (...) where uv (..., 2) lies inside the image area [0, width) x [0, height), less `border` pixels."""
    u, v = uv[..., 0], uv[..., 1]
    return (u >= border) & (u < width - border) & (v >= border) & (v < height - border)


def pixel_centres(height: int, width: int) -> Float[np.ndarray, "height width 2"]:
    """Continuous coordinates (u, v) of every pixel's centre, float64."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([u, v], axis=-1)


@dataclass(frozen=True)
class ImageTransform:
    """Isotropic resize and crop from a raw image to the image used: `uv_image = scale * uv_raw - (left, top)`."""

    scale: float
    left: float
    top: float
    height: int
    width: int

    @classmethod
    def fit(
        cls, raw_hw: tuple[int, int], out_hw: tuple[int, int], keep: Literal["bottom", "centre"] = "bottom"
    ) -> "ImageTransform":
        """The smallest resize that covers `out_hw`, cropped centred sideways and, by `keep`, at top or both ends.

        1600x900 to 1408x512 gives scale 0.88 and drops the top 280 rows, nuScenes' usual crop; KITTI's 1226x370 to
        1216x352 gives scale 0.992 and drops the top 15 rows ("width-fitted, bottom-kept").
        """
        raw_h, raw_w = raw_hw
        out_h, out_w = out_hw
        scale = max(out_w / raw_w, out_h / raw_h)
        spare_h, spare_w = scale * raw_h - out_h, scale * raw_w - out_w
        top = spare_h if keep == "bottom" else spare_h / 2
        return cls(scale=scale, left=spare_w / 2, top=top, height=out_h, width=out_w)

    @property
    def image_from_raw(self) -> Float[np.ndarray, "3 3"]:
        """3x3 matrix on homogeneous pixel coordinates; `K_image = image_from_raw @ K_raw`."""
        return np.array([[self.scale, 0.0, -self.left], [0.0, self.scale, -self.top], [0.0, 0.0, 1.0]])

    def intrinsics(self, K_raw: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
        """K of the transformed image."""
        return self.image_from_raw @ np.asarray(K_raw, dtype=np.float64)


def scale_intrinsics(K: ArrayT, factor_u: float, factor_v: float) -> ArrayT:
    """K (..., 3, 3) of the same view at another resolution: rows scaled by the size ratios (pixel edges at 0)."""
    out = K.clone() if isinstance(K, torch.Tensor) else K.copy()
    out[..., 0, :] = out[..., 0, :] * factor_u
    out[..., 1, :] = out[..., 1, :] * factor_v
    return out
