"""Who moves where: parked and driving vehicles (some turning), cyclists and pedestrians, without collisions."""

import numpy as np
from jaxtyping import Float

from pipelines.synth.city import KERB_HEIGHT, LANE, City, Street
from pipelines.synth.config import Difficulty
from pipelines.synth.ground import SIDEWALK, ground_kind
from pipelines.synth.models import BICYCLE, VEHICLES, Actor, Model, bicycle, car, pedestrian, van
from pipelines.synth.trajectories import Path, Speed, Trajectory, standing, turning_path

STEP_S = 0.1
REACH_M = 38.0
"""Moving actors are drawn so that each comes at least this near to the ego car."""


class Occupied:
    """Footprints over time of all placed so far, as discs along each one's length; a new one must keep clear."""

    def __init__(self, times: Float[np.ndarray, " steps"]) -> None:
        self.times = times
        self._discs: list[np.ndarray] = []
        self._radii: list[float] = []

    def claim(
        self, size: tuple[float, float, float], trajectory: Trajectory, margin: float = 0.3, ahead: float = 0.0
    ) -> bool:
        """Register a thing of size (l, w, h) m on a trajectory unless it would touch another one; says whether.

        margin: least gap (m) besides 0.2 m on either side. ahead: how far its middle lies before the trajectory's
        point.
        """
        discs, radius = self._footprint(size, trajectory, ahead)
        for other, other_radius in zip(self._discs, self._radii, strict=True):
            gaps = np.linalg.norm(discs[:, :, None] - other[:, None], axis=-1)
            if gaps.min() < radius + other_radius + margin:
                return False
        self._discs.append(discs)
        self._radii.append(radius)
        return True

    def _footprint(
        self, size: tuple[float, float, float], trajectory: Trajectory, ahead: float
    ) -> tuple[np.ndarray, float]:
        """Disc centres (steps, discs, 2) along the length, and their radius."""
        length, width, _ = size
        count = max(1, int(np.ceil(length / width)))
        offsets = ahead + np.linspace(-1, 1, count) * max(length / 2 - width / 2, 0.0)
        pose = trajectory.pose(self.times)
        direction = np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], axis=-1)
        return pose[:, None, :2] + direction[:, None] * offsets[:, None], width / 2 + 0.2


def lane_offset(street: Street, lane: int) -> float:
    """Distance (m) of a lane's middle from the centre line; lane 0 is the inner one."""
    return LANE * (min(lane, street.lanes - 1) + 0.5)


def _speed(rng: np.random.Generator, mean: float, duration: float) -> Speed:
    """Mostly steady, sometimes braking to a stop or setting off."""
    kind = rng.random()
    if kind < 0.65:
        return Speed(mean)
    if kind < 0.85:
        start = rng.uniform(0, 0.6 * duration)
        rate = rng.uniform(1.5, 3.0)
        return Speed(mean, (start, mean / rate), (0.0, -rate))
    return Speed(0.0, (rng.uniform(0, 0.5 * duration), mean / 2.0), (0.0, 2.0))


def _straight(
    rng: np.random.Generator, city: City, near: np.ndarray, offset_from_lane: float
) -> tuple[float, float, float] | None:
    """A start pose on a random lane close to point `near`: x, y, heading."""
    along_x = bool(rng.random() < 0.6)
    streets = city.along if along_x else city.across
    cross = near[1] if along_x else near[0]
    close = [s for s in streets if abs(s.centre - cross) < REACH_M]
    if not close:
        return None
    street = close[int(rng.integers(len(close)))]
    forward = bool(rng.random() < 0.5)
    side = lane_offset(street, int(rng.integers(street.lanes))) + offset_from_lane
    s = (near[0] if along_x else near[1]) + rng.uniform(-REACH_M, REACH_M)
    if along_x:
        return (float(s), street.centre - side, 0.0) if forward else (float(s), street.centre + side, np.pi)
    return (street.centre + side, float(s), np.pi / 2) if forward else (street.centre - side, float(s), -np.pi / 2)


def turn_at(city: City, i: int, j: int, heading: int, left: bool) -> Path:
    """A quarter turn at the crossing of streets `across[i]` and `along[j]`; heading in quarter turns from +x."""
    forward = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][heading % 4], dtype=float)
    right = np.array([forward[1], -forward[0]])
    incoming, outgoing = (city.along[j], city.across[i]) if heading % 2 == 0 else (city.across[i], city.along[j])
    centre = np.array([city.across[i].centre, city.along[j].centre])
    # Keep right: after a right turn the new lane lies behind the crossing's middle, after a left turn beyond it.
    corner = (
        centre
        + right * lane_offset(incoming, 0 if left else 9)
        + forward * lane_offset(outgoing, 0) * (1 if left else -1)
    )
    if left:
        radius = 9.0
    else:
        radius = 5.0 + min(incoming.half - lane_offset(incoming, 9), outgoing.half - lane_offset(outgoing, 0))
    return turning_path((float(corner[0]), float(corner[1])), heading * np.pi / 2, radius, left)


def _turning(
    rng: np.random.Generator, city: City, near: np.ndarray, t_near: float, duration: float
) -> Trajectory | None:
    """A vehicle that turns at a crossing near point `near` at about time `t_near`."""
    options = [
        (i, j)
        for i, a in enumerate(city.across)
        for j, b in enumerate(city.along)
        if np.hypot(a.centre - near[0], b.centre - near[1]) < REACH_M
    ]
    if not options:
        return None
    i, j = options[int(rng.integers(len(options)))]
    path = turn_at(city, i, j, int(rng.integers(4)), bool(rng.random() < 0.5))
    speed = Speed(rng.uniform(4.0, 6.0))
    entry = path.lengths[0]
    s_near = entry + rng.uniform(-6, path.lengths[1])
    return Trajectory(path, speed, s_near - float(speed.distance(t_near)[0]))


def moving_vehicles(
    rng: np.random.Generator, city: City, ego: Trajectory, occupied: Occupied, level: Difficulty, duration: float
) -> list[tuple[Model, Trajectory, float]]:
    """Driving vehicles and cyclists, each passing within REACH_M of the ego car at some time."""
    wanted = int(rng.integers(level.moving_vehicles[0], level.moving_vehicles[1] + 1))
    builders = [b for b, _ in VEHICLES]
    shares = np.array([s for _, s in VEHICLES])
    placed: list[tuple[Model, Trajectory, float]] = []
    for attempt in range(wanted * 12):
        if len(placed) == wanted:
            break
        # The first places are kept for something that turns and for a cyclist, as long as there is hope.
        turns = not placed and attempt < wanted * 4
        cycles = len(placed) == 1 and attempt < wanted * 8
        builder = (car, bicycle, builders[int(rng.choice(len(builders), p=shares / shares.sum()))])
        model = builder[0 if turns else 1 if cycles else 2](rng)
        t_near = rng.uniform(0, duration)
        trajectory = _drive(rng, city, model, ego.pose(t_near)[0, :2], t_near, duration, turns)
        if trajectory is not None and occupied.claim(model.size, trajectory):
            placed.append((model, trajectory, 0.0))
    return placed


def _drive(
    rng: np.random.Generator, city: City, model: Model, near: np.ndarray, t_near: float, duration: float, turns: bool
) -> Trajectory | None:
    """A way for a vehicle that passes point `near` (m) at about time `t_near` (s); None where there is no street."""
    cycles = model.semantic == BICYCLE
    if turns or (not cycles and model.size[0] < 7 and rng.random() < 0.4):
        trajectory = _turning(rng, city, near, t_near, duration)
        if trajectory is not None:
            return trajectory
    start = _straight(rng, city, near, 1.25 if cycles else 0.0)
    if start is None:
        return None
    mean = rng.uniform(3.0, 6.0) if cycles else rng.uniform(5.0, 12.0)
    speed = Speed(mean) if cycles else _speed(rng, mean, duration)
    return Trajectory(Path(start), speed, -float(speed.distance(t_near)[0]))


def parked_vehicles(
    rng: np.random.Generator, city: City, ego: Trajectory, occupied: Occupied, level: Difficulty, duration: float
) -> list[tuple[Model, Trajectory, float]]:
    """Cars and vans at the kerb of all streets near the ego car's way."""
    way = ego.pose(np.linspace(0, duration, 20))[:, :2]
    low, high = way.min(axis=0) - 55, way.max(axis=0) + 55
    placed: list[tuple[Model, Trajectory, float]] = []
    for along_x, streets, crossing in ((True, city.along, city.across), (False, city.across, city.along)):
        a, b = (0, 1) if along_x else (1, 0)
        for street in streets:
            if not low[b] < street.centre < high[b]:
                continue
            for side in (-1, 1):
                s = low[a] + rng.uniform(0, 5)
                while s < high[a]:
                    s += rng.uniform(5.4, 6.6)
                    clear = all(abs(s - c.centre) > c.half + 12.0 for c in crossing)
                    if not clear or rng.random() > level.parked_share:
                        continue
                    across = street.centre + side * (street.half - 1.05 + rng.uniform(-0.08, 0.08))
                    x, y = (s, across) if along_x else (across, s)
                    # Right-hand traffic: on the right kerb cars point along the street.
                    heading = (0.0 if side < 0 else np.pi) if along_x else (np.pi / 2 if side > 0 else -np.pi / 2)
                    model = van(rng) if rng.random() < 0.12 else car(rng)
                    trajectory = standing(x, y, heading + rng.normal(0, 0.02))
                    if occupied.claim(model.size, trajectory, margin=-0.15):
                        placed.append((model, trajectory, 0.0))
    return placed


def pedestrians(
    rng: np.random.Generator, city: City, ego: Trajectory, occupied: Occupied, level: Difficulty, duration: float
) -> list[tuple[Model, Trajectory, float]]:
    """People walking or standing on sidewalks within about 30 m of the ego car."""
    wanted = int(rng.integers(level.pedestrians[0], level.pedestrians[1] + 1))
    placed: list[tuple[Model, Trajectory, float]] = []
    for _ in range(wanted * 20):
        if len(placed) == wanted:
            break
        model = pedestrian(rng)
        t_near = rng.uniform(0, duration)
        near = ego.pose(t_near)[0, :2]
        along_x = bool(rng.random() < 0.6)
        streets = city.along if along_x else city.across
        cross = near[1] if along_x else near[0]
        close = [s for s in streets if abs(s.centre - cross) < 25]
        if not close:
            continue
        street = close[int(rng.integers(len(close)))]
        across = street.centre + rng.choice([-1, 1]) * (street.half + rng.uniform(1.8, 2.7))
        s = (near[0] if along_x else near[1]) + rng.uniform(-28, 28)
        heading = (0.0 if along_x else np.pi / 2) + (np.pi if rng.random() < 0.5 else 0.0)
        x, y = (s, across) if along_x else (across, s)
        speed = Speed(0.0 if rng.random() < 0.2 else rng.uniform(0.9, 1.9))
        trajectory = Trajectory(Path((x, y, heading)), speed, -float(speed.distance(t_near)[0]))
        poses = trajectory.pose(occupied.times)
        # Nobody steps off the kerb in mid-air, or walks on where the sidewalk bends at a corner.
        if all(ground_kind(city.ground, x, y) == SIDEWALK for x, y, _ in poses) and occupied.claim(
            model.size, trajectory
        ):
            placed.append((model, trajectory, KERB_HEIGHT))
    return placed


def populate(
    rng: np.random.Generator, city: City, ego: Trajectory, level: Difficulty, duration: float, lead: Trajectory | None
) -> list[Actor]:
    """All movable things of a scene, numbered from 1. `lead` is a car driving ahead of the ego car, if any."""
    occupied = Occupied(np.arange(-STEP_S, duration + 0.7, STEP_S))
    # The ego car's origin is its rear axle: it reaches from 1 m behind it to 3.4 m before it.
    occupied.claim((4.4, 1.8, 1.6), ego, ahead=1.2)
    things: list[tuple[Model, Trajectory, float]] = []
    if lead is not None:
        model = car(rng)
        if occupied.claim(model.size, lead):
            things.append((model, lead, 0.0))
    for part in (moving_vehicles, parked_vehicles, pedestrians):
        things += part(rng, city, ego, occupied, level, duration)
    return [Actor(k + 1, model, trajectory, base) for k, (model, trajectory, base) in enumerate(things)]
