"""Images at half their size, for the first part of a stage: depth is learned from them in a fraction of the time, and
little of it has to be learned again when they come whole."""

import torch.nn.functional as F

from geometry.cameras import scale_intrinsics
from model.fields import FrameInput


def halved(frames: FrameInput) -> FrameInput:
    """The queue with images of half as many rows and columns, each pixel the mean of those that it covers, in [0, 1];
    camera matrices for them. An odd row or column is shared out, not dropped."""
    height, width = frames.images.shape[-2:]
    size = max(1, height // 2), max(1, width // 2)
    scaled = frames.images if frames.images.is_floating_point() else frames.images.float() / 255
    images = F.adaptive_avg_pool2d(scaled.flatten(0, 2), size).unflatten(0, frames.images.shape[:3])
    return frames._replace(images=images, K=scale_intrinsics(frames.K, size[1] / width, size[0] / height))
