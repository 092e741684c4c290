"""Instances followed over time: an object keeps its id while flow carries its pixels onto a mask of its class."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int32, Int64

from pipelines.cues.ranges import check_numbers


@dataclass(frozen=True)
class LinkRule:
    """When an instance is the one before.

    overlap: share of the carried pixels, or of the new mask where that is smaller, that must coincide. patience: for
    how many keyframes an instance is carried on unseen. same_class: only instances of one class are linked.
    """

    overlap: float = 0.3
    patience: int = 1
    same_class: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, shares=("overlap",))


@dataclass
class _Carried:
    """Pixels of an instance, (n, 2) as (u, v), moved on by flow to where they are now."""

    track: int
    kind: int
    at: Float[np.ndarray, "n 2"]
    unseen: int = 0


@dataclass
class Linker:
    """The instances of one camera in a scene, keyframe after keyframe."""

    rule: LinkRule
    carried: list[_Carried] = field(default_factory=list)

    def step(
        self,
        labels: Int32[np.ndarray, "height width"],
        ids: Int64[np.ndarray, " n"],
        classes: Int64[np.ndarray, " n"],
        flow: Float[np.ndarray, "2 height width"] | None,
    ) -> Int64[np.ndarray, " n"]:
        """Track of each instance of the next keyframe.

        Args:
            labels: 0, 1..n on the grid of the flow.
            ids: what a new track of each instance is called.
            classes: class index of each.
            flow: of the keyframe before, in pixels of this grid, ending in this keyframe; NaN = unknown. None: all
                tracks end.
        """
        self.carried = [] if flow is None else [moved for one in self.carried if (moved := _advance(one, flow))]
        tracks = np.array(ids, np.int64)
        met: dict[int, int] = {}
        for k, j in self._matches(labels, classes):
            tracks[k] = self.carried[j].track
            met[j] = k
        unseen = [one for j, one in enumerate(self.carried) if j not in met and one.unseen < self.rule.patience]
        for one in unseen:
            one.unseen += 1
        seen = [_Carried(int(tracks[k]), int(classes[k]), _pixels(labels == k + 1)) for k in range(len(ids))]
        self.carried = [one for one in seen if len(one.at)] + unseen
        return tracks

    def _matches(
        self, labels: Int32[np.ndarray, "height width"], classes: Int64[np.ndarray, " n"]
    ) -> list[tuple[int, int]]:
        """(instance, carried) pairs, each once: lately seen first, then best overlap, then more pixels."""
        area = np.bincount(labels.ravel(), minlength=len(classes) + 1)
        pairs = []
        for j, one in enumerate(self.carried):
            column, row = np.floor(one.at).astype(np.int64).T
            landed = np.bincount(labels[row, column], minlength=len(classes) + 1)
            for k in np.flatnonzero(landed[1:]):
                if self.rule.same_class and classes[k] != one.kind:
                    continue
                share = landed[k + 1] / min(len(one.at), area[k + 1])
                if share >= self.rule.overlap:
                    pairs.append((one.unseen, -min(share, 1.0), -landed[k + 1], int(k), j))
        chosen: list[tuple[int, int]] = []
        for _, _, _, k, j in sorted(pairs):
            if all(k != a and j != b for a, b in chosen):
                chosen.append((k, j))
        return chosen


def _pixels(mask: np.ndarray) -> Float[np.ndarray, "n 2"]:
    return np.argwhere(mask)[:, ::-1] + 0.5


def _advance(one: _Carried, flow: Float[np.ndarray, "2 height width"]) -> _Carried | None:
    """The instance one keyframe later: pixels whose flow is known and stays in the image. None if nothing is left."""
    height, width = flow.shape[1:]
    column, row = np.floor(one.at).astype(np.int64).T
    at = one.at + flow[:, row, column].T
    with np.errstate(invalid="ignore"):
        inside = ((at >= 0) & (at < [width, height])).all(axis=1)
    return _Carried(one.track, one.kind, at[inside], one.unseen) if inside.any() else None
