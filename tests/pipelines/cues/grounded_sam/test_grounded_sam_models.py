"""The real architectures, small, with random weights: what the adapters make of them against the library's own way."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.grounding_dino import GroundingDino
from pipelines.cues.grounded_sam.pixels import edge_limited, longest_edge, resized, stack_images
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.sam import BoxSegmenter, sam_from_folder
from pipelines.weights import WeightsError

transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")

Picture = Callable[..., np.ndarray]
CPU = Runtime(device="cpu")
PROMPTS = Prompts.of({"car": ["car", "van"], "construction": ["construction vehicle"]}, ("car", "construction"))
LOW = DetectionRule(score=0.0, word=0.0)
BOXES = np.array([[10, 10, 50, 40], [0, 0, 90, 60], [60.5, 20.25, 80, 59]], float)


def detector(
    folder: Path, rule: DetectionRule = LOW, runtime: Runtime = CPU, prompts: Prompts = PROMPTS
) -> GroundingDino:
    return GroundingDino(folder, prompts, rule.least(prompts, ("car", "construction")), rule, runtime)


@pytest.mark.parametrize(
    "size", [(900, 1600), (512, 1408), (1600, 900), (352, 1216), (800, 800), (800, 1000), (37, 41)]
)
def test_edges_are_limited_as_the_library_does(size: tuple[int, int]) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    assert edge_limited(size, 800, 1333) == get_size_with_aspect_ratio(size, 800, 1333)


def test_images_are_resized_as_pil_does(picture: Picture) -> None:
    from PIL import Image

    image = picture(0, 90, 150)
    for size in [(60, 100), (30, 50), (120, 200), (61, 64)]:
        ours = resized(stack_images([image], torch.device("cpu")), size)[0].permute(1, 2, 0).numpy()
        theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        assert np.abs(ours - theirs).max() <= 1
        assert (ours != theirs).mean() < 0.01


def test_images_of_one_batch_have_one_size(picture: Picture) -> None:
    with pytest.raises(ValueError, match="images of one batch have one size"):
        stack_images([picture(0), picture(1, 60, 96)], torch.device("cpu"))


def test_detections_are_the_library_s(dino_folder: Path, picture: Picture) -> None:
    """Pixels by the library's processor, tokens, boxes and scores by its model; classes by a plain loop."""
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    image = picture(3)
    found = detector(dino_folder)([image])[0]
    processor = GroundingDinoImageProcessorPil.from_pretrained(dino_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(dino_folder)
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(dino_folder).eval()
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    text = tokenizer("car. van. construction vehicle.", return_tensors="pt")
    assert text["input_ids"][0].tolist() == [101, 1040, 1012, 1041, 1012, 1046, 1047, 1012, 102]
    with torch.no_grad():
        out = model(pixel_values=pixels, **text)
    scores = out.logits[0].sigmoid().numpy()
    expected = []
    for query, token in enumerate(scores):
        ranked = [(token[1], 0, token[1]), (token[3], 1, token[3]), (token[5:7].mean(), 2, token[5:7].max())]
        (second, _, _), (first, prompt, best) = sorted(ranked)[1:]
        x, y, w, h = out.pred_boxes[0, query].numpy() * [90, 60, 90, 60]
        box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [90, 60, 90, 60])
        if (box[2] > box[0]) and (box[3] > box[1]):
            expected.append((prompt, best, box, first - second > 0.01))
    assert len(found.scores) == len(expected) > 10
    prompts, scores, boxes, clear = (np.array(column) for column in zip(*expected, strict=True))
    assert clear.sum() > 10
    assert found.prompts[clear].tolist() == prompts[clear].tolist()
    np.testing.assert_allclose(found.scores[clear], scores[clear], atol=5e-3)
    np.testing.assert_allclose(found.boxes, boxes, atol=0.3)
    assert len(set(found.prompts)) > 1


def test_thresholds_only_take_away(dino_folder: Path, picture: Picture) -> None:
    images = [picture(k) for k in range(2)]
    everything = detector(dino_folder)(images)
    rule = DetectionRule(score=0.6, class_scores={"construction": 0.9}, word=0.0)
    for all_found, found in zip(everything, detector(dino_folder, rule)(images), strict=True):
        least = np.where(all_found.prompts == 2, 0.9, 0.6)
        assert 0 < len(found.scores) < len(all_found.scores)
        # A box below one class' threshold may answer another prompt, so it is the sure ones that must be there.
        sure = all_found.boxes[all_found.scores >= least]
        assert {tuple(box) for box in sure} <= {tuple(box) for box in found.boxes}
        assert (found.scores >= np.where(found.prompts == 2, 0.9, 0.6)).all()


def test_a_batch_finds_what_single_images_do(dino_folder: Path, picture: Picture) -> None:
    images = [picture(k) for k in range(3)]
    together = detector(dino_folder, runtime=Runtime("cpu", images=2))(images)
    for image, found in zip(images, together, strict=True):
        alone = detector(dino_folder)([image])[0]
        assert found.prompts.tolist() == alone.prompts.tolist()
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
    assert np.abs(together[0].boxes[:5] - together[1].boxes[:5]).max() > 1, "the picture matters"


def test_one_caption_per_class_is_as_each_class_alone(dino_folder: Path, picture: Picture) -> None:
    image = picture(4)
    split = detector(dino_folder, DetectionRule(score=0.5, word=0.0, joint=False))([image])[0]
    rule = DetectionRule(score=0.5, word=0.0)
    cars = detector(dino_folder, rule, prompts=Prompts(("car", "van"), (0, 0)))([image])[0]
    others = detector(dino_folder, rule, prompts=Prompts(("construction vehicle",), (1,)))([image])[0]
    assert split.prompts.tolist() == [*cars.prompts, *(others.prompts + 2)]
    np.testing.assert_allclose(split.scores, [*cars.scores, *others.scores], rtol=1e-5)


def test_half_precision_is_near(dino_folder: Path, picture: Picture) -> None:
    image = picture(5)
    exact = detector(dino_folder)([image])[0]
    half = detector(dino_folder, runtime=Runtime("cpu", precision="bfloat16"))([image])[0]
    assert len(exact.scores) == len(half.scores)
    # The choice among close queries may differ; the best-scored boxes must be there.
    for box in exact.boxes[np.argsort(-exact.scores)[:5]]:
        assert np.abs(half.boxes - box).max(axis=1).min() < 4


def test_too_many_prompts_are_told(dino_folder: Path) -> None:
    prompts = Prompts(tuple(f"car {'van ' * k}".strip() for k in range(12)), (0,) * 12)
    with pytest.raises(ValueError, match="too long for the text encoder"):
        detector(dino_folder, prompts=prompts)


def test_a_vocabulary_from_elsewhere_is_told(dino_folder: Path, tmp_path: Path, vocabulary: list[str]) -> None:
    folder = shutil.copytree(dino_folder, tmp_path / "dino")
    tokens = list(vocabulary)
    tokens[1012], tokens[1013] = tokens[1013], tokens[1012]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    with pytest.raises(WeightsError, match=r"has '\.' at 1013, but GroundingDINO splits its captions at 1012"):
        detector(folder)


def sam_masks(segmenter: BoxSegmenter, image: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> tuple:
    return segmenter([image], [boxes], size)[0]


def test_sam_masks_are_the_library_s(sam_folder: Path, picture: Picture) -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    image = picture(6)
    masks, quality = sam_masks(sam_from_folder(sam_folder, CPU), image, BOXES, (60, 90))
    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16}
    )
    inputs = processor(images=image, return_tensors="pt")
    model = transformers.SamModel.from_pretrained(sam_folder).eval()
    scale = np.array([64 / 90, 43 / 60] * 2)
    assert longest_edge((60, 90), 64) == (43, 64)
    with torch.no_grad():
        out = model(
            pixel_values=inputs["pixel_values"],
            input_boxes=torch.tensor(BOXES * scale, dtype=torch.float32)[None],
            multimask_output=False,
        )
    theirs = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    theirs = theirs[0][:, 0].numpy()
    # A few pixels differ by one level of 255.
    np.testing.assert_allclose(quality, out.iou_scores[0, :, 0].numpy(), atol=0.03)
    assert (masks != theirs).mean() < 5e-3
    assert 0.02 < masks.mean() < 0.98
    other, _ = sam_masks(sam_from_folder(sam_folder, CPU), picture(7), BOXES, (60, 90))
    assert (masks != other).mean() > 0.02, "the picture matters"


def test_sam2_masks_are_those_of_one_forward_pass(sam2_folder: Path, picture: Picture) -> None:
    image = picture(7, 64, 64)
    boxes = BOXES[[0, 2]] * [1, 1, 0.7, 1]
    segmenter = sam_from_folder(sam2_folder, CPU)
    masks, quality = sam_masks(segmenter, image, boxes, (64, 64))
    model = transformers.Sam2Model.from_pretrained(sam2_folder).eval()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.tensor((image / 255 - mean) / std, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        out = model(
            pixel_values=pixels, input_boxes=torch.tensor(boxes, dtype=torch.float32)[None], multimask_output=False
        )
    theirs = torch.nn.functional.interpolate(out.pred_masks[0], (64, 64), mode="bilinear")[:, 0] > 0
    np.testing.assert_allclose(quality, out.iou_scores[0, :, 0].numpy(), atol=1e-5)
    assert (masks != theirs.numpy()).mean() < 1e-3
    # Both edges are stretched to the square: the same picture at another shape has the same masks there.
    wide = np.repeat(image, 2, axis=1)
    again, _ = sam_masks(segmenter, wide, boxes * [2, 1, 2, 1], (64, 64))
    assert (again != masks).mean() < 0.05


def test_the_video_model_s_folder_serves_as_image_model(
    sam2_folder: Path, sam2_video_folder: Path, picture: Picture
) -> None:
    image, size = picture(8), (60, 90)
    masks, quality = sam_masks(sam_from_folder(sam2_folder, CPU), image, BOXES, size)
    again, same = sam_masks(sam_from_folder(sam2_video_folder, CPU), image, BOXES, size)
    np.testing.assert_array_equal(masks, again)
    np.testing.assert_array_equal(quality, same)


@pytest.mark.parametrize("name", ["sam_folder", "sam2_folder"])
def test_batches_and_empty_images_change_nothing(
    name: str, request: pytest.FixtureRequest, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(name)
    images = [picture(k) for k in range(4)]
    boxes = [BOXES, np.zeros((0, 4)), BOXES[:1], BOXES[1:]]
    segmenter = sam_from_folder(folder, Runtime("cpu", images=2, boxes=2))
    seen = []
    encode = segmenter.model.encode
    monkeypatch.setattr(segmenter.model, "encode", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    found = segmenter(images, boxes, (30, 45))
    assert seen == [2, 1], "every image with boxes once, whatever the number of its boxes"
    assert found[1][0].shape == (0, 30, 45)
    alone = sam_from_folder(folder, CPU)
    for image, own, (masks, quality) in zip(images, boxes, found, strict=True):
        for k in range(len(own)):
            mask, score = sam_masks(alone, image, own[k : k + 1], (30, 45))
            assert (masks[k] != mask[0]).mean() < 1e-3
            np.testing.assert_allclose(quality[k], score[0], atol=1e-4)


@pytest.mark.parametrize("name", ["sam_folder", "sam2_folder"])
def test_images_encoded_in_half_precision_are_near(name: str, request: pytest.FixtureRequest, picture: Picture) -> None:
    folder = request.getfixturevalue(name)
    exact = sam_from_folder(folder, CPU)._embeddings([picture(2)])[0]
    half = sam_from_folder(folder, Runtime("cpu", "bfloat16"))._embeddings([picture(2)])[0]
    for one, other in zip(exact, half, strict=True):
        assert one.dtype == other.dtype == torch.float32, "decoded in full precision"
        error = float((one - other).norm() / one.norm())
        assert 1e-4 < error < 0.05


class BoxDrawer:
    """A PromptableModel whose masks are the boxes themselves, on a grid of a quarter of the square."""

    def __init__(self, side: int, square: bool) -> None:
        self.side, self.square = side, square

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return (self.side, self.side) if self.square else longest_edge(size, self.side)

    def encode(self, pixels: torch.Tensor) -> list[Any]:
        assert pixels.shape[1:] == (3, self.side, self.side)
        height, width = self.input_size((60, 90))
        assert not pixels[:, :, height:].any()
        assert not pixels[:, :, :, width:].any()
        return [None] * len(pixels)

    def decode(self, embedding: Any, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centres = torch.arange(self.side // 4) * 4 + 2.0
        x0, y0, x1, y1 = (boxes[:, k, None, None] for k in range(4))
        inside = torch.minimum(
            torch.minimum(centres - x0, x1 - centres), torch.minimum(centres[:, None] - y0, y1 - centres[:, None])
        )
        return inside, torch.full((len(boxes),), 0.5)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", [(60, 90), (120, 180), (30, 45)])
def test_masks_lie_where_the_boxes_are(square: bool, size: tuple[int, int], picture: Picture) -> None:
    """Image to square and back to any grid, without a shift: a box as a mask covers its own pixels."""
    segmenter = BoxSegmenter(BoxDrawer(256, square), CPU, (0, 0, 0), (1, 1, 1))
    boxes = np.array([[10, 12, 46, 40], [60, 0, 90, 30], [0, 45, 20, 60]], float)
    masks, quality = segmenter([picture(0)], [boxes], size)[0]
    assert quality.tolist() == [0.5] * 3
    scale = size[0] / 60
    for mask, box in zip(masks, boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        np.testing.assert_allclose(found, box * scale, atol=1.01)


def test_a_folder_of_another_model_is_told(sam_folder: Path, dino_folder: Path) -> None:
    with pytest.raises(WeightsError, match="model_type 'sam', expected one of grounding-dino"):
        detector(sam_folder)
    with pytest.raises(WeightsError, match="model_type 'grounding-dino', expected one of sam, sam2"):
        sam_from_folder(dino_folder, CPU)


def test_weights_that_do_not_fit_their_config_are_told(sam_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(sam_folder, tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("patch_embed.projection.weight"))
    gone = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=f"lack {name}"):
        sam_from_folder(folder, CPU)
    save_file(weights | {name: gone[:, :, :4].contiguous()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="SamModel cannot be loaded"):
        sam_from_folder(folder, CPU)


def test_a_bin_file_is_read_as_weights_only(sam_folder: Path, tmp_path: Path, picture: Picture) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(sam_folder, tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    masks, _ = sam_masks(sam_from_folder(folder, CPU), picture(9), BOXES, (60, 90))
    expected, _ = sam_masks(sam_from_folder(sam_folder, CPU), picture(9), BOXES, (60, 90))
    np.testing.assert_array_equal(masks, expected)
    torch.save(weights | {"evil": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        sam_from_folder(folder, CPU)


def test_a_gpu_that_is_not_here_is_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="sees no GPU here; use auto or cpu"):
        _ = Runtime("cuda").torch_device
    assert Runtime().torch_device.type == "cpu"
