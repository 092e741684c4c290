"""What tells a good flow from a bad one without labels: census difference, smoothness, and agreement with a teacher.

Images are RGB in 0..1; flow is (u, v) in pixels. Every loss is a mean per pixel that counts.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from pipelines.cues.unimatch.matching import warp

Images = Float[Tensor, "n 3 h w"]
Flow = Float[Tensor, "n 2 h w"]

GREY = (0.2989, 0.5870, 0.1140)


def masked_mean(values: Float[Tensor, "n 1 h w"], mask: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, ""]:
    """Mean where `mask` holds; 0, with a gradient of 0, where it holds nowhere."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def census(images: Images, patch: int = 7) -> Float[Tensor, "n window h w"]:
    """Soft signs in -1..1 of how each pixel of a patch differs from its middle: light and shade drop out."""
    grey = (images * images.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True) * 255
    around = rearrange(F.unfold(grey, patch, padding=patch // 2), "n k (h w) -> n k h w", h=grey.shape[-2])
    difference = around - grey
    return difference / torch.sqrt(0.81 + difference**2)


def census_difference(first: Images, second: Images, patch: int = 7) -> Float[Tensor, "n 1 h w"]:
    """Soft Hamming distance of the census of two images, 0..patch^2."""
    squared = (census(first, patch) - census(second, patch)) ** 2
    return (squared / (0.1 + squared)).sum(1, keepdim=True)


def photometric_loss(
    first: Images, second: Images, flow: Flow, visible: Bool[Tensor, "n 1 h w"], patch: int = 7
) -> Float[Tensor, ""]:
    """Census difference between `first` and `second` brought back by `flow`, where `visible`.

    `visible` is a given: no gradient asks the flow to hide what does not match. Patches that reach beyond the image do
    not count.
    """
    difference = census_difference(first, warp(second, flow, padding="border"), patch)
    robust = (difference + 0.01) ** 0.4
    edge = patch // 2
    inner = torch.zeros_like(visible)
    inner[..., edge:-edge, edge:-edge] = True
    return masked_mean(robust, visible & inner)


def smoothness_loss(images: Images, flow: Flow, order: int = 2, edge_weight: float = 150.0) -> Float[Tensor, ""]:
    """Absolute first or second differences of a flow, less where the image changes (exp(-edge_weight |difference|)).

    Meant for the flow before upsampling: `images` are averaged down to its size.
    """
    small = F.interpolate(images, size=flow.shape[-2:], mode="area")
    total = flow.new_zeros(())
    for axis in (-1, -2):
        bend = flow.diff(n=order, dim=axis)
        # Over the same pixels: a first difference spans two of them, a second three.
        length = small.shape[axis] - order
        edge = small.narrow(axis, order, length) - small.narrow(axis, 0, length)
        weight = torch.exp(-edge_weight * edge.abs().mean(1, keepdim=True))
        total = total + (weight * torch.sqrt(bend**2 + 1e-6)).mean()
    return total / 2


def teacher_loss(student: Flow, teacher: Flow, counts: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, ""]:
    """Distance of the student's flow from the teacher's (a given), where it counts."""
    distance = torch.sqrt(((student - teacher.detach()) ** 2).sum(1, keepdim=True) + 1e-6)
    return masked_mean(distance, counts)
