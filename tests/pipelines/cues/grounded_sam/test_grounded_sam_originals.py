"""The adapters for the original packages, against stand-ins with the packages' own signatures."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.originals import (
    OriginalGroundingDino,
    check_operator,
    in_float32,
    package,
    sam_from_checkpoint,
)
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.weights import WeightsError

Picture = Callable[..., np.ndarray]
CPU = Runtime("cpu")


class FakeSam(torch.nn.Module):
    """Draws the box it is given, by the calls that segment_anything's Sam offers."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = FakeEncoder()
        self.prompt_encoder = FakePrompts()

    def mask_decoder(self, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        assert set(given) == {
            "image_embeddings",
            "image_pe",
            "sparse_prompt_embeddings",
            "dense_prompt_embeddings",
            "multimask_output",
        }
        assert given["multimask_output"] is False
        assert given["image_embeddings"].shape == (1, 4, 64, 64)
        boxes = given["sparse_prompt_embeddings"]
        centres = torch.arange(256) * 4 + 2.0
        across = torch.minimum(centres - boxes[:, :1], boxes[:, 2:3] - centres)
        down = torch.minimum(centres - boxes[:, 1:2], boxes[:, 3:] - centres)
        return torch.minimum(across[:, None, None, :], down[:, None, :, None]), torch.full((len(boxes), 1), 0.75)


class FakeEncoder(torch.nn.Module):
    img_size = 1024

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 64, 64, 768))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[1:] == (3, 1024, 1024)
        return torch.zeros(len(pixels), 4, 64, 64)


class FakePrompts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.randn(2, 4))

    def forward(self, points: None, boxes: torch.Tensor, masks: None) -> tuple[torch.Tensor, torch.Tensor]:
        return boxes, torch.zeros(len(boxes), 4, 64, 64)

    def get_dense_pe(self) -> torch.Tensor:
        return torch.zeros(1, 4, 64, 64)


@pytest.fixture
def fake_sam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the package, and a checkpoint for it."""
    module = ModuleType("segment_anything")
    module.sam_model_registry = {"vit_b": lambda checkpoint: FakeSam()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "segment_anything", module)
    torch.save(FakeSam().state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def test_masks_of_segment_anything_lie_where_the_boxes_are(fake_sam: Path, picture: Picture) -> None:
    segmenter = sam_from_checkpoint(fake_sam, CPU)
    boxes = np.array([[10, 12, 46, 40], [60, 0, 90, 30]], float)
    masks, quality = segmenter([picture(0)], [boxes], (60, 90))[0]
    assert quality.tolist() == [0.75, 0.75]
    for mask, box in zip(masks, boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == box.tolist()


def test_a_file_of_something_else_is_told(fake_sam: Path, tmp_path: Path) -> None:
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 7)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not a checkpoint of segment-anything"):
        sam_from_checkpoint(tmp_path / "other.pth", CPU)
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 32, 32, 768)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="does not fit the network"):
        sam_from_checkpoint(tmp_path / "other.pth", CPU)
    state = FakeSam().state_dict()
    del state["prompt_encoder.places"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"lacks 1 weights of the network \(prompt_encoder.places"):
        sam_from_checkpoint(tmp_path / "other.pth", CPU)


def test_a_package_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    monkeypatch.setitem(sys.modules, "groundingdino.models", None)
    with pytest.raises(WeightsError, match=r"pip install segment-anything torchvision"):
        sam_from_checkpoint(tmp_path / "sam.pth", CPU)
    (tmp_path / "lame.py").write_text("import not_here_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="lame is here, but needs not_here_at_all"):
        package("lame", "")
    (tmp_path / "broken.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(WeightsError, match=r"broken is here, but cannot be imported: operator torchvision::nms"):
        package("broken", "")


class FakeDino(torch.nn.Module):
    """Three queries with fixed answers, by the call that groundingdino's model offers."""

    max_text_len = 16

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__()
        assert settings.device == "cpu"
        self.first = torch.nn.Conv2d(3, 96, 4)
        self.register_buffer("only_here", torch.arange(3))
        self.text_encoder = settings.text_encoder_type

    def load_state_dict(self, state: dict[str, torch.Tensor], strict: bool = True) -> Any:
        state = {key.replace("backbone.0.patch_embed.proj", "first"): value for key, value in state.items()}
        return super().load_state_dict(state, strict=strict)

    def tokenizer(self, text: str, return_offsets_mapping: bool) -> dict[str, list[tuple[int, int]]]:
        assert text == "car. fire truck."
        return {"offset_mapping": [(0, 0), (0, 3), (3, 4), (5, 9), (10, 15), (15, 16), (0, 0)]}

    def forward(self, pixels: torch.Tensor, captions: list[str]) -> dict[str, torch.Tensor]:
        assert captions == ["car. fire truck."] * len(pixels)
        assert pixels.shape[1:] == (3, 800, 1200)
        logits = torch.full((len(pixels), 3, 16), -torch.inf)
        logits[:, 0, 1] = 2.0
        logits[:, 1, 3:5] = torch.tensor([1.0, 0.5])
        logits[:, 2, 3] = 3.0  # "fire" alone
        boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.4, 0.2], [0.5, 0.5, 1, 1]])
        return {"pred_logits": logits, "pred_boxes": boxes.expand(len(pixels), -1, -1)}


def test_groundingdino_s_answers_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picture: Picture) -> None:
    models, config = ModuleType("groundingdino.models"), ModuleType("groundingdino.util.slconfig")
    models.__file__ = str(tmp_path / "groundingdino" / "models" / "__init__.py")
    models.build_model = FakeDino  # type: ignore[attr-defined]
    asked = []
    read = SimpleNamespace(fromfile=lambda path: asked.append(path) or SimpleNamespace())
    config.SLConfig = read  # type: ignore[attr-defined]
    for module in (ModuleType("groundingdino"), ModuleType("groundingdino.util"), models, config):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    weights = torch.zeros(96, 3, 4, 4)
    state = {"module.backbone.0.patch_embed.proj.weight": weights, "module.first.bias": torch.zeros(96)}
    torch.save({"model": state}, tmp_path / "dino.pth")
    prompts = Prompts.of({"car": ["car"], "truck": ["fire truck"]}, ("truck", "car"))
    rule = DetectionRule()

    def load() -> OriginalGroundingDino:
        bert = tmp_path / "bert"
        return OriginalGroundingDino(tmp_path / "dino.pth", bert, prompts, np.full(2, 0.3), rule, CPU)

    detector = load()
    assert asked == [str(tmp_path / "groundingdino" / "config" / "GroundingDINO_SwinT_OGC.py")]
    assert detector.model.text_encoder == str(tmp_path / "bert"), "a folder, so that nothing is fetched"
    for found in detector([picture(0), picture(1)]):
        assert found.prompts.tolist() == [0, 1]
        np.testing.assert_allclose(found.scores, torch.tensor([2.0, 1.0]).sigmoid().numpy())
        np.testing.assert_allclose(found.boxes, [[36, 18, 54, 42], [0, 0, 27, 12]], atol=1e-4)
    del state["module.first.bias"]
    torch.save({"model": state}, tmp_path / "dino.pth")
    with pytest.raises(WeightsError, match=r"lacks 1 weights of the network \(first.bias"):
        load()
    state["module.first.bias"] = torch.zeros(96)
    torch.save({"model": state}, tmp_path / "dino.pth")

    def outdated(settings: SimpleNamespace) -> None:
        raise AttributeError("'BertModel' object has no attribute 'get_head_mask'")

    models.build_model = outdated  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match=r"with the text encoder .*bert: 'BertModel' .* transformers<5"):
        load()


def test_the_compiled_operator_is_asked_for_and_gets_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    operators = ModuleType("groundingdino.models.GroundingDINO.ms_deform_attn")
    monkeypatch.setitem(sys.modules, operators.__name__, operators)
    with pytest.raises(WeightsError, match="without its compiled operator"):
        check_operator()
    operators._C = object()  # type: ignore[attr-defined]
    check_operator()
    layer = torch.nn.Linear(3, 2)
    exact = in_float32(lambda value, shapes: (layer(value), shapes), "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(1, 3)).dtype == torch.bfloat16
        out, shapes = exact(torch.ones(1, 3, dtype=torch.bfloat16), shapes=torch.tensor([[4, 6]]))
    assert out.dtype == torch.float32
    assert shapes.dtype == torch.int64
