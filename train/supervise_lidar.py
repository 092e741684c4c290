"""What LiDAR returns say on one step: how far rays go, how far image cells are, how things on which they lie move."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.constants import constant
from model.fields import Fields
from model.pixel_depth import PixelDepth
from model.render import Renderer
from train.batch import Batch
from train.cast import cast_ranges
from train.loss_settings import LossConfig
from train.losses.averages import masked_mean
from train.losses.lidar import free_space_loss, scale_invariant_loss, spread_loss, surface_loss
from train.losses.pixel_depth import pixel_depth_loss
from train.rays import beside, lidar_rays


class RangeTerms(NamedTuple):
    """Losses of rays that were cast to returns, and how many rendered ranges were compared with one."""

    ranges: Float[Tensor, ""]
    """Scale-invariant, of the rendered ranges."""
    spread: Float[Tensor, ""]
    """How far samples spread around the return."""
    free: Float[Tensor, ""]
    """Matter that the rays passed before it."""
    surface: Float[Tensor, ""]
    """How far returns lie from a surface."""
    returns: Int[Tensor, ""]


def supervise_ranges(
    fields: Fields,
    renderer: Renderer,
    batch: Batch,
    loss: LossConfig,
    *,
    step: int,
    far_sample: bool,
    generator: torch.Generator,
) -> RangeTerms:
    """What the step's returns say of the rays to them; terms without a weight are zero."""
    assert batch.return_points is not None
    assert batch.return_origins is not None
    assert batch.return_valid is not None
    rays, measured = lidar_rays(batch.return_points, batch.return_origins)
    jitter = beside(torch.rand(measured.shape, generator=generator), measured)
    cast = cast_ranges(fields, renderer, rays, jitter=jitter, step=step, far_sample=far_sample)
    valid = batch.return_valid & cast.met & (measured > 0)
    compared = valid & cast.ranged
    ranges = scale_invariant_loss(cast.range, measured, compared, loss.lidar_focus)
    spread = ranges.new_zeros(())
    if loss.lidar_spread:
        spread = spread_loss(cast.weights, cast.distances, measured, valid)
    free = ranges.new_zeros(())
    if loss.free_space:
        free = free_space_loss(cast.sdf, cast.distances[..., : cast.sdf.shape[-1]], measured, valid)
    surface = ranges.new_zeros(())
    if loss.surface:
        surface = surface_loss(fields.sdf_at(batch.return_points), valid)
    return RangeTerms(ranges, spread, free, surface, compared.sum())


def supervise_pixel_depth(predicted: PixelDepth, batch: Batch) -> Float[Tensor, ""]:
    """The image cells' depths against the keyframe's own LiDAR returns, wherever these fall into its images."""
    assert batch.return_points is not None
    assert batch.return_valid is not None
    assert batch.return_own is not None
    rig = batch.rig()
    uv, depth, seen = rig.see(batch.return_points)
    valid = seen & (batch.return_valid & batch.return_own)[:, None]
    place = uv / constant((rig.width, rig.height), uv) * 2 - 1
    return pixel_depth_loss(predicted, place.flatten(0, 1), depth.flatten(0, 1), valid.flatten(0, 1))


def supervise_lifted_flow(fields: Fields, batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Mean of sqrt(eᵀ A e), e being how far the flow at spots on movable things is off their lifted motion, metres per
    interval, and A what the images show of it; how many spots there were."""
    assert batch.moving_points is not None
    assert batch.moving_motion is not None
    assert batch.moving_weight is not None
    assert batch.moving_valid is not None
    costs = weighed_lengths(fields.flow_at(batch.moving_points) - batch.moving_motion, batch.moving_weight)
    return masked_mean(costs, batch.moving_valid), batch.moving_valid.sum()


def supervise_still(fields: Fields, batch: Batch) -> Float[Tensor, ""]:
    """Mean length of the flow at spots that lie on no movable thing, metres per interval."""
    assert batch.still_points is not None
    assert batch.still_valid is not None
    return masked_mean(lengths(fields.flow_at(batch.still_points)), batch.still_valid)


def weighed_lengths(off: Float[Tensor, "*n 2"], weight: Float[Tensor, "*#n 2 2"]) -> Float[Tensor, "*n"]:
    """sqrt(eᵀ A e) of motions that are off by e, metres per interval."""
    # No matrix product: autocast would round it.
    squared = (off[..., None, :] * weight * off[..., None]).sum(dim=(-2, -1))
    # A length has no slope at zero.
    return (squared.clamp_min(0) + 1e-6).sqrt()


def lengths(motion: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    """Lengths of motions, metres per interval, with a slope at zero too."""
    return (motion.square().sum(-1) + 1e-6).sqrt()
