"""What the paper's tables say of its own ablations: the numbers, and which rows they set against each other.

Source: Let Occ Flow, Tables 2 to 8. DE, EPE and outlier shares are on KITTI-MOT, RayIoU (per cent) and mAVE on
nuScenes.
"""

from dataclasses import dataclass

_FULL_C = {"DE": 3.431, "EPE": 3.529, "DE_FG": 6.429, "EPE_FG": 7.635, "FL_10%": 0.084}
_FULL_L = {"DE": 2.610, "EPE": 3.488, "DE_FG": 3.106, "EPE_FG": 7.510, "FL_10%": 0.083}

PAPER: dict[str, dict[str, float]] = {
    "camera_only": {**_FULL_C, "RayIoU": 30.12, "mAVE": 1.42},
    "camera_lidar": {**_FULL_L, "RayIoU": 40.48, "mAVE": 1.45},
    "t4_concat": {"DE": 3.515, "EPE": 3.638, "DE_FG": 6.423, "EPE_FG": 7.743, "FL_10%": 0.090},
    "t4_bev_pool_forward": {"DE": 3.600, "EPE": 3.763, "DE_FG": 6.339, "EPE_FG": 7.971, "FL_10%": 0.091},
    "t4_bev_pool_bfam": {"DE": 3.462, "EPE": 3.583, "DE_FG": 6.409, "EPE_FG": 7.673, "FL_10%": 0.089},
    "t4_full": _FULL_C,
    "t5_joint": {"DE": 3.760, "EPE": 4.403, "DE_FG": 4.194, "EPE_FG": 8.853, "FL_10%": 0.121},
    "t5_two_stage": {"DE": 3.064, "EPE": 3.633, "DE_FG": 3.600, "EPE_FG": 7.966, "FL_10%": 0.089},
    "t5_full": _FULL_L,
    "t6_none": {"DE": 6.715, "EPE": 4.128, "DE_FG": 6.598, "EPE_FG": 8.160, "FL_10%": 0.099},
    "t6_forward": {"DE": 3.495, "EPE": 3.614, "DE_FG": 6.510, "EPE_FG": 7.987, "FL_10%": 0.084},
    "t6_both": _FULL_C,
    "t7_without_flow": {"DE": 2.447, "EPE": 3.649, "DE_FG": 2.936, "EPE_FG": 9.663, "FL_10%": 0.114},
    "t7_with_flow": _FULL_L,
    "t8_joint": {"RayIoU": 24.26, "mAVE": 1.36},
    "t8_two_stage": {"RayIoU": 32.49, "mAVE": 1.59},
    "t8_full": {"RayIoU": 37.92, "mAVE": 1.56},
}


@dataclass(frozen=True)
class Comparison:
    """`row` against `reference`, which lacks what it adds, by the metrics that the table is read for."""

    table: str
    row: str
    reference: str
    metrics: tuple[str, ...]


COMPARISONS = (
    Comparison("2, 3", "camera_lidar", "camera_only", ("RayIoU", "DE", "EPE", "mAVE")),
    Comparison("4", "t4_full", "t4_concat", ("EPE",)),
    Comparison("4", "t4_full", "t4_bev_pool_forward", ("EPE",)),
    Comparison("4", "t4_full", "t4_bev_pool_bfam", ("EPE",)),
    Comparison("5", "t5_two_stage", "t5_joint", ("DE", "EPE")),
    Comparison("5", "t5_full", "t5_two_stage", ("DE", "EPE")),
    Comparison("6", "t6_forward", "t6_none", ("DE", "EPE")),
    Comparison("6", "t6_both", "t6_forward", ("DE", "EPE")),
    Comparison("7", "t7_with_flow", "t7_without_flow", ("EPE_FG", "FL_10%", "DE")),
    Comparison("8", "t8_two_stage", "t8_joint", ("RayIoU", "mAVE")),
    Comparison("8", "t8_full", "t8_two_stage", ("RayIoU", "mAVE")),
)
"""Each sets a row beside the one that lacks what it adds."""
