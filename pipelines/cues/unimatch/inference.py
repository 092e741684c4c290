"""From images of any size to flow of that size, both ways, and how far to trust it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipelines.cues.ranges import check_numbers
from pipelines.cues.unimatch.matching import coordinates, warp
from pipelines.cues.unimatch.network import UniMatch

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class CheckRule:
    """A pixel is kept where going there and back misses by at most `tolerance + relative * (there + back)` pixels.

    `there` and `back` are the lengths of the two flows at the pixel. Upstream's values, after UnFlow.
    """

    tolerance: float = 0.5
    relative: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("tolerance",))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Convolutions and attention in half precision where asked for; matching stays in float32 (see matching)."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def fitting_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The next larger size whose sides the network can take."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def looking_size(height: int, width: int, multiple: int, least_width: int) -> tuple[int, int]:
    """`fitting_size` of an image whose longer side is enlarged to `least_width`, in the same proportion; laid on its
    side if it is tall, as the network sees it.

    Published networks were trained on 320x576 and more. Of a smaller picture they make little: KITTI's frames at
    96x320 had 3.4 px of error as they are, 0.6 px seen at 192x640.
    """
    short, long = sorted((height, width))
    scale = max(1.0, least_width / long)
    return fitting_size(round(short * scale), round(long * scale), multiple)


def flow_both_ways(
    network: UniMatch,
    first: Float[Tensor, "B 3 H W"],
    second: Float[Tensor, "B 3 H W"],
    size: tuple[int, int] | None = None,
    precision: Precision = "float32",
) -> tuple[Float[Tensor, "B 2 H W"], Float[Tensor, "B 2 H W"]]:
    """Flow first -> second and back, float32 pixels of the images given.

    The rule of upstream's `inference_flow`: images are stretched (bilinear, corner pixels kept) to the next multiple of
    the variant's step, or to `size`, and the flow is stretched back; tall images are laid on their side, as the
    networks were trained on wide ones. (Upstream leaves u and v of tall images exchanged; here they are put back.)

    Args:
        network: on the images' device.
        first, second: RGB in 0..255.
        size: (height, width) at which the network looks, multiples of `network.variant.multiple`.
        precision: of convolutions and attention.

    Raises:
        ValueError: `size` is no such multiple.
    """
    if first.shape[-2] > first.shape[-1]:
        turned = flow_both_ways(network, first.mT, second.mT, size, precision)
        return turned[0].mT.flip(1), turned[1].mT.flip(1)
    height, width = first.shape[-2:]
    inner = fitting_size(height, width, network.variant.multiple) if size is None else tuple(size)
    pair = [_stretch(image.float(), inner) for image in (first, second)]
    with autocast(first.device, precision):
        flow = network(*pair)
    scale = torch.tensor([width / inner[1], height / inner[0]], device=first.device).view(1, 2, 1, 1)
    forward, backward = (_stretch(way, (height, width)) * scale for way in (flow.forward, flow.backward))
    return forward, backward


def _stretch(image: Float[Tensor, "B c H W"], size: tuple[int, ...]) -> Float[Tensor, "B c h w"]:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=True)


def round_trip(
    forward: Float[Tensor, "B 2 H W"], backward: Float[Tensor, "B 2 H W"], rule: CheckRule
) -> tuple[Float[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """How far going there and back misses, and how far it may, in pixels.

    Ends between the outermost pixel centres and the image's edge take the edge; beyond, the miss is infinite.
    """
    miss = (forward + warp(backward, forward, padding="border")).norm(dim=1)
    bound = rule.tolerance + rule.relative * (forward.norm(dim=1) + backward.norm(dim=1))
    return torch.where(stays_inside(forward), miss, torch.inf), bound


def stays_inside(flow: Float[Tensor, "B 2 H W"]) -> Bool[Tensor, "B H W"]:
    """Whether a pixel's flow ends in the image, whose area reaches half a pixel beyond the outermost centres."""
    u, v = (coordinates(flow) + flow).unbind(1)
    height, width = flow.shape[-2:]
    return (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)


def occlusion(
    forward: Float[Tensor, "B 2 H W"], backward: Float[Tensor, "B 2 H W"], rule: CheckRule | None = None
) -> Bool[Tensor, "B H W"]:
    """Pixels of the first image that are hidden in the second, or leave it."""
    miss, bound = round_trip(forward, backward, rule or CheckRule())
    return miss > bound


def confidence(
    forward: Float[Tensor, "B 2 H W"], backward: Float[Tensor, "B 2 H W"], rule: CheckRule | None = None
) -> Float[Tensor, "B H W"]:
    """1 where going there and back returns exactly, falling linearly to 0 at the rule's bound; 0 where occluded."""
    miss, bound = round_trip(forward, backward, rule or CheckRule())
    return (1 - miss / bound).clamp(min=0)
