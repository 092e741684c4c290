"""Everything that is counted of one network over the keyframes of a store, and of the baselines beside it."""

from collections.abc import Sequence

import numpy as np

from eval.baselines import flat_ground, flat_ground_depth, ground_height
from eval.box_velocity import BoxVelocity
from eval.cue_motion import CueMotion
from eval.depth import DepthError
from eval.frames import KeyframeTruth
from eval.mave import DynamicFlow, VelocityError
from eval.predict import Prediction
from eval.rayiou import RayIoU, TruthRays
from eval.rules import Rules
from eval.scene_flow import BucketedError, ThreeWayError
from eval.views import lidar_views, rendered_depths
from eval.voxel_iou import VoxelIoU
from model.render import Renderer
from storage.reader import StoreReader

MOTION_DATASET = "kitti_mot"
"""Where disparity and optical flow are measured in the image, against cues."""


class Tally:
    """Accumulators of one evaluation; feed it keyframe by keyframe.

    Args:
        rules: what to count.
        reader: the cue store, for LiDAR and calibration.
        sweep: occupancy thresholds, metres, at which RayIoU is computed besides.
        workers: threads that cast rays.
        rendered: whether depth is to be rendered; predictions in files have no field to render.
        half: round distances and velocities to float16 first, as the challenge's submission form does.
    """

    def __init__(
        self,
        rules: Rules,
        reader: StoreReader,
        sweep: Sequence[float] = (),
        workers: int = 2,
        *,
        rendered: bool = True,
        half: bool = False,
    ) -> None:
        self.rules, self.reader, self.workers, self.rendered, self.half = rules, reader, workers, rendered, half
        self.depth, self.flat_depth = DepthError(), DepthError()
        # The paper's figures on KITTI-MOT; elsewhere the cues are not what its labels were.
        self.motion = CueMotion(reader) if MOTION_DATASET in reader.attributes.dataset.lower() else None
        self.motion_cameras = 0
        self.keyframes = self.without_truth = self.with_flow = self.without_flow = self.nan_voxels = 0
        self.true_motion = False
        self.boxes = BoxVelocity(reader.attributes.classes, rules.grid)
        self.ground = ground_height(reader.attributes.dataset)
        self.sweep: dict[float, RayIoU] = {}
        if rules.classes:
            low, high = rules.grid.lower[2], rules.grid.upper[2]
            self.flat = flat_ground(rules.grid, self.ground) if low <= self.ground < high else None
            self.rayiou, self.flat_rayiou = self._rayiou(), self._rayiou()
            self.sweep = {float(threshold): self._rayiou() for threshold in sweep}
            self.velocity, self.dynamic = VelocityError(rules.classes, half=half), DynamicFlow(rules.classes)
            self.three_way, self.bucketed = ThreeWayError(rules.classes), BucketedError(rules.classes)
            self.voxels = VoxelIoU(rules.classes)

    @property
    def measured(self) -> bool:
        """Whether any keyframe had truth."""
        return self.keyframes > self.without_truth

    def _rayiou(self) -> RayIoU:
        return RayIoU(self.rules.protocol, self.rules.grid, self.rules.classes, workers=self.workers, half=self.half)

    def add_volume(self, prediction: Prediction, truth: KeyframeTruth | None, boxes: np.ndarray | None = None) -> None:
        """Count a keyframe's occupancy and velocity, and its labelled boxes; one without truth is counted as such."""
        self.keyframes += 1
        if boxes is not None and prediction.has_flow:
            self.boxes.update(prediction.occupied, self._rounded(prediction.flow), boxes)
        if prediction.sdf is not None:
            self.nan_voxels += int(np.isnan(prediction.sdf).sum())
        if truth is None or not self.rules.classes:
            self.without_truth += 1
            return
        rays = self.rayiou.truth_rays(truth.semantics, truth.origins)
        hits = self.rayiou.update(rays, prediction.occupied, prediction.semantics)
        if self.flat is not None and not self.rules.protocol.class_aware:
            self.flat_rayiou.update(rays, self.flat.occupied)
        self._sweep(prediction, rays)
        self.voxels.update(prediction.occupied, truth.semantics, prediction.semantics)
        self.true_motion |= bool(truth.flow.any())
        if not prediction.has_flow:
            self.without_flow += 1
            return
        self.with_flow += 1
        flow, true_flow = self._rounded(prediction.flow), self._rounded(truth.flow)
        named = None
        if self.rules.protocol.class_aware:
            named = self.rayiou.predicted_category(rays, hits, prediction.semantics)
        self.velocity.update(rays, hits, flow, true_flow, named)
        for metric in (self.dynamic, self.three_way, self.bucketed):
            metric.update(prediction.occupied, flow, truth.semantics, true_flow)

    def _rounded(self, flow: np.ndarray) -> np.ndarray:
        return flow.astype(np.float16) if self.half else flow

    def add_sweep(self, prediction: Prediction, truth: KeyframeTruth | None) -> None:
        """Count a keyframe's occupancy at the thresholds of the sweep alone."""
        if truth is not None:
            self._sweep(prediction, self.rayiou.truth_rays(truth.semantics, truth.origins))

    def _sweep(self, prediction: Prediction, rays: TruthRays) -> None:
        for threshold, metric in self.sweep.items():
            metric.update(rays, prediction.occupied_at(threshold))

    def add_depth(self, renderer: Renderer, prediction: Prediction, scene: str, t: int) -> None:
        """Count the rendered depth of a keyframe's cameras against its LiDAR, and a flat ground's."""
        assert prediction.fields is not None
        seen = list(lidar_views(self.reader, scene, t))
        rendered = rendered_depths(renderer, prediction.fields, [(view, sparse.uv) for view, sparse in seen])
        if self.motion is not None:
            self.motion_cameras += self.motion.add(renderer, prediction.fields, scene, t)
        for (view, sparse), depth in zip(seen, rendered, strict=True):
            self.depth.update(depth, sparse.depth)
            flat = flat_ground_depth(view.K, view.ego_from_cam, sparse.uv, self.rules.grid, self.ground)
            self.flat_depth.update(flat, sparse.depth)
