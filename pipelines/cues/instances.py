"""Instance masks as the arrays of the store: ids unique in a block, table rows, ids linked over time by flow."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt16

from pipelines.cues.flow_field import endpoints
from storage.schema import MASK_TABLE_FIELDS, MASK_TABLE_ROWS, UNKNOWN_CLASS


@dataclass
class InstanceTable:
    """Collects the instances of a block. `shape` is (keyframes, cameras), `size` the network's (height, width)."""

    shape: tuple[int, int]
    size: tuple[int, int]
    instance: UInt16[np.ndarray, "frames cameras height width"] = field(init=False)
    table: Float32[np.ndarray, "frames cameras rows fields"] = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.instance = np.zeros((*self.shape, *self.size), np.uint16)
        self.table = np.zeros((*self.shape, MASK_TABLE_ROWS, len(MASK_TABLE_FIELDS)), np.float32)

    def add(
        self,
        i: int,
        c: int,
        labels: Int32[np.ndarray, "height width"],
        scores: Sequence[float],
        classes: Sequence[int] | None = None,
    ) -> int:
        """Write regions 1..n of one image, the first ones where there are more than the table has rows.

        Returns:
            How many were left out: beyond the table's rows or the ids of uint16, or without a pixel.
        """
        room = min(MASK_TABLE_ROWS, np.iinfo(np.uint16).max - self.count)
        row = 0
        for k, score in enumerate(scores):
            rows, columns = np.nonzero(labels == k + 1)
            if row == room or not len(rows):
                continue
            self.count += 1
            kind = UNKNOWN_CLASS if classes is None else classes[k]
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            self.table[i, c, row] = (self.count, kind, score, *box, 0)
            self.instance[i, c, rows, columns] = self.count
            row += 1
        return len(scores) - row

    def link(self, i: int, c: int, flow: Float[np.ndarray, "2 h w"] | None, least_overlap: float) -> None:
        """Give the instances of keyframe i the linked ids of those of keyframe i - 1 that flow into them.

        Args:
            flow: of keyframe i - 1, render pixels on its render grid, ending in keyframe i; None links nothing.
            least_overlap: share of the smaller of a warped instance and its counterpart that must coincide.
        """
        table = self.table[i, c]
        fresh = table[:, 0] > 0
        if i > 0 and flow is not None:
            for before, now in self._matches(i, c, flow, least_overlap):
                row = np.flatnonzero(table[:, 0] == now)[0]
                table[row, -1] = self.table[i - 1, c][self.table[i - 1, c][:, 0] == before, -1][0]
                fresh[row] = False
        # An instance's own id, unique in the block, starts a new track.
        table[fresh, -1] = table[fresh, 0]

    def _matches(self, i: int, c: int, flow: Float[np.ndarray, "2 h w"], least: float) -> list[tuple[int, int]]:
        """Pairs (id at i - 1, id at i), best overlap first, each id in one pair."""
        factor = self.size[0] // flow.shape[1]
        ends = endpoints(flow)
        here = self.instance[i - 1, c][factor // 2 :: factor, factor // 2 :: factor]
        there = self.instance[i, c][factor // 2 :: factor, factor // 2 :: factor]
        height, width = here.shape
        known = ~np.isnan(ends).any(axis=-1) & (here > 0)
        column = np.floor(ends[known][:, 0]).astype(int)
        row = np.floor(ends[known][:, 1]).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        landed = np.zeros(known.sum(), np.uint16)
        landed[inside] = there[row[inside], column[inside]]
        pairs = []
        for before in np.unique(here[known]):
            own = here[known] == before
            ids, counts = np.unique(landed[own & (landed > 0)], return_counts=True)
            for now, count in zip(ids, counts, strict=True):
                share = count / max(1, min(own.sum(), (there == now).sum()))
                pairs.append((min(share, 1.0), int(before), int(now)))
        chosen: list[tuple[int, int]] = []
        for share, before, now in sorted(pairs, reverse=True):
            if share >= least and all(before != b and now != n for b, n in chosen):
                chosen.append((before, now))
        return chosen
