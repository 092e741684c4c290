"""SAM 3, small, with random weights: a noun at a time, every image encoded once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.cues.grounded_sam.boxes import OwnCarRule
from pipelines.cues.grounded_sam.finder import BoxRule
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.sam3 import Sam3

transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")

Picture = Callable[..., np.ndarray]
PROMPTS = Prompts(("car", "bus", "person"), (0, 2, 1))
EVERYTHING = BoxRule(nms=1.0, own_car=OwnCarRule(width=1.1, area=1.1), most=1000)


def finder(folder: Path, least: float, boxes: BoxRule = EVERYTHING, runtime: Runtime | None = None) -> Sam3:
    return Sam3(folder, PROMPTS, np.full(3, least), boxes, runtime or Runtime("cpu"))


def by_hand(folder: Path, image: np.ndarray, size: tuple[int, int]) -> list[tuple[float, int, np.ndarray]]:
    """(score, class, mask) of every query and noun, one forward pass each, from a square image."""
    model = transformers.Sam3Model.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = torch.tensor((image / 255 - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]
    found = []
    for noun, kind in zip(PROMPTS.texts, PROMPTS.classes, strict=True):
        text = tokenizer(noun, padding="max_length", max_length=32, return_tensors="pt")
        assert text["attention_mask"].sum() == len(noun) + 2
        with torch.no_grad():
            out = model(pixel_values=pixels, input_ids=text["input_ids"], attention_mask=text["attention_mask"])
        scores = (out.pred_logits.sigmoid() * out.presence_logits.sigmoid())[0]
        masks = torch.nn.functional.interpolate(out.pred_masks, size, mode="bilinear")[0] > 0
        found += [(float(s), kind, m.numpy()) for s, m in zip(scores, masks, strict=True)]
    return sorted(found, key=lambda entry: -entry[0])


def test_candidates_are_those_of_single_passes(sam3_folder: Path, picture: Picture) -> None:
    image, size = picture(0, 56, 56), (40, 40)
    expected = by_hand(sam3_folder, image, size)
    scores = np.array([score for score, _, _ in expected])
    assert scores.max() > scores.min() + 0.02, "the random model tells queries apart"
    # A threshold in the widest gap between scores, so that rounding does not decide.
    gap = int(np.argmax(scores[5:-5] - scores[6:-4])) + 5
    found = finder(sam3_folder, (scores[gap] + scores[gap + 1]) / 2)([image], size)[0]
    assert len(found.scores) == gap + 1
    np.testing.assert_allclose(found.scores, scores[: gap + 1], atol=1e-4)
    assert sorted(found.classes) == sorted(kind for _, kind, _ in expected[: gap + 1])
    for score, kind, mask in zip(found.scores, found.classes, found.masks, strict=True):
        near = [m for s, k, m in expected if k == kind and abs(s - score) < 2e-4]
        assert min((mask != m).mean() for m in near) < 2e-3


def test_batches_change_nothing_and_images_are_encoded_once(
    sam3_folder: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [picture(k) for k in range(3)]
    batched = finder(sam3_folder, 0.0, runtime=Runtime("cpu", images=2, boxes=5))
    seen = []
    encode = batched.model.get_vision_features
    monkeypatch.setattr(batched.model, "get_vision_features", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    together = batched(images, (30, 45))
    assert seen == [2, 1]
    for image, found in zip(images, together, strict=True):
        alone = finder(sam3_folder, 0.0)([image], (30, 45))[0]
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        assert found.masks.shape == alone.masks.shape
        assert (found.masks != alone.masks).mean() < 0.01


def test_nothing_above_the_threshold_is_no_candidate(sam3_folder: Path, picture: Picture) -> None:
    found = finder(sam3_folder, 1.0, BoxRule())([picture(0)], (30, 45))[0]
    assert found.masks.shape == (0, 30, 45)
    assert found.classes.dtype == np.int64


def test_box_rules_hold_for_it_too(sam3_folder: Path, picture: Picture) -> None:
    few = finder(sam3_folder, 0.0, BoxRule(nms=1.0, own_car=OwnCarRule(1.1, 1.1), most=4))([picture(1)], (30, 45))[0]
    everything = finder(sam3_folder, 0.0)([picture(1)], (30, 45))[0]
    np.testing.assert_allclose(few.scores, everything.scores[:4])
