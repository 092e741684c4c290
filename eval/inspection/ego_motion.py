"""Static-flow residual: what LiDAR depth and ego-motion predict of the flow, and what its difference to the cue says.

A residual that one small rigid motion of the camera explains is a bias: pose, calibration or time is wrong. What that
motion leaves is scatter: the flow is wrong (docs/inspection.md).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from geometry.cameras import in_image, project
from geometry.transforms import invert, transform_points
from storage.schema import SceneTable

HIDDEN = 0.1
"""A point this share farther than the nearest one around it is taken for one that the camera does not see."""
DEPTH_EDGES_M = (0.0, 5.0, 10.0, 20.0, 40.0, np.inf)
FITTED_POINTS = 3000
"""About so many points decide a camera motion, of all evenly; it has six unknowns."""
REGIONS = 3
"""Rows and columns of image regions."""


@dataclass(frozen=True)
class StaticFlow:
    """What standing still would look like at LiDAR points that one camera sees twice.

    Attributes:
        uv: where the points are in the first image, render pixels.
        flow: their displacement to the second image, render pixels.
        depth: camera z in the first image, metres.
        there: the points in the second camera's frame, metres.
        index: which of the given points they are.
    """

    uv: Float[np.ndarray, "n 2"]
    flow: Float[np.ndarray, "n 2"]
    depth: Float[np.ndarray, " n"]
    there: Float[np.ndarray, "n 3"]
    index: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Camera:
    """One image: K in render pixels and its pose in the keyframe's ego frame (metres), at its own time."""

    K: Float[np.ndarray, "3 3"]
    cam_from_ego: Float[np.ndarray, "4 4"]


def camera_at(table: SceneTable, ego_t: int, t: int, c: int, scale: float) -> Camera:
    """Camera `c` at keyframe `t`, seen from the ego frame of keyframe `ego_t`; `scale` is render / network size."""
    global_from_cam = table.camera_global_from_ego[t][c] @ table.ego_from_cam[t][c]
    return Camera(_scaled(table.K[t][c], scale), invert(global_from_cam) @ table.global_from_ego[ego_t])


def sweep_camera_at(table: SceneTable, ego_t: int, t: int, p: int, c: int) -> Camera:
    """The same of the sweep in slot `p` after keyframe `t`."""
    global_from_cam = table.sweep_global_from_ego[t][p][c] @ table.sweep_ego_from_cam[t][p][c]
    return Camera(np.array(table.sweep_K[t][p][c]), invert(global_from_cam) @ table.global_from_ego[ego_t])


def _scaled(K: np.ndarray, scale: float) -> np.ndarray:
    out = np.array(K, dtype=np.float64)
    out[:2] *= scale
    return out


def seen_points(
    points: Float[np.ndarray, "n 3"], camera: Camera, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "k 2"], Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Pixels, camera z (metres) and indices of the points (ego frame) that the image of `size` (h, w) shows."""
    height, width = size
    uv, z, front = project(camera.K, transform_points(camera.cam_from_ego, points))
    kept = np.flatnonzero(front & in_image(uv, height, width))
    kept = kept[_visible(uv[kept], z[kept], size)]
    return uv[kept], z[kept], kept


def _visible(uv: np.ndarray, z: np.ndarray, size: tuple[int, int]) -> Bool[np.ndarray, " n"]:
    """False behind the nearest point of the cells around: the LiDAR looks over things from the roof."""
    cell = max(2.0, size[1] / 88)
    rows, columns = int(size[0] // cell) + 3, int(size[1] // cell) + 3
    row, column = (uv[:, 1] // cell).astype(int) + 1, (uv[:, 0] // cell).astype(int) + 1
    nearest = np.full((rows, columns), np.inf)
    np.minimum.at(nearest, (row, column), z)
    around = np.full_like(nearest, np.inf)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            around[1:-1, 1:-1] = np.minimum(
                around[1:-1, 1:-1], nearest[1 + dr : rows - 1 + dr, 1 + dc : columns - 1 + dc]
            )
    # A slanted road is as deep as its neighbours: only the row above may be much farther.
    return z <= around[row, column] * (1 + HIDDEN) + 1.0


def static_flow(points: Float[np.ndarray, "n 3"], first: Camera, second: Camera, size: tuple[int, int]) -> StaticFlow:
    """Static flow at the LiDAR points (first keyframe's ego frame, metres) that lie in both images of `size` (h, w)."""
    uv, z, index = seen_points(points, first, size)
    there = transform_points(second.cam_from_ego, points[index])
    uv2, _, front = project(second.K, there)
    kept = front & in_image(uv2, *size)
    return StaticFlow(uv[kept], (uv2 - uv)[kept], z[kept], there[kept], index[kept])


@dataclass(frozen=True)
class MotionFit:
    """The small rigid motion of the second camera that explains residuals best.

    Attributes:
        translation: metres, second camera's axes (x right, y down, z forward).
        rotation: degrees about the same axes.
        explained: px, what the motion predicts of each residual.
    """

    translation: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3"]
    explained: Float[np.ndarray, "n 2"]


def fit_motion(
    residual: Float[np.ndarray, "n 2"], there: Float[np.ndarray, "n 3"], K: Float[np.ndarray, "3 3"], rounds: int = 6
) -> MotionFit:
    """Least absolute residuals by re-weighting: outliers (moving things, wrong flow) count little.

    Points p move to p + w x p + v; d(u, v) follows from the pinhole's derivative. At least 6 points are needed.

    Args:
        residual: flow less static flow, render px.
        there: points in the second camera's frame, metres.
        K: of the second image, px.
    """
    x, y, z = there.T
    zero = np.zeros_like(z)
    du = np.stack([K[0, 0] / z, zero, -K[0, 0] * x / z**2], axis=1)
    dv = np.stack([zero, K[1, 1] / z, -K[1, 1] * y / z**2], axis=1)
    turn = np.stack(
        [np.stack([zero, z, -y], axis=1), np.stack([-z, zero, x], axis=1), np.stack([y, -x, zero], axis=1)], axis=1
    )  # rows: derivative of (x, y, z) by (wx, wy, wz)
    jacobian = np.concatenate(
        [
            np.stack([du, dv], axis=1),
            np.stack([np.einsum("na,nab->nb", du, turn), np.einsum("na,nab->nb", dv, turn)], axis=1),
        ],
        axis=2,
    )
    some = slice(None, None, 1 + len(residual) // FITTED_POINTS)
    rows, wanted = jacobian[some].reshape(-1, 6), residual[some].reshape(-1)
    weight, solution = np.ones(len(rows)), np.zeros(6)
    for _ in range(rounds):
        weighted = rows * weight[:, None]
        normal = weighted.T @ rows
        # A faint pull to zero keeps what the points do not determine at nothing.
        solution = np.linalg.solve(normal + (1e-6 * np.trace(normal) + 1e-12) * np.eye(6), weighted.T @ wanted)
        left = np.linalg.norm((wanted - rows @ solution).reshape(-1, 2), axis=1)
        weight = np.repeat(1 / np.maximum(left, 0.25), 2)
    return MotionFit(solution[:3], np.degrees(solution[3:]), jacobian @ solution)


def binned(
    residual: Float[np.ndarray, "n 2"],
    uv: Float[np.ndarray, "n 2"],
    depth: Float[np.ndarray, " n"],
    size: tuple[int, int],
) -> dict[str, list[list[float]]]:
    """Residuals by depth and by image region: [count, median u, median v, mean length] per bin, px; regions by row."""
    by_depth = np.clip(np.searchsorted(DEPTH_EDGES_M, depth, side="right") - 1, 0, len(DEPTH_EDGES_M) - 2)
    row = np.clip(uv[:, 1] * REGIONS // size[0], 0, REGIONS - 1).astype(int)
    column = np.clip(uv[:, 0] * REGIONS // size[1], 0, REGIONS - 1).astype(int)
    return {
        "depth": _bins(residual, by_depth, len(DEPTH_EDGES_M) - 1),
        "region": _bins(residual, row * REGIONS + column, REGIONS * REGIONS),
    }


def _bins(residual: np.ndarray, which: np.ndarray, count: int) -> list[list[float]]:
    found = []
    for k in range(count):
        part = residual[which == k]
        if len(part):
            found.append(
                [float(len(part)), *np.median(part, axis=0).tolist(), float(np.linalg.norm(part, axis=1).mean())]
            )
        else:
            found.append([0.0, 0.0, 0.0, 0.0])
    return found
