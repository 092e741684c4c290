"""Depth-aware lifting: each pixel says how far its surface is likely to be, and voxels along its ray hear it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from geometry.constants import constant
from geometry.grid import VoxelGrid
from geometry.transforms import transform_points
from model.backbone import LayerNorm2d
from model.config import DepthLiftConfig
from model.visibility import CameraRig, see_pillars

_MIN_DEPTH = 0.5
"""Metres; nearer points count as being there."""


class DepthLift(nn.Module):
    """What a volume may be told about depth beyond the features of deformable attention (after Lift, Splat, Shoot).

    A head on the finest image level predicts per cell a distribution over `bins` depths, evenly spaced in log depth,
    and `context` channels. A voxel reads, in every camera that sees its centre:

    - the likelihood of a surface at its own depth, and that of a nearer one (the voxel is hidden);
    - how much farther the mean surface is, in log depth, as it is and saturated: a projective signed distance;
    - the context times the first likelihood.

    The mean over cameras goes through a linear layer; a voxel that no camera sees reads zeros.

    Attention alone has to learn the comparison between the depth that a pixel suggests and the place of a query; from
    scratch it takes longer than small runs last. Not in the paper; off (`bins: 0`) at its sizes.
    """

    centres: Tensor
    log_depths: Tensor

    def __init__(self, config: DepthLiftConfig, feature_dim: int, dim: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.bins, self.shape = config.bins, grid.shape
        self.first, self.last = math.log(config.nearest_m), math.log(config.farthest_m)
        self.norm = LayerNorm2d(feature_dim)
        outputs = nn.Conv2d(feature_dim, config.bins + config.context, kernel_size=1)
        nn.init.normal_(outputs.weight, std=0.01)
        assert outputs.bias is not None
        nn.init.zeros_(outputs.bias)
        self.head = nn.Sequential(nn.Conv2d(feature_dim, feature_dim, kernel_size=3, padding=1), nn.ReLU(), outputs)
        self.project = nn.Linear(4 + config.context, dim)
        centres = torch.as_tensor(grid.centres(), dtype=torch.float32, device="cpu")
        self.register_buffer("centres", centres.reshape(-1, 3), persistent=False)
        log_depths = torch.linspace(self.first, self.last, config.bins, device="cpu")
        self.register_buffer("log_depths", log_depths, persistent=False)

    def forward(self, level: Float[Tensor, "views ch _h _w"], rig: CameraRig) -> Float[Tensor, "n x y z dim"]:
        """Features of n frames from the finest level of their cameras (frame-major views)."""
        sight = see_pillars(rig, self.centres[:, None])
        frames, voxels = sight.cameras.shape
        views, rows = sight.query.shape
        uv = sight.uv[:, 0].transpose(1, 2)
        points = self.centres[sight.query.flatten()].unflatten(0, (views, rows))
        depth = transform_points(rig.cam_from_ref.flatten(0, 1), points)[..., 2]
        place = uv / constant((rig.width, rig.height), uv) * 2 - 1
        log_depth = depth.clamp_min(_MIN_DEPTH).log()
        read = self.read(self.head(self.norm(level)).float(), place, log_depth) * sight.seen
        frame = torch.arange(views, device=level.device) // (views // frames)
        flat = (frame[:, None] * voxels + sight.query).flatten()
        total = read.new_zeros(frames * voxels, read.shape[1])
        total = total.index_add(0, flat, read.transpose(1, 2).flatten(0, 1))
        return self.project(total / sight.cameras.reshape(-1, 1)).unflatten(0, (frames, *self.shape))

    def read(
        self,
        predicted: Float[Tensor, "views outputs h w"],
        place: Float[Tensor, "views voxels 2"],
        log_depth: Float[Tensor, "views voxels"],
    ) -> Float[Tensor, "views features voxels"]:
        """The 4 + context numbers that each voxel reads at its `place` (u, v in -1..1 across the image)."""
        likelihood = predicted[:, : self.bins].softmax(dim=1)
        mean = (likelihood * self.log_depths[:, None, None]).sum(dim=1, keepdim=True)
        at_pixel = F.grid_sample(
            torch.cat([mean, predicted[:, self.bins :]], dim=1), place[:, :, None],
            mode="bilinear", padding_mode="border", align_corners=False,
        )[..., 0]  # fmt: skip
        along = (log_depth - self.first) / (self.last - self.first) * (self.bins - 1)
        position = torch.cat([place, ((along + 0.5) / self.bins * 2 - 1)[..., None]], dim=-1)
        both = F.grid_sample(
            torch.stack([likelihood, likelihood.cumsum(dim=1)], dim=1), position[:, :, None, None],
            mode="bilinear", padding_mode="border", align_corners=False,
        )[..., 0, 0]  # fmt: skip
        # An even distribution gives every bin 1 / bins: scaled so that what a voxel reads starts near a tenth.
        here, hidden = both[:, :1] * (self.bins / 8), both[:, 1:]
        farther = at_pixel[:, :1] - log_depth[:, None]
        return torch.cat([here, hidden, 2 * farther.clamp(-1, 1), (6 * farther).tanh(), at_pixel[:, 1:] * here], dim=1)
