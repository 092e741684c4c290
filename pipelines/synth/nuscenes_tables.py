"""Rows of nuScenes v1.0's tables for one synthetic scene, and the tables that all scenes of a log share."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from geometry.transforms import from_rotation_translation, to_quaternion
from pipelines.datasets.truth import MOVABLE_CLASSES
from pipelines.synth.models import Actor
from pipelines.synth.rig import Camera, Lidar, yaw_rotation
from pipelines.synth.world import World

Row = dict[str, Any]
CATEGORIES = (
    "vehicle.car", "vehicle.truck", "vehicle.trailer", "vehicle.bus.rigid", "vehicle.construction", "vehicle.bicycle",
    "vehicle.motorcycle", "human.pedestrian.adult",
)  # fmt: skip
_ATTRIBUTES = ("moving", "parked", "standing")
_VISIBILITIES = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}


def token(*parts: object) -> str:
    """A 32-digit hexadecimal token that depends on the parts alone."""
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def pose_row(identity: str, pose: Float[np.ndarray, "4 4"], **more: Any) -> Row:
    """A row with `rotation` (w, x, y, z) and `translation` (m)."""
    return {
        "token": identity,
        "rotation": [float(v) for v in to_quaternion(pose[:3, :3])],
        "translation": [float(v) for v in pose[:3, 3]],
        **more,
    }


def shared_tables(name: str, cameras: tuple[Camera, ...], lidar: Lidar, scenes: list[str]) -> dict[str, list[Row]]:
    """Tables that do not grow with the scenes: sensors, calibration, vocabularies, log and map.

    nuScenes calibrates with pixel centres on whole numbers, so its principal points are half a pixel less than ours.
    """
    sensors = [{"token": token("sensor", c.channel), "channel": c.channel, "modality": "camera"} for c in cameras]
    sensors.append({"token": token("sensor", lidar.channel), "channel": lidar.channel, "modality": "lidar"})
    calibrated = []
    for camera in cameras:
        K = camera.K.copy()
        K[:2, 2] -= 0.5
        calibrated.append(
            pose_row(
                token("calibrated", camera.channel), camera.ego_from_cam,
                sensor_token=token("sensor", camera.channel), camera_intrinsic=K.tolist(),
            )
        )  # fmt: skip
    calibrated.append(
        pose_row(
            token("calibrated", lidar.channel), lidar.ego_from_lidar,
            sensor_token=token("sensor", lidar.channel), camera_intrinsic=[],
        )
    )  # fmt: skip
    log = {
        "token": token("log", name), "logfile": name, "vehicle": "synthetic", "date_captured": "2000-01-01",
        "location": "synthetic",
    }  # fmt: skip
    return {
        "sensor": sensors,
        "calibrated_sensor": calibrated,
        "category": [{"token": token("category", c), "name": c, "description": ""} for c in CATEGORIES],
        "attribute": [{"token": token("attribute", a), "name": a, "description": ""} for a in _ATTRIBUTES],
        "visibility": [{"token": t, "level": level, "description": ""} for t, level in _VISIBILITIES.items()],
        "log": [log],
        "map": [
            {
                "token": token("map", name), "category": "semantic_prior", "filename": "maps/synthetic.png",
                "log_tokens": [log["token"]],
            }
        ],
    }  # fmt: skip


@dataclass
class SceneTables:
    """Collects the rows of one scene; rows of one kind are linked by `next` and `prev` in the order they come."""

    world: World
    description: str
    log: str
    rows: dict[str, list[Row]] = field(default_factory=dict)

    def _add(self, table: str, row: Row) -> None:
        self.rows.setdefault(table, []).append(row)

    def sample(self, k: int, timestamp_us: int) -> str:
        """Keyframe `k`; returns its token."""
        identity = self.sample_token(k)
        self._add("sample", {"token": identity, "timestamp": timestamp_us, "scene_token": self.scene_token})
        return identity

    def sample_token(self, k: int) -> str:
        """Token of keyframe `k`."""
        return token(self.log, self.world.name, "sample", k)

    @property
    def scene_token(self) -> str:
        """Token of the scene."""
        return token(self.log, self.world.name)

    def data(
        self,
        channel: str,
        k: int,
        timestamp_us: int,
        global_from_ego: Float[np.ndarray, "4 4"],
        filename: str,
        size: tuple[int, int],
        keyframe: bool,
    ) -> None:
        """A file of a sensor that belongs to keyframe `k` (a sweep: to the next one), and the pose at its own time.

        size: (height, width), zeros for LiDAR.
        """
        identity = token(self.log, self.world.name, channel, timestamp_us)
        self._add("ego_pose", pose_row(identity, global_from_ego, timestamp=timestamp_us))
        self._add(
            "sample_data",
            {
                "token": identity, "sample_token": self.sample_token(k), "ego_pose_token": identity,
                "calibrated_sensor_token": token("calibrated", channel), "timestamp": timestamp_us,
                "fileformat": "pcd" if filename.endswith(".bin") else "jpg", "is_key_frame": keyframe,
                "height": size[0], "width": size[1], "filename": filename,
            },
        )  # fmt: skip

    def annotations(self, k: int, poses: Float[np.ndarray, "actors 3"], lidar_points: np.ndarray, near: float) -> None:
        """Boxes of the actors within `near` metres of the ego car; lidar_points[number] counts the returns of each."""
        world = self.world
        ego = world.ego.pose(self._seconds(k))[0, :2]
        for actor, (x, y, heading) in zip(world.actors, poses, strict=True):
            if np.hypot(x - ego[0], y - ego[1]) > near:
                continue
            length, width, height = actor.model.size
            middle = np.array([x, y, actor.base + height / 2])
            pose = world.global_from_world @ from_rotation_translation(yaw_rotation(heading), middle)
            returns = int(lidar_points[actor.number])
            row = pose_row(
                token(self.log, world.name, "annotation", actor.number, k), pose,
                sample_token=self.sample_token(k), instance_token=self._instance_token(actor),
                visibility_token="4" if returns else "1", attribute_tokens=[token("attribute", _attribute(actor))],
                size=[float(width), float(length), float(height)], num_lidar_pts=returns, num_radar_pts=0,
            )  # fmt: skip
            self._add("sample_annotation", row)

    def _seconds(self, k: int) -> float:
        times = [row["timestamp"] for row in self.rows["sample"]]
        return (times[k] - times[0]) / 1e6

    def _instance_token(self, actor: Actor) -> str:
        return token(self.log, self.world.name, "instance", actor.number)

    def finish(self) -> dict[str, list[Row]]:
        """All rows, linked."""
        samples = self.rows["sample"]
        _link(samples, lambda row: row["scene_token"])
        _link(self.rows["sample_data"], lambda row: row["calibrated_sensor_token"])
        annotations = self.rows.setdefault("sample_annotation", [])
        _link(annotations, lambda row: row["instance_token"])
        self.rows["instance"] = self._instances(annotations)
        self.rows["scene"] = [
            {
                "token": self.scene_token, "log_token": token("log", self.log), "nbr_samples": len(samples),
                "first_sample_token": samples[0]["token"], "last_sample_token": samples[-1]["token"],
                "name": self.world.name, "description": self.description,
            }
        ]  # fmt: skip
        return self.rows

    def _instances(self, annotations: list[Row]) -> list[Row]:
        rows = []
        for actor in self.world.actors:
            identity = self._instance_token(actor)
            own = [row["token"] for row in annotations if row["instance_token"] == identity]
            if own:
                rows.append(
                    {
                        "token": identity, "category_token": token("category", actor.model.category),
                        "nbr_annotations": len(own), "first_annotation_token": own[0],
                        "last_annotation_token": own[-1],
                    }
                )  # fmt: skip
        return rows


def _attribute(actor: Actor) -> str:
    if not actor.trajectory.parked:
        return "moving"
    return "standing" if MOVABLE_CLASSES[actor.model.semantic] == "pedestrian" else "parked"


def _link(rows: list[Row], group: Any) -> None:
    """Fill `prev` and `next` ("" at the ends) among the rows of each group, by their order."""
    last: dict[str, Row] = {}
    for row in rows:
        row["prev"], row["next"] = "", ""
        before = last.get(group(row))
        if before is not None:
            before["next"], row["prev"] = row["token"], before["token"]
        last[group(row)] = row
