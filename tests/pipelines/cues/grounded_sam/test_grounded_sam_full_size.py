"""The architectures at the published sizes, random weights, saved and loaded again: memory and shapes hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.finder import BoxRule, GroundedSam
from pipelines.cues.grounded_sam.grounding_dino import GroundingDino
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.regions import MaskRule, sort_out
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.sam import sam_from_folder

transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")

PROMPTS = Prompts(("car", "van", "truck", "person"), (0, 0, 1, 2))


def save(model: Any, folder: Path) -> int:
    """Write a model folder; how many parameters it has."""
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("segmenter", ["sam", "sam2"])
def test_one_nuscenes_image_through_full_size_models(
    segmenter: str, tmp_path: Path, vocabulary: list[str], picture: Callable[..., np.ndarray]
) -> None:
    torch.manual_seed(0)
    swin = transformers.SwinConfig(out_indices=[2, 3, 4])
    config = transformers.GroundingDinoConfig(backbone_config=swin.to_dict())
    assert save(transformers.GroundingDinoForObjectDetection(config), tmp_path / "dino") > 170e6
    tokens = vocabulary + [f"[more{k}]" for k in range(30522 - len(vocabulary))]
    (tmp_path / "dino" / "vocab.txt").write_text("\n".join(tokens) + "\n")
    transformers.BertTokenizerFast(vocab=str(tmp_path / "dino" / "vocab.txt"), do_lower_case=True).save_pretrained(
        tmp_path / "dino"
    )
    if segmenter == "sam":
        # At the default of 1e-10 activations are denormal numbers, on which a CPU takes minutes.
        config = transformers.SamConfig(vision_config={"initializer_range": 0.02})
        assert save(transformers.SamModel(config), tmp_path / "seg") > 93e6
    else:
        assert save(transformers.Sam2Model(transformers.Sam2Config()), tmp_path / "seg") > 31e6
    runtime, rule = Runtime("cpu", boxes=4), DetectionRule(score=0.0, word=0.0)
    detector = GroundingDino(tmp_path / "dino", PROMPTS, np.zeros(4), rule, runtime)
    finder = GroundedSam(
        detector, sam_from_folder(tmp_path / "seg", runtime), PROMPTS, BoxRule(most=6), least_quality=-np.inf
    )
    found = finder([picture(0, 512, 1408)], (512, 1408))[0]
    assert found.masks.shape == (6, 512, 1408)
    assert np.isfinite(found.scores).all()
    out = sort_out(found, MaskRule())
    assert out.labels.max() == len(out.scores)
