"""Rigid transforms named `dst_from_src`: 4x4 homogeneous matrices, for numpy arrays and torch tensors alike."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float

ArrayT = TypeVar("ArrayT", np.ndarray, torch.Tensor)

Numbers = Sequence[float | int] | np.ndarray
"""A few numbers, as a list, a tuple or an array (numpy's ArrayLike refuses tuples under run-time checking)."""


def invert(dst_from_src: ArrayT) -> ArrayT:
    """Inverse of rigid transforms, `src_from_dst`.

    Uses the transpose of the rotation, not a general inverse: exact to rounding and safe in float32.

    Args:
        dst_from_src: (..., 4, 4), numpy or torch.

    Returns:
        (..., 4, 4) of the same type and dtype.
    """
    rotation_t = dst_from_src[..., :3, :3].swapaxes(-1, -2)
    if isinstance(dst_from_src, torch.Tensor):
        out = torch.zeros_like(dst_from_src)
    else:
        out = np.zeros_like(dst_from_src)
    out[..., :3, :3] = rotation_t
    out[..., :3, 3] = -rotate_vectors(out, dst_from_src[..., None, :3, 3])[..., 0, :]
    out[..., 3, 3] = 1.0
    return out


def compose(dst_from_mid: ArrayT, mid_from_src: ArrayT) -> ArrayT:
    """One transform after another, `dst_from_src`: (..., 4, 4), leading axes broadcast.

    Under autocast a plain product of tensors is rounded to 8 bits.
    """
    if isinstance(dst_from_mid, torch.Tensor) and not _exact_products(dst_from_mid):
        return (dst_from_mid[..., :, :, None] * mid_from_src[..., None, :, :]).sum(dim=-2)
    return dst_from_mid @ mid_from_src


def transform_points(dst_from_src: ArrayT, points: ArrayT) -> ArrayT:
    """Move points from frame `src` to frame `dst`.

    Args:
        dst_from_src: (..., 4, 4); leading axes broadcast against those of `points` less its last two.
        points: (..., N, 3), metres.

    Returns:
        (..., N, 3), metres, in frame `dst`.
    """
    if isinstance(points, torch.Tensor) and not _exact_products(points):
        return _rotate(dst_from_src, points, dst_from_src[..., None, :3, 3])
    return points @ dst_from_src[..., :3, :3].swapaxes(-1, -2) + dst_from_src[..., None, :3, 3]


def rotate_vectors(dst_from_src: ArrayT, vectors: ArrayT) -> ArrayT:
    """Rotate free vectors (no translation): (..., N, 3) from frame `src` to frame `dst`."""
    if isinstance(vectors, torch.Tensor) and not _exact_products(vectors):
        return _rotate(dst_from_src, vectors, None)
    return vectors @ dst_from_src[..., :3, :3].swapaxes(-1, -2)


def _exact_products(tensor: torch.Tensor) -> bool:
    """Whether a matrix product keeps the tensor's precision: not under autocast (bfloat16: 0.25 m at 40 m), and not on
    a GPU where TF32 is on (10 bits). It is the faster way on a CPU."""
    return tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _rotate(dst_from_src: torch.Tensor, vectors: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """R v + offset as multiply-adds, which nothing rounds."""
    x, y, z = (dst_from_src[..., None, :3, axis] for axis in range(3))
    along_x = vectors[..., 0:1] * x if offset is None else offset.addcmul(vectors[..., 0:1], x)
    return along_x.addcmul(vectors[..., 1:2], y).addcmul(vectors[..., 2:3], z)


def from_rotation_translation(
    rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """`dst_from_src` as float64 from its rotation matrix and translation in metres."""
    out = np.eye(4)
    out[:3, :3] = rotation
    out[:3, 3] = translation
    return out


def from_quaternion(wxyz: Numbers, translation: Numbers) -> Float[np.ndarray, "4 4"]:
    """`dst_from_src` from a quaternion in (w, x, y, z) order (the order of nuScenes' tables) and a translation.

    The quaternion is normalised.

    Raises:
        ValueError: the quaternion has zero length or is not finite.
    """
    q = np.asarray(wxyz, dtype=np.float64)
    norm = np.linalg.norm(q)
    if q.shape != (4,) or not np.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"a rotation needs a finite, non-zero quaternion (w, x, y, z), got {list(np.ravel(q))}")
    w, x, y, z = q / norm
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return from_rotation_translation(rotation, np.asarray(translation, dtype=np.float64))


def to_quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix.

    Takes the best conditioned of the four components first (Shepperd's method), so half turns are exact.
    """
    m = np.asarray(rotation, dtype=np.float64)
    squares = 1 + np.array(
        [
            m[0, 0] + m[1, 1] + m[2, 2],
            m[0, 0] - m[1, 1] - m[2, 2],
            m[1, 1] - m[0, 0] - m[2, 2],
            m[2, 2] - m[0, 0] - m[1, 1],
        ]
    )
    k = int(np.argmax(squares))
    big = np.sqrt(squares[k]) / 2
    d = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    s = np.array([m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]])
    rest = {
        0: [big, *(d / (4 * big))],
        1: [d[0] / (4 * big), big, s[0] / (4 * big), s[1] / (4 * big)],
        2: [d[1] / (4 * big), s[0] / (4 * big), big, s[2] / (4 * big)],
        3: [d[2] / (4 * big), s[1] / (4 * big), s[2] / (4 * big), big],
    }[k]
    q = np.array(rest)
    return q if q[0] >= 0 else -q


def yaw_transform(yaw: float, translation: Numbers) -> Float[np.ndarray, "4 4"]:
    """`dst_from_src` that turns by `yaw` radians about z (counter-clockwise from above) and then translates."""
    c, s = np.cos(yaw), np.sin(yaw)
    rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return from_rotation_translation(rotation, np.asarray(translation, dtype=np.float64))


def check_rigid(name: str, dst_from_src: np.ndarray, tolerance: float = 1e-3) -> None:
    """Raise a ValueError that names `name` unless every (..., 4, 4) matrix is a finite rigid transform."""
    m = np.asarray(dst_from_src)
    if m.shape[-2:] != (4, 4) or not np.all(np.isfinite(m)):
        raise ValueError(f"{name}: expected finite 4x4 matrices, got shape {m.shape}, finite: {np.isfinite(m).all()}")
    rotation = m[..., :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max()
    if error > tolerance or np.any(np.linalg.det(rotation) < 0):
        raise ValueError(
            f"{name}: not a rotation (R·Rᵀ is off the identity by {error:.3g}, "
            f"allowed {tolerance:g}; determinant must be +1)"
        )
    last = m[..., 3, :].reshape(-1, 4)
    wrong = np.abs(last - (0, 0, 0, 1)).max(axis=1) > 1e-6
    if wrong.any():
        raise ValueError(
            f"{name}: the last row is {last[wrong.argmax()].tolist()}, expected 0, 0, 0, 1: a translation belongs in "
            "the last column (is the matrix transposed?)"
        )
