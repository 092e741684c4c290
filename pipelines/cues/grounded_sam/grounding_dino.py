"""GroundingDINO through transformers: boxes that answer to words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pipelines.cues.grounded_sam.detection import DetectionRule, TokenScores, read_boxes
from pipelines.cues.grounded_sam.folders import ModelFolder
from pipelines.cues.grounded_sam.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    chunks,
    edge_limited,
    normalised,
    resized,
    stack_images,
)
from pipelines.cues.grounded_sam.prompts import Caption, Prompts, captions
from pipelines.cues.grounded_sam.records import Detections, Image
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.weights import WeightsError

SPECIAL_TOKENS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Token ids at which the model splits a caption into phrases, fixed in its code whatever the vocabulary says."""


class GroundingDino:
    """A Detector from a model folder (GroundingDINO tiny or base)."""

    def __init__(
        self,
        folder: Path,
        prompts: Prompts,
        least: Float[np.ndarray, " prompts"],
        rule: DetectionRule,
        runtime: Runtime,
    ) -> None:
        """Loads the model. Raises WeightsError; ValueError for a caption that does not fit in."""
        files = ModelFolder.open(folder)
        name = files.expect({"grounding-dino": "GroundingDinoForObjectDetection"})
        self.rule, self.least, self.runtime = rule, least, runtime
        self.device = runtime.torch_device
        self.model = files.model(name, self.device)
        tokenizer = files.tokenizer()
        _check_vocabulary(tokenizer, folder)
        self.texts = [_Encoded.of(c, tokenizer, self.model.config.max_text_len) for c in captions(prompts, rule.joint)]
        told = files.preprocessing
        edges = told.get("size") or {}
        self.edges = (
            rule.shortest or int(edges.get("shortest_edge", 800)),
            rule.longest or int(edges.get("longest_edge", 1333)),
        )
        self.mean = told.get("image_mean", IMAGENET_MEAN)
        self.std = told.get("image_std", IMAGENET_STD)

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

    def _answers(self, text: "_Encoded", pixels: torch.Tensor, size: tuple[int, int]) -> list[Detections]:
        inputs = {key: value.to(self.device).expand(len(pixels), -1) for key, value in text.inputs.items()}
        with self.runtime.networks():
            out = self.model(pixel_values=pixels, **inputs)
        scores = out.logits.float().sigmoid().cpu().numpy()
        boxes = out.pred_boxes.float().cpu().numpy()
        return [
            read_boxes(TokenScores(s, b), text.caption, text.words, self.least, self.rule, size)
            for s, b in zip(scores, boxes, strict=True)
        ]


@dataclass(frozen=True)
class _Encoded:
    """A caption as the text encoder reads it."""

    caption: Caption
    inputs: dict[str, torch.Tensor]
    words: list[list[list[int]]]

    @classmethod
    def of(cls, caption: Caption, tokenizer: Any, longest: int) -> "_Encoded":
        encoded = tokenizer(
            caption.text,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_token_type_ids=True,
            truncation=True,
            max_length=longest,
        )
        offsets = [(int(a), int(b)) for a, b in encoded["offset_mapping"][0]]
        inputs = {key: encoded[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        return cls(caption, inputs, caption.word_tokens(offsets))


def _check_vocabulary(tokenizer: Any, folder: Path) -> None:
    for token, expected in SPECIAL_TOKENS.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != expected:
            raise WeightsError(
                f"{folder}: the tokenizer has {token!r} at {found}, but GroundingDINO splits its captions at "
                f"{expected}: use the vocabulary that came with the weights (BERT's, uncased)"
            )
