"""The two decoders of eq. 7: refined features to signed distance and to horizontal flow, one value per output voxel.
And one of what could move, which training alone asks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.grid import VoxelGrid
from model.config import HeadConfig

TOLD_M = 3.0
"""Metres per interval at which what cells say of motion is about one."""


class SDFHead(nn.Module):
    """Two-layer MLP with softplus, added to the field that training starts from."""

    start: Tensor

    def __init__(self, config: HeadConfig, channels: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.scale = config.sdf_scale
        # beta 10: as smooth as features need; the customary 100 is twenty times slower on a CPU (denormal numbers).
        last = nn.Linear(config.hidden, 1)
        nn.init.normal_(last.weight, std=0.1 / config.hidden**0.5 / config.sdf_scale)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(channels, config.hidden), nn.Softplus(beta=10), last)
        if config.sdf_init == "ground":
            height = torch.as_tensor(grid.centres()[0, 0, :, 2], dtype=torch.float32, device="cpu")
            start = height - config.ground_height
        else:
            start = torch.full((grid.shape[2],), config.sdf_bias, device="cpu")
        self.register_buffer("start", start, persistent=False)

    def forward(self, features: Float[Tensor, "b x y z ch"]) -> Float[Tensor, "b x y z"]:
        """Signed distance in metres, positive in free space."""
        return self.mlp(features)[..., 0] * self.scale + self.start


class FlowHead(nn.Module):
    """Two-layer MLP whose last layer starts near zero; with `flow_waves` plus another one of the voxel's place alone,
    times how much of it applies to what is there.

    Traffic keeps to its side of the road: where a thing is says which way it is likely to move before an image does.
    The change from lane to lane is sharp, so the place is told as waves across the road, the shortest of 2^(1 - waves)
    of the volume's width; along the road it is told as it is, for there scenes differ.

    Not all that is in a lane is traffic. Features say so by a factor of 0..2 that starts at 1; added to the lane's
    motion alone they would have to know it to take it back from the road, the kerb, a wall.

    What image cells say of motion (`pixel_motion.py`) is told beside the features, and added times a factor of 0..1
    that starts at a half.
    """

    place: Tensor | None

    def __init__(self, config: HeadConfig, channels: int, grid: VoxelGrid, carried: int = 0) -> None:
        """`carried`: channels that image cells tell, the first two of which are motion in metres per interval."""
        super().__init__()
        self.scale = config.flow_scale
        channels += carried
        self.mlp = self._mlp(config, channels)
        self.believed = _even_odds(config, channels) if carried else None
        place = lateral_waves(grid, config.flow_waves) if config.flow_waves else None
        self.register_buffer("place", place, persistent=False)
        self.prior: nn.Sequential | None = None
        self.applies: nn.Sequential | None = None
        if place is not None:
            self.prior = self._mlp(config, place.shape[-1])
            self.applies = _even_odds(config, channels)

    @staticmethod
    def _mlp(config: HeadConfig, channels: int) -> nn.Sequential:
        last = nn.Linear(config.hidden, 2)
        nn.init.normal_(last.weight, std=config.flow_init_std / config.flow_scale)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(channels, config.hidden), nn.ReLU(), last)

    def forward(
        self, features: Float[Tensor, "b x y z ch"], carried: Float[Tensor, "b x y z carried"] | None = None
    ) -> Float[Tensor, "b x y z 2"]:
        """Horizontal object motion (vx, vy), metres per keyframe interval, current ego frame."""
        if carried is not None:
            features = torch.cat([features, (carried / TOLD_M).to(features.dtype)], dim=-1)
        flow = self.mlp(features)
        if self.prior is not None and self.applies is not None and self.place is not None:
            flow = flow + 2 * self.applies(features).sigmoid() * self.prior(self.place.to(features.dtype))
        flow = flow * self.scale
        if self.believed is not None and carried is not None:
            flow = flow + self.believed(features).sigmoid() * carried[..., :2].to(flow.dtype)
        return flow


class MovableHead(nn.Module):
    """Two-layer MLP to the logit of a voxel's matter being of a kind that could move; starts at even odds."""

    def __init__(self, config: HeadConfig, channels: int) -> None:
        super().__init__()
        self.mlp = _even_odds(config, channels)

    def forward(self, features: Float[Tensor, "b x y z ch"]) -> Float[Tensor, "b x y z"]:
        """Logits."""
        return self.mlp(features)[..., 0]


def _even_odds(config: HeadConfig, channels: int) -> nn.Sequential:
    """Two-layer MLP to one logit that starts at zero."""
    last = nn.Linear(config.hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(channels, config.hidden), nn.ReLU(), last)


def lateral_waves(grid: VoxelGrid, waves: int) -> Float[Tensor, "x y z place"]:
    """Place of each voxel: (x, y, z) in -2..2 across the volume, and sine and cosine of y over its width, and over a
    half, a quarter, ... of it."""
    lower, upper = (torch.tensor(end, device="cpu") for end in (grid.lower, grid.upper))
    centres = torch.as_tensor(grid.centres(), dtype=torch.float32, device="cpu")
    place = (centres - lower) / (upper - lower) * 2 - 1
    across = torch.pi * place[..., 1:2] * 2.0 ** torch.arange(waves, device="cpu")
    return torch.cat([2 * place, across.sin(), across.cos()], dim=-1)
