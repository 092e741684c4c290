"""SAM 3 through transformers: one noun in, all its instances out; detector and segmenter in one model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from pipelines.cues.grounded_sam.boxes import clip_boxes
from pipelines.cues.grounded_sam.finder import BoxRule
from pipelines.cues.grounded_sam.folders import ModelFolder
from pipelines.cues.grounded_sam.pixels import chunks, normalised, resized, stack_images, upsampled
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.records import Candidates, Detections, Image
from pipelines.cues.grounded_sam.runtime import Runtime

MEAN = STD = (0.5, 0.5, 0.5)
LONGEST_PROMPT = 32
"""Tokens; the model was trained on prompts padded to this length."""


class Sam3:
    """A MaskFinder from a model folder. An image is encoded once, whatever the number of prompts."""

    def __init__(
        self, folder: Path, prompts: Prompts, least: Float[np.ndarray, " prompts"], boxes: BoxRule, runtime: Runtime
    ) -> None:
        """Loads the model; `least` is the least score by prompt. Raises WeightsError."""
        files = ModelFolder.open(folder)
        name = files.expect({"sam3": "Sam3Model", "sam3_video": "Sam3Model"})
        self.prompts, self.least, self.boxes, self.runtime = prompts, least, boxes, runtime
        self.device = runtime.torch_device
        self.model = files.model(name, self.device)
        tokenizer = files.tokenizer()
        self.texts = [
            tokenizer(text, padding="max_length", max_length=LONGEST_PROMPT, truncation=True, return_tensors="pt")
            for text in prompts.texts
        ]
        side = self.model.config.vision_config.image_size
        self.size = (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))
        told = files.preprocessing
        self.mean, self.std = told.get("image_mean", MEAN), told.get("image_std", STD)

    def __call__(self, images: Sequence[Image], size: tuple[int, int]) -> list[Candidates]:
        """See MaskFinder."""
        found: list[Candidates] = []
        for batch in chunks(images, self.runtime.images):
            pixels = stack_images(batch, self.device)
            shown = (pixels.shape[-2], pixels.shape[-1])
            with self.runtime.networks():
                seen = self.model.get_vision_features(normalised(resized(pixels, self.size), self.mean, self.std))
            answers = [self._answers(seen, len(batch), p, shown) for p in range(len(self.texts))]
            found += [self._candidates([own[k] for own in answers], shown, size) for k in range(len(batch))]
        return found

    def _answers(
        self, seen: object, count: int, prompt: int, shown: tuple[int, int]
    ) -> list[tuple[Detections, Float[torch.Tensor, "n h w"]]]:
        """Boxes above the threshold and their mask logits, for each image of the batch."""
        text = self.texts[prompt]
        inputs = {key: text[key].to(self.device).expand(count, -1) for key in ("input_ids", "attention_mask")}
        with self.runtime.networks():
            out = self.model(vision_embeds=seen, **inputs)
        # Whether the noun is there at all, times whether this query is one of them.
        scores = out.pred_logits.float().sigmoid() * out.presence_logits.float().sigmoid()
        scale = np.array([shown[1], shown[0], shown[1], shown[0]], np.float64)
        answers = []
        for k in range(count):
            boxes, valid = clip_boxes(out.pred_boxes[k].float().cpu().numpy() * scale, shown)
            score = scores[k].cpu().numpy().astype(np.float64)
            kept = np.flatnonzero(valid & (score >= self.least[prompt]))
            found = Detections(boxes[kept], score[kept], np.full(len(kept), prompt, np.int64))
            answers.append((found, out.pred_masks[k, kept].float()))
        return answers

    def _candidates(
        self,
        answers: Sequence[tuple[Detections, Float[torch.Tensor, "n h w"]]],
        shown: tuple[int, int],
        size: tuple[int, int],
    ) -> Candidates:
        found = Detections.join([one for one, _ in answers])
        logits = torch.cat([masks for _, masks in answers])
        kept = self.boxes.choose(found, self.prompts, shown)
        chosen = found.take(kept)
        with torch.inference_mode():
            parts = [
                (upsampled(part, size) > 0).cpu().numpy() for part in torch.split(logits[kept], self.runtime.boxes)
            ]
        masks = np.concatenate([np.zeros((0, *size), bool), *parts])
        return Candidates(masks, chosen.scores, self.prompts.class_of(chosen.prompts))
