"""Depth and motion in the image, after the paper's KITTI-MOT metrics, against exact per-pixel truth.

What a network renders at a pixel (depth, object motion) says where the surface point is in the camera's next
keyframe image. The paper measures that against projected LiDAR and against a flow cue; here both truths are exact, so
this stands in for those metrics on logs that have them (synthetic ones).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from eval.depth import MAX_DEPTH, MIN_DEPTH
from eval.frames import chosen_keyframes, open_truth
from eval.plain import plain
from eval.predict import Predictor
from eval.rules import EvaluationError
from eval.views import View, views
from geometry.cameras import project, scale_intrinsics
from geometry.transforms import invert, transform_points
from model.fields import Fields
from model.network import OccFlow
from model.render import Renderer, camera_rays, to_camera_depth
from storage.location import ObjectPath
from storage.reader import StoreReader
from storage.schema import SceneTable

REFERENCE_WIDTH = 1216
"""Image width, pixels, at which every pixel figure and bound is stated: KITTI's."""
BASELINE_M = 0.54
"""Stereo baseline that turns depth into disparity: KITTI's, nominally."""
BASELINE_TAG = "stereo_baseline_m="
"""Start of the tag in which a store keeps a scene's own."""
BOUNDS = {"D_5%": (4.0, 0.05), "D_10%": (8.0, 0.10), "FL_10%": (8.0, 0.10)}
"""Pixels and share of the truth that an outlier exceeds. The paper does not give D_10%'s pixels: as FL_10%'s."""
OUTLIER_RULES: dict[str, Any] = {"both": np.logical_and, "either": np.logical_or}
"""Whether an outlier exceeds both bounds, as in KITTI's development kit, or at least one, which finds more."""


class ImageMotion:
    """Mean errors over pixels, all cameras and keyframes pooled.

    DE: disparity error. EPE: end-point error of the flow to the camera's next keyframe image. Both in pixels at
    `REFERENCE_WIDTH`; `_FG` on movable things. D_5%, FL_10%: share of outliers; SF_10%: outlier in FL_10% or D_10%.
    `EPE_FG_zero_flow`: the same rendered depths with no object motion. End-point errors are cut at the image's width:
    a point rendered just in front of the lens may land anywhere.

    Args:
        outliers: one of `OUTLIER_RULES`; named in the result.
    """

    def __init__(self, outliers: str = "both") -> None:
        if outliers not in OUTLIER_RULES:
            raise ValueError(f"unknown outlier rule {outliers!r}: choose from {', '.join(OUTLIER_RULES)}")
        self.outliers = outliers
        self.baselines: set[float] = set()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def update(
        self,
        depth: tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]],
        flow: tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]],
        still: Float[np.ndarray, "n 2"],
        foreground: Bool[np.ndarray, "n"],
        focal: float,
        width: int,
        baseline: float = BASELINE_M,
    ) -> None:
        """Count the pixels of one image.

        Args:
            depth: predicted and true camera z, metres. Truth outside [0.1, 80] m is left out; predictions are clamped
                to it.
            flow: predicted and true displacement to the next image, pixels. Pixels without true flow (nan) are left
                out of what needs it.
            still: predicted displacement with no object motion, pixels.
            focal: fx of the image, pixels of `width`.
            baseline: of the stereo cameras, metres.
        """
        scale = REFERENCE_WIDTH / width
        self.baselines.add(baseline)
        wanted = (depth[1] >= MIN_DEPTH) & (depth[1] <= MAX_DEPTH)
        disparity = [focal * scale * baseline / d[wanted].clip(MIN_DEPTH, MAX_DEPTH) for d in depth]
        off, fg = np.abs(disparity[0] - disparity[1]), foreground[wanted]
        self._add("DE", off)
        self._add("DE_FG", off[fg])
        self._add("D_5%", self._outlier("D_5%", off, disparity[1]))
        truth = flow[1][wanted] * scale
        known = np.isfinite(truth).all(axis=-1)
        error, zero = (_length(f[wanted] * scale - truth)[known] for f in (flow[0], still))
        self._add("EPE", error)
        self._add("EPE_FG", error[fg[known]])
        self._add("EPE_FG_zero_flow", zero[fg[known]])
        wrong = self._outlier("FL_10%", error, np.linalg.norm(truth[known], axis=-1))
        self._add("FL_10%", wrong)
        self._add("SF_10%", wrong | self._outlier("D_10%", off[known], disparity[1][known]))

    def compute(self) -> dict[str, Any]:
        """The figures (nan without a pixel), the rule, and the pixels behind each."""
        figures = {name: self._sums[name] / n if n else float("nan") for name, n in self._counts.items()}
        baselines = ", ".join(f"{b:g}" for b in sorted(self.baselines) or [BASELINE_M])
        rule = (
            f"pixels at width {REFERENCE_WIDTH}, baseline {baselines} m, outliers exceed {self.outliers}, EPE <= width"
        )
        return {**figures, "rule": rule, "outlier_rule": self.outliers, "pixels": dict(self._counts)}

    def merge(self, other: "ImageMotion") -> None:
        """Add another accumulator's pixels, counted by the same rule."""
        if other.outliers != self.outliers:
            raise ValueError(f"cannot merge outliers by the rule {other.outliers!r} into those by {self.outliers!r}")
        self.baselines |= other.baselines
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + other._counts[name]

    def _outlier(self, name: str, error: np.ndarray, truth: np.ndarray) -> Bool[np.ndarray, "n"]:
        pixels, share = BOUNDS[name]
        return OUTLIER_RULES[self.outliers](error > pixels, error > share * np.abs(truth))

    def _add(self, name: str, values: np.ndarray) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())
        self._counts[name] = self._counts.get(name, 0) + len(values)


def _length(error: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
    return np.minimum(np.linalg.norm(error, axis=-1), REFERENCE_WIDTH)


def stereo_baseline(table: SceneTable) -> float:
    """The distance of a scene's stereo cameras in metres, from its tags; KITTI's nominal one where it is not known."""
    found = next((tag for tag in table.tags if tag.startswith(BASELINE_TAG)), None)
    return BASELINE_M if found is None else float(found.removeprefix(BASELINE_TAG))


@dataclass(frozen=True)
class NextView:
    """A camera's next keyframe image: K in render pixels, its pose from the current ego frame, and the time until then
    in keyframe intervals."""

    K: Float[np.ndarray, "3 3"]
    cam_from_ego: Float[np.ndarray, "4 4"]
    interval: float


def next_view(table: SceneTable, t: int, view: View, scale: float, interval_s: float) -> NextView | None:
    """The next keyframe image of a camera at render scale (render / network size); None where there is none."""
    c = view.camera
    if t + 1 >= table.length or not table.camera_valid[t + 1][c]:
        return None
    global_from_cam = table.camera_global_from_ego[t + 1][c] @ table.ego_from_cam[t + 1][c]
    elapsed = (int(table.camera_timestamp_us[t + 1][c]) - int(table.camera_timestamp_us[t][c])) * 1e-6
    K = scale_intrinsics(np.asarray(table.K[t + 1][c], dtype=np.float64), scale, scale)
    return NextView(K, invert(global_from_cam) @ table.global_from_ego[t], elapsed / interval_s)


@torch.no_grad()
def rendered_motion(
    renderer: Renderer, fields: Fields, view: View, following: NextView, uv: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Rendered camera z (metres) at pixels, and their displacement to the next image with and without object motion."""
    like = fields.sdf
    K, pose, pixels = (torch.from_numpy(array).to(like) for array in (view.K, view.ego_from_cam, uv))
    origins, directions = camera_rays(K, pose, pixels)
    ranges, motion = [], []
    for o, d in zip(origins.split(16384), directions.split(16384), strict=True):
        rays = renderer(fields, o[None], d[None])
        ranges.append(rays.range()[0])
        motion.append(rays.mean_flow()[0])
    # A ray that meets nothing at all ends where it leaves the volume.
    leave = fields.grid.exit_distance(origins, directions).clamp_min(MIN_DEPTH)
    distance = torch.where(torch.cat(ranges) > 0, torch.cat(ranges), leave)
    depth = to_camera_depth(distance, directions, pose)
    points = (origins + distance[:, None] * directions).double().cpu().numpy()
    moved = points.copy()
    moved[:, :2] += torch.cat(motion).double().cpu().numpy() * following.interval
    shifts = [project(following.K, transform_points(following.cam_from_ego, p))[0] - uv for p in (moved, points)]
    return depth.double().cpu().numpy(), shifts[0], shifts[1]


def image_motion(
    model: OccFlow,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    *,
    stride: int = 4,
    keyframes: int | None = None,
) -> dict[str, Any]:
    """The figures of a network on every `stride`-th pixel of the keyframes that have a next one.

    Raises:
        EvaluationError: no per-pixel truth beside the store.
        StoreError: no store, or a scene or image that is not committed.
    """
    reader, found = StoreReader(store), ImageMotion()
    truth = open_truth(reader.path)
    predictor = Predictor(model, reader)
    for scene, t in chosen_keyframes(reader, scenes, predictor.queue_length, keyframes):
        source = None if truth is None else truth.paired(scene, reader.scene(scene).table.tokens)
        if source is None or not source.has("camera", t):
            continue
        fields = None
        for view, following in _pairs(reader, scene, t):
            exact = source.camera(t, view.camera)
            if exact is None:
                continue
            fields = predictor.fields(scene, t) if fields is None else fields
            rows, columns = (np.arange(stride // 2, n, stride) for n in exact["depth"].shape)
            at = np.ix_(rows, columns)
            u, v = np.meshgrid(columns + 0.5, rows + 0.5)
            uv = np.stack([u, v], axis=-1).reshape(-1, 2)
            depth, moved, still = rendered_motion(model.renderer, fields, view, following, uv)
            factor = exact["instance"].shape[0] // exact["depth"].shape[0]
            things = exact["instance"][factor // 2 :: factor, factor // 2 :: factor][at].ravel() > 0
            true_flow = np.stack([part[at].ravel() for part in exact["flow_next"]], axis=-1).astype(np.float64)
            true_depth = exact["depth"][at].ravel().astype(np.float64)
            width = exact["depth"].shape[1]
            found.update((depth, true_depth), (moved, true_flow), still, things, float(view.K[0, 0]), width)
    if not found.compute()["pixels"]:
        raise EvaluationError(f"{store}: no keyframe has per-pixel truth beside the store, or none has a next one")
    return plain(found.compute())


def _pairs(reader: StoreReader, scene: str, t: int) -> Iterator[tuple[View, NextView]]:
    """Cameras of a keyframe whose next image exists."""
    table, sizes = reader.scene(scene).table, reader.attributes
    scale = sizes.render_size[1] / sizes.network_size[1]
    for view in views(table, t, sizes.network_size, sizes.render_size):
        following = next_view(table, t, view, scale, sizes.keyframe_interval_s)
        if following is not None:
            yield view, following
