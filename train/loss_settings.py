"""What the losses weigh: the sections `loss` and `splat` of a training configuration."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from train.settings import Section


class LossConfig(Section):
    """Weights of eq. 12 and the constants inside its terms."""

    photometric: NonNegativeFloat = 1.0
    flow: NonNegativeFloat = 0.005
    """Per pixel at `reference_width`."""
    lifted_flow: NonNegativeFloat = 0.0
    """Second stage: motion of LiDAR returns on movable things as `train.lifted_flow` finds it in the cue, per metre and
    interval. Needs masks, `flow_next`, and LiDAR or `rays.triangulated`, which places things where they stand."""
    lifted_still: NonNegativeFloat = 0.0
    """Second stage: length of the flow at returns that lie on no movable thing, per metre and interval. Without it
    whatever surrounds a moving thing, such as the lane it drives in, is given its motion. Needs LiDAR and masks, or
    `rays.triangulated`."""
    instance_flow: NonNegativeFloat = 0.0
    """Second stage: how far the flow on an instance of the masks is from one rigid motion over the ground, per metre
    and interval. Needs masks."""
    dreg: NonNegativeFloat = 0.1
    lidar: NonNegativeFloat = 0.2
    lidar_focus: float = Field(default=0.85, ge=0.0, le=1.0)
    """How much of the squared mean log error the range loss forgives; 1 judges the shape of the scene alone."""
    lidar_spread: NonNegativeFloat = 0.0
    """Weight of every sample's own log error beside the range's (`lidar.spread_loss`); it counts times `lidar`."""
    free_space: NonNegativeFloat = 0.0
    """Matter that rays to returns pass before them (`lidar.free_space_loss`): what starts inside matter is not seen by
    rendering, and in a long run the way of the rays fills up."""
    surface: NonNegativeFloat = 0.0
    """How far returns lie from a surface (`lidar.surface_loss`): rendering does not see what is missing, and a volume
    that starts empty, or a tree before a wall, may stay so."""
    pixel_depth: NonNegativeFloat = 0.0
    """Cross-entropy of each image cell's depth under the returns that fall into it; needs `model.depth_lift`."""
    pixel_match: NonNegativeFloat = 0.0
    """Second stage: cross-entropy of where each image cell was one keyframe earlier, by the backward flow cue
    (`data.backward_cue: prev`); needs `model.pixel_motion`."""
    pixel_place: NonNegativeFloat = 0.0
    """Second stage: the same at spots on movable things, by the motion that `lifted_flow` found; also at those that
    another camera saw one keyframe earlier (`model.pixel_motion.neighbours`), where no flow cue ends."""
    pixel_motion: NonNegativeFloat = 0.0
    """Second stage: `lifted_flow` and `lifted_still`, each by its weight, of the motion that image cells say; needs
    `model.pixel_motion` and one of the two."""
    splat: NonNegativeFloat = 0.0
    """Second stage: all terms of VoxelSplat's loss (section `splat`). Needs masks."""
    eikonal: NonNegativeFloat = 0.1
    hessian: NonNegativeFloat = 0.05
    smooth_depth: NonNegativeFloat = 0.02
    smooth_flow: NonNegativeFloat = 0.01
    sparsity_grid: NonNegativeFloat = 0.005
    sparsity_hidden: NonNegativeFloat = 0.01
    reference_width: PositiveInt = 704
    """Image width at which the flow weight and `dynamic_pixels` are stated: at width w an error counts
    reference_width / w times its pixels, so that neither changes meaning with the resolution."""
    dynamic_pixels: PositiveFloat = 8.0
    """Dynamic flow longer than this, and movable: dynamic (eq. 10). Pixels at `reference_width`."""
    gamma_max: PositiveFloat = 20.0
    neighbours: Literal["mean", "min"] = "mean"
    """How two photometric neighbours combine."""
    automask: bool = True
    empty_flow_share: NonNegativeFloat = 0.2
    hidden_margin_m: PositiveFloat = 3.0
    eikonal_samples: NonNegativeInt = 65536
    """Ray samples, drawn at random, on which eq. 15 is taken besides the grid."""


class SplatConfig(Section):
    """The splatting loss (`loss.splat`): which Gaussians are drawn, and the weights of its terms inside it."""

    gaussians: PositiveInt = 4096
    """At most, per camera and rendered image."""
    scale: PositiveFloat = 0.3
    """Standard deviation of every Gaussian, voxel edges: 0.12 m at 0.4 m as published."""
    balance: bool = True
    """Draw behind movable masks as many as elsewhere (inverse frequency of the two kinds)."""
    speed_m: NonNegativeFloat = 1.0
    """A Gaussian that moves by so many metres per interval is drawn half as often as one that stands still; 0: as
    often."""
    returns: PositiveInt = 512
    """At most so many returns per camera and rendered image are compared with splatted depth."""
    depth: NonNegativeFloat = 1.0
    """Per unit of logarithm."""
    movable: NonNegativeFloat = 0.2
    """Cross-entropy with the masks, where the network has `heads.movable`."""
    motion: NonNegativeFloat = 0.005
    """Per pixel at `loss.reference_width`."""
    adjacent: NonNegativeFloat = 0.5
    """Of depth and masks at the next keyframe, times their weights here; 0: the next keyframe is not splatted."""
