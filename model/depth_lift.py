"""Depth-aware lifting: each pixel says how far its surface is likely to be, and voxels along its ray hear it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from geometry.constants import constant
from geometry.grid import VoxelGrid
from geometry.transforms import transform_points
from model.config import DepthLiftConfig
from model.convolution import Conv3d
from model.fields import sample_field
from model.pixel_depth import MIN_DEPTH, PixelDepth, PixelDepthHead
from model.refine import voxel_norm
from model.visibility import CameraRig, see_pillars

SAME_THING_M = 7.0
"""Metres behind a surface that are likely to be the same thing still: about a lorry's length."""


class Mix(nn.Module):
    """Residual block of two 3x3x3 convolutions that starts as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = Conv3d(dim, dim, kernel_size=3, padding=1, bias=False)
        self.norm = voxel_norm(dim)
        self.conv2 = Conv3d(dim, dim, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, volume: Float[Tensor, "n x y z dim"]) -> Float[Tensor, "n x y z dim"]:
        """The same shape."""
        x = volume.permute(0, 4, 1, 2, 3).contiguous(memory_format=torch.channels_last_3d)
        return volume + self.conv2(F.relu(self.norm(self.conv1(x)))).permute(0, 2, 3, 4, 1)


class DepthLift(nn.Module):
    """What a volume may be told about depth beyond the features of deformable attention (after Lift, Splat, Shoot).

    Each cell of the finest image level has a distribution over `bins` depths and `context` channels (`PixelDepthHead`).
    A voxel reads, in every camera that sees its centre:

    - the likelihood of a surface at its own depth, and that of a nearer one (the voxel is hidden);
    - how much farther the mean surface is, in log depth, as it is and saturated: a projective signed distance; and the
      same in metres, saturated at the lengths of `metric_m`;
    - the context times the first likelihood.

    The mean over cameras goes through a linear layer; a voxel that no camera sees reads zeros.

    Attention alone has to learn the comparison between the depth that a pixel suggests and the place of a query; from
    scratch it takes longer than small runs last. Not in the paper; off (`bins: 0`) at its sizes.
    """

    centres: Tensor

    def __init__(self, config: DepthLiftConfig, feature_dim: int, dim: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.head = PixelDepthHead(config, feature_dim)
        self.metric_m = config.metric_m
        self.project = nn.Linear(4 + len(self.metric_m) + config.context, dim)
        self.mix = Mix(dim) if config.mix else None
        centres = torch.as_tensor(grid.centres(), dtype=torch.float32, device="cpu")
        self.register_buffer("centres", centres.reshape(-1, 3), persistent=False)

    def add(
        self, volume: Float[Tensor, "n x y z dim"], lifted: Float[Tensor, "n x y z dim"]
    ) -> Float[Tensor, "n x y z dim"]:
        """The volume's features with what was lifted."""
        total = volume + lifted
        return total if self.mix is None else self.mix(total)

    def forward(
        self, level: Float[Tensor, "views ch _h _w"], rig: CameraRig
    ) -> tuple[Float[Tensor, "n x y z dim"], PixelDepth]:
        """Features of n frames from the finest level of their cameras (frame-major views), and the depths per cell."""
        pixel_depth, context = self.head(level, rig)
        return self.tell(pixel_depth, context, rig)[0], pixel_depth

    def tell(
        self,
        pixel_depth: PixelDepth,
        context: Float[Tensor, "views context _h _w"],
        rig: CameraRig,
        carried: Float[Tensor, "views carried _rows _columns"] | None = None,
    ) -> tuple[Float[Tensor, "n x y z dim"], Float[Tensor, "n x y z carried"] | None]:
        """Features of n frames from what the head predicts of their cameras; and `carried`, further channels of image
        cells, as voxels read them (`_carry`): the mean over the cameras that see them."""
        sight = see_pillars(rig, self.centres[:, None])
        frames, voxels = sight.cameras.shape
        views, rows = sight.query.shape
        uv = sight.uv[:, 0].transpose(1, 2)
        points = self.centres[sight.query.flatten()].unflatten(0, (views, rows))
        depth = transform_points(rig.cam_from_ref.flatten(0, 1), points)[..., 2]
        place = uv / constant((rig.width, rig.height), uv) * 2 - 1
        log_depth = depth.clamp_min(MIN_DEPTH).log()
        read, surface = self.read(pixel_depth, context, place, log_depth)
        told = read.shape[1]
        if carried is not None:
            read = torch.cat([read, _carry(carried, place, log_depth.exp() - surface.detach().exp())], dim=1)
        read = read * sight.seen
        frame = torch.arange(views, device=read.device) // (views // frames)
        flat = (frame[:, None] * voxels + sight.query).flatten()
        total = read.new_zeros(frames * voxels, read.shape[1])
        total = total.index_add(0, flat, read.transpose(1, 2).flatten(0, 1))
        total = total / sight.cameras.reshape(-1, 1)
        features = self.project(total[:, :told]).unflatten(0, (frames, *self.shape))
        return features, None if carried is None else total[:, told:].unflatten(0, (frames, *self.shape))

    def read(
        self,
        pixel_depth: PixelDepth,
        context: Float[Tensor, "views context h w"],
        place: Float[Tensor, "views voxels 2"],
        log_depth: Float[Tensor, "views voxels"],
    ) -> tuple[Float[Tensor, "views features voxels"], Float[Tensor, "views voxels"]]:
        """The numbers that each voxel reads at its `place` (u, v in -1..1 across the image): four, one per length of
        `metric_m`, and the context; and the mean log depth of the surface there."""
        bins = pixel_depth.bins
        likelihood = pixel_depth.logits.softmax(dim=1)
        at_pixel = _at(torch.cat([pixel_depth.mean(likelihood), context], dim=1), place)
        # A camera's frustum as a box: bins of depth, rows and columns.
        _, count, rows, columns = likelihood.shape
        frustum = VoxelGrid((0.0, -1.0, -1.0), (float(count), 1.0, 1.0), (count, rows, columns))
        points = torch.cat([bins.position(log_depth)[..., None] + 0.5, place.flip(-1)], dim=-1)
        both = sample_field(torch.stack([likelihood, likelihood.cumsum(dim=1)], dim=1), points, frustum)
        # An even distribution gives every bin 1 / bins: scaled so that what a voxel reads starts near a tenth.
        here, hidden = both[:, :1] * (bins.count / 8), both[:, 1:]
        surface, depth = at_pixel[:, :1], log_depth[:, None]
        farther = surface - depth
        told = [2 * farther.clamp(-1, 1), (6 * farther).tanh()]
        if self.metric_m:
            metres = surface.exp() - depth.exp()
            told += [(metres / length).tanh() for length in self.metric_m]
        return torch.cat([here, hidden, *told, at_pixel[:, 1:] * here], dim=1), surface[:, 0]


def _carry(
    carried: Float[Tensor, "views carried _rows _columns"],
    place: Float[Tensor, "views voxels 2"],
    behind: Float[Tensor, "views voxels"],
) -> Float[Tensor, "views carried voxels"]:
    """Channels of image cells at the voxels' `place`, `behind` the cell's surface by so many metres: as they are in
    front of it and down to SAME_THING_M behind it, from there on less, down to nothing after as many metres more."""
    return _at(carried, place) * (2 - behind / SAME_THING_M).clamp(0, 1)[:, None]


def _at(
    image: Float[Tensor, "views ch _h _w"], place: Float[Tensor, "views voxels 2"]
) -> Float[Tensor, "views ch voxels"]:
    """Bilinear; at the border its own value."""
    return F.grid_sample(image, place[:, :, None], mode="bilinear", padding_mode="border", align_corners=False)[..., 0]
