"""Where and how the models run: device, precision and batches. PyTorch is imported when it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.cues.devices import pick_device
from pipelines.cues.ranges import check_numbers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runtime:
    """Device, precision and how much is in memory at once; the batches do not change what is found.

    Attributes:
        device: "auto" (the GPU where there is one), "cpu", "cuda", "cuda:1".
        precision: of the large networks. "auto" is bfloat16 on a GPU and float32 elsewhere. Boxes, scores and masks are
            decided in float32 whatever it is.
        images: images (or tiles) in one forward pass.
        boxes: boxes in one pass of the mask decoder. A mask in the making takes 8 bytes a pixel.
    """

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    images: int = 6
    boxes: int = 32

    def __post_init__(self) -> None:
        check_numbers(self, least={"images": 1, "boxes": 1})

    @property
    def torch_device(self) -> "torch.device":
        """The device itself. ConfigError for a GPU that is not there."""
        return pick_device(self.device)

    @contextmanager
    def networks(self) -> Iterator[None]:
        """For the forward pass of a large network: no gradients, matrix products in the chosen precision."""
        import torch

        device = self.torch_device
        half = self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            yield
