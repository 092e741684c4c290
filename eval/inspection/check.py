"""What a check is: the kind of its values, which of them are bad, and the words that explain it."""

from dataclasses import dataclass
from typing import Literal

Scope = Literal["camera", "frame", "scene", "rig"]


@dataclass(frozen=True)
class Values:
    """What a check yields.

    scope: a value per camera image, per keyframe, per scene, or per camera over the whole sample ("rig"). extent: of
    the histogram.
    """

    scope: Scope
    unit: str
    extent: tuple[float, float]


@dataclass(frozen=True)
class Limit:
    """Which values are bad, and how many of them a check lets pass.

    limit: a value beyond it is bad. share: of bad values, that good labels have too (`verdict.too_many`). low: whether
    values below the limit are bad, instead of those above.
    """

    limit: float
    share: float
    low: bool


def above(limit: float, share: float) -> Limit:
    """Values above the limit are bad."""
    return Limit(limit, share, low=False)


def below(limit: float, share: float) -> Limit:
    """Values below the limit are bad."""
    return Limit(limit, share, low=True)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: key in results and settings.
        title: for people.
        values, bad: what it yields, and what of that is bad.
        cues: what it reads; an exclusion made by it holds as long as these stay the same, missing ones missing.
        measures: what the value is.
        meaning: what a failure usually means.
    """

    name: str
    title: str
    values: Values
    bad: Limit
    cues: tuple[str, ...]
    measures: str
    meaning: str
