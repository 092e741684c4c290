"""Images as these models want them, and their low-resolution masks back on our grid.

Upstream resizes with PIL or torchvision; this is the same arithmetic (bilinear with an antialias filter, rounded to
whole levels) in torch alone, on whatever device the model is.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from pipelines.cues.grounded_sam.records import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ItemT = TypeVar("ItemT")


def chunks(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Runs of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def stack_images(images: Sequence[Image], device: torch.device) -> Float[torch.Tensor, "n 3 height width"]:
    """RGB images of one size as float32 levels 0..255 on the device. ValueError where the sizes differ."""
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images of one batch have one size, got {sorted(sizes)}")
    pixels = torch.from_numpy(np.stack([np.ascontiguousarray(image) for image in images]))
    return pixels.to(device).permute(0, 3, 1, 2).float()


def resized(pixels: Float[torch.Tensor, "n 3 height width"], size: tuple[int, int]) -> torch.Tensor:
    """Levels 0..255 resampled to `size` (height, width); rounded half up after each axis, as PIL does."""
    for target in ((pixels.shape[-2], size[1]), size):
        if tuple(pixels.shape[-2:]) != target:
            pixels = F.interpolate(pixels, target, mode="bilinear", antialias=True, align_corners=False)
            pixels = (pixels + 0.5).floor().clamp(0, 255)
    return pixels


def normalised(
    pixels: Float[torch.Tensor, "n 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[torch.Tensor, "n 3 height width"]:
    """Levels 0..255 to (level / 255 - mean) / std."""
    shape = (1, 3, 1, 1)
    return (pixels / 255 - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def edge_limited(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) with the shorter edge at `shortest`, or less where the longer would pass `longest`.

    DETR's rule: the shorter edge that keeps the longer one within bounds is rounded first, then the longer follows from
    the unrounded value. 900 x 1600 within (800, 1333) is 750 x 1333.
    """
    low, high = min(size), max(size)
    exact = min(float(shortest), longest * low / high)
    short = round(exact)
    if low == short:
        return size
    long = int(exact * high / low) if exact < shortest else int(shortest * high / low)
    return (short, long) if size[0] <= size[1] else (long, short)


def longest_edge(size: tuple[int, int], length: int) -> tuple[int, int]:
    """(height, width) with the longer edge at `length`, the other rounded half up: SAM's rule."""
    scale = length / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def upsampled(logits: Float[torch.Tensor, "n h w"], size: tuple[int, int]) -> Float[torch.Tensor, "n height width"]:
    """Mask logits on a grid of `size` over the same view; where that is coarser, averaged over its pixels."""
    coarser = size[0] < logits.shape[-2] or size[1] < logits.shape[-1]
    out = F.interpolate(logits[:, None].float(), size, mode="bilinear", antialias=coarser, align_corners=False)
    return out[:, 0]
