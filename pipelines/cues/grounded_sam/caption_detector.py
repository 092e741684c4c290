"""A detector that is asked by captions: images in batches, every caption of each batch, boxes of all of them joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from pipelines.cues.grounded_sam.detection import DetectionRule, TokenScores, read_boxes
from pipelines.cues.grounded_sam.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    chunks,
    edge_limited,
    normalised,
    resized,
    stack_images,
)
from pipelines.cues.grounded_sam.prompts import Caption
from pipelines.cues.grounded_sam.records import Detections, Image
from pipelines.cues.grounded_sam.runtime import Runtime


@dataclass(frozen=True)
class Asked:
    """A caption, and of each of its prompts the tokens of every word."""

    caption: Caption
    words: list[list[list[int]]]


AskedT = TypeVar("AskedT", bound=Asked)


class CaptionDetector(Generic[AskedT]):
    """A Detector; whoever loads a network says in `outputs` how it is called.

    Attributes:
        model: the network. texts: what it is asked. least: threshold of each prompt.
        edges: bounds of the shorter and of the longer edge of what the network sees, pixels.
        mean, std: of the pixels (0..1) that it was trained on, by channel.
    """

    def __init__(
        self,
        model: Any,
        texts: Sequence[AskedT],
        least: Float[np.ndarray, " prompts"],
        rule: DetectionRule,
        runtime: Runtime,
    ) -> None:
        self.model, self.texts = model, list(texts)
        self.least, self.rule, self.runtime = least, rule, runtime
        self.device = runtime.torch_device
        self.edges = (rule.shortest or 800, rule.longest or 1333)
        self.mean: Sequence[float] = IMAGENET_MEAN
        self.std: Sequence[float] = IMAGENET_STD

    def outputs(
        self, text: AskedT, pixels: Float[torch.Tensor, "n 3 h w"]
    ) -> tuple[Float[torch.Tensor, "n queries tokens"], Float[torch.Tensor, "n queries 4"]]:
        """Logits of every token for every query, and the queries' boxes (see TokenScores)."""
        raise NotImplementedError

    def __call__(self, images: Sequence[Image]) -> list[Detections]:
        """See Detector."""
        found = []
        for batch in chunks(images, self.runtime.images):
            pixels = stack_images(batch, self.device)
            size = (pixels.shape[-2], pixels.shape[-1])
            pixels = normalised(resized(pixels, edge_limited(size, *self.edges)), self.mean, self.std)
            parts = [self._answers(text, pixels, size) for text in self.texts]
            found += [Detections.join(answers) for answers in zip(*parts, strict=True)]
        return found

    def _answers(self, text: AskedT, pixels: torch.Tensor, size: tuple[int, int]) -> list[Detections]:
        with self.runtime.networks():
            logits, places = self.outputs(text, pixels)
        scores, boxes = logits.float().sigmoid().cpu().numpy(), places.float().cpu().numpy()
        return [
            read_boxes(TokenScores(s, b), text.caption, text.words, self.least, self.rule, size)
            for s, b in zip(scores, boxes, strict=True)
        ]
