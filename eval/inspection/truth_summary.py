"""Labels against exact truth, where a store has it: end-point error, Fl-all, masks' IoU, recall and precision."""

from typing import Any

import numpy as np

from eval.inspection.ego_motion import DEPTH_EDGES_M
from eval.inspection.views import View
from eval.labels import Figure, figure, flow_figures, mask_figures, summarise


class TruthSummary:
    """Figures of `eval.labels` pooled over all images that were looked at."""

    def __init__(self) -> None:
        self._pooled: dict[str, Any] = {}
        self._by_depth = np.zeros((len(DEPTH_EDGES_M) - 1, 2))
        """Sum of end-point errors (px), and pixels, by true depth."""
        self._by_class: dict[str, np.ndarray] = {}
        """Pixels of a class's masks that move, and all of them."""

    def add(self, view: View) -> None:
        """Add one image; nothing without truth."""
        exact = view.truth
        if exact is None:
            return
        instance, moving = view.true_masks
        found: dict[str, Any] = {}
        if view.flow is not None:
            found["flow"] = flow_figures(view.flow, exact["flow_next"], moving)
            self._add_by_depth(np.linalg.norm(view.flow - exact["flow_next"], axis=0), exact["depth"])
        if view.masks is not None:
            found["masks"] = mask_figures(view.masks, instance, moving)
            self._add_by_class(view, view.masks, moving)
        self._pooled = summarise([self._pooled, found])

    def _add_by_depth(self, error: np.ndarray, depth: np.ndarray) -> None:
        known = np.isfinite(error) & np.isfinite(depth)
        row = np.clip(np.digitize(depth[known], DEPTH_EDGES_M) - 1, 0, len(self._by_depth) - 1)
        self._by_depth[:, 0] += np.bincount(row, error[known], len(self._by_depth))
        self._by_depth[:, 1] += np.bincount(row, minlength=len(self._by_depth))

    def _add_by_class(self, view: View, masks: np.ndarray, moving: np.ndarray) -> None:
        classes = view.keyframe.attributes.classes
        for row in view.scene.mask_table(view.t, view.c):
            own = masks == int(row[0])
            name = classes[int(row[1])] if int(row[1]) < len(classes) else "unknown"
            self._by_class[name] = self._by_class.get(name, np.zeros(2)) + ((own & moving).sum(), own.sum())

    def result(self) -> dict[str, Any] | None:
        """{"flow": figures, "masks": figures, "epe_by_depth": ..., "precision_by_class": ...}, each figure with its
        value and what it was taken over; None without truth. The truth knows no classes, so that of the masks is what
        precision is told apart by."""
        if not self._pooled:
            return None
        by_depth: list[Figure] = [figure(total, count) for total, count in self._by_depth]
        by_class = {name: figure(*counts) for name, counts in sorted(self._by_class.items())}
        return {**self._pooled, "epe_by_depth": by_depth, "precision_by_class": by_class}
