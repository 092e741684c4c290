"""The sections of a training configuration: what can be set, its default and what it means. Those of the losses:
`loss_settings.py`."""

from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NeighbourConfig(Section):
    """The Gaussian rule by which photometric neighbours are drawn, over the distance the ego car travelled."""

    mean_m: NonNegativeFloat = 0.5
    sigma_m: PositiveFloat = 0.5
    max_m: PositiveFloat = 6.0
    max_frames: PositiveInt = 20
    """At most this many stored images away."""
    sweeps: bool = True
    """Draw among sweeps and keyframes; False: among keyframes only (stores without sweeps)."""


class DynamicConfig(Section):
    """Keyframes with real motion come more often (supplement A), by the scores that `occflow dynamics` makes."""

    repeat: PositiveInt = 1
    """How often an epoch holds a dynamic keyframe, each time with other rays and neighbours; 1: like all others."""
    top: float = Field(default=0.25, gt=0.0, le=1.0)
    """This share of the stage's scored keyframes, those in which most moves, is dynamic."""
    least_share: float = Field(default=0.001, gt=0.0, le=1.0)
    """But none in which a smaller share of the LiDAR points in its images moves."""
    stages: tuple[Literal[1, 2], ...] = (2,)
    """Where this holds. The first stage takes the world for static: more motion would only mislead it."""
    scores: Path | None = None
    """File of scores; default `<store>.dynamics.json` beside the store."""


class LocalityConfig(Section):
    """Near keyframes close together in an epoch, so that a frame that several samples share is decoded once
    (`train.order`). `data.cache_mb` must hold the images of lanes x (block + 3) keyframes, those beside a block among
    them; what one sample alone reads is then not kept."""

    block: NonNegativeInt = 0
    """Keyframes of a scene in a row that are drawn at about the same time, in random order; 0: all are mixed."""
    lanes: PositiveInt = 8
    """Blocks that are open at a time. Best a multiple of processes x `data.workers` x `run.batch`."""


class DataConfig(Section):
    """What is read from the store."""

    scenes: tuple[str, ...] = ()
    """Names or shell patterns of scenes to train on; empty: all."""
    exclude: tuple[str, ...] = ()
    """Never trained on and never a neighbour: `scene`, `scene:t` or `scene:first-last`, scene names may be patterns."""
    exclude_files: tuple[Path, ...] = ()
    """Files of marks, as `occflow inspect` writes them: their keyframes are left out in the same way, while the cues
    that they were marked on are the same."""
    validate_on: tuple[str, ...] = ()
    """Held out in the same way, and what `run.validate_every` measures the losses on; empty: nothing is measured."""
    workers: NonNegativeInt = 0
    """Loader processes, started by spawn; 0 reads in the training process."""
    cache_mb: NonNegativeInt = 1024
    """Decoded frames kept in memory, all workers together."""
    locality: LocalityConfig = LocalityConfig()
    neighbour: NeighbourConfig = NeighbourConfig()
    dynamic: DynamicConfig = DynamicConfig()
    backward_cue: Literal["aux", "prev"] = "aux"
    """Flow slot of the backward static flow."""
    lidar_masks: bool = False
    """A camera-only run refuses every cue that was made from LiDAR. This lets masks pass: for ablations on logs without
    a mask model's masks, where masks found with LiDAR stand in for them."""
    min_flow_confidence: int = Field(default=0, ge=0, le=255)
    min_mask_score: float = Field(default=0.0, ge=0.0, le=1.0)
    weigh_by_confidence: bool = False
    """Flow counts by the cue's measured confidence, wherever it is used, and by the mask's score where a mask says that
    it is a moving thing's (`train.confidence`)."""
    future_frames: NonNegativeInt = 0
    """So many images after the later neighbour are compared with too (eq. 8): of a static ray the one that explains it
    best judges, so that what something hides in one is seen in another. In the second stage the keyframes that follow.
    Ranges have more: `rays.lidar_reach`."""

    @property
    def held_out(self) -> tuple[str, ...]:
        """All that is never trained on."""
        return (*self.exclude, *self.validate_on)


class RaysConfig(Section):
    """Rays of one step."""

    grid: tuple[PositiveInt, PositiveInt] = (32, 88)
    """Rows and columns of camera rays, per camera."""
    strides: tuple[PositiveInt, PositiveInt] = (4, 8)
    """Lowest and highest stride in render pixels; those that do not fit are not drawn."""
    lidar: PositiveInt = 4096
    """LiDAR rays."""
    lidar_reach: NonNegativeInt = 0
    """Keyframes before and after whose returns are cast too, from where they were measured: they saw what is hidden
    now. Needs masks, for what moved in between is left out."""
    lidar_own: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the keyframe's own returns, where others are cast too."""
    raised: float = Field(default=0.0, ge=0.0, le=1.0)
    """At least this share of the returns, where there are so many, lies above the ground (`model.depth_lift.ground_z`):
    more than half of what a LiDAR measures is the road, which a network soon knows."""
    triangulated: NonNegativeInt = 0
    """Rays to points that the flow cues of what stands still give, beside LiDAR's or in their place: a camera-only
    run's returns (`train.triangulate`). Needs masks, `flow_next` and the backward flow cue."""
    standing: NonNegativeInt = 0
    """Rays to movable things, as far as the ground on which their masks end (`train.standing`): in a camera-only run
    nothing else says how far they are, for points are triangulated of what stands still alone. Needs masks."""
    moving: PositiveInt = 512
    """Spots on movable things whose lifted motion is learned (`loss.lifted_flow`)."""
    still: PositiveInt = 2048
    """Spots on everything else whose flow is drawn to zero (`loss.lifted_still`)."""
    still_raised: float = Field(default=0.0, ge=0.0, le=1.0)
    """At least this share of those lies above the ground: what is easily mistaken for something that moves does."""
    far_sample: bool = True
    """Whether the light that passes every sample comes from one more sample, at the exit of the volume (rays that see
    the sky then need no matter); False: weights are shared among the samples in the volume alone."""


class AblationConfig(Section):
    """One switch per row of the paper's tables 5-8; the rows of table 4 are `model.fusion.kind`."""

    two_stage: bool = True
    dynamic_disentanglement: bool = True
    forward_static_flow: bool = True
    backward_static_flow: bool = True
    flow_supervision: bool = True
    lidar: bool = True
    """False: camera only. No cue may then come from LiDAR, masks included; the store's records are checked."""


class OptimiserConfig(Section):
    """AdamW, and which parts learn at which rate."""

    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 35.0
    backbone_rate: NonNegativeFloat = 0.1
    """Of `lr`; 1 for a backbone without pre-trained weights."""
    temperature_rate: NonNegativeFloat = 1.0
    flow_rate: PositiveFloat = 1.0
    """Of `lr`, for the flow decoder."""
    motion_rate: PositiveFloat = 1.0
    """Of `lr`, for what compares images (`model.pixel_motion`)."""
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay of a moving average of the weights, such as 0.999, kept as `stage<n>/ema` beside them; None: no average."""
    max_skipped: PositiveInt = 20
    """So many steps in a row whose gradient is not finite end the run; a loss that is not finite ends it at once."""


class StageConfig(Section):
    """One stage: how long, and its learning-rate schedule. Of the limits given the first reached ends it."""

    epochs: PositiveFloat | None = None
    max_steps: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    warmup_steps: NonNegativeInt = 1000
    milestones: tuple[float, ...] = (0.8,)
    """Fractions of the stage after which the rate is multiplied by `decay`."""
    decay: PositiveFloat = 0.2
    image_rate: NonNegativeFloat = 1.0
    """Rate of the image side (backbone, FPN, TPV encoder), of the stage's own."""
    geometry_rate: NonNegativeFloat = 1.0
    """Rate of temporal fusion, refine module and SDF head."""
    lr_scale: PositiveFloat = 1.0
    image_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """This first part of the stage trains the image side alone, on `loss.pixel_depth`, and in the second stage on
    `loss.pixel_match` and `loss.pixel_motion`: without a volume and without
    rays a step costs a tenth, and depth that images give away is learned from many more of them. A camera-only run
    has no such part unless it triangulates its returns (`rays.triangulated`)."""
    coarse_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """So long, and no longer than `image_share`, the stage sees its images at half their size (`train.coarse`): a step
    costs a quarter, and most of what is learned holds at full size too."""
    mirrored: float = Field(default=0.0, ge=0.0, le=1.0)
    """This share of the samples is seen in a mirror (`train.mirror`). In the first stage that makes twice as many
    streets of few; in the second traffic would keep to either side, which only some data sets have."""
    temperature_floor: float | None = None
    """The temperature v may not lie below a bound that rises from where v starts to this value over
    `temperature_span`; None: it is free. A free one falls while ranges are uncertain, for a blurred surface costs less
    than a sharp one in the wrong place; where a stage has only hundreds of steps, it never comes back."""
    temperature_span: tuple[float, float] = (0.1, 0.7)
    """Fractions of the stage between which the bound rises."""

    @model_validator(mode="after")
    def _ends(self) -> "StageConfig":
        if self.epochs is None and self.max_steps is None and self.max_seconds is None:
            raise ValueError("a stage needs epochs, max_steps or max_seconds, or it never ends")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones are rising fractions between 0 and 1, got {self.milestones}")
        if self.coarse_share > self.image_share:
            raise ValueError(
                f"coarse_share is part of image_share ({self.image_share}), got {self.coarse_share}: whole steps see "
                "whole images"
            )
        if not 0 <= self.temperature_span[0] < self.temperature_span[1] <= 1:
            raise ValueError(f"temperature_span is two rising fractions of the stage, got {self.temperature_span}")
        return self


class StartConfig(Section):
    """Weights to start from (`train.start`); what they lack is the seed's. At most one."""

    backbone: Path | None = None
    """An official ConvNeXt file (ImageNet), or SparK's."""
    network: Path | None = None
    """A checkpoint folder of another run: every tensor of equal name and shape is taken."""


class RunConfig(Section):
    """The machine's side of a run."""

    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    precision: Literal["32-true", "tf32", "bf16-mixed", "16-mixed"] = "32-true"
    """`tf32`: float32 whose products keep 10 bits of their operands, on a GPU. The mixed ones halve most of the network
    and take tf32 for the rest; geometry, rendering and losses stay in float32 in all of them."""
    compile: bool = False
    """Compile the blocks of a ConvNeXt backbone: a minute at the first steps, a tenth of a step on a GPU."""
    batch: PositiveInt = 1
    """Keyframes per device and step."""
    checkpoint_seconds: PositiveFloat = 600.0
    log_every: PositiveInt = 20
    progress: bool = True
    picture_every: NonNegativeInt = 300
    """Steps between pictures of images and rendered depth in TensorBoard; 0: none."""
    validate_every: PositiveInt = 500
    """Steps between measurements of the losses on keyframes of `data.validate_on`."""
    validate_keyframes: PositiveInt = 4
    best_by: Literal["total", "photometric", "flow", "lidar"] = "total"
    """Loss whose lowest measurement makes a checkpoint the best one; a stage that has no such term goes by `total`."""
    deterministic: Literal["off", "warn", "strict"] = "off"
    """Only algorithms that give the same bits every time: `strict` stops at the first that has none, `warn` tells."""
