"""Instance masks as the arrays of the store: ids unique in a block, table rows, ids linked over time by flow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt16

from pipelines.cues.base import ImageSizes
from pipelines.cues.instance_links import Linker, LinkRule
from storage.schema import MASK_TABLE_FIELDS, MASK_TABLE_ROWS, UNKNOWN_CLASS

FlowInto = Callable[[int, int], Float[np.ndarray, "2 h w"] | None]
_ID, _CLASS, _LINKED = (MASK_TABLE_FIELDS.index(name) for name in ("id", "class", "linked"))


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

    def link(self, rule: LinkRule, sizes: ImageSizes, flow_into: FlowInto) -> None:
        """Write the column `linked` of all instances: their own id where a track starts, else that of the track.

        Args:
            rule: when an instance is the one before.
            sizes: `sizes.network` is the size of the masks.
            flow_into: from (i, c) to the flow of keyframe i - 1 of camera c that ends in keyframe i, render pixels on
                the render grid, NaN = unknown; None where there is none. Asked for i > 0 only.
        """
        count, cameras = self.shape
        for c in range(cameras):
            linker = Linker(rule)
            for i in range(count):
                rows = self.table[i, c][self.table[i, c, :, _ID] > 0]
                labels = on_render(self.instance[i, c], rows[:, _ID], sizes)
                flow = flow_into(i, c) if i > 0 else None
                ids, classes = (rows[:, column].astype(np.int64) for column in (_ID, _CLASS))
                self.table[i, c, : len(rows), _LINKED] = linker.step(labels, ids, classes, flow)


def on_render(
    instance: UInt16[np.ndarray, "height width"], ids: np.ndarray, sizes: ImageSizes
) -> Int32[np.ndarray, "h w"]:
    """Ids of the block as 1..n in the order of `ids`, at the pixels in the middle of the render grid's."""
    factor = sizes.network[0] // sizes.render[0]
    number = np.zeros(int(ids.max(initial=0)) + 1, np.int32)
    number[ids.astype(np.int64)] = np.arange(1, len(ids) + 1)
    return number[instance[factor // 2 :: factor, factor // 2 :: factor]]
