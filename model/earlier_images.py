"""The keyframe before, as the images that a cell of now is looked for in."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geometry.cameras import project, unproject
from geometry.constants import constant
from geometry.transforms import compose, invert, transform_points
from model.pixel_depth import PixelDepth
from model.visibility import CameraRig

NEAR = 2
"""Cells around the best match, on either side, whose mean is where the surface was."""


class DepthMap(NamedTuple):
    """What cells say of their depth, without a gradient: mean and standard deviation of its logarithm."""

    mean: Float[Tensor, "views h w"]
    spread: Float[Tensor, "views h w"]

    @classmethod
    def of(cls, predicted: PixelDepth, size: tuple[int, int]) -> "DepthMap":
        """The distributions of an image level, at `size` (rows, columns)."""
        likelihood = predicted.logits.detach().softmax(dim=1)
        bins = predicted.bins.centres(likelihood)[:, None, None]
        mean = predicted.mean(likelihood)
        spread = (likelihood * (bins - mean).square()).sum(dim=1, keepdim=True).sqrt()
        return cls(*(F.adaptive_avg_pool2d(x, size)[:, 0] for x in (mean, spread)))


class Look(NamedTuple):
    """A keyframe as its images show it: descriptors of its cells, their depths, and the cameras."""

    descriptors: Float[Tensor, "views width h w"]
    depth: DepthMap
    rig: CameraRig

    def views(self, which: Int[Tensor, " views"]) -> "View":
        """Some of its views, each image for itself."""
        return View(
            self.descriptors[which],
            self.depth.mean[which],
            self.rig.K.flatten(0, 1)[which],
            self.rig.cam_from_ref.flatten(0, 1)[which],
            self.rig.valid.flatten()[which],
        )


class View(NamedTuple):
    """Images of a keyframe: descriptors and the logarithm of depth per cell, and each one's camera."""

    descriptors: Float[Tensor, "views width h w"]
    log_depth: Float[Tensor, "views h w"]
    K: Float[Tensor, "views 3 3"]
    cam_from_ref: Float[Tensor, "views 4 4"]
    valid: Bool[Tensor, " views"]


class EarlierImage(NamedTuple):
    """One earlier image for each view to be searched.

    landing: where each cell's surface would be in it without motion, cells; landing_depth: metres along its camera's
    axis; in_front: whether that is in front of the camera, and there is an image at all.
    """

    view: View
    landing: Float[Tensor, "views cells 2"]
    landing_depth: Float[Tensor, "views cells"]
    in_front: Bool[Tensor, "views cells"]
    cam_from_now: Float[Tensor, "views 4 4"]

    @classmethod
    def of(
        cls,
        then: Look,
        which: Int[Tensor, " views"],
        then_from_now: Float[Tensor, "views 4 4"],
        surface: Float[Tensor, "views cells 3"],
    ) -> "EarlierImage":
        """The views `which` of `then`; `surface` in the current ego frame, metres."""
        view = then.views(which)
        cam_from_now = compose(view.cam_from_ref, then_from_now)
        uv, depth, in_front = project(view.K, transform_points(cam_from_now, surface))
        size = (view.log_depth.shape[-2], view.log_depth.shape[-1])
        return cls(view, in_cells(uv, then.rig, size), depth, in_front & view.valid[:, None], cam_from_now)

    def surface_at(
        self, place: Float[Tensor, "views cells 2"], rig: CameraRig
    ) -> tuple[Float[Tensor, "views cells 3"], Float[Tensor, "views cells"]]:
        """Where the surface at a place in the image was, by the image's own depth: current ego frame, metres, had the
        world stood still; and the logarithm of its depth. The place has a gradient, the depth there none."""
        height, width = self.view.log_depth.shape[-2:]
        at = (place.detach() / constant((width, height), place) * 2 - 1)[:, None]
        log_depth = F.grid_sample(self.view.log_depth[:, None], at, padding_mode="border", align_corners=False)[:, 0, 0]
        pixels = place * constant((rig.width / width, rig.height / height), place)
        points = unproject(self.view.K, pixels, log_depth.exp())
        return transform_points(invert(self.cam_from_now), points), log_depth


def same_keyframe(now_from_then: Float[Tensor, "n 4 4"]) -> Bool[Tensor, " n"]:
    """Whether the earlier keyframe is the current one again: at the start of a log there is none before."""
    still = torch.eye(4, dtype=now_from_then.dtype, device=now_from_then.device)
    return (now_from_then == still).flatten(1).all(dim=1)


def nearest_cameras(now: CameraRig, then: CameraRig, neighbours: int) -> Int[Tensor, "views images"]:
    """Each view's own camera in the earlier keyframe, then those that look nearest to the same way, missing ones last:
    views of the earlier keyframe, 1 + `neighbours` of them, or as many as there are cameras."""
    frames, cameras = now.valid.shape
    # Third rows: the axes of the cameras in their ego frames.
    alike = (now.cam_from_ref[:, :, None, 2, :3] * then.cam_from_ref[:, None, :, 2, :3]).sum(dim=-1)
    alike = torch.where(then.valid[:, None], alike, -2.0) + 9 * torch.eye(cameras, device=alike.device)
    order = alike.argsort(dim=-1, descending=True, stable=True)[..., : 1 + neighbours]
    first = cameras * torch.arange(frames, device=order.device)[:, None, None]
    return (order + first).flatten(0, 1)


def chosen(
    image: Int[Tensor, "views cells"], options: list[Float[Tensor, "views cells *c"]]
) -> Float[Tensor, "views cells *c"]:
    """For each cell the entry of the image that it was found in."""
    found = options[0]
    for k, option in enumerate(options[1:], start=1):
        here = (image == k)[..., None] if option.ndim == 3 else image == k
        found = torch.where(here, option, found)
    return found


def in_cells(uv: Float[Tensor, "views n 2"], rig: CameraRig, size: tuple[int, int]) -> Float[Tensor, "views n 2"]:
    """Pixels to cells (column, row): cell i covers [i, i+1)."""
    rows, columns = size
    return uv * constant((columns / rig.width, rows / rig.height), uv)


def best_match(
    logits: Float[Tensor, "views cells there"], total: Float[Tensor, "views cells"], size: tuple[int, int]
) -> tuple[
    Int[Tensor, "views cells"],
    Float[Tensor, "views cells 2"],
    Float[Tensor, "views cells"],
    Float[Tensor, "views cells"],
]:
    """Where each cell was, between cells: the mean of the distribution within NEAR cells of its highest one.

    Args:
        logits: over the cells of one or more images, one after the other.
        total: logsumexp of the logits.
        size: rows and columns of each image.

    Returns:
        which of the images; place (column, row) in its cells; the distribution's share within that window, and in its
        middle.
    """
    rows, columns = size
    total = total[..., None]
    best = logits.detach().argmax(dim=-1, keepdim=True)
    image, best = best // (rows * columns), best % (rows * columns)
    steps = torch.arange(-NEAR, NEAR + 1, device=logits.device)
    row, column = best // columns + steps, best % columns + steps
    inside = ((row >= 0) & (row < rows))[..., :, None] & ((column >= 0) & (column < columns))[..., None, :]
    cell = row.clamp(0, rows - 1)[..., :, None] * columns + column.clamp(0, columns - 1)[..., None, :]
    cell = (image * rows * columns)[..., None] + cell
    # Of all the cells only those of the window are kept for the gradient.
    window = (logits.gather(-1, cell.flatten(-2)) - total).exp().unflatten(-1, (len(steps), len(steps))) * inside
    by_row, by_column = window.sum(dim=-1), window.sum(dim=-2)
    share = by_row.sum(dim=-1)
    x = (by_column * (column + 0.5)).sum(dim=-1) / share
    y = (by_row * (row + 0.5)).sum(dim=-1) / share
    return image[..., 0], torch.stack([x, y], dim=-1), share, window[..., NEAR, NEAR]
