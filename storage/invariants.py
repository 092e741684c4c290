"""What must hold between the values of a block's arrays; checked before a commit and again by `verify`."""

from collections.abc import Mapping

import numpy as np


def broken_rules(arrays: Mapping[str, np.ndarray], keyframes: int) -> list[str]:
    """One line per rule that the arrays of one block break.

    Args:
        arrays: by schema name; rules about arrays that are not given are skipped.
        keyframes: T of the scene.
    """
    broken = []
    for lengths, data in (("images_length", "images"), ("sweeps/images_length", "sweeps/images")):
        if {lengths, data} <= arrays.keys() and (arrays[lengths] > arrays[data].shape[-1]).any():
            broken.append(f"{lengths} goes to {arrays[lengths].max()}, but {data} holds {arrays[data].shape[-1]} bytes")
    count = arrays.get("lidar/count")
    if count is not None and "lidar/points" in arrays:
        held = min(arrays["lidar/points"].shape[1], arrays.get("lidar/cameras", arrays["lidar/points"]).shape[1])
        if (count < 0).any() or (count > held).any():
            broken.append(f"lidar/count spans {count.min()} to {count.max()}, but {held} points are held")
    for name, target in arrays.items():
        if name.endswith("/target_frame") and ((target < -1) | (target >= keyframes)).any():
            broken.append(f"{name} spans {target.min()} to {target.max()}, but keyframes go from 0 to {keyframes - 1}")
    return broken
