"""The two decoders of eq. 7: refined features to signed distance and to horizontal flow, one value per output voxel."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.grid import VoxelGrid
from model.config import HeadConfig


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
    """Two-layer MLP whose last layer starts near zero."""

    def __init__(self, config: HeadConfig, channels: int) -> None:
        super().__init__()
        self.scale = config.flow_scale
        last = nn.Linear(config.hidden, 2)
        nn.init.normal_(last.weight, std=config.flow_init_std / config.flow_scale)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(channels, config.hidden), nn.ReLU(), last)

    def forward(self, features: Float[Tensor, "b x y z ch"]) -> Float[Tensor, "b x y z 2"]:
        """Horizontal object motion (vx, vy), metres per keyframe interval, current ego frame."""
        return self.mlp(features) * self.scale
