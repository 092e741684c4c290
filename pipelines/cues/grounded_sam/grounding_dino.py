"""GroundingDINO through transformers: boxes that answer to words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pipelines.cues.grounded_sam.caption_detector import Asked, CaptionDetector
from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.folders import ModelFolder
from pipelines.cues.grounded_sam.prompts import Caption, Prompts, captions
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.weights import WeightsError

SPECIAL_TOKENS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Token ids at which the model splits a caption into phrases, fixed in its code whatever the vocabulary says."""


class GroundingDino(CaptionDetector["_Encoded"]):
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
        model = files.model(name, runtime.torch_device)
        tokenizer = files.tokenizer()
        _check_vocabulary(tokenizer, folder)
        texts = [_Encoded.of(c, tokenizer, model.config.max_text_len) for c in captions(prompts, rule.joint)]
        super().__init__(model, texts, least, rule, runtime)
        told = files.preprocessing
        edges = told.get("size") or {}
        self.edges = (
            rule.shortest or int(edges.get("shortest_edge", self.edges[0])),
            rule.longest or int(edges.get("longest_edge", self.edges[1])),
        )
        self.mean = told.get("image_mean", self.mean)
        self.std = told.get("image_std", self.std)

    def outputs(self, text: "_Encoded", pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See CaptionDetector."""
        inputs = {key: value.to(self.device).expand(len(pixels), -1) for key, value in text.inputs.items()}
        out = self.model(pixel_values=pixels, **inputs)
        return out.logits, out.pred_boxes


@dataclass(frozen=True)
class _Encoded(Asked):
    """A caption as the text encoder reads it."""

    inputs: dict[str, torch.Tensor]

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
        return cls(caption, caption.word_tokens(offsets), inputs)


def _check_vocabulary(tokenizer: Any, folder: Path) -> None:
    for token, expected in SPECIAL_TOKENS.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != expected:
            raise WeightsError(
                f"{folder}: the tokenizer has {token!r} at {found}, but GroundingDINO splits its captions at "
                f"{expected}: use the vocabulary that came with the weights (BERT's, uncased)"
            )
