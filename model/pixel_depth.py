"""How far each image cell's surface is likely to be: a distribution over depths, predicted from one image alone."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.cameras import camera_directions
from geometry.transforms import invert, rotate_vectors
from model.backbone import LayerNorm2d
from model.config import DepthLiftConfig
from model.residual import ResidualBlock2d
from model.visibility import CameraRig

MIN_DEPTH = 0.5
"""Metres; nearer points count as being there."""
RAY_CHANNELS = 5
_STEEPEST = 1e-3
"""Metres a ray falls per metre of depth, at least, for its meeting with the ground to count."""


@dataclass(frozen=True)
class DepthBins:
    """`count` depths, evenly spaced in log depth between `first` and `last` (natural logarithms of metres)."""

    first: float
    last: float
    count: int

    def centres(self, like: Tensor) -> Float[Tensor, " bins"]:
        """Log depths of all bins."""
        return torch.linspace(self.first, self.last, self.count, dtype=like.dtype, device=like.device)

    def position(self, log_depth: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Where a log depth lies among the bins: k at the centre of bin k, beyond the first and the last too."""
        return (log_depth - self.first) / (self.last - self.first) * (self.count - 1)


class PixelDepth(NamedTuple):
    """What the cells of n x cameras images (one axis, frame-major) say about the depth of their surface."""

    logits: Float[Tensor, "views bins h w"]
    bins: DepthBins

    def mean(self, likelihood: Float[Tensor, "views bins h w"]) -> Float[Tensor, "views 1 h w"]:
        """Mean log depth by the likelihood of each bin."""
        return (likelihood * self.bins.centres(likelihood)[:, None, None]).sum(dim=1, keepdim=True)


class PixelDepthHead(nn.Module):
    """Logits over depths and `context` channels per cell of the finest image level.

    Besides the features a cell is told its ray: the direction in the ego frame, and at which depth it would meet a flat
    ground. That is where most surfaces are, and what an image shows is how it differs from that; without it a network
    has to learn from the borders of its images how they hang on the car.
    """

    def __init__(self, config: DepthLiftConfig, feature_dim: int) -> None:
        super().__init__()
        self.bins = DepthBins(math.log(config.nearest_m), math.log(config.farthest_m), config.bins)
        self.ground_z = config.ground_z
        self.norm = LayerNorm2d(feature_dim)
        outputs = nn.Conv2d(config.width, config.bins + config.context, kernel_size=1)
        nn.init.normal_(outputs.weight, std=0.01)
        assert outputs.bias is not None
        nn.init.zeros_(outputs.bias)
        self.layers = nn.Sequential(
            nn.Conv2d(feature_dim + RAY_CHANNELS, config.width, kernel_size=3, padding=1),
            ResidualBlock2d(config.width, config.width, 1),
            outputs,
        )

    def forward(
        self, level: Float[Tensor, "views ch h w"], rig: CameraRig
    ) -> tuple[PixelDepth, Float[Tensor, "views context h w"]]:
        """From the finest level of the rig's images (frame-major): depths per cell, and the context channels."""
        rays = ray_map(rig, (level.shape[-2], level.shape[-1]), self.bins, self.ground_z).to(level)
        predicted = self.layers(torch.cat([self.norm(level), rays], dim=1)).float()
        return PixelDepth(predicted[:, : self.bins.count], self.bins), predicted[:, self.bins.count :]


def ray_map(rig: CameraRig, size: tuple[int, int], bins: DepthBins, ground_z: float) -> Float[Tensor, "views 5 h w"]:
    """Of each of `size` (rows, columns) cells that an image is cut into: what is known of its ray without looking.

    Unit direction (x, y, z) in the ego frame; the log depth at which the ray meets the plane z = `ground_z`, 0 at the
    first bin and 1 at the last, 1 too for rays that do not fall; 1 for rays that fall, else 0.
    """
    K, ref_from_cam = rig.K.flatten(0, 1), invert(rig.cam_from_ref.flatten(0, 1))
    cells = cell_centres(rig, size, K).expand(len(K), -1, -1)
    # Directions of camera depth 1, so that lengths along them are depths.
    along = rotate_vectors(ref_from_cam, camera_directions(K, cells))
    drop, height = -along[..., 2], ref_from_cam[:, 2, 3][:, None] - ground_z
    falls = (drop > _STEEPEST) & (height > 0)
    ground = torch.where(falls, height / drop.clamp_min(_STEEPEST), torch.full_like(drop, math.exp(bins.last)))
    place = bins.position(ground.clamp_min(MIN_DEPTH).log()) / (bins.count - 1)
    unit = along / torch.linalg.vector_norm(along, dim=-1, keepdim=True)
    channels = torch.cat([unit, place.clamp(0, 1)[..., None], falls[..., None].to(unit)], dim=-1)
    return channels.transpose(1, 2).unflatten(2, size)


def cell_centres(rig: CameraRig, size: tuple[int, int], like: Tensor) -> Float[Tensor, "1 cells 2"]:
    """Pixels (u, v) in the middle of each of `size` (rows, columns) cells that images are cut into, row by row."""
    rows, columns = size
    v = (torch.arange(rows, device=like.device) + 0.5) * (rig.height / rows)
    u = (torch.arange(columns, device=like.device) + 0.5) * (rig.width / columns)
    vv, uu = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([uu, vv], dim=-1).reshape(1, -1, 2).to(like)
