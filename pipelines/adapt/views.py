"""Harder views of a pair for the student: cut out and enlarged to the size of the whole, flow with it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """A rectangle of an image that is enlarged to the image's size: rows top..bottom, columns left..right."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def draw(cls, height: int, width: int, margin: float, random: torch.Generator) -> "Cut":
        """One that leaves out up to `margin` of height and of width, as much on the opposite sides as chance has it."""

        def side(length: int) -> tuple[int, int]:
            lost = int(length * margin)
            before, after = torch.randint(0, lost // 2 + 1, (2,), generator=random).tolist()
            return before, length - after

        return cls(*side(height), *side(width))

    def images(self, whole: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The rectangle at the size of the whole; pixel areas are kept in place (corners not aligned)."""
        part = whole[..., self.top : self.bottom, self.left : self.right]
        return F.interpolate(part, size=whole.shape[-2:], mode="bilinear", align_corners=False)

    def flow(self, whole: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n 2 h w"]:
        """The flow inside the rectangle, in pixels of its enlargement."""
        height, width = whole.shape[-2:]
        scale = whole.new_tensor([width / (self.right - self.left), height / (self.bottom - self.top)])
        return self.images(whole) * scale.view(1, 2, 1, 1)
