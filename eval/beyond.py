"""What the paper has no table of: the project's own additions to the method, each beside the row that lacks it.

They are judged by whether a figure gets better. Their rows, `own_*`, are those of `train/configs/ablations`.
"""

from eval.paper import Comparison

BEYOND = (
    Comparison("own", "own_instance_flow", "camera_lidar", ("mAVE", "flow error", "EPE_FG")),
    Comparison("own", "own_confidence", "camera_lidar", ("RayIoU", "flow error", "EPE_FG")),
    Comparison("own", "own_future_frames", "camera_lidar", ("RayIoU", "non-ground", "DE")),
    Comparison("own", "own_locality", "camera_lidar", ("RayIoU", "mAVE", "flow error")),
)
"""One motion per instance, cues weighed by their confidence, more later images; near keyframes drawn together, which
saves decoding and is asked what it costs."""
