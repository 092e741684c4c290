"""VoxelSplat's loss without 3D labels: Gaussians splatted now and, moved by their flow, at the next keyframe, against
LiDAR depth, movable masks and the flow cue (Zhu et al., CVPR 2025, whose own targets are 3D and 2D annotations)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.cameras import in_image, project
from geometry.transforms import transform_points
from model.fields import Fields
from model.network import OccFlow
from model.splat import Gaussians, SplatRender, splat
from train.batch import Batch, View
from train.cast import CameraCast
from train.config import TrainConfig
from train.gaussians import Drawn, draw_gaussians, in_camera, opacities, per_view, pick, scale_of
from train.loss_settings import SplatConfig
from train.losses.averages import MIN_WEIGHT, masked_mean
from train.losses.splat import balanced_cross_entropy, depth_error
from train.rays import beside
from train.supervise import cue_at_rays


@dataclass
class SplatTerms:
    """Terms by name with their weights inside the splatting loss, and counts for the log."""

    values: dict[str, tuple[Float[Tensor, ""], float]] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Spots:
    """Pixels of n views at which returns are seen: where, how deep (camera z, metres), and which are real."""

    pixels: Float[Tensor, "n k 2"]
    depth: Float[Tensor, "n k"]
    valid: Bool[Tensor, "n k"]


def supervise_splat(
    fields: Fields, network: OccFlow, batch: Batch, cast: CameraCast, config: TrainConfig, generator: torch.Generator
) -> SplatTerms:
    """The terms that this step's cues allow; weights of `config.splat`.

    Now: depth at the returns in the image, what could move and how it moves in the image on the step's camera rays. At
    the next keyframe: depth and masks there, which teach the flow (and the movable decoder) and no opacity.
    """
    settings, size = config.splat, cast.size
    opacity = opacities(fields, network.renderer.temperature())
    logits = network.movable(fields)
    rig = batch.rig()
    now = View(rig.cam_from_ref, rig.K, torch.zeros_like(batch.K[..., 0, 0]), rig.valid)
    masks = None if batch.movable is None else batch.movable.flatten(0, 1)
    terms = SplatTerms()

    drawn = draw_gaussians(fields, opacity, now, masks, size, settings, generator)
    spots = _spots(batch.return_points, _own(batch), now, size, settings, generator)
    motion = batch.flow_next if settings.motion and config.ablation.flow_supervision else None
    later = None if motion is None else motion.view
    gaussians = _gaussians(fields, opacity, logits, now, drawn, settings, moving=False, later=later)
    seen, at_spots = _look(gaussians, now, cast, spots)
    terms.counts["gaussians"] = drawn.real.sum()
    if spots is not None:
        good = spots.valid & (at_spots.opacity.detach() > MIN_WEIGHT)
        edge = min(fields.grid.voxel_size)
        terms.values["depth"] = depth_error(at_spots.depth, spots.depth, good, edge), settings.depth
        terms.counts["returns"] = good.sum()
    usable = (seen.opacity.detach() > MIN_WEIGHT) & cast.usable
    if masks is not None and logits is not None:
        on_rays = cast.pick(batch.movable)  # type: ignore[arg-type]
        terms.values["movable"] = balanced_cross_entropy(seen.mean[..., 0], on_rays, usable), settings.movable
    if motion is not None and masks is not None:
        cue, known = cue_at_rays(cast, motion)
        lasting = seen.sums[..., -1] > MIN_WEIGHT
        moves = seen.sums[..., -3:-1] / seen.sums[..., -1:].clamp_min(MIN_WEIGHT)
        dynamic = known & usable & lasting & cast.pick(batch.movable)  # type: ignore[arg-type]
        # Beyond the image's size an error carries no further information (`losses.flow.sample_errors`).
        error = (moves - cue).abs().sum(dim=-1).clamp_max(float(sum(size))) * (config.loss.reference_width / size[1])
        terms.values["motion"] = masked_mean(error, dynamic), settings.motion
        terms.counts["moving"] = dynamic.sum()
    if settings.adjacent and batch.adjacent is not None:
        _at_next_keyframe(terms, fields, opacity.detach(), logits, batch, cast, settings, generator)
    return terms


def _at_next_keyframe(
    terms: SplatTerms,
    fields: Fields,
    opacity: Float[Tensor, "b x y z"],
    logits: Float[Tensor, "b x y z"] | None,
    batch: Batch,
    cast: CameraCast,
    settings: SplatConfig,
    generator: torch.Generator,
) -> None:
    """The moved Gaussians against the next keyframe's own returns and masks."""
    assert batch.adjacent is not None
    view, size = batch.later, cast.size
    masks = batch.adjacent.movable.flatten(0, 1)
    drawn = draw_gaussians(fields, opacity, view, masks, size, settings, generator)
    spots = _spots(batch.adjacent.points, batch.adjacent.valid, view, size, settings, generator)
    gaussians = _gaussians(fields, opacity, logits, view, drawn, settings, moving=True, later=None)
    seen, at_spots = _look(gaussians, view, cast, spots)
    assert spots is not None
    good = spots.valid & (at_spots.opacity.detach() > MIN_WEIGHT)
    error = depth_error(at_spots.depth, spots.depth, good, min(fields.grid.voxel_size))
    terms.values["next_depth"] = error, settings.adjacent * settings.depth
    terms.counts["next_returns"] = good.sum()
    if logits is not None:
        usable = (seen.opacity.detach() > MIN_WEIGHT) & batch.adjacent.masked.flatten()[:, None]
        error = balanced_cross_entropy(seen.mean[..., 0], cast.pick(batch.adjacent.movable), usable)
        terms.values["next_movable"] = error, settings.adjacent * settings.movable


def _gaussians(
    fields: Fields,
    opacity: Float[Tensor, "b x y z"],
    logits: Float[Tensor, "b x y z"] | None,
    view: View,
    drawn: Drawn,
    settings: SplatConfig,
    *,
    moving: bool,
    later: View | None,
) -> Gaussians:
    """The drawn voxels as Gaussians of `view`; their places learn where they are `moving`. Features: what could move,
    where that is decoded. Shy ones: with `later` the displacement (u, v) in pixels until then and 1, all 0 for those
    that end up behind that camera."""
    cameras = view.K.shape[1]
    points = in_camera(fields, view, drawn.index)
    if not moving:
        points = points.detach()
    alpha = torch.where(drawn.real, per_view(opacity, cameras).gather(1, drawn.index), torch.zeros_like(drawn.share))
    features = alpha.new_zeros((*alpha.shape, 0))
    if logits is not None:
        features = torch.sigmoid(pick(logits.flatten(1)[..., None], drawn.index, cameras))
    shy = None
    if later is not None:
        here, _, _ = project(view.K.flatten(0, 1), points)
        there, _, ahead = project(later.K.flatten(0, 1), in_camera(fields, later, drawn.index))
        lasting = ahead & later.valid.flatten()[:, None]
        shift = torch.where(lasting[..., None], there - here, torch.zeros_like(there))
        shy = torch.cat([shift, lasting[..., None].to(shift.dtype)], dim=-1)
    return Gaussians(points, alpha, features, scale_of(fields.grid, settings), shy, drawn.share)


def _look(gaussians: Gaussians, view: View, cast: CameraCast, spots: Spots | None) -> tuple[SplatRender, SplatRender]:
    """What the step's camera rays see, and what the spots see."""
    rays = len(cast.pixels)
    pixels = cast.pixels.expand(len(gaussians.points), -1, -1)
    if spots is not None:
        pixels = torch.cat([pixels, spots.pixels], dim=1)
    render = splat(gaussians, view.K.flatten(0, 1), pixels)

    def part(where: slice) -> SplatRender:
        return SplatRender(render.sums[:, where], render.depth_sum[:, where], render.opacity[:, where])

    return part(slice(0, rays)), part(slice(rays, None))


def _own(batch: Batch) -> Bool[Tensor, "b r"] | None:
    """The keyframe's own returns: others' lie on what may be hidden now."""
    if batch.return_valid is None or batch.return_own is None:
        return None
    return batch.return_valid & batch.return_own


def _spots(
    points: Float[Tensor, "b r 3"] | None,
    valid: Bool[Tensor, "b r"] | None,
    view: View,
    size: tuple[int, int],
    settings: SplatConfig,
    generator: torch.Generator,
) -> Spots | None:
    """Up to `settings.returns` of the returns that each camera sees, drawn at random; None in runs without any."""
    if points is None or valid is None:
        return None
    cameras = view.K.shape[1]
    there = transform_points(view.cam_from_ref.flatten(0, 1), points.repeat_interleave(cameras, dim=0))
    uv, depth, in_front = project(view.K.flatten(0, 1), there)
    good = valid.repeat_interleave(cameras, dim=0) & in_front & in_image(uv, *size) & view.valid.flatten()[:, None]
    order = beside(torch.rand(points.shape[1], generator=generator), depth)
    keys = torch.where(good, order, torch.full_like(depth, 2.0))
    index = keys.topk(min(settings.returns, keys.shape[1]), dim=1, largest=False).indices
    safe = torch.where(good[..., None], uv, torch.zeros_like(uv))
    at = index[..., None].expand(*index.shape, 2)
    return Spots(safe.gather(1, at), depth.gather(1, index), good.gather(1, index))
