"""What moves, by the images alone: where each cell's surface was in the image of the keyframe before, and how far that
is from where it would have been had it stood still."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from geometry.cameras import MIN_DEPTH, camera_directions
from geometry.constants import constant
from geometry.transforms import invert, rotate_vectors, transform_points
from model.backbone import LayerNorm2d
from model.config import PixelMotionConfig
from model.earlier_images import EarlierImage, Look, best_match, chosen, nearest_cameras, same_keyframe
from model.pixel_depth import cell_centres
from model.residual import ResidualBlock2d, group_norm

FASTEST_M = 12.0
"""Metres per interval; what cells measure beyond is a wrong match and counts as this."""
NOWHERE = -1e4
"""Logit of a place where nothing can have been."""
_TOLD = 15
"""Numbers that a cell's motion is decoded from, besides what its image shows."""


class PixelMotion(NamedTuple):
    """What the cells of n x cameras images (one axis, frame-major) say of motion.

    motion: horizontal (vx, vy), metres per keyframe interval, current ego frame, ego-motion removed. searched: the
    earlier views that a view was compared with, its own camera's first. match: logits of where in their images, one
    after the other, row by row, the cell's surface was; total: their logsumexp. context: channels that voxels read
    beside motion.
    """

    motion: Float[Tensor, "views 2 h w"]
    searched: Int[Tensor, "views images"]
    match: Float[Tensor, "views cells there"]
    total: Float[Tensor, "views cells"]
    context: Float[Tensor, "views context h w"]


class PixelMotionHead(nn.Module):
    """Matches each cell of the current images with those of the images one keyframe earlier, and decodes motion from
    what that tells.

    - A cell's descriptor comes from a small convolution of the image, and from its features.
    - Where it was: a softmax over all cells of the earlier image, of the descriptors' products and of how far a cell is
      from where the surface would have been without motion (a normal distribution whose widths are learned). Images of
      neighbouring cameras can be searched beside the camera's own.
    - How it moved: the surface's place now less its place then, each by its own image's depth. Errors that both depths
      share cancel. A residual block decides from that and from what is known of its error.

    Volumes that were fused tell little of how things moved: what a thing looks like is not in them, and a cell of the
    fusion is as large as half a second's motion. Not in the paper; off (`cell: 0`) at its sizes.

    No gradient leaves it: depth and image features are learned by what else asks for them.
    """

    def __init__(self, config: PixelMotionConfig, feature_dim: int) -> None:
        super().__init__()
        self.pool = config.cell // 4
        self.neighbours = config.neighbours
        self.width = width = config.width
        half = max(8, width * 2 // 3 // 8 * 8)
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, kernel_size=5, stride=2, padding=2), group_norm(half), nn.ReLU(),
            nn.Conv2d(half, width, kernel_size=3, stride=2, padding=1), group_norm(width), nn.ReLU(),
        )  # fmt: skip
        self.norm = LayerNorm2d(feature_dim)
        self.features = nn.Conv2d(feature_dim, width, kernel_size=3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock2d(width, width, 1), ResidualBlock2d(width, width, 1))
        self.describe_cells = nn.Conv2d(width, width, kernel_size=1)
        # Widths of the normal distribution along a row and along a column, cells; logarithms.
        self.reach = nn.Parameter(torch.tensor([1.5, 1.0], device="cpu"))
        self.sharpness = nn.Parameter(torch.zeros((), device="cpu"))
        outputs = nn.Conv2d(width, 3 + config.context, kernel_size=1)
        nn.init.normal_(outputs.weight, std=0.01)
        assert outputs.bias is not None
        nn.init.zeros_(outputs.bias)
        self.decode = nn.Sequential(
            nn.Conv2d(width + _TOLD, width, kernel_size=3, padding=1),
            ResidualBlock2d(width, width, 1),
            ResidualBlock2d(width, width, 1),
            outputs,
        )

    def describe(
        self, images: Float[Tensor, "views 3 _height _width"], level: Float[Tensor, "views ch _h _w"]
    ) -> Float[Tensor, "views width h w"]:
        """Descriptors of the cells of normalised images, whose finest level is `level`."""
        seen = self.stem(images) + self.features(self.norm(level.detach()))
        if self.pool > 1:
            # Cells that divide the image evenly, as `cell_centres` and `DepthMap` have it, also where `cell` does not.
            rows, columns = (-(-size // self.pool) for size in seen.shape[-2:])
            seen = F.adaptive_avg_pool2d(seen, (rows, columns))
        return self.describe_cells(self.blocks(seen))

    def forward(self, now: Look, then: Look, now_from_then: Float[Tensor, "n 4 4"]) -> PixelMotion:
        """Motion of the cells of `now`; `now_from_then` takes the earlier ego frame to the current one.

        Where both are one keyframe, at the start of a log, or the earlier image is missing, nothing can be seen: the
        cells are told so.
        """
        height, width = size = (now.depth.mean.shape[-2], now.depth.mean.shape[-1])
        directions = camera_directions(now.rig.K.flatten(0, 1), cell_centres(now.rig, size, now.depth.mean))
        ego_from_cam = invert(now.rig.cam_from_ref.flatten(0, 1))
        surface = transform_points(ego_from_cam, directions * now.depth.mean.flatten(1).exp()[..., None])
        searched = nearest_cameras(now.rig, then.rig, self.neighbours)
        then_from_now = invert(now_from_then).repeat_interleave(now.rig.K.shape[1], dim=0)
        images = [EarlierImage.of(then, which, then_from_now, surface) for which in searched.unbind(dim=1)]

        match = self._search(now.descriptors, images)
        total = match.logsumexp(dim=-1)
        image, place, share, peak = best_match(match, total, size)
        landing = chosen(image, [x.landing for x in images])
        landing_depth = chosen(image, [x.landing_depth for x in images])
        surfaces = zip(*(x.surface_at(place, then.rig) for x in images), strict=True)
        before, log_depth = (chosen(image, list(options)) for options in surfaces)
        measured = (surface - before)[..., :2].clamp(-FASTEST_M, FASTEST_M)

        along = F.normalize(rotate_vectors(ego_from_cam, directions), dim=-1)
        deeper = log_depth - landing_depth.clamp_min(MIN_DEPTH).log()
        told = torch.cat(
            [
                (measured / 2).tanh(), (measured / 8).tanh(), ((place - landing) / 2).tanh(), along,
                torch.stack([share, peak, (5 * deeper).tanh(), _unknown(then, now_from_then).expand_as(share)], dim=-1),
                torch.stack([now.depth.mean.flatten(1) - 2.5, 3 * now.depth.spread.flatten(1)], dim=-1),
            ], dim=-1,
        )  # fmt: skip
        told, measured = (x.transpose(1, 2).unflatten(2, (height, width)) for x in (told, measured))
        decoded = self.decode(torch.cat([now.descriptors, told.to(now.descriptors.dtype)], dim=1)).float()
        motion = decoded[:, :2] + decoded[:, 2:3].sigmoid() * measured
        return PixelMotion(motion, searched, match, total, decoded[:, 3:])

    def _search(
        self, now: Float[Tensor, "views width h w"], images: list[EarlierImage]
    ) -> Float[Tensor, "views cells there"]:
        """Logits over the cells of all the images. In another camera's nothing is looked for that was behind it."""
        logits = [self.match(now, image.view.descriptors, image.landing) for image in images]
        for k in range(1, len(images)):
            logits[k] = torch.where(images[k].in_front[..., None], logits[k], NOWHERE)
        return torch.cat(logits, dim=-1)

    def match(
        self,
        now: Float[Tensor, "views width h w"],
        then: Float[Tensor, "views width h w"],
        landing: Float[Tensor, "views cells 2"],
    ) -> Float[Tensor, "views cells cells"]:
        """Logits over an earlier image's cells; `landing` is where each surface would be without motion, cells."""
        height, width = then.shape[-2:]
        # Under autocast products would be rounded to 8 bits, and places with them.
        with torch.autocast(now.device.type, enabled=False):
            told = now.flatten(2).transpose(1, 2).float() * (self.sharpness.exp() / self.width**0.5)
            alike = (told @ then.flatten(2).float()).unflatten(-1, (height, width))
        rows, columns = (torch.arange(n, device=then.device) + 0.5 for n in (height, width))
        # Beyond the image by its own size nothing is nearer than anything else.
        limits = constant((2 * width, 2 * height), landing)
        x, y = landing.clamp(-limits, limits).unbind(dim=-1)
        along = ((x[..., None] - columns) / self.reach[0].exp()).square() / -2
        down = ((y[..., None] - rows) / self.reach[1].exp()).square() / -2
        return (alike + along[..., None, :] + down[..., :, None]).flatten(2)


def _unknown(then: Look, now_from_then: Float[Tensor, "n 4 4"]) -> Float[Tensor, "views 1"]:
    """1 where the earlier keyframe is the current one again, or its image is missing."""
    cameras = then.rig.K.shape[1]
    same = same_keyframe(now_from_then)
    return (same.repeat_interleave(cameras) | ~then.rig.valid.flatten())[:, None].to(now_from_then)
