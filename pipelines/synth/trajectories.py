"""How things move: paths of lines and arcs, speed over time with constant accelerations, and poses at any instant."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float


@dataclass(frozen=True)
class Path:
    """A planar path: consecutive pieces of constant curvature, tangent to each other.

    start: x, y (m), heading (rad). lengths (m) and curvatures (1/m, left positive), one per piece; the path goes on
    straight before its start and after its end.
    """

    start: tuple[float, float, float]
    lengths: tuple[float, ...] = ()
    curvatures: tuple[float, ...] = ()

    def pose(self, s: npt.ArrayLike) -> Float[np.ndarray, "n 3"]:
        """x, y, heading at arc lengths `s` (m) from the start."""
        distance = np.atleast_1d(np.asarray(s, dtype=np.float64))
        x, y, heading = (np.full_like(distance, v) for v in self.start)
        rest = distance.copy()
        # A straight piece of no length comes first and takes negative distances: a car may start before the path does.
        for length, curvature in zip((0.0, *self.lengths, np.inf), (0.0, *self.curvatures, 0.0), strict=True):
            step = np.minimum(rest, length)
            turn = curvature * step
            # sin(x)/x form: exact for straight pieces as well as for arcs.
            chord = step * np.sinc(turn / (2 * np.pi))
            x = x + chord * np.cos(heading + turn / 2)
            y = y + chord * np.sin(heading + turn / 2)
            heading = heading + turn
            rest = rest - step
        return np.stack([x, y, heading], axis=-1)

    def curvature(self, s: float) -> float:
        """Curvature (1/m) at arc length `s`."""
        for length, curvature in zip(self.lengths, self.curvatures, strict=True):
            if s < length:
                return curvature if s >= 0 else 0.0
            s -= length
        return 0.0


@dataclass(frozen=True)
class Speed:
    """Speed over time: from `initial` m/s at time 0, constant accelerations `accelerations` for `durations` s each.

    Afterwards, and before time 0, speed is constant.
    """

    initial: float
    durations: tuple[float, ...] = ()
    accelerations: tuple[float, ...] = ()

    def distance(self, t: npt.ArrayLike) -> Float[np.ndarray, " n"]:
        """Metres travelled since time 0 at times `t` (s)."""
        return self._integrate(t)[0]

    def speed(self, t: npt.ArrayLike) -> Float[np.ndarray, " n"]:
        """m/s at times `t` (s)."""
        return self._integrate(t)[1]

    def _integrate(self, t: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        rest = np.atleast_1d(np.asarray(t, dtype=np.float64)).copy()
        travelled = np.minimum(rest, 0) * self.initial
        rest = np.maximum(rest, 0)
        speed = np.full_like(rest, self.initial)
        for duration, acceleration in zip((*self.durations, np.inf), (*self.accelerations, 0.0), strict=True):
            step = np.minimum(rest, duration)
            travelled = travelled + speed * step + 0.5 * acceleration * step**2
            speed = speed + acceleration * step
            rest = rest - step
        return travelled, speed


@dataclass(frozen=True)
class Trajectory:
    """A path driven at a speed, `offset` metres from the path's start at time 0."""

    path: Path
    speed: Speed
    offset: float = 0.0

    def pose(self, t: npt.ArrayLike) -> Float[np.ndarray, "n 3"]:
        """x, y (m, world), heading (rad) at times `t` (s)."""
        return self.path.pose(self.offset + self.speed.distance(t))

    @property
    def parked(self) -> bool:
        """True where it never moves."""
        return self.speed.initial == 0 and not self.speed.durations


def standing(x: float, y: float, heading: float) -> Trajectory:
    """A trajectory that stays where it is."""
    return Trajectory(Path((x, y, heading)), Speed(0.0))


def turning_path(
    corner: tuple[float, float], heading_in: float, radius: float, left: bool, before: float = 200.0
) -> Path:
    """A straight of `before` metres, a quarter turn whose tangents meet in `corner`, and a straight on."""
    straight = before - radius
    x = corner[0] - before * np.cos(heading_in)
    y = corner[1] - before * np.sin(heading_in)
    curvature = (1 if left else -1) / radius
    return Path((float(x), float(y), heading_in), (straight, radius * np.pi / 2), (0.0, curvature))
