"""Runs the checks over one keyframe, and over the table of a scene."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from eval.inspection import flow_checks, image_checks, lidar_checks, mask_checks, table_checks
from eval.inspection.ego_motion import binned
from eval.inspection.lidar_extent import UsualExtent, sweep_extent
from eval.inspection.views import Keyframe, View
from eval.labels import mask_figures
from geometry.cameras import in_image, project
from geometry.transforms import transform_points
from storage.schema import SceneTable

RIG = -1
"""Camera index of values that belong to the keyframe, and keyframe index of values that belong to a scene."""
MOVED_M = 0.3
"""Metres of driving after which two images must differ."""


@dataclass
class Measured:
    """Values of one camera image (`camera` >= 0) or one keyframe. Values that are nan were not measurable.

    values: by check. counts: (part, whole) of shares that are pooled over a scene. scores: of shifts, pooled alike.
    bins: static-flow residuals by depth and image region. motion: metres and degrees, ego axes, of the camera motion
    that explains the residual.
    """

    scene: str
    t: int
    camera: int
    values: dict[str, float] = field(default_factory=dict)
    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    bins: dict[str, list[list[float]]] = field(default_factory=dict)
    motion: list[float] = field(default_factory=list)


def measure_table(scene: str, table: SceneTable, usual_offset_ms: np.ndarray) -> Iterator[Measured]:
    """What times and poses alone tell, for every keyframe and camera of a scene."""
    offsets, times = table_checks.camera_offsets_ms(table), table_checks.pose_times_ms(table)
    jumps = table_checks.accelerations(table)
    for t in range(table.length):
        yield Measured(scene, t, RIG, {"pose_jump": float(jumps[t])})
        for c in np.flatnonzero(table.camera_valid[t]):
            off = abs(float(offsets[t, c] - usual_offset_ms[c]))
            yield Measured(scene, t, int(c), {"camera_offset": off, "pose_time": abs(float(times[t, c]))})


def measure_keyframe(keyframe: Keyframe, cues: tuple[str, ...], usual: UsualExtent | None) -> Iterator[Measured]:
    """Everything that needs pixels or points: the keyframe itself first, then each of its cameras.

    Args:
        cues: those the store has anywhere.
        usual: extent of a usual sweep, None for a store without LiDAR.
    """
    whole = Measured(keyframe.scene.name, keyframe.t, RIG)
    views = keyframe.cameras()
    found = [_measure_view(view) for view in views]
    whole.values["coverage"] = _coverage(keyframe, cues)
    _measure_sweep(keyframe, usual, whole)
    _measure_rig(views, found, whole)
    yield whole
    yield from found


def _coverage(keyframe: Keyframe, cues: tuple[str, ...]) -> float:
    here = [keyframe.has(cue) for cue in cues] + keyframe.table.camera_valid[keyframe.t].tolist()
    if "lidar" in cues:
        here.append(keyframe.points is not None)
    return float(np.mean(here))


def _measure_sweep(keyframe: Keyframe, usual: UsualExtent | None, whole: Measured) -> None:
    if keyframe.points is None or usual is None:
        return
    sweep = sweep_extent(keyframe.points, keyframe.origin)
    whole.values["lidar_coverage"] = usual.ratio(sweep)
    whole.values["lidar_azimuth"] = usual.missing_degrees(sweep)
    whole.values["lidar_birdseye"] = usual.reached_share(sweep)
    whole.counts["lidar_level"] = lidar_checks.ground_tilt(keyframe.points), 1.0


def _measure_rig(views: list[View], found: list[Measured], whole: Measured) -> None:
    """The camera motion that all cameras agree on, and images that two cameras share."""
    motions = np.array([one.motion for one in found if one.motion])
    if len(motions):
        whole.motion = np.median(motions, axis=0).tolist()
        whole.values["static_bias"] = float(np.linalg.norm(whole.motion[:3]))
    images = [(i, view.image) for i, view in enumerate(views) if view.image is not None]
    for k, (i, image) in enumerate(images):
        for j, other in images[k + 1 :]:
            if np.array_equal(image, other):
                found[i].values["frozen"] = found[j].values["frozen"] = 0.0


def _measure_view(view: View) -> Measured:
    one = Measured(view.scene.name, view.t, view.c)
    _measure_images(view, one)
    _measure_flow(view, one)
    _measure_residual(view, one)
    _measure_masks(view, one)
    _measure_alignment(view, one)
    _measure_truth(view, one)
    one.values = {name: value for name, value in one.values.items() if not math.isnan(value)}
    return one


def _measure_images(view: View, one: Measured) -> None:
    if view.image is None:
        return
    one.values["exposure"] = image_checks.clipped_share(view.image)
    if view.next_image is not None:
        place = view.scene.table.camera_global_from_ego[[view.t, view.t + 1], view.c, :3, 3]
        if float(np.linalg.norm(place[1] - place[0])) > MOVED_M:
            one.values["frozen"] = image_checks.difference(view.image, view.next_image)


def _measure_flow(view: View, one: Measured) -> None:
    flow = view.flow
    if flow is None or view.cue is None:
        return
    movable = view.masks > 0 if view.masks is not None else None
    one.values["flow_valid"] = flow_checks.valid_share(flow, movable)
    one.values["flow_confidence"] = flow_checks.confident_share(flow, view.cue.confidence)
    if view.backward is not None:
        one.values["flow_round_trip"] = flow_checks.round_trip(flow, view.backward)[0]
    if view.image is not None and view.next_image is not None:
        one.values["photometric"] = flow_checks.photometric_ratio(
            *flow_checks.warp_errors(view.image, view.next_image, flow)
        )


def _measure_residual(view: View, one: Measured) -> None:
    if view.fit is None or view.residual is None or view.static is None:
        return
    residual, judged = view.residual
    length = np.linalg.norm(view.static.flow[judged], axis=1)
    left = np.linalg.norm(residual[judged] - view.fit.explained, axis=1)
    one.values["static_scatter"] = float(np.median(left / (1 + length)))
    turn = np.linalg.inv(view.camera.cam_from_ego)[:3, :3]
    one.motion = [*(turn @ view.fit.translation).tolist(), *(turn @ view.fit.rotation).tolist()]
    one.bins = binned(residual[judged], view.static.uv[judged], view.static.depth[judged], view.size)


def _measure_masks(view: View, one: Measured) -> None:
    if view.masks is None:
        return
    one.values["mask_area"] = mask_checks.masked_share(view.masks)
    one.counts["mask_area_drift"] = one.values["mask_area"], 1.0
    one.counts["mask_count"] = float(mask_checks.instance_count(view.masks)), 1.0
    if view.next_masks is not None and view.flow is not None:
        one.counts["mask_flicker"] = mask_checks.flicker(view.masks, view.next_masks, view.flow)
    if view.image is not None:
        across = mask_checks.border_scores(view.masks, view.strength)
        upright = lidar_checks.edge_strength(view.image.swapaxes(0, 1))
        one.scores["mask_edges"] = np.stack([across, mask_checks.border_scores(view.masks.T, upright)])
    if view.keyframe.points is not None:
        uv, depth = view.seen
        one.counts["mask_depth"] = mask_checks.depth_strays(view.at(view.masks, uv), depth)


def _measure_alignment(view: View, one: Measured) -> None:
    if view.image is None or view.keyframe.points is None:
        return
    edges = view.keyframe.edges
    uv, _, front = project(view.camera.K, transform_points(view.camera.cam_from_ego, edges))
    uv = uv[front & in_image(uv, *view.size)]
    if len(uv):
        scores = lidar_checks.alignment_scores(uv, view.strength, float(view.camera.K[0, 0]))
        one.values["lidar_alignment"] = abs(lidar_checks.best_shift(scores))


def _measure_truth(view: View, one: Measured) -> None:
    exact = view.truth
    if exact is None:
        return
    if view.flow is not None:
        error = np.linalg.norm(view.flow - exact["flow_next"], axis=0)
        length = np.linalg.norm(exact["flow_next"], axis=0)
        known = ~np.isnan(error)
        if known.any():
            one.values["truth_flow"] = float(np.median(error[known] / (1 + length[known])))
    if view.masks is not None:
        iou = mask_figures(view.masks, *view.true_masks)["iou"]
        if iou["value"] is not None and iou["count"] is not None:
            share = iou["count"] / view.masks.size
            one.counts["truth_masks"] = iou["value"] * share, share
    if view.keyframe.points is not None:
        uv, depth = view.seen
        true = view.at(exact["depth"], uv)
        known = np.isfinite(true)
        if known.sum() > 20:
            one.values["truth_depth"] = float(np.median(np.abs(depth[known] / true[known] - 1)))
