"""The sensors: where cameras and LiDAR sit on the car, what the cameras see, and when each of them fires."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from geometry.transforms import from_rotation_translation

NUSCENES_CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
)
KEYFRAME_INTERVAL_S = 0.5
SWEEPS_PER_KEYFRAME = 6
"""12 Hz cameras: one image in six is at a keyframe."""
KITTI_INTERVAL_S = 0.1037
"""KITTI's camera and scanner fire together, 9.64 times a second."""
KITTI_MOUNT = (0.76, 0.0, 1.73)
"""KITTI's scanner, ahead of the rear axle and above the ground (m): its frame is the data set's ego frame."""

# channel: focal, cx, cy (pixels at 1600 x 900); x, y, z (m, ego); yaw, pitch (deg); trigger offset to the LiDAR's
# time stamp (us): the LiDAR's beam sweeps clockwise over the cameras and ends its turn at the stamp.
_NUSCENES = {
    "CAM_FRONT": (1266.4, 816.3, 491.5, 1.70, 0.02, 1.51, 0.3, 0.0, -35490),
    "CAM_FRONT_RIGHT": (1260.8, 808.0, 495.3, 1.55, -0.49, 1.50, -56.4, 0.4, -27610),
    "CAM_BACK_RIGHT": (1259.5, 807.3, 501.2, 1.01, -0.48, 1.56, -110.0, 1.0, -20060),
    "CAM_BACK": (809.2, 829.2, 481.8, 0.03, 0.00, 1.58, 180.1, 1.1, -10430),
    "CAM_BACK_LEFT": (1256.7, 792.1, 492.8, 1.04, 0.48, 1.59, 108.8, 0.2, -530),
    "CAM_FRONT_LEFT": (1272.6, 826.6, 479.8, 1.52, 0.49, 1.51, 55.1, 0.6, -43110),
}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on the car: K in pixels (centres at +0.5), ego_from_cam in metres, trigger offset in us."""

    channel: str
    K: Float[np.ndarray, "3 3"]
    ego_from_cam: Float[np.ndarray, "4 4"]
    offset_us: int
    width: int
    height: int


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR: ego_from_lidar, and its beams' elevations (rad, rising) and azimuth steps per turn."""

    channel: str
    ego_from_lidar: Float[np.ndarray, "4 4"]
    elevations: Float[np.ndarray, " beams"]
    azimuths: int
    max_range_m: float


def yaw_rotation(yaw: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about z (up) by `yaw` radians, counter-clockwise."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _camera_rotation(yaw: float, pitch: float) -> Float[np.ndarray, "3 3"]:
    """ego_from_cam rotation of a camera looking along `yaw`, tilted down by `pitch` (radians)."""
    ego_from_level = yaw_rotation(yaw) @ np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    c, s = np.cos(pitch), np.sin(pitch)
    return ego_from_level @ np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])


def nuscenes_camera(channel: str, width: int, height: int) -> Camera:
    """One camera of the six-camera rig at an image size; the view is the 1600-pixel-wide original's, scaled.

    Raises:
        ValueError: unknown channel.
    """
    if channel not in _NUSCENES:
        raise ValueError(f"unknown camera {channel!r}; the rig has {', '.join(NUSCENES_CAMERAS)}")
    focal, cx, cy, x, y, z, yaw, pitch, offset = _NUSCENES[channel]
    scale = width / 1600
    # The principal point keeps its distance from the image's middle row when the aspect ratio is not 16:9.
    centre_v = height / 2 + (cy - 450) * scale
    K = np.array([[focal * scale, 0.0, cx * scale], [0.0, focal * scale, centre_v], [0.0, 0.0, 1.0]])
    rotation = _camera_rotation(np.deg2rad(yaw), np.deg2rad(pitch))
    return Camera(channel, K, from_rotation_translation(rotation, np.array([x, y, z])), offset, width, height)


def nuscenes_lidar(beams: int, azimuths: int) -> Lidar:
    """A 32-beam roof LiDAR, x right and y forward as nuScenes mounts it, +10.67 to -30.67 degrees."""
    elevations = np.deg2rad(np.linspace(-30.67, 10.67, beams)) if beams > 1 else np.deg2rad(np.array([-10.0]))
    pose = from_rotation_translation(yaw_rotation(-np.pi / 2), np.array([0.94, 0.0, 1.84]))
    return Lidar("LIDAR_TOP", pose, elevations, azimuths, 100.0)


def kitti_camera(width: int, height: int) -> Camera:
    """KITTI's left colour camera at an image size, 0.27 m ahead of the scanner, 0.06 m left of it, 0.08 m below it.

    The view is the 1241-pixel-wide original's, scaled; its principal point keeps its place in the height.
    """
    scale = width / 1241
    focal = 718.856 * scale
    K = np.array([[focal, 0.0, 607.193 * scale], [0.0, focal, 185.216 / 376 * height], [0.0, 0.0, 1.0]])
    place = np.add(KITTI_MOUNT, (0.27, 0.06, -0.08))
    return Camera("image_2", K, from_rotation_translation(_camera_rotation(0.0, 0.0), place), 0, width, height)


def kitti_lidar(beams: int, azimuths: int) -> Lidar:
    """A 64-beam scanner on the roof, x forward and y left, +2 to -24.8 degrees."""
    elevations = np.deg2rad(np.linspace(-24.8, 2.0, beams)) if beams > 1 else np.deg2rad(np.array([-8.0]))
    pose = from_rotation_translation(np.eye(3), np.array(KITTI_MOUNT))
    return Lidar("velodyne", pose, elevations, azimuths, 120.0)
