"""One scene's world: the city, the actors, the ego car's way through it, and the light; a function of a seed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from geometry.transforms import from_rotation_translation
from pipelines.synth.city import CORNER_RADIUS, City, build_city
from pipelines.synth.config import Manoeuvre, SynthConfig
from pipelines.synth.models import Actor, actor_primitives, pose_actors
from pipelines.synth.rig import KEYFRAME_INTERVAL_S, yaw_rotation
from pipelines.synth.shading import Light, Look
from pipelines.synth.shapes import Primitives
from pipelines.synth.textures import texture_bank
from pipelines.synth.traffic import lane_offset, populate, turn_at
from pipelines.synth.trajectories import Path, Speed, Trajectory


@dataclass(frozen=True)
class World:
    """Everything in one scene. Times are seconds since the first keyframe; `world` is a frame aligned with the streets.

    global_from_world places it in the log's global frame. `tilt` is amplitude (rad), frequency (1/s), phase of pitch,
    then of roll, of the ego car.
    """

    name: str
    manoeuvre: Manoeuvre
    city: City
    actors: list[Actor]
    ego: Trajectory
    tilt: Float[np.ndarray, "2 3"]
    look: Look
    global_from_world: Float[np.ndarray, "4 4"]
    gains: Float[np.ndarray, "cameras 3"]
    duration: float

    @cached_property
    def _dynamic(self) -> tuple[Primitives, np.ndarray]:
        return actor_primitives(self.actors)

    @property
    def static_count(self) -> int:
        """Primitives before this index never move."""
        return len(self.city.static)

    @cached_property
    def _at_rest(self) -> tuple[Float[np.ndarray, "actors 3"], list[int]]:
        """Every actor's pose at time 0, and which ones ever leave it."""
        poses = np.stack([a.trajectory.pose(0.0)[0] for a in self.actors]) if self.actors else np.zeros((0, 3))
        return poses, [i for i, a in enumerate(self.actors) if not a.trajectory.parked]

    def actor_poses(self, t: float) -> Float[np.ndarray, "actors 3"]:
        """x, y (m, world), heading (rad) of every actor at time t."""
        at_rest, restless = self._at_rest
        poses = at_rest.copy()
        for i in restless:
            poses[i] = self.actors[i].trajectory.pose(t)[0]
        return poses

    def primitives(self, t: float) -> Primitives:
        """Static primitives, then the actors', at time t (s), in the world frame."""
        local, owners = self._dynamic
        return np.concatenate([self.city.static, pose_actors(local, owners, self.actor_poses(t))])

    def world_from_ego(self, t: float) -> Float[np.ndarray, "4 4"]:
        """The ego car's pose (x forward, y left, z up; origin on the ground under the rear axle) at time t (s)."""
        x, y, heading = self.ego.pose(t)[0]
        pitch, roll = (a * np.sin(2 * np.pi * f * t + p) for a, f, p in self.tilt)
        cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
        tilt = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]) @ np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        return from_rotation_translation(yaw_rotation(heading) @ tilt, np.array([x, y, 0.0]))

    def gain(self, camera: int, t: float) -> float:
        """Exposure gain of a camera at time t: its own offset and a slow drift."""
        offset, amplitude, phase = self.gains[camera]
        return float(1 + offset + amplitude * np.sin(2 * np.pi * t / 6 + phase))


def _light(rng: np.random.Generator, contrast: float) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.1)
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    cloudy = rng.uniform(0, 0.7)
    grey = np.array([0.8, 0.82, 0.85])
    horizon = (1 - cloudy) * np.array([0.82, 0.88, 0.96]) + cloudy * grey
    zenith = (1 - cloudy) * np.array([0.35, 0.55, 0.9]) + cloudy * grey * 0.9
    strength = 0.6 * (1 - 0.8 * cloudy)
    return Light(sun, strength, 0.55 + 0.35 * cloudy, horizon, zenith, float(rng.uniform(250, 500)), contrast)


def _ego_way(
    rng: np.random.Generator, city: City, manoeuvre: Manoeuvre, duration: float
) -> tuple[Trajectory, Trajectory | None]:
    """The ego car's trajectory around the crossing at the origin, and that of a car ahead of it when it follows one."""
    i = next(k for k, s in enumerate(city.across) if s.centre == 0.0)
    j = next(k for k, s in enumerate(city.along) if s.centre == 0.0)
    lane = -lane_offset(city.along[j], 0)
    if manoeuvre in ("turn_left", "turn_right"):
        left = manoeuvre == "turn_left"
        path = turn_at(city, i, j, 0, left)
        speed = Speed(rng.uniform(4.5, 6.0))
        middle = path.lengths[0] + path.lengths[1] / 2
        return Trajectory(path, speed, middle - float(speed.distance(duration * rng.uniform(0.4, 0.6))[0])), None
    path = Path((-400.0, lane, 0.0))
    if manoeuvre == "stop":
        start, rate, wait = rng.uniform(6.0, 9.0), 3.0, max(0.8, 0.3 * duration)
        brake = max(0.2, 0.15 * duration)
        speed = Speed(start, (brake, start / rate, wait, 4.0), (0.0, -rate, 0.0, 1.5))
        halt = float(speed.distance(brake + start / rate)[0])
        # The nose, 3.7 m ahead of the rear axle, stops short of the line before the zebra crossing.
        line = -(city.across[i].half + CORNER_RADIUS + 6.0 + 3.7)
        return Trajectory(path, speed, 400.0 + line - halt), None
    speed = Speed(rng.uniform(6.5, 10.0))
    offset = 400.0 - float(speed.distance(duration)[0]) * rng.uniform(0.2, 0.8)
    if manoeuvre == "straight":
        return Trajectory(path, speed, offset), None
    start = rng.uniform(0.2, 0.5) * duration
    speed = Speed(speed.initial, (start, 1.2), (0.0, -1.5))
    lead_speed = Speed(speed.initial, (max(start - 0.7, 0.0), 1.5), (0.0, -1.5))
    return Trajectory(path, speed, offset), Trajectory(path, lead_speed, offset + 13.0)


def build_world(config: SynthConfig, index: int, duration: float | None = None) -> World:
    """Scene number `index` of a log; depends on config.seed, index and the scene's own settings only.

    duration: seconds from first to last keyframe; by default of 2 Hz keyframes.
    """
    rng = np.random.default_rng([config.seed, index])
    if duration is None:
        duration = (config.keyframes - 1) * KEYFRAME_INTERVAL_S
    manoeuvre = config.manoeuvres[index % len(config.manoeuvres)]
    level = config.level
    reach = 12.0 * duration + 90
    city = build_city(rng, (-reach, reach), (-min(reach, 200.0), min(reach, 200.0)))
    ego, lead = _ego_way(rng, city, manoeuvre, duration)
    actors = populate(rng, city, ego, level, duration, lead)
    amplitude = np.deg2rad(level.tilt_deg)
    tilt = np.stack([np.array([amplitude * k, rng.uniform(0.3, 1.0), rng.uniform(0, 6.28)]) for k in (1.0, 0.6)])
    cameras = len(config.cameras)
    gains = np.stack(
        [level.exposure * rng.uniform(-1, 1, cameras) * 0.6, level.exposure * 0.4 * np.ones(cameras),
         rng.uniform(0, 6.28, cameras)], axis=-1
    )  # fmt: skip
    placed = from_rotation_translation(
        yaw_rotation(rng.uniform(-np.pi, np.pi)), np.array([*rng.uniform(500, 1500, 2), 0.0])
    )
    look = Look(texture_bank(), city.ground, _light(rng, level.texture_contrast))
    return World(f"scene-{index + 1:04d}", manoeuvre, city, actors, ego, tilt, look, placed, gains, duration)
