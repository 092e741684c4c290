"""Plain voxel IoU and mIoU, as semantic scene completion measures them: strict about a surface's every voxel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from eval.protocols import UNKNOWN, free_index


class VoxelIoU:
    """IoU, precision and recall of occupied against free over all known voxels; with predicted classes mIoU too.

    SemanticKITTI's rule: every voxel of the grid counts but the invalid ones (255). Nothing is freed, unlike RayIoU's
    protocols; a camera's field of view plays no part.

    Args:
        classes: names of the truth's indices, with the one that means free.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self.free = tuple(classes), free_index(classes)
        self.true_positive = self.false_positive = self.false_negative = self.unknown = self.frames = 0
        n = len(self.classes)
        self.confusion = np.zeros((n, n), dtype=np.int64)
        self.with_classes = 0

    def update(
        self,
        occupied: Bool[np.ndarray, "x y z"],
        semantics: UInt8[np.ndarray, "x y z"],
        predicted: UInt8[np.ndarray, "x y z"] | None = None,
    ) -> None:
        """Count one keyframe.

        Args:
            occupied: the prediction.
            semantics: true class per voxel, 255 where unknown.
            predicted: predicted class per voxel, in the truth's indices.
        """
        known = semantics < len(self.classes)
        solid = semantics != self.free
        self.true_positive += int((occupied & solid & known).sum())
        self.false_positive += int((occupied & ~solid & known).sum())
        self.false_negative += int((~occupied & solid & known).sum())
        self.unknown += int((~known).sum())
        self.frames += 1
        if predicted is not None:
            n = len(self.classes)
            counted = known & (predicted < n)
            cell = semantics[counted].astype(np.int64) * n + predicted[counted]
            self.confusion += np.bincount(cell, minlength=n * n).reshape(n, n)
            self.with_classes += 1

    def merge(self, other: "VoxelIoU") -> None:
        """Add the counts of another accumulator over the same classes."""
        if other.classes != self.classes:
            raise ValueError(f"cannot merge voxel IoU of classes {other.classes} into {self.classes}")
        for name in ("true_positive", "false_positive", "false_negative", "unknown", "frames", "with_classes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.confusion += other.confusion

    def compute(self) -> dict[str, Any]:
        """`voxel_iou`, `precision`, `recall` in [0, 1] (nan without a voxel), counts; `voxel_miou` with classes."""
        tp, fp, fn = self.true_positive, self.false_positive, self.false_negative
        found: dict[str, Any] = {
            "voxel_iou": _share(tp, tp + fp + fn),
            "precision": _share(tp, tp + fp),
            "recall": _share(tp, tp + fn),
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "unknown_voxels": self.unknown,
            "frames": self.frames,
            "rule": f"all voxels but the unknown ({UNKNOWN}); occupied against free",
        }
        if self.with_classes and self.with_classes == self.frames:
            right = self.confusion.diagonal()
            union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - right
            rows = [c for c in range(len(self.classes)) if c != self.free]
            per_class = {self.classes[c]: _share(int(right[c]), int(union[c])) for c in rows if union[c]}
            values = list(per_class.values())
            found |= {"voxel_miou": float(np.mean(values)) if values else float("nan"), "per_class": per_class}
        return found


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
