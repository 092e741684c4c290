"""The named rules under which RayIoU and mAVE are computed; a figure without its rule cannot be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

OPENOCC_CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)
"""OpenOcc's indices 0..16; 16 is free."""

MOVABLE_CLASSES = OPENOCC_CLASSES[:8]
MOVABLE_KINDS = frozenset((*MOVABLE_CLASSES, "other_vehicle", "person", "bicyclist", "motorcyclist"))
"""The eight classes of mAVE, and SemanticKITTI's names for movable things."""
UNKNOWN = 255
"""In a truth volume: nobody looked. In a predicted one: occupied, class unknown."""
GROUND_CLASSES = frozenset(
    (*OPENOCC_CLASSES[10:14], "road", "parking", "other-ground", "other_ground", "lane-marking", "lane_marking")
)
"""OpenOcc's 10..13, and SemanticKITTI's names for the same."""
_FREE_NAMES = ("free", "empty", "unlabeled", "unlabelled")

THRESHOLDS = (1.0, 2.0, 4.0)
"""Metres, strict."""


@dataclass(frozen=True)
class RayProtocol:
    """What counts.

    class_aware: a hit must also have the true class; the prediction needs classes.
    one_class: all true classes count as "occupied", and a predicted miss is not a prediction of it.
    free_above: voxels with z index >= this are freed (None: none).
    border: voxels this close to the four sides are freed.
    """

    name: str
    description: str
    class_aware: bool = False
    one_class: bool = False
    free_above: int | None = None
    border: int = 0

    def evaluated(self, shape: tuple[int, int, int]) -> Bool[np.ndarray, "x y z"]:
        """False where this rule frees the volume, in prediction and truth alike."""
        keep = np.zeros(shape, dtype=bool)
        b, (nx, ny, _) = self.border, shape
        keep[b : nx - b, b : ny - b, : self.free_above] = True
        return keep


PROTOCOLS = {
    "openocc": RayProtocol(
        "openocc", "16 classes and free, as the CVPR 2024 occupancy and flow track; mean over classes", class_aware=True
    ),
    "geometry": RayProtocol(
        "geometry",
        "class ignored (the prediction takes the truth's), z index >= 12 and a 6-voxel border freed in both; "
        "IoU = TP / (2 GT - TP) on pooled counts",
        free_above=12,
        border=6,
    ),
    "semantickitti": RayProtocol(
        "semantickitti",
        "one occupied class, rays that end in invalid voxels dropped, z index >= 28 and a 6-voxel border freed; pooled",
        one_class=True,
        free_above=28,
        border=6,
    ),
}


def protocol_named(name: str) -> RayProtocol:
    """The protocol of that name, or a ValueError that lists them."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def free_index(classes: Sequence[str]) -> int:
    """Index that means free in a truth volume with these classes.

    The entry called free (or empty, unlabeled); OpenOcc's 16 when its sixteen classes are listed without it.
    """
    for name in _FREE_NAMES:
        if name in classes:
            return list(classes).index(name)
    if tuple(classes) == OPENOCC_CLASSES[:16]:
        return 16
    raise ValueError(f"no class of {list(classes)} means free: name one of them {' or '.join(map(repr, _FREE_NAMES))}")


def occupied_in(semantics: UInt8[np.ndarray, "x y z"], classes: Sequence[str]) -> Bool[np.ndarray, "x y z"]:
    """True where a class volume is not free; unknown voxels (255) count as occupied, since they block rays."""
    return semantics != free_index(classes)
