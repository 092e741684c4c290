"""What image cells say of motion, measured against the flow cue and against motion that was lifted from it."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geometry.cameras import in_image
from geometry.transforms import compose, invert, transform_points
from model.earlier_images import in_cells, same_keyframe
from model.pixel_depth import cell_centres
from model.pixel_motion import PixelMotion
from model.visibility import CameraRig
from storage.schema import FLOW_SCALE
from train.batch import Batch
from train.loss_settings import LossConfig
from train.losses.averages import masked_mean
from train.losses.pixel_motion import match_costs, match_loss
from train.supervise_lidar import lengths, weighed_lengths

SAME_POSE = 1e-3
"""Entries of two poses (metres, and cosines) that differ by less are one pose."""


def supervise_match(motion: PixelMotion, batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The cells' matches against the backward flow cue at their centres, where that ends in the keyframe before; and
    how many cells have one."""
    assert batch.flow_back is not None
    size = (motion.motion.shape[-2], motion.motion.shape[-1])
    rig = batch.rig()
    centres = cell_centres(rig, size, motion.match).expand(len(motion.match), -1, -1)
    u, v = centres.long().unbind(dim=-1)
    view = torch.arange(len(u), device=u.device)[:, None]
    flow = batch.flow_back.flow.flatten(0, 1)[view, :, v, u].to(motion.match) / FLOW_SCALE
    ends = centres + flow
    known = batch.flow_back.known.flatten(0, 1)[view, v, u] & in_image(ends, rig.height, rig.width)
    known &= _ends_in_keyframe_before(batch).flatten()[:, None]
    movable = torch.zeros_like(known)
    if batch.movable is not None:
        movable = batch.movable.flatten(0, 1)[view, v, u]
    costs = match_costs(motion.match, motion.total, in_cells(ends, rig, size), size)
    return match_loss(costs, known, movable), known.sum()


def supervise_places(motion: PixelMotion, batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The matches of the cells that spots on movable things fall into, against where the spots' motion says that they
    were one keyframe earlier, in the first of the searched images that shows the place: a mean weighed as `lifted_flow`
    is; and of how many cells."""
    nothing = motion.match.new_zeros(())
    frames = batch.frames
    if batch.moving_points is None or frames.ref_from_cam.shape[1] < 2:
        return nothing, torch.zeros_like(nothing, dtype=torch.long)
    assert batch.moving_motion is not None
    assert batch.moving_weight is not None
    assert batch.moving_valid is not None
    column, row, seen, _ = _cells_of(motion, batch, batch.moving_points, batch.moving_valid)
    rows, columns = size = (motion.motion.shape[-2], motion.motion.shape[-1])
    view = torch.arange(len(column), device=column.device)[:, None]
    cell = row * columns + column
    match, total = motion.match[view, cell], motion.total[view, cell]

    was = torch.cat([batch.moving_motion, torch.zeros_like(batch.moving_motion[..., :1])], dim=-1)
    then = transform_points(invert(frames.current_from_ref[:, -2]), batch.moving_points - was)
    valid = frames.camera_valid[:, -2] & ~same_keyframe(frames.current_from_ref[:, -2])[:, None]
    images = (frames.images.shape[-2], frames.images.shape[-1])
    rig = CameraRig.build(frames.K[:, -2], frames.ref_from_cam[:, -2], valid, images)
    uv, _, shown = rig.see(then)
    places, shown = in_cells(uv.flatten(0, 1), rig, size), shown.flatten(0, 1)

    costs, found = torch.zeros_like(total), torch.zeros_like(seen)
    for k, image in enumerate(motion.searched.unbind(dim=1)):
        here = seen & shown[image] & ~found
        logits = match[..., k * rows * columns : (k + 1) * rows * columns]
        costs = torch.where(here, match_costs(logits, total, places[image], size), costs)
        found |= here
    weights = batch.moving_weight.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None].expand(*rig.K.shape[:2], -1)
    weights = weights.flatten(0, 1) * found
    return (costs * weights).sum() / weights.sum().clamp_min(1e-6), found.sum()


def supervise_pixel_motion(motion: PixelMotion, batch: Batch, loss: LossConfig) -> Float[Tensor, ""]:
    """`loss.lifted_flow` and `loss.lifted_still` of the motion that cells say, at the spots that fall into them. A spot
    that stands still does not count where a movable thing is seen in its place."""
    total = motion.motion.new_zeros(())
    if batch.moving_points is not None and loss.lifted_flow:
        assert batch.moving_motion is not None
        assert batch.moving_weight is not None
        assert batch.moving_valid is not None
        said, seen, _ = _at_cells(motion, batch, batch.moving_points, batch.moving_valid)
        costs = weighed_lengths(said - batch.moving_motion[:, None], batch.moving_weight[:, None])
        total = total + loss.lifted_flow * masked_mean(costs, seen)
    if batch.still_points is not None and loss.lifted_still:
        assert batch.still_valid is not None
        said, seen, on_movable = _at_cells(motion, batch, batch.still_points, batch.still_valid)
        total = total + loss.lifted_still * masked_mean(lengths(said), seen & ~on_movable)
    return total


def _at_cells(
    motion: PixelMotion, batch: Batch, points: Float[Tensor, "b n 3"], valid: Bool[Tensor, "b n"]
) -> tuple[Float[Tensor, "b cams n 2"], Bool[Tensor, "b cams n"], Bool[Tensor, "b cams n"]]:
    """Of each camera and point: the motion of the cell that the point falls into, whether it does into any, and whether
    that pixel shows a movable thing."""
    column, row, seen, on_movable = _cells_of(motion, batch, points, valid)
    view = torch.arange(len(column), device=column.device)[:, None]
    cameras = batch.K.shape[:2]
    said = motion.motion[view, :, row, column]
    return said.unflatten(0, cameras), seen.unflatten(0, cameras), on_movable.unflatten(0, cameras)


def _cells_of(
    motion: PixelMotion, batch: Batch, points: Float[Tensor, "b n 3"], valid: Bool[Tensor, "b n"]
) -> tuple[Int[Tensor, "views n"], Int[Tensor, "views n"], Bool[Tensor, "views n"], Bool[Tensor, "views n"]]:
    """Column and row of the cell that each point falls into in each view, whether it does into any, and whether that
    pixel shows a movable thing. The border's cell where it does not."""
    rig = batch.rig()
    uv, _, seen = rig.see(points)
    uv, seen = uv.flatten(0, 1), (seen & valid[:, None]).flatten(0, 1)
    uv = torch.where(seen[..., None], uv, torch.zeros_like(uv))
    size = (motion.motion.shape[-2], motion.motion.shape[-1])
    column, row = in_cells(uv, rig, size).long().unbind(dim=-1)
    on_movable = torch.zeros_like(seen)
    if batch.movable is not None:
        u, v = uv.long().unbind(dim=-1)
        view = torch.arange(len(u), device=u.device)[:, None]
        on_movable = batch.movable.flatten(0, 1)[view, v, u]
    return column, row, seen, on_movable


def _ends_in_keyframe_before(batch: Batch) -> Bool[Tensor, "b cams"]:
    """Whether a camera's backward cue ends in the image that the network sees of the keyframe before; a cue may end in
    a sweep between."""
    assert batch.flow_back is not None
    frames, view = batch.frames, batch.flow_back.view
    if frames.ref_from_cam.shape[1] < 2:
        return torch.zeros_like(batch.camera_valid)
    then_from_now = compose(invert(frames.ref_from_cam[:, -2]), invert(frames.current_from_ref[:, -2])[:, None])
    same = (view.cam_from_ref - then_from_now).abs().flatten(2).amax(dim=-1) < SAME_POSE
    # At the start of a log the keyframe before is the current one again.
    there = view.valid & frames.camera_valid[:, -2] & (view.interval < 0)
    return same & there & batch.camera_valid
