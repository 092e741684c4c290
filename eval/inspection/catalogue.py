"""The checks by name: what each measures, of what, which way is bad, and what a failure usually means."""

from dataclasses import dataclass
from typing import Literal

Scope = Literal["camera", "frame", "scene", "rig"]


@dataclass(frozen=True)
class Values:
    """What a check yields.

    scope: a value per camera image, per keyframe, per scene, or per camera over the whole sample ("rig"). extent: of
    the histogram.
    """

    scope: Scope
    unit: str
    extent: tuple[float, float]


@dataclass(frozen=True)
class Limit:
    """Which values are bad, and how many of them a check lets pass.

    limit: a value beyond it is bad. share: of bad values, that good labels have too (`verdict.too_many`). low: whether
    values below the limit are bad, instead of those above.
    """

    limit: float
    share: float
    low: bool


def above(limit: float, share: float) -> Limit:
    """Values above the limit are bad."""
    return Limit(limit, share, low=False)


def below(limit: float, share: float) -> Limit:
    """Values below the limit are bad."""
    return Limit(limit, share, low=True)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: key in results and settings.
        title: for people.
        values, bad: what it yields, and what of that is bad.
        cues: what it reads; an exclusion made by it holds as long as these stay the same.
        measures: what the value is.
        meaning: what a failure usually means.
    """

    name: str
    title: str
    values: Values
    bad: Limit
    cues: tuple[str, ...]
    measures: str
    meaning: str


CHECKS: tuple[Check, ...] = (
    Check(
        "coverage",
        "Cues present",
        Values("frame", "share", (0.0, 1.0)),
        below(0.999, share=0.0),
        cues=("init",),
        measures="Share of the store's cues, of camera images and of the LiDAR sweep that this keyframe has.",
        meaning="Extraction is not finished or failed for some units: see `occflow status`.",
    ),
    Check(
        "flow_valid",
        "Flow present",
        Values("camera", "share", (0.0, 1.0)),
        below(0.1, share=0.15),
        cues=("flow_next",),
        measures="Share of pixels with a flow that is neither invalid nor at the end of the stored range.",
        meaning="The flow cue fails on these images, or its displacements do not fit the store's range.",
    ),
    Check(
        "flow_confidence",
        "Confident flow",
        Values("camera", "share", (0.0, 1.0)),
        below(0.25, share=0.15),
        cues=("flow_next",),
        measures="Share of the pixels with flow whose confidence is at least one half.",
        meaning="The flow cue does not trust itself here: large motion, night, rain, or a network far from its domain.",
    ),
    Check(
        "flow_round_trip",
        "Flow there and back",
        Values("camera", "share", (0.0, 1.0)),
        above(0.35, share=0.15),
        cues=("flow_next", "flow_prev"),
        measures="Share of pixels where forward and backward flow disagree (by 1 % of squared lengths and 0.5 px^2).",
        meaning="Forward and backward flow disagree: one of them is wrong, or they were made from different images.",
    ),
    Check(
        "photometric",
        "Warped images agree",
        Values("camera", "ratio", (0.0, 2.0)),
        above(0.45, share=0.15),
        cues=("images", "flow_next"),
        measures="Colour difference to the next image after warping it by the flow, over the difference before.",
        meaning="The flow does not describe these images: zero, negated or mis-scaled, or images in the wrong order.",
    ),
    Check(
        "static_bias",
        "Flow against LiDAR and ego-motion: bias",
        Values("frame", "m", (0.0, 1.0)),
        above(0.2, share=0.1),
        cues=("init", "lidar", "masks", "flow_next"),
        measures="Metres of camera motion that would explain the flow of standing things at LiDAR points.",
        meaning="Pose, calibration or time is wrong; where warped images fail as well, the flow has the wrong length.",
    ),
    Check(
        "static_scatter",
        "Flow against LiDAR and ego-motion: scatter",
        Values("camera", "relative", (0.0, 1.0)),
        above(0.12, share=0.15),
        cues=("init", "lidar", "masks", "flow_next"),
        measures="Median of what that motion leaves of the residual, over 1 px and the expected flow's length.",
        meaning="The flow itself is wrong or noisy: no single camera motion explains how it errs.",
    ),
    Check(
        "mask_area",
        "Masked area",
        Values("camera", "share", (0.0, 1.0)),
        above(0.6, share=0.05),
        cues=("masks",),
        measures="Share of the image under masks.",
        meaning="The masks cover the background: the detector or the motion test fires everywhere.",
    ),
    Check(
        "mask_count",
        "Masks per image, drift",
        Values("scene", "factor", (1.0, 20.0)),
        above(8.0, share=0.1),
        cues=("masks",),
        measures="How many times more or fewer masks per image (plus a half) the scene has than is usual in the store.",
        meaning="The mask cue behaves differently here: another setting or version, night, rain, or a silent failure.",
    ),
    Check(
        "mask_flicker",
        "Masks that vanish",
        Values("scene", "share", (0.0, 1.0)),
        above(0.5, share=0.1),
        cues=("masks", "flow_next"),
        measures="Share of a scene's instances, proven at 95 %, that meet no mask when the flow moves them on.",
        meaning="Instances come and go: detections are lost from frame to frame, or the flow inside masks is wrong.",
    ),
    Check(
        "mask_depth",
        "LiDAR depth inside masks",
        Values("scene", "share", (0.0, 1.0)),
        above(0.25, share=0.1),
        cues=("init", "lidar", "masks"),
        measures="Share of LiDAR points in masks that lie more than 6 m from their instance's median depth.",
        meaning="Masks are shifted against the images, bleed into the background, or merge several things.",
    ),
    Check(
        "mask_edges",
        "Mask borders on image edges",
        Values("scene", "px", (0.0, 12.0)),
        above(4.0, share=0.1),
        cues=("images", "masks"),
        measures="Shift at which the borders of a scene's masks fit the image's edges best.",
        meaning="Masks belong to another image, or were resized or cropped otherwise than the images.",
    ),
    Check(
        "mask_own_car",
        "Masks on the own car",
        Values("rig", "share", (0.0, 0.2)),
        above(0.005, share=0.0),
        cues=("masks",),
        measures="Share of a camera's image that is masked in more than 60 % of at least 12 images of 3 scenes.",
        meaning="The own car, or a mark on the lens, is taken for another vehicle.",
    ),
    Check(
        "lidar_coverage",
        "LiDAR extent",
        Values("frame", "ratio", (0.0, 2.0)),
        below(0.5, share=0.05),
        cues=("lidar",),
        measures="Lowest ratio of points, elevation span and range to what is usual in the store.",
        meaning="Sweeps are cut: lost packets, another sensor, or too much removed as own car.",
    ),
    Check(
        "lidar_azimuth",
        "LiDAR all around",
        Values("frame", "degrees", (0.0, 180.0)),
        above(20.0, share=0.05),
        cues=("lidar",),
        measures="Degrees of azimuth in which a sweep has less than a tenth of the points that are usual in the store.",
        meaning="Packets were lost, or something on the car stands in the sensor's way.",
    ),
    Check(
        "lidar_birdseye",
        "LiDAR around the car from above",
        Values("frame", "share", (0.0, 1.0)),
        below(0.6, share=0.05),
        cues=("lidar",),
        measures="Share of the 4 m squares within 24 m that nearly all sweeps of the store reach, and this one too.",
        meaning="Beams were lost or too much was removed as own car; a wall or truck beside the car does it to a few.",
    ),
    Check(
        "lidar_level",
        "LiDAR level",
        Values("scene", "degrees", (0.0, 6.0)),
        above(2.5, share=0.1),
        cues=("lidar",),
        measures="Median angle between the ego frame's horizontal and the ground around the car.",
        meaning="The LiDAR's extrinsics tilt, or the ego frame is not what the reader says; a steep road also tilts.",
    ),
    Check(
        "lidar_alignment",
        "LiDAR edges on image edges",
        Values("camera", "degrees", (0.0, 2.5)),
        above(0.6, share=0.4),
        cues=("init", "images", "lidar"),
        measures="Sideways shift at which depth edges of the LiDAR fit the image's edges best.",
        meaning="The camera's or LiDAR's extrinsics are turned, cameras are swapped, or their times do not match.",
    ),
    Check(
        "camera_offset",
        "Camera and LiDAR times",
        Values("camera", "ms", (0.0, 100.0)),
        above(15.0, share=0.02),
        cues=("init",),
        measures="How far the camera's time less the LiDAR's is from what is usual for this camera.",
        meaning="Triggers were missed, or images are matched to the wrong sweep.",
    ),
    Check(
        "pose_time",
        "Camera pose at the camera's time",
        Values("camera", "ms", (0.0, 100.0)),
        above(25.0, share=0.1),
        cues=("init",),
        measures="Time by which the camera's own ego pose is ahead of or behind the ego path at the camera's time.",
        meaning="Camera times have an offset, or poses were looked up at another time.",
    ),
    Check(
        "pose_jump",
        "Pose jumps",
        Values("frame", "m/s^2", (0.0, 60.0)),
        above(15.0, share=0.0),
        cues=("init",),
        measures="Acceleration of the ego car between neighbouring keyframes.",
        meaning="The pose of this keyframe or a neighbour is wrong, or keyframes are missing or out of order.",
    ),
    Check(
        "frozen",
        "Frozen or duplicate images",
        Values("camera", "grey levels", (0.0, 60.0)),
        below(0.5, share=0.0),
        cues=("images",),
        measures="Mean difference to the camera's next image while the car moves, and to the other cameras' images.",
        meaning="The camera delivered the same image twice, or one file stands in for another.",
    ),
    Check(
        "exposure",
        "Exposure",
        Values("camera", "share", (0.0, 1.0)),
        above(0.4, share=0.05),
        cues=("images",),
        measures="Share of pixels that are black or white in all channels.",
        meaning="Over- or under-exposed, covered or broken: neither flow nor photometric losses can use these images.",
    ),
    Check(
        "truth_flow",
        "Flow against truth",
        Values("camera", "relative", (0.0, 1.0)),
        above(0.15, share=0.15),
        cues=("flow_next",),
        measures="Median end-point error of the flow over 1 px and the true flow's length.",
        meaning="The flow is wrong, whatever the other checks say.",
    ),
    Check(
        "truth_masks",
        "Masks against truth",
        Values("scene", "IoU", (0.0, 1.0)),
        below(0.2, share=0.15),
        cues=("masks",),
        measures="Intersection over union of all masks with the pixels that truly move, over a scene.",
        meaning="Masks are missing, shifted or cover what stands still.",
    ),
    Check(
        "truth_depth",
        "LiDAR against true depth",
        Values("camera", "relative", (0.0, 0.5)),
        above(0.05, share=0.15),
        cues=("init", "lidar"),
        measures="Median relative difference of LiDAR depth and the true depth at its pixel.",
        meaning="LiDAR, camera pose, calibration or their times do not belong together.",
    ),
)
BY_NAME = {check.name: check for check in CHECKS}
