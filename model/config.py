"""Every number of the network and the renderer, so that sizes differ by configuration and never by code."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from geometry.grid import KITTI_GRID, KITTI_GROUND_Z, NUSCENES_GRID, VoxelGrid

FusionKind = Literal["none", "concat", "bev_pool_forward", "bev_pool_bfam", "full"]
AlphaForm = Literal["consecutive", "gradient"]


GROUP = 8
"""Channels that GroupNorm takes together in residual blocks of images (`residual.py`)."""


def norm_groups(channels: int) -> int:
    """How many groups of about GROUP channels GroupNorm cuts a width into; it has to divide the width."""
    return max(1, channels // GROUP)


def _check_groups(name: str, channels: int) -> None:
    groups = norm_groups(channels)
    if channels % groups:
        raise ValueError(f"{name} {channels} cannot be cut into {groups} groups; take a multiple of {GROUP}")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GridConfig(_Section):
    """Extent and output voxel of the fields, metres, ego frame at the current keyframe."""

    lower: tuple[float, float, float] = NUSCENES_GRID.lower
    upper: tuple[float, float, float] = NUSCENES_GRID.upper
    voxel: PositiveFloat = 0.4

    def build(self) -> VoxelGrid:
        """The output grid; a ValueError says so where the extent is not a whole number of voxels."""
        return VoxelGrid.from_voxel_size(self.lower, self.upper, self.voxel)


class BackboneConfig(_Section):
    """ConvNeXt; the defaults are ConvNeXt-Base."""

    kind: Literal["convnext", "residual"] = "convnext"
    """`residual` is for small networks without pre-trained weights; `drop_path` and `layer_scale` then mean nothing."""
    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 3, 27, 3)
    dims: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (128, 256, 512, 1024)
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    layer_scale: PositiveFloat = 1e-6
    """Initial LayerScale. 1e-6 is the published value; a small network trained from scratch in minutes wants about
    0.1 to 1, or its blocks stay the identity."""

    @model_validator(mode="after")
    def _groups(self) -> "BackboneConfig":
        if self.kind == "residual":
            for dim in self.dims:
                _check_groups("backbone.dims with backbone.kind residual:", dim)
        return self


class TPVConfig(_Section):
    """Tri-perspective-view encoder (eqs. 2-3)."""

    factor: PositiveInt = 2
    """TPV cell edge in output voxels; also the factor of the deconvolution after the refine module."""
    dim: PositiveInt = 192
    ffn_dim: PositiveInt = 384
    heads: PositiveInt = 6
    layers: PositiveInt = 4
    self_points: PositiveInt = 12
    """Points per query, head and plane in cross-view hybrid attention."""
    own_plane: bool = True
    """Whether hybrid attention reads the query's own plane too. Eq. 3 as printed reads only the two others."""
    ground_anchors: PositiveInt = 8
    """Anchors along z in each pillar over the ground plane; one sampling point per anchor, level and head."""
    side_anchors: PositiveInt = 48
    """Anchors along the normal of each of the two vertical planes."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "TPVConfig":
        if self.dim % self.heads:
            raise ValueError(f"tpv.dim {self.dim} is not a multiple of tpv.heads {self.heads}")
        return self


class DepthLiftConfig(_Section):
    """Depth-aware lifting beside the TPV encoder (`depth_lift.py`); not in the paper."""

    bins: int = Field(default=0, ge=0)
    """Depths that a pixel chooses among; 0: no such lifting."""
    context: PositiveInt = 8
    width: PositiveInt = 48
    """Channels inside the head that predicts them."""
    ground_z: float = 0.0
    """Height of a flat ground in the ego frame, metres: the head is told where each ray would meet it."""
    nearest_m: PositiveFloat = 1.0
    farthest_m: PositiveFloat = 60.0
    metric_m: tuple[PositiveFloat, ...] = ()
    """How much farther the mean surface is, in metres too: once per length here, at which it saturates. In log depth
    alone a metre is less the farther it is away."""
    mix: bool = False
    """Whether neighbouring voxels compare what they were told (one residual block at the output voxels) before they
    are decoded."""

    @model_validator(mode="after")
    def _consistent(self) -> "DepthLiftConfig":
        if self.bins == 1 or self.nearest_m >= self.farthest_m:
            raise ValueError(
                f"depth_lift needs 0 or at least 2 bins from nearest_m to a larger farthest_m, got {self.bins} from "
                f"{self.nearest_m} to {self.farthest_m}"
            )
        if self.bins:
            _check_groups("depth_lift.width", self.width)
        return self


class PixelMotionConfig(_Section):
    """Motion by image cells that are found again one keyframe earlier (`pixel_motion.py`); not in the paper."""

    cell: int = Field(default=0, ge=0, multiple_of=4)
    """Edge of a cell, pixels: every cell is compared with all of the earlier image's, so that there should be a few
    thousand at most. 0: no such thing."""
    width: int = Field(default=48, gt=0, multiple_of=8)
    """Channels of the descriptors, and inside."""
    context: PositiveInt = 6
    """Channels that a cell tells voxels beside its motion."""
    neighbours: int = Field(default=0, ge=0)
    """So many other cameras' earlier images are searched too, those of the cameras that look nearest to the same way:
    what is beside the car now was seen by another camera half a second ago. Each costs as much as the camera's own."""


class FusionConfig(_Section):
    """Temporal fusion (eqs. 4-6, Algorithm 1) and the other rows of Table 4."""

    kind: FusionKind = "full"
    history: int = Field(default=2, ge=0)
    """Previous keyframes in the queue. Fewer at run time are accepted (the steps of the missing ones are left out)."""
    heads: PositiveInt = 6
    points: PositiveInt = 8
    """Points per head and frame."""


class RefineConfig(_Section):
    """Residual 3D convolutions, 3D feature pyramid and deconvolution."""

    channels: PositiveInt = 96
    multipliers: tuple[PositiveInt, ...] = (1, 2, 4)
    blocks: tuple[PositiveInt, ...] = (1, 2, 4)
    strides: tuple[PositiveInt, ...] = (1, 2, 2)

    @model_validator(mode="after")
    def _consistent(self) -> "RefineConfig":
        if not len(self.multipliers) == len(self.blocks) == len(self.strides) >= 1:
            raise ValueError(
                "refine.multipliers, refine.blocks and refine.strides must be as long as each other, got "
                f"{self.multipliers}, {self.blocks}, {self.strides}"
            )
        if self.strides[0] != 1:
            raise ValueError(
                f"refine.strides {self.strides}: the first must be 1, for all levels are brought to the first one's "
                "size, which is that of the TPV cells; set tpv.factor for larger cells"
            )
        return self


class HeadConfig(_Section):
    """The two decoders (eq. 7) and the state they start from."""

    hidden: PositiveInt = 96
    sdf_init: Literal["free", "ground"] = "free"
    """"free": the field starts at `sdf_bias` metres everywhere, so that an untrained network claims nothing.
    "ground": it starts as the signed distance to the plane z = `ground_height`, which already scores as a flat ground:
    an untrained network is then no baseline."""
    sdf_bias: float = 1.0
    sdf_scale: PositiveFloat = 1.0
    """Metres per unit of the SDF decoder's output: how fast distances can move at a given learning rate."""
    ground_height: float = 0.0
    flow_scale: PositiveFloat = 1.0
    """Metres per interval and unit of the flow decoder's output, as `sdf_scale`."""
    flow_waves: int = Field(default=0, ge=0, le=10)
    """Waves across the road by which the flow decoder is told where a voxel lies (`heads.FlowHead`); 0: it is not told.
    Not in the paper."""
    movable: bool = False
    """A third decoder, of what could move: only `loss.splat` teaches it and asks for it, inference never does."""
    flow_init_std: PositiveFloat = 0.01
    """Standard deviation of the flow decoder's last layer. Flow starts near zero, but not so near that it stays there:
    1e-3 was seen to."""


class RenderConfig(_Section):
    """Ray sampling and opacity (eqs. 13-14)."""

    samples: PositiveInt = 256
    alpha: AlphaForm = "consecutive"
    temperature_v: float = 0.1
    """inv_s = exp(10 v), per metre."""
    anneal_steps: int = Field(default=5000, ge=0)
    """Steps with a volume over which the `gradient` form takes the cosine in; the image side's own do not count."""


class ModelConfig(_Section):
    """The whole network. The defaults are the paper's nuScenes model."""

    grid: GridConfig = GridConfig()
    backbone: BackboneConfig = BackboneConfig()
    fpn_dim: PositiveInt = 192
    tpv: TPVConfig = TPVConfig()
    depth_lift: DepthLiftConfig = DepthLiftConfig()
    pixel_motion: PixelMotionConfig = PixelMotionConfig()
    fusion: FusionConfig = FusionConfig()
    refine: RefineConfig = RefineConfig()
    heads: HeadConfig = HeadConfig()
    render: RenderConfig = RenderConfig()
    attention: Literal["auto", "plain", "triton", "numba"] = "auto"
    """How deformable attention is computed, with the same result: `triton` is one fused kernel for GPUs, `numba` one
    for CPUs, `plain` is PyTorch. `auto` takes the kernel for where the network runs, if it is installed; on a GPU not
    where the same bits are asked for every time."""
    occupancy_threshold: float = 0.1
    """Occupied where sdf <= this many metres."""

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        self.grid.build().coarsen(self.tpv.factor)
        if self.fusion.kind not in ("none", "concat") and self.tpv.dim % self.fusion.heads:
            raise ValueError(f"tpv.dim {self.tpv.dim} is not a multiple of fusion.heads {self.fusion.heads}")
        if self.pixel_motion.cell and not self.depth_lift.bins:
            raise ValueError("pixel_motion needs a depth per image cell: set depth_lift.bins, or pixel_motion.cell=0")
        if self.pixel_motion.cell and (self.fusion.kind == "none" or not self.fusion.history):
            raise ValueError(
                "pixel_motion compares with the keyframe before: set fusion.history to 1 or more and fusion.kind to "
                "other than none, or pixel_motion.cell=0"
            )
        return self

    @classmethod
    def nuscenes(cls) -> "ModelConfig":
        """Paper size on nuScenes: ConvNeXt-Base, 0.8 m TPV cells, 0.4 m output."""
        return cls()

    @classmethod
    def semantic_kitti(cls) -> "ModelConfig":
        """Paper size on SemanticKITTI and KITTI-MOT: 0.4 m TPV cells, 0.2 m output, the volume in front of the car.

        The ego frame is the LiDAR's: the road is 1.73 m below its origin.
        """
        return cls(
            grid=GridConfig(lower=KITTI_GRID.lower, upper=KITTI_GRID.upper, voxel=0.2),
            depth_lift=DepthLiftConfig(ground_z=KITTI_GROUND_Z),
            heads=HeadConfig(ground_height=KITTI_GROUND_Z),
        )

    @classmethod
    def demo(cls) -> "ModelConfig":
        """The same network at a size that trains in minutes on two CPU cores: nuScenes extent, 0.8 m output."""
        return cls(
            grid=GridConfig(voxel=0.8),
            backbone=BackboneConfig(depths=(1, 1, 2, 1), dims=(24, 48, 64, 96), layer_scale=1.0),
            fpn_dim=32,
            tpv=TPVConfig(
                dim=32, ffn_dim=64, heads=2, layers=2, self_points=3, ground_anchors=4, side_anchors=6, dropout=0.0
            ),
            fusion=FusionConfig(heads=4, points=1),
            refine=RefineConfig(channels=16),
            heads=HeadConfig(hidden=32, sdf_scale=10.0),
            render=RenderConfig(samples=96, alpha="gradient", anneal_steps=500),
        )
