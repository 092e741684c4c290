"""Each loss of eq. 12 measured on one step's rays: which samples, which neighbour, which rays static or dynamic."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.warp import sample_image
from model.fields import Fields, sample_field
from storage.schema import FLOW_SCALE
from train.batch import Batch, FlowTarget, View
from train.cast import CameraCast
from train.confidence import flow_weights, mask_weights
from train.config import TrainConfig
from train.loss_settings import LossConfig
from train.losses.dynamic import Motion, disentangle, static_flow_regularisation
from train.losses.flow import FlowLoss, flow_loss, ray_errors, sample_errors
from train.losses.photometric import Comparison, compare
from train.losses.regularise import (
    edge_aware_smoothness,
    eikonal,
    hidden_matter,
    matter,
    normalised_disparity,
)
from train.rays import beside, land


def everything_static(cast: CameraCast) -> Motion:
    """The first stage's assumption: nothing moves."""
    return Motion(dynamic=torch.zeros_like(cast.usable), static=cast.usable)


def everything_free(cast: CameraCast) -> Motion:
    """Without dynamic disentanglement every ray takes the predicted object flow."""
    return Motion(dynamic=cast.usable, static=torch.zeros_like(cast.usable))


@torch.no_grad()
def separate_motion(cast: CameraCast, batch: Batch, pixels: float) -> Motion:
    """Eq. 10 on the rendered surface; `pixels` is the threshold at render scale."""
    assert batch.flow_next is not None
    assert batch.movable is not None
    cue, known = cue_at_rays(cast, batch.flow_next)
    view = batch.flow_next.view
    there = land(cast.surface, view.cam_from_ref.flatten(0, 1), view.K.flatten(0, 1), cast.size)
    static_flow = there.uv[:, :, 0] - cast.pixels
    movable = cast.pick(batch.movable)
    return disentangle(cue, known, static_flow, there.in_front[:, :, 0], movable, cast.usable, pixels)


def counting_is_free(mask: Tensor) -> bool:
    """Whether to pick out the rays of a mask. How many they are, a GPU would have to tell the host, which waits for it:
    there all rays are worked on and the others left out of the result, which is the same."""
    return mask.device.type == "cpu"


def cue_at_rays(cast: CameraCast, target: FlowTarget) -> tuple[Float[Tensor, "n rays 2"], Bool[Tensor, "n rays"]]:
    """A flow cue at the rays' pixels, render pixels, and where there is one."""
    flow = rearrange(cast.pick(target.flow), "n uv r -> n r uv").float() / FLOW_SCALE
    return flow, cast.pick(target.known) & target.view.valid.flatten()[:, None]


def compare_with(cast: CameraCast, view: View, motion: Motion, rays: Bool[Tensor, "n rays"]) -> Comparison:
    """Eq. 8 against one neighbour on `rays`: static ones by ego-motion alone, dynamic ones moved by their flow too.

    Sample positions are fixed by the rays, so only the rendering weights (and, on dynamic rays, the flow) learn here:
    the static look-up needs no graph.
    """
    assert view.images is not None
    cam_from_ref, K = view.cam_from_ref.flatten(0, 1), view.K.flatten(0, 1)
    images = view.images.flatten(0, 1).float() / 255
    usable = rays & view.valid.flatten()[:, None]
    moving = motion.dynamic & usable
    if cast.flow is not None and not counting_is_free(moving):
        colours, in_view = look_at_all(cast, view, images, moving)
    else:
        with torch.no_grad():
            there = land(cast.points, cam_from_ref, K, cast.size)
            colours, in_view = sample_image(images, there.uv), there.in_view
        if cast.flow is not None and moving.any():
            colours, in_view = look_again(cast, view, images, moving, colours, in_view)
    return compare(cast.colours, colours, cast.weights, in_view, cast.grid.pick(images), cast.image(usable))


def look_at_all(
    cast: CameraCast, view: View, images: Float[Tensor, "n 3 h w"], moving: Bool[Tensor, "n rays"]
) -> tuple[Float[Tensor, "n 3 rays samples"], Bool[Tensor, "n rays samples"]]:
    """The neighbour's colours at all samples, those of `moving` rays moved, and which are in view."""
    assert cast.flow is not None
    flow = torch.where(moving[..., None, None], cast.flow, torch.zeros_like(cast.flow))
    shift = flow * view.interval.flatten()[:, None, None, None]
    moved = land(cast.points, view.cam_from_ref.flatten(0, 1), view.K.flatten(0, 1), cast.size, shift)
    return sample_image(images, moved.uv), moved.in_view


def look_again(
    cast: CameraCast,
    view: View,
    images: Float[Tensor, "n 3 h w"],
    moving: Bool[Tensor, "n rays"],
    colours: Float[Tensor, "n 3 rays samples"],
    in_view: Bool[Tensor, "n rays samples"],
) -> tuple[Float[Tensor, "n 3 rays samples"], Bool[Tensor, "n rays samples"]]:
    """As `look_at_all`, from what all samples look like at rest: only the `moving` rays, few of all, are looked at."""
    assert cast.flow is not None
    cam_from_ref, K, interval = view.cam_from_ref.flatten(0, 1), view.K.flatten(0, 1), view.interval.flatten()
    colour_parts, view_parts = [], []
    for n in torch.unique(moving.nonzero()[:, 0]).tolist():
        picked = moving[n]
        shift = cast.flow[n : n + 1, picked] * interval[n]
        moved = land(cast.points[n : n + 1, picked], cam_from_ref[n : n + 1], K[n : n + 1], cast.size, shift)
        colour_parts.append(rearrange(sample_image(images[n : n + 1], moved.uv), "1 c r s -> r c s"))
        view_parts.append(moved.in_view[0])
    # nonzero() and boolean indexing both run view by view, so the parts are in order.
    by_ray = rearrange(colours, "n c r s -> n r c s").clone()
    by_ray[moving] = torch.cat(colour_parts)
    in_view = in_view.clone()
    in_view[moving] = torch.cat(view_parts)
    return rearrange(by_ray, "n r c s -> n c r s"), in_view


def flow_errors(
    cast: CameraCast, target: FlowTarget, rays: Bool[Tensor, "n rays"], *, moved: bool, detach: bool
) -> tuple[Float[Tensor, "n rays"], Bool[Tensor, "n rays"]]:
    """Eq. 9 per ray, in render pixels, and the rays of `rays` that have a cue and samples in front of the camera.

    Args:
        moved: whether samples move with the predicted object flow.
        detach: whether the rendering weights are kept out of the graph (dynamic rays do not shape the geometry).
    """
    assert cast.flow is not None or not moved
    cue, known = cue_at_rays(cast, target)
    wanted = rays & known
    view, flow = target.view, cast.flow if moved else None
    cam_from_ref, K, interval = view.cam_from_ref.flatten(0, 1), view.K.flatten(0, 1), view.interval.flatten()

    def one_by_one(
        cue: Tensor, pixels: Tensor, points: Tensor, weights: Tensor, poses: Tensor, K: Tensor, shift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Errors (m, rays) from tensors (m, rays, ...) and cameras (m, ...)."""
        with torch.set_grad_enabled(moved and torch.is_grad_enabled()):
            there = land(points, poses, K, cast.size, shift)
            of_samples = sample_errors(cue, pixels, there.uv, there.in_front, cap=float(sum(cast.size)))
        return ray_errors(of_samples, weights.detach() if detach else weights, there.in_front)

    if not counting_is_free(wanted):
        shift = None if flow is None else flow * interval[:, None, None, None]
        pixels = cast.pixels.expand(len(wanted), -1, -1)
        errors, kept = one_by_one(cue, pixels, cast.points, cast.weights, cam_from_ref, K, shift)
        return torch.where(wanted, errors, torch.zeros_like(errors)), kept & wanted
    errors, kept = torch.zeros_like(cast.range), torch.zeros_like(wanted)
    if not wanted.any():
        return errors, kept
    n, r = wanted.nonzero(as_tuple=True)
    shift = None if flow is None else flow[n, r][:, None] * interval[n][:, None, None, None]
    per_ray, good = one_by_one(
        cue[n, r][:, None], cast.pixels[r][:, None], cast.points[n, r][:, None], cast.weights[n, r][:, None],
        cam_from_ref[n], K[n], shift,
    )  # fmt: skip
    kept[n, r] = good[:, 0]
    return errors.index_put((n, r), per_ray[:, 0]), kept


def supervise_flow(cast: CameraCast, batch: Batch, motion: Motion, config: TrainConfig) -> FlowLoss:
    """Eqs. 9 and 11: dynamic rays by the next keyframe's cue; static rays by it and by the backward cue, as switched.

    In pixels at `loss.reference_width`. Each ray counts by its cue's confidence where that is given, a dynamic one also
    by the score of the mask that makes it one.
    """
    switches, loss = config.ablation, config.loss
    free = not switches.dynamic_disentanglement
    errors, static, dynamic, targets = [], [], [], []
    if batch.flow_next is not None:
        moving, good = flow_errors(cast, batch.flow_next, motion.dynamic, moved=cast.flow is not None, detach=not free)
        errors, static, dynamic, targets = [moving], [torch.zeros_like(good)], [good], [batch.flow_next]
        if switches.forward_static_flow:
            still, good = flow_errors(cast, batch.flow_next, motion.static, moved=False, detach=False)
            errors, static, dynamic = errors + [still], static + [good], dynamic + [torch.zeros_like(good)]
            targets.append(batch.flow_next)
    # The sample may have the cue for another loss's sake.
    if batch.flow_back is not None and switches.backward_static_flow:
        rays = cast.usable if free else motion.static
        still, good = flow_errors(cast, batch.flow_back, rays, moved=free and cast.flow is not None, detach=False)
        errors, static, dynamic = errors + [still], static + [good], dynamic + [torch.zeros_like(good)]
        targets.append(batch.flow_back)
    if not errors:
        nothing = torch.zeros_like(cast.usable)
        errors, static, dynamic = [torch.zeros_like(cast.range)], [nothing], [nothing]
    weights = None
    if config.data.weigh_by_confidence and targets:
        weights = torch.stack([flow_weights(cast, target) for target in targets])
        if not free:
            weights = torch.where(torch.stack(dynamic), weights * mask_weights(cast, batch), weights)
    return flow_loss(
        torch.stack(errors) * (loss.reference_width / cast.size[1]),
        torch.stack(static),
        torch.stack(dynamic),
        sampled=cast.usable.sum(),
        gamma_max=loss.gamma_max,
        balance=not free,
        weights=weights,
    )


def eikonal_everywhere(fields: Fields, cast: CameraCast, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
    """Eq. 15 on the grid, plus on `samples` of the ray samples drawn at random."""
    slope = fields.sdf_gradient()
    loss = eikonal(slope.movedim(1, -1))
    batch = slope.shape[0]
    points = cast.points.reshape(batch, -1, 3)
    count = min(samples // batch, points.shape[1])
    if count:
        drawn = torch.randint(points.shape[1], (count,), generator=generator)
        chosen = beside(drawn, points, keep_dtype=True)
        loss = loss + eikonal(sample_field(slope, points[:, chosen], fields.grid).movedim(1, -1))
    return loss


def matter_on_jittered_grid(fields: Fields, generator: torch.Generator) -> Float[Tensor, ""]:
    """Sparsity: mean depth inside matter at one random point of every 2x2x2 block of voxels, metres."""
    grid = fields.grid
    shape = [max(1, n // 2) for n in grid.shape]
    corners = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), dim=-1)
    cells = (corners + torch.rand(corners.shape, generator=generator)) / torch.tensor(shape)
    lower, upper = torch.tensor(grid.lower), torch.tensor(grid.upper)
    points = beside(lower + cells * (upper - lower), fields.sdf)
    return matter(fields.sdf_at(points.expand(len(fields.sdf), *points.shape)))


def smooth_depth(cast: CameraCast) -> Float[Tensor, ""]:
    """Edge-aware smoothness of the mean-normalised disparity."""
    valid = cast.image(cast.usable)
    return edge_aware_smoothness(normalised_disparity(cast.image(cast.depth), valid), cast.colours, valid)


def smooth_flow(cast: CameraCast) -> Float[Tensor, ""]:
    """Edge-aware smoothness of the rendered object flow."""
    flow = rearrange(cast.image(cast.rendered_flow()), "n i j xy -> n xy i j")
    return edge_aware_smoothness(flow, cast.colours, cast.image(cast.usable))


def calm_static(cast: CameraCast, motion: Motion, loss: LossConfig) -> Float[Tensor, ""]:
    """L_dreg."""
    assert cast.flow is not None
    return static_flow_regularisation(cast.flow, cast.weights, motion.static, loss.empty_flow_share)


def matter_behind(cast: CameraCast, loss: LossConfig) -> Float[Tensor, ""]:
    """Sparsity behind the rendered surface."""
    distances = cast.distances[..., : cast.sdf.shape[-1]]
    return hidden_matter(cast.sdf, distances, cast.range, cast.usable, loss.hidden_margin_m)
