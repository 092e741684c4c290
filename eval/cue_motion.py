"""The paper's KITTI-MOT metrics from cues alone: disparity against projected LiDAR, optical flow against a flow cue.

Both labels are pseudo-labels, as in the paper: what is measured is agreement with LiDAR and with the flow network. A
pixel counts where LiDAR is projected; for flow figures also where the cue knows the flow. Foreground: the masks of
movable things.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from eval.frames import chosen_keyframes
from eval.image_motion import ImageMotion, next_view, rendered_motion, stereo_baseline
from eval.plain import plain
from eval.predict import Predictor
from eval.rules import EvaluationError
from eval.views import View, lidar_views
from model.fields import Fields
from model.network import OccFlow
from model.render import Renderer
from storage.location import ObjectPath
from storage.reader import StoreReader

NEEDS = ("lidar", "flow_next", "masks")
"""Cues without which there are no such figures."""


class CueMotion(ImageMotion):
    """`ImageMotion` of rendered fields against the cues of a store."""

    def __init__(self, reader: StoreReader, outliers: str = "both") -> None:
        super().__init__(outliers)
        self.reader = reader

    def add(self, renderer: Renderer, fields: Fields, scene: str, t: int) -> int:
        """Count a keyframe's cameras; how many of them could be: those with LiDAR, a next image and flow to it."""
        source, sizes = self.reader.scene(scene), self.reader.attributes
        if not all(source.has(cue, t) for cue in NEEDS):
            return 0
        scale, count = sizes.render_size[1] / sizes.network_size[1], 0
        for view, sparse in lidar_views(self.reader, scene, t):
            following = next_view(source.table, t, view, scale, sizes.keyframe_interval_s)
            cue = source.flow("next", t, view.camera)
            # A flow that ends in a sweep between keyframes is over another time than the next keyframe image.
            if following is None or (cue.target_frame, cue.target_sweep) != (t + 1, -1):
                continue
            depth, moved, still = rendered_motion(renderer, fields, view, following, sparse.uv)
            columns, rows = np.floor(sparse.uv).astype(np.int64).T
            flow = cue.pixels()[0][:, rows, columns].T.astype(np.float64)
            foreground = self._foreground(scene, t, view, sparse.uv)
            baseline = stereo_baseline(source.table)
            focal, width = float(view.K[0, 0]), sizes.render_size[1]
            self.update((depth, sparse.depth), (moved, flow), still, foreground, focal, width, baseline)
            count += 1
        return count

    def _foreground(self, scene: str, t: int, view: View, uv: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
        """Whether render pixels lie on a mask, which is kept at network size."""
        sizes = self.reader.attributes
        factor = np.array(sizes.network_size[::-1]) / np.array(sizes.render_size[::-1])
        columns, rows = np.floor(uv * factor).astype(np.int64).T
        return self.reader.scene(scene).masks(t, view.camera)[rows, columns] > 0


def cue_motion(
    model: OccFlow,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    *,
    outliers: str = "both",
    keyframes: int | None = None,
) -> dict[str, Any]:
    """DE, EPE, DE_FG, EPE_FG, D_5%, FL_10%, SF_10% of a network on the keyframes that have a next one, with the rule.

    Args:
        outliers: see `eval.image_motion.OUTLIER_RULES`.

    Raises:
        EvaluationError: no keyframe has LiDAR, masks and flow to its next keyframe.
        StoreError: no store, or a scene or image that is not committed.
    """
    reader = StoreReader(store)
    found, predictor, cameras = CueMotion(reader, outliers), Predictor(model, reader), 0
    for scene, t in chosen_keyframes(reader, scenes, predictor.queue_length, keyframes):
        if all(reader.scene(scene).has(cue, t) for cue in NEEDS) and t + 1 < reader.scene(scene).length:
            cameras += found.add(model.renderer, predictor.fields(scene, t), scene, t)
    if not cameras:
        raise EvaluationError(
            f"{store}: no keyframe has {', '.join(NEEDS)} and flow to the next keyframe; extract these cues"
        )
    return plain(found.compute())
