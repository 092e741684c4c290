"""The package groundingdino with random weights, saved as the official file is: ours against its own `predict`."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.originals import OriginalGroundingDino
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.weights import WeightsError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # upstream's own warnings

Picture = Callable[..., np.ndarray]
PROMPTS = Prompts.of(
    {
        "car": ["car", "van"],
        "truck": ["truck"],
        "construction_vehicle": ["construction vehicle"],
        "pedestrian": ["person", "pedestrian"],
    },
    ("car", "truck", "construction_vehicle", "pedestrian"),
)
PIECES = {"pedestrian": ("pedes", "trian")}
"""A word of several tokens is met by its best; the phrase joins what there is of it, even to another word."""
EDGES = (320, 533)
RULE = DetectionRule(score=0.3, word=0.25, shortest=EDGES[0], longest=EDGES[1])
BATCH = (320, 480)
"""Height and width at which the network sees an image as it is."""


@pytest.fixture(scope="module")
def upstream() -> SimpleNamespace:
    """The package's modules."""
    reason = "the packages groundingdino (with what it needs), torchvision and transformers<5 are installed by the user"
    models = pytest.importorskip("groundingdino.models", reason=reason, exc_type=ImportError)
    transformers = pytest.importorskip("transformers", reason=reason)
    if int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip(f"groundingdino needs transformers<5, here is {transformers.__version__}")
    return SimpleNamespace(
        models=models,
        transformers=transformers,
        inference=pytest.importorskip("groundingdino.util.inference", reason=reason, exc_type=ImportError),
        transforms=pytest.importorskip("groundingdino.datasets.transforms", reason=reason, exc_type=ImportError),
        config=Path(models.__file__).parents[1] / "config" / "GroundingDINO_SwinT_OGC.py",
    )


@pytest.fixture(scope="module")
def official(
    upstream: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str]
) -> SimpleNamespace:
    """Swin-T at its full size (`file`), BERT with a small vocabulary (`bert`), and a `config` that names it."""
    folder = tmp_path_factory.mktemp("weights")
    bert = folder / "bert"
    torch.manual_seed(0)
    size = upstream.transformers.BertConfig(vocab_size=len(vocabulary))
    upstream.transformers.BertForPreTraining(size).save_pretrained(bert)
    (bert / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (bert / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    config = folder / "config.py"
    config.write_text(upstream.config.read_text().replace('"bert-base-uncased"', repr(str(bert))))
    settings = upstream.inference.SLConfig.fromfile(str(config))
    settings.device = "cpu"
    network = upstream.models.build_model(settings)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and not name.startswith("bert"):
                weight.normal_(std=weight[0].numel() ** -0.5)
        # Logits of a few units: at fresh weights' tens every score is 0 or 1.
        network.transformer.decoder.norm.weight.fill_(0.1)
    state = {f"module.{name}": weight for name, weight in network.state_dict().items()}
    state["module.label_enc.weight"] = torch.zeros(2001, 256)  # in the official file, of no use here
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state}, folder / "dino_own.pth")
    return SimpleNamespace(file=folder / "dino_own.pth", bert=bert, config=config)


@pytest.fixture
def reference(upstream: SimpleNamespace, official: SimpleNamespace) -> Any:
    """The model as upstream loads it."""
    return upstream.inference.load_model(str(official.config), str(official.file), "cpu")


def load(official: SimpleNamespace, precision: Any = "float32", **changed: Path) -> OriginalGroundingDino:
    files = {"file": official.file, "text_encoder": official.bert} | changed
    least = np.full(len(PROMPTS.texts), RULE.score)
    return OriginalGroundingDino(
        **files, prompts=PROMPTS, least=least, rule=RULE, runtime=Runtime("cpu", precision=precision)
    )


def transformed(upstream: SimpleNamespace, image: np.ndarray) -> torch.Tensor:
    """The image as upstream shows it to its model, which is smaller here."""
    from PIL import Image

    from pipelines.cues.grounded_sam.pixels import IMAGENET_MEAN, IMAGENET_STD

    steps = upstream.transforms
    resize = steps.RandomResize([EDGES[0]], max_size=EDGES[1])
    chain = steps.Compose([resize, steps.ToTensor(), steps.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    return chain(Image.fromarray(image), None)[0]


def test_the_model_sees_and_says_what_upstreams_does(
    upstream: SimpleNamespace, official: SimpleNamespace, reference: Any, picture: Picture
) -> None:
    detector = load(official)
    seen, answered, ask = [], [], detector.outputs

    def record(text: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(pixels)
        answered.append(ask(text, pixels))
        return answered[-1]

    detector.outputs = record  # type: ignore[method-assign]
    caption = detector.texts[0].caption.text
    assert caption == "car. van. truck. construction vehicle. person. pedestrian."
    for size in (BATCH, (450, 800), (900, 1600)):
        detector([picture(size[0], *size)])
        expected = transformed(upstream, picture(size[0], *size))
        # Levels of 1 / 255 over a deviation of 0.225 or so.
        steps = (seen[-1][0] - expected).abs() * 255 * 0.224
        assert steps.max() < 1.1
        assert (steps > 0.5).float().mean() < 0.01
        with torch.no_grad():
            out = reference(seen[-1], captions=[caption])
        logits, boxes = answered[-1]
        assert boxes.std() > 0.1
        torch.testing.assert_close(logits, out["pred_logits"], atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes, out["pred_boxes"], atol=1e-4, rtol=0)
    assert torch.equal(seen[0][0], transformed(upstream, picture(BATCH[0], *BATCH))), "not resized"


def test_prompts_are_the_phrases_that_upstream_reads(
    upstream: SimpleNamespace, official: SimpleNamespace, reference: Any, picture: Picture
) -> None:
    detector, image = load(official), picture(5, *BATCH)
    # Random weights favour one word everywhere: both models are given the same doubts.
    doubts = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (900, 256)).astype(np.float32))
    for network in (detector.model, reference):
        network.register_forward_hook(lambda _, given, out: out | {"pred_logits": out["pred_logits"] + doubts})
    found, asked = detector([image])[0], detector.texts[0]
    pixels, caption = transformed(upstream, image), asked.caption.text
    with torch.no_grad():
        scores = reference(pixels[None], captions=[caption])["pred_logits"].sigmoid()[0]
    scores = scores[scores.max(dim=1)[0] > RULE.score]

    def told(split: bool) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        return upstream.inference.predict(reference, pixels, caption, RULE.score, RULE.word, "cpu", split)

    boxes, best, phrases = told(split=True)
    joined = told(split=False)[2]
    extent = np.array([BATCH[1], BATCH[0]] * 2)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1) * extent
    corners = np.clip(corners, 0, extent)
    rows = np.abs(found.boxes[:, None] - corners[None]).max(axis=2).argmin(axis=1)
    np.testing.assert_allclose(found.boxes, corners[rows], atol=1e-2)
    assert len(set(rows)) == len(rows)
    ours = dict(zip(rows.tolist(), found.prompts.tolist(), strict=True))
    for row, prompt in ours.items():
        for word in PROMPTS.texts[prompt].split():
            assert any(piece in joined[row] for piece in PIECES.get(word, (word,))), (word, joined[row])
    np.testing.assert_array_less(found.scores, best[rows].numpy() + 1e-4)
    # Where the best token is the noun of a one-word prompt, upstream's split phrase is that prompt, and so is ours.
    nouns = {token: prompt for prompt, words in enumerate(asked.words) if len(words) == 1 for token in words[0]}
    sure = {row: nouns[token] for row, token in enumerate(scores.argmax(dim=1).tolist()) if token in nouns}
    agreed = [row for row, prompt in sure.items() if phrases[row] == PROMPTS.texts[prompt]]
    assert len(agreed) > 50
    assert {sure[row] for row in agreed} == set(nouns.values())
    assert all(ours[row] == sure[row] for row in agreed)


def test_in_bfloat16_the_compiled_operator_still_gets_float32(official: SimpleNamespace, picture: Picture) -> None:
    detector, kinds = load(official, "bfloat16"), []
    for module in detector.model.modules():
        if type(module).__name__ == "MultiScaleDeformableAttention":
            module.value_proj.register_forward_hook(lambda module, given, out: kinds.append(out.dtype))
    found = detector([picture(1, *BATCH)])
    assert kinds == [torch.float32] * 12, "six layers of the encoder, six of the decoder"
    assert all(np.isfinite(one.scores).all() for one in found)


def test_what_is_cut_off_is_told(official: SimpleNamespace, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(official.file.read_bytes()[: official.file.stat().st_size // 2])
    with pytest.raises(WeightsError, match="cut off"):
        load(official, file=cut)
    bert = tmp_path / "bert"
    bert.mkdir()
    for file in official.bert.iterdir():
        (bert / file.name).write_bytes(file.read_bytes()[:1000000])
    with pytest.raises(WeightsError, match=r"cannot be built with the text encoder .*bert"):
        load(official, text_encoder=bert)
