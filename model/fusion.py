"""Temporal fusion: ego-motion alignment and backward-forward attention between BEV slices (eqs. 4-6, Algorithm 1)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from geometry.grid import VoxelGrid
from geometry.transforms import invert, transform_points
from geometry.warp import sample_volume
from model.attention import (
    deformable_attention,
    init_projection,
    init_sampling,
    sampling_from,
    softmax_over_samples,
)
from model.config import FusionConfig
from model.fused import FlatMaps, Kernel, fused_attention, use_fused
from model.planes import cell_centres


class BEVAttention(nn.Module):
    """One step of eq. 5: the updated frame's BEV reads both frames, `B + β · DAttn(B, {B, other})`.

    Offsets and weights are conditioned on both frames, and the two frames are the attention's two levels.
    """

    references: Tensor

    def __init__(self, dim: int, heads: int, points: int, shape: tuple[int, int], kernel: Kernel = "auto") -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.heads, self.points, self.shape = heads, points, shape
        self.value = nn.Linear(dim, dim)
        self.sampling = nn.Linear(2 * dim, heads * 2 * points * 3)
        self.output = nn.Linear(dim, dim)
        self.beta = nn.Parameter(torch.ones(()))
        self.register_buffer("references", cell_centres(shape).flip(-1).T * 2 - 1, persistent=False)
        init_sampling(self.sampling, heads, 2, points)
        init_projection(self.value)
        # β starts at 1, so it is the output layer that makes a step start as the identity.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, bev: Float[Tensor, "slices cells dim"], other: Float[Tensor, "slices cells dim"]
    ) -> Float[Tensor, "slices cells dim"]:
        """The updated BEV; every slice attends in the horizontal plane only."""
        both = torch.cat([bev, other], dim=-1)
        offsets, logits = sampling_from(self.sampling, both, self.heads, 2)
        references = self.references.expand(1, 2, self.points, -1, -1)
        if use_fused(self.kernel, bev):
            maps = FlatMaps(self.value(torch.cat([bev, other], dim=1)), (self.shape, self.shape))
            read = fused_attention(maps, references, offsets, logits, kernel=self.kernel)
            return bev + self.beta * self.output(read)
        values = [rearrange(self.value(x), "s (a b) d -> s d a b", a=self.shape[0]) for x in (bev, other)]
        read = deformable_attention(values, references, offsets, softmax_over_samples(logits))
        return bev + self.beta * self.output(read)


class BackwardForward(nn.Module):
    """The Backward-Forward Attention Module: own weights for every step and direction."""

    def __init__(
        self, config: FusionConfig, dim: int, shape: tuple[int, int], backward: bool, kernel: Kernel = "auto"
    ) -> None:
        super().__init__()

        def steps(count: int) -> nn.ModuleList:
            return nn.ModuleList(BEVAttention(dim, config.heads, config.points, shape, kernel) for _ in range(count))

        self.backward_steps = steps(config.history if backward else 0)
        self.forward_steps = steps(config.history)

    def forward(self, bevs: list[Float[Tensor, "slices cells dim"]]) -> Float[Tensor, "slices cells dim"]:
        """BEVs newest first (index i is i keyframes ago) to the fused BEV of the current frame."""
        bevs = list(bevs)
        past = len(bevs) - 1
        if len(self.backward_steps):
            for i in range(past):  # Algorithm 1, lines 7-9
                bevs[i + 1] = self.backward_steps[i](bevs[i + 1], bevs[i])
        for i in reversed(range(past)):  # Algorithm 1, lines 10-12
            bevs[i] = self.forward_steps[i](bevs[i], bevs[i + 1])
        return bevs[0]


class BEVVolumeFusion(nn.Module):
    """Eq. 6: `V' = V + sigmoid(conv1x1(V)) * B_global`, the global BEV repeated along z."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim)

    def forward(
        self, volume: Float[Tensor, "b x y z dim"], bev: Float[Tensor, "b x y dim"]
    ) -> Float[Tensor, "b x y z dim"]:
        """Gate the global BEV into the volume; a 1x1x1 convolution is a linear layer in this layout."""
        return volume + torch.sigmoid(self.gate(volume)) * bev[:, :, :, None]


class ConcatFusion(nn.Module):
    """Table 4's first row: aligned volumes side by side, then 3D convolutions back to one volume."""

    def __init__(self, dim: int, history: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv3d((history + 1) * dim, dim, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv3d(dim, dim, kernel_size=3, padding=1),
        )

    def forward(self, volumes: list[Float[Tensor, "b x y z dim"]]) -> Float[Tensor, "b x y z dim"]:
        """Volumes newest first; residual on the newest."""
        stacked = torch.cat(volumes, dim=-1).permute(0, 4, 1, 2, 3)
        return volumes[0] + self.mix(stacked).permute(0, 2, 3, 4, 1)


class TemporalFusion(nn.Module):
    """Merges the volumes of the queue into the current frame's; `config.kind` selects the row of Table 4."""

    centres: Tensor

    def __init__(self, config: FusionConfig, dim: int, grid: VoxelGrid, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.kind, self.history, self.grid = config.kind, config.history, grid
        centres = torch.as_tensor(grid.centres(), dtype=torch.float32, device="cpu")
        self.register_buffer("centres", centres.reshape(-1, 3), persistent=False)
        if self.kind == "concat":
            self.concat = ConcatFusion(dim, config.history)
        elif self.kind != "none":
            both_ways = self.kind != "bev_pool_forward"
            self.attention = BackwardForward(config, dim, grid.shape[:2], backward=both_ways, kernel=kernel)
            self.merge = BEVVolumeFusion(dim)

    def forward(
        self, volumes: list[Float[Tensor, "b x y z dim"]], current_from_ref: Float[Tensor, "b q 4 4"]
    ) -> Float[Tensor, "b x y z dim"]:
        """Fuse volumes, oldest first and each in its own ego frame, into the current ego frame.

        Raises:
            ValueError: the queue is longer than the configured history.
        """
        if len(volumes) > self.history + 1:
            raise ValueError(
                f"a queue of {len(volumes)} keyframes needs fusion.history >= {len(volumes) - 1}, got {self.history}"
            )
        current = volumes[-1]
        if self.kind == "none":
            return current
        past = [self.align(volume, current_from_ref[:, q]) for q, volume in enumerate(volumes[:-1])]
        newest_first = [current, *reversed(past)]
        if self.kind == "concat":
            missing = self.history + 1 - len(volumes)
            return self.concat(newest_first + [newest_first[-1]] * missing)
        slices = [self.to_slices(volume) for volume in newest_first]
        fused, fused_global = self.from_slices(self.attention(slices), current)
        return self.merge(fused, fused_global)

    def align(
        self, volume: Float[Tensor, "b x y z dim"], current_from_ref: Float[Tensor, "b 4 4"]
    ) -> Float[Tensor, "b x y z dim"]:
        """Eq. 4: the volume read, trilinearly, at the current frame's cell centres; zero where it does not reach."""
        points = transform_points(invert(current_from_ref), self.centres.to(volume.dtype))
        sampled = sample_volume(volume.permute(0, 4, 1, 2, 3), points, self.grid, padding="zeros")
        return sampled.movedim(1, -1).unflatten(1, self.grid.shape)

    def to_slices(self, volume: Float[Tensor, "b x y z dim"]) -> Float[Tensor, "slices cells dim"]:
        """BEV slices along z with the mean-pooled global slice last; the global one alone for the bev_pool kinds."""
        pooled = volume.mean(dim=3, keepdim=True)
        stacked = torch.cat([volume, pooled], dim=3) if self.kind == "full" else pooled
        return rearrange(stacked, "b x y s d -> (b s) (x y) d")

    def from_slices(
        self, slices: Float[Tensor, "slices cells dim"], current: Float[Tensor, "b x y z dim"]
    ) -> tuple[Float[Tensor, "b x y z dim"], Float[Tensor, "b x y dim"]]:
        """The fused volume and global BEV; the bev_pool kinds keep the current volume."""
        stacked = rearrange(slices, "(b s) (x y) d -> b x y s d", b=current.shape[0], x=current.shape[1])
        if self.kind == "full":
            return stacked[:, :, :, :-1], stacked[:, :, :, -1]
        return current, stacked[:, :, :, 0]
