"""Models of what moves: cars, vans, trucks, buses, two-wheelers and people, each a handful of primitives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pipelines.synth import textures as tex
from pipelines.synth.shapes import (
    BOX,
    CYLINDER,
    CZ,
    ELLIPSOID,
    HZ,
    OBJECT,
    SHADOW,
    TAPERED_BOX,
    U0,
    V0,
    WHEEL,
    Primitives,
    place,
    primitive,
)
from pipelines.synth.trajectories import Trajectory

CAR, TRUCK, TRAILER, BUS, CONSTRUCTION, BICYCLE, MOTORCYCLE, PEDESTRIAN = range(8)
RGB = tuple[float, float, float]

CAR_COLOURS: tuple[RGB, ...] = (
    (0.92, 0.92, 0.92), (0.75, 0.77, 0.8), (0.35, 0.36, 0.38), (0.14, 0.14, 0.16), (0.75, 0.12, 0.1),
    (0.12, 0.25, 0.65), (0.1, 0.42, 0.3), (0.9, 0.7, 0.15), (0.55, 0.35, 0.2), (0.5, 0.7, 0.9),
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A movable thing in its own frame: x forward, z up, origin on the ground under its middle; size l, w, h (m)."""

    semantic: int
    category: str
    size: tuple[float, float, float]
    primitives: Primitives


@dataclass(frozen=True)
class Actor:
    """A model on a trajectory, standing at height `base` (m); `number` is its id in the truth, from 1."""

    number: int
    model: Model
    trajectory: Trajectory
    base: float = 0.0


def _finish(
    semantic: int, category: str, length: float, width: float, rows: list[np.ndarray], rng: np.random.Generator
) -> Model:
    """The model of these solids, a shadow added; as high as their top, so that no head sticks out of its box."""
    shadow = primitive(SHADOW, (0, 0, 0), (length / 2, width / 2, 0.01), 0, (0, 0, 0), semantic, emit=0.6)
    size = (length, width, max(float(row[CZ] + row[HZ]) for row in rows))
    primitives = np.stack([*rows, shadow])
    primitives[:, U0] += rng.uniform(0, 5)
    primitives[:, V0] += rng.uniform(0, 5)
    return Model(semantic, category, size, primitives)


def _wheels(length: float, width: float, radius: float, semantic: int, axles: tuple[float, ...]) -> list[np.ndarray]:
    return [
        primitive(
            WHEEL, (x * length / 2, side * (width / 2 - 0.11), radius), (radius, 0.12, radius), tex.RUBBER,
            (1.0, 1.0, 1.0), semantic,
        )
        for x in axles
        for side in (-1, 1)
    ]  # fmt: skip


def _lamps(length: float, width: float, z: float, semantic: int) -> list[np.ndarray]:
    lamps = []
    for side in (-1, 1):
        y = side * (width / 2 - 0.25)
        front, rear = (length / 2 - 0.02, y, z), (-length / 2 + 0.02, y, z + 0.08)
        lamps.append(primitive(BOX, front, (0.05, 0.18, 0.07), tex.METAL, (1.2, 1.2, 1.1), semantic, emit=0.3))
        lamps.append(primitive(BOX, rear, (0.05, 0.15, 0.09), tex.METAL, (0.9, 0.08, 0.06), semantic, emit=0.2))
    return lamps


def car(rng: np.random.Generator) -> Model:
    """A saloon, hatchback or sport utility car, 3.8 to 4.9 m long."""
    length, width = rng.uniform(3.8, 4.9), rng.uniform(1.7, 1.9)
    height = rng.uniform(1.42, 1.75)
    colour = CAR_COLOURS[rng.integers(len(CAR_COLOURS))]
    waist = 0.58 * height
    cabin = rng.uniform(0.28, 0.36) * length
    back = -rng.uniform(0.04, 0.1) * length
    low, high = 0.2, waist
    body = ((low + high) / 2, (high - low) / 2)
    glass = ((waist + height) / 2 - 0.03, (height - waist) / 2 - 0.03)
    rows = [
        primitive(TAPERED_BOX, (0, 0, body[0]), (length / 2, width / 2, body[1]), tex.PAINT, colour, CAR,
                  taper=(0.05, 0.06), fit=True),
        primitive(TAPERED_BOX, (back, 0, glass[0]), (cabin, width / 2 - 0.08, glass[1]), tex.GLASS, (1, 1, 1), CAR,
                  taper=(0.38, 0.22), shear=-0.1, fit=True),
        primitive(TAPERED_BOX, (back - 0.1, 0, height - 0.03), (cabin * 0.64, width / 2 * 0.76, 0.035), tex.METAL,
                  colour, CAR),
        *_wheels(length, width, 0.33, CAR, (-0.6, 0.62)),
        *_lamps(length, width, 0.62, CAR),
    ]  # fmt: skip
    return _finish(CAR, "vehicle.car", length, width, rows, rng)


def van(rng: np.random.Generator) -> Model:
    """A delivery van with a sloping nose."""
    length, width, height = rng.uniform(4.9, 5.8), rng.uniform(1.9, 2.05), rng.uniform(2.0, 2.5)
    colour = CAR_COLOURS[rng.integers(len(CAR_COLOURS))]
    nose = 1.3
    rows = [
        primitive(TAPERED_BOX, (-nose / 2, 0, (height + 0.25) / 2), ((length - nose) / 2, width / 2, height / 2 - 0.12),
                  tex.PAINT, colour, CAR, taper=(0.02, 0.08), fit=True),
        primitive(TAPERED_BOX, (length / 2 - nose / 2, 0, 0.7), (nose / 2, width / 2, 0.45), tex.METAL, colour, CAR),
        primitive(TAPERED_BOX, (length / 2 - nose * 0.75, 0, 1.5), (nose * 0.55, width / 2 - 0.06, 0.38), tex.GLASS,
                  (1, 1, 1), CAR, taper=(0.5, 0.1), shear=-0.35, fit=True),
        *_wheels(length, width, 0.35, CAR, (-0.6, 0.64)),
        *_lamps(length, width, 0.75, CAR),
    ]  # fmt: skip
    return _finish(CAR, "vehicle.car", length, width, rows, rng)


def truck(rng: np.random.Generator) -> Model:
    """A rigid lorry: cab, chassis and a printed cargo box."""
    length, width, height = rng.uniform(6.5, 8.5), rng.uniform(2.3, 2.5), rng.uniform(2.9, 3.4)
    cab = 1.9
    cargo = length - cab - 0.2
    colour = CAR_COLOURS[rng.integers(len(CAR_COLOURS))]
    front = length / 2 - cab / 2
    rows = [
        primitive(BOX, (-(cab + 0.2) / 2, 0, (height + 0.95) / 2), (cargo / 2, width / 2, (height - 0.95) / 2),
                  tex.SIGN, (1, 1, 1), TRUCK),
        primitive(BOX, (-0.2, 0, 0.75), (length / 2 - 0.3, 0.5, 0.2), tex.RUBBER, (1.2, 1.2, 1.2), TRUCK),
        primitive(TAPERED_BOX, (front, 0, 1.0), (cab / 2, width / 2 - 0.05, 0.55), tex.METAL, colour, TRUCK),
        primitive(TAPERED_BOX, (front, 0, 2.0), (cab / 2, width / 2 - 0.08, 0.48), tex.GLASS, (1, 1, 1), TRUCK,
                  taper=(0.2, 0.1), shear=-0.15, fit=True),
        *_wheels(length, width, 0.48, TRUCK, (-0.62, -0.38, 0.7)),
        *_lamps(length, width, 0.8, TRUCK),
    ]  # fmt: skip
    return _finish(TRUCK, "vehicle.truck", length, width, rows, rng)


def bus(rng: np.random.Generator) -> Model:
    """A city bus with a band of windows."""
    length, width, height = rng.uniform(10.5, 12.0), 2.5, rng.uniform(3.0, 3.2)
    colour = CAR_COLOURS[rng.integers(len(CAR_COLOURS))]
    rows = [
        primitive(BOX, (0, 0, 0.85), (length / 2, width / 2, 0.55), tex.PAINT, colour, BUS, fit=True),
        primitive(BOX, (0, 0, 1.9), (length / 2 - 0.02, width / 2 - 0.02, 0.5), tex.GLASS, (1, 1, 1), BUS),
        primitive(BOX, (0, 0, (height + 2.4) / 2), (length / 2, width / 2, (height - 2.4) / 2), tex.METAL, colour, BUS),
        *_wheels(length, width, 0.48, BUS, (-0.55, 0.6)),
        *_lamps(length, width, 0.7, BUS),
    ]
    return _finish(BUS, "vehicle.bus.rigid", length, width, rows, rng)


def _person(
    rng: np.random.Generator, semantic: int, seat: float, lean: float, x: float, height: float
) -> list[np.ndarray]:
    """Trunk, arms and head of somebody whose hips are at height `seat` (m)."""
    shirt = tuple(rng.uniform(0.25, 1.15, 3))
    skin = (0.95, 0.72, 0.6) if rng.random() < 0.6 else (0.5, 0.34, 0.26)
    torso = 0.36 * height
    top = seat + torso
    rows = [
        primitive(TAPERED_BOX, (x + lean / 2, 0, seat + torso / 2), (0.13, 0.22, torso / 2), tex.CLOTH, shirt, semantic,
                  taper=(0.1, -0.15), shear=lean),
        primitive(ELLIPSOID, (x + lean * 1.2, 0, top + 0.16), (0.11, 0.09, 0.14), tex.CLOTH, skin, semantic),
    ]  # fmt: skip
    for side in (-1, 1):
        arm = (x + lean * 0.7 + 0.05, side * 0.28, top - 0.3)
        rows.append(primitive(CYLINDER, arm, (0.055, 0.055, 0.28), tex.CLOTH, shirt, semantic))
    return rows


def pedestrian(rng: np.random.Generator) -> Model:
    """Somebody on foot, 1.56 to 1.9 m tall, legs apart in mid-step."""
    height = rng.uniform(1.5, 1.9)
    seat = 0.48 * height
    trousers = tuple(rng.uniform(0.15, 0.7, 3))
    rows = _person(rng, PEDESTRIAN, seat, 0.03, 0.0, height)
    for side in (-1, 1):
        leg = (side * 0.12, side * 0.1, seat / 2)
        rows.append(primitive(TAPERED_BOX, leg, (0.09, 0.08, seat / 2), tex.CLOTH, trousers, PEDESTRIAN,
                              shear=-side * 0.12))  # fmt: skip
    if rng.random() < 0.4:
        pack = tuple(rng.uniform(0.2, 1.0, 3))
        rows.append(primitive(BOX, (-0.2, 0, seat + 0.4), (0.09, 0.15, 0.2), tex.CLOTH, pack, PEDESTRIAN))
    return _finish(PEDESTRIAN, "human.pedestrian.adult", 0.6, 0.65, rows, rng)


def _two_wheeler(rng: np.random.Generator, semantic: int, radius: float, length: float) -> list[np.ndarray]:
    colour = CAR_COLOURS[rng.integers(len(CAR_COLOURS))]
    axle = length / 2 - radius
    width = 0.03 if semantic == BICYCLE else 0.08
    wheels = [
        primitive(WHEEL, (x, 0, radius), (radius, width, radius), tex.RUBBER, (1, 1, 1), semantic)
        for x in (-axle, axle)
    ]
    bar = primitive(BOX, (axle - 0.15, 0, 1.02), (0.04, 0.28, 0.03), tex.RUBBER, (1, 1, 1), semantic)
    if semantic == BICYCLE:
        return [*wheels, bar, primitive(BOX, (0, 0, 0.6), (axle * 0.8, 0.03, 0.14), tex.METAL, colour, semantic)]
    tank = primitive(TAPERED_BOX, (0, 0, 0.62), (axle * 0.9, 0.2, 0.24), tex.METAL, colour, semantic, taper=(0.2, 0.3))
    return [*wheels, bar, tank]


def bicycle(rng: np.random.Generator) -> Model:
    """A bicycle and its rider."""
    rows = _two_wheeler(rng, BICYCLE, 0.34, 1.75) + _person(rng, BICYCLE, 0.9, 0.25, -0.2, 1.7)
    trousers = tuple(rng.uniform(0.15, 0.7, 3))
    for side in (-1, 1):
        leg = (0.0, side * 0.11, 0.62)
        rows.append(primitive(TAPERED_BOX, leg, (0.08, 0.06, 0.36), tex.CLOTH, trousers, BICYCLE, shear=-0.15))
    return _finish(BICYCLE, "vehicle.bicycle", 1.75, 0.62, rows, rng)


def motorcycle(rng: np.random.Generator) -> Model:
    """A motorcycle and its rider."""
    rows = _two_wheeler(rng, MOTORCYCLE, 0.32, 2.1) + _person(rng, MOTORCYCLE, 0.82, 0.2, -0.25, 1.7)
    for side in (-1, 1):
        leg = (0.05, side * 0.24, 0.6)
        rows.append(primitive(BOX, leg, (0.1, 0.07, 0.28), tex.CLOTH, (0.25, 0.25, 0.3), MOTORCYCLE))
    return _finish(MOTORCYCLE, "vehicle.motorcycle", 2.1, 0.7, rows, rng)


VEHICLES: tuple[tuple[Callable[[np.random.Generator], Model], float], ...] = (
    (car, 0.52), (van, 0.12), (truck, 0.08), (bus, 0.06), (motorcycle, 0.08), (bicycle, 0.14),
)  # fmt: skip
"""Builders of what drives on the road, with their shares of the traffic."""


def actor_primitives(actors: list[Actor]) -> tuple[Primitives, Float[np.ndarray, " n"]]:
    """All actors' primitives in their own frames, OBJECT set to the actor's number, and each one's index."""
    if not actors:
        return np.zeros((0, 22)), np.zeros(0, np.int64)
    rows, owners = [], []
    for index, actor in enumerate(actors):
        block = actor.model.primitives.copy()
        block[:, OBJECT] = actor.number
        block[:, 3] += actor.base
        rows.append(block)
        owners.append(np.full(len(block), index))
    return np.concatenate(rows), np.concatenate(owners)


def pose_actors(local: Primitives, owners: np.ndarray, poses: Float[np.ndarray, "actors 3"]) -> Primitives:
    """The primitives of `actor_primitives` with every actor at its pose (x, y m, heading rad; world)."""
    x, y, heading = poses[owners].T if len(owners) else np.zeros((3, 0))
    return place(local, x, y, heading)
