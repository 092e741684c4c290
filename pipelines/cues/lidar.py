"""The cue `lidar`: sweeps in the ego frame without own-car returns, and the cameras that see each point."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8

from geometry.cameras import in_image, project
from geometry.transforms import invert, transform_points
from pipelines.cues.base import BlockContext, CueBlock, ImageSizes, parameters_digest
from pipelines.datasets.records import CameraImage, Frame

OWN_CAR: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "nuscenes": ((-1.3, -1.1, -0.3), (3.5, 1.1, 2.3)),
    "semantic_kitti": ((-2.8, -1.1, -2.2), (2.2, 1.1, 0.4)),
    "kitti_mot": ((-2.8, -1.1, -2.2), (2.2, 1.1, 0.4)),
}
"""Own-car box (lower, upper) in metres of the ego frame: nuScenes' origin is on the ground below the rear axle, KITTI's
is the LiDAR on the roof."""


def cam_from_ego_at(image: CameraImage, frame: Frame) -> Float[np.ndarray, "4 4"]:
    """Camera at its own time from the ego frame at the keyframe's (LiDAR) time, for points that stand still."""
    return invert(image.ego_from_cam) @ invert(image.global_from_ego) @ frame.global_from_ego


def sees(
    points: Float[np.ndarray, "n 3"], image: CameraImage, frame: Frame, sizes: ImageSizes
) -> Bool[np.ndarray, " n"]:
    """Whether points (keyframe's ego frame, metres) project into this camera's network image at its own pose."""
    transform = sizes.transform(image)
    camera_points = transform_points(cam_from_ego_at(image, frame), points)
    uv, _, in_front = project(transform.intrinsics(image.K), camera_points)
    return in_front & in_image(uv, transform.height, transform.width)


@dataclass(frozen=True)
class LidarCue:
    """LiDAR points of every keyframe.

    Attributes:
        own_car_lower, own_car_upper: box in metres of the ego frame whose returns are dropped, besides those
            nearer to the sensor than `min_range`.
        max_points: the scene's N when fixed; a larger sweep is thinned evenly to it and the loss is noted.
    """

    own_car_lower: tuple[float, float, float] = OWN_CAR["nuscenes"][0]
    own_car_upper: tuple[float, float, float] = OWN_CAR["nuscenes"][1]
    min_range: float = 1.0
    max_points: int | None = None
    name: ClassVar[str] = "lidar"
    needs: ClassVar[tuple[str, ...]] = ()

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        """The points stay under the data set's own licence."""
        return "as the data set"

    def extract(self, context: BlockContext) -> CueBlock:
        """`lidar/points` (T, N, 4) x y z intensity, `lidar/cameras` (T, N), `lidar/count` (T,), `lidar/origin` (T, 3).

        Everything in the ego frame at LiDAR time; a keyframe without a sweep has count 0.

        Raises:
            ValueError: more than the eight cameras a bit mask holds.
        """
        if len(context.cameras) > 8:
            raise ValueError(f"lidar/cameras has one bit for each of at most 8 cameras, got {len(context.cameras)}")
        frames = context.scene.keyframes[context.start : context.stop]
        notes: list[str] = []
        swept = [self._sweep(context, frame, notes) for frame in frames]
        length = max((len(points) for points, _, _ in swept), default=0) if self.max_points is None else self.max_points
        arrays: dict[str, np.ndarray] = {
            "lidar/points": np.zeros((len(frames), length, 4), np.float32),
            "lidar/cameras": np.zeros((len(frames), length), np.uint8),
            "lidar/count": np.zeros(len(frames), np.int32),
            "lidar/origin": np.zeros((len(frames), 3), np.float32),
        }
        removed = 0
        for i, (points, origin, dropped) in enumerate(swept):
            if len(points) > length:
                notes.append(f"keyframe {context.start + i}: {len(points)} points thinned to the scene's {length}")
                points = points[np.linspace(0, len(points) - 1, length).astype(np.int64)]
            n = len(points)
            arrays["lidar/points"][i, :n] = points
            arrays["lidar/cameras"][i, :n] = self._camera_bits(context, frames[i], points)
            arrays["lidar/count"][i] = n
            arrays["lidar/origin"][i] = origin
            removed += dropped
        quality = {"points": int(arrays["lidar/count"].sum()), "own_car_removed": removed}
        return CueBlock(arrays, quality, notes)

    def _sweep(self, context: BlockContext, frame: Frame, notes: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Points (n, 4) float32 and sensor origin (3,) in the ego frame, and how many own-car returns were dropped."""
        if frame.lidar is None:
            notes.append(f"keyframe {frame.token}: no LiDAR sweep")
            return np.zeros((0, 4), np.float32), np.zeros(3), 0
        raw = context.load_lidar(frame.lidar)
        finite = np.isfinite(raw[:, :3]).all(axis=1)
        if not finite.all():
            notes.append(
                f"keyframe {frame.token}: {int((~finite).sum())} LiDAR points are not finite and were left out"
            )
        raw = raw[finite]
        ego_from_lidar = invert(frame.global_from_ego) @ frame.lidar.global_from_ego @ frame.lidar.ego_from_lidar
        xyz = transform_points(ego_from_lidar, raw[:, :3].astype(np.float64))
        in_box = ((xyz >= np.array(self.own_car_lower)) & (xyz <= np.array(self.own_car_upper))).all(axis=1)
        own = in_box | (np.linalg.norm(raw[:, :3], axis=1) < self.min_range)
        points = np.concatenate([xyz[~own], raw[~own, 3:4]], axis=1).astype(np.float32)
        return points, ego_from_lidar[:3, 3], int(own.sum())

    def _camera_bits(self, context: BlockContext, frame: Frame, points: np.ndarray) -> UInt8[np.ndarray, " n"]:
        bits = np.zeros(len(points), np.uint8)
        xyz = points[:, :3].astype(np.float64)
        for c, channel in enumerate(context.cameras):
            image = frame.images.get(channel)
            if image is not None:
                bits |= np.where(sees(xyz, image, frame, context.sizes), 1 << c, 0).astype(np.uint8)
        return bits
