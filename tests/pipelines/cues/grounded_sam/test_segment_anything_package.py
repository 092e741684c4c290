"""The package segment-anything with random weights, saved as the official files are: ours against its own predictor."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cues.grounded_sam.originals import SAM_BY_WIDTH, sam_from_checkpoint
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.sam import BoxSegmenter, sam_from_folder
from pipelines.weights import WeightsError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # upstream's own warnings

Picture = Callable[..., np.ndarray]
CPU = Runtime("cpu", boxes=3)

RENAMED = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.blocks\.", ".layers."),
    (r"\.(neck|mask_downscaling)\.0\.", r".\1.conv1."),
    (r"\.(neck|mask_downscaling)\.1\.", r".\1.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.mask_downscaling\.", ".mask_embed."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(prediction_head|mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
    (r"(prediction_head|mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
    (r"(prediction_head|mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
)
"""Patterns that turn the package's names of weights into those of transformers' SamModel, in this order."""


@pytest.fixture(scope="module")
def package() -> Any:
    return pytest.importorskip(
        "segment_anything",
        reason="the packages segment-anything and torchvision are installed by the user",
        exc_type=ImportError,
    )


@pytest.fixture(scope="module")
def official(package: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B at its full size; weights so large that the image and the boxes matter."""
    torch.manual_seed(0)
    network = package.sam_model_registry["vit_b"](checkpoint=None)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.5 / weight[0].numel() ** 0.5)
    path = tmp_path_factory.mktemp("weights") / "sam_own_b.pth"
    torch.save(network.state_dict(), path)
    return path


def boxes_in(height: int, width: int) -> np.ndarray:
    """A car, one cut by the image's bottom edge, a far one, and the whole image."""
    near = [width * 0.375 + 0.5, height * 0.3, width * 0.6, height]
    return np.array(
        [[100, 200, 300, 330], near, [width - 60, height - 90, width - 20, height - 40], [0, 0, width, height]]
    )


def told(segmenter: BoxSegmenter, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, quality, and the low-resolution logits behind them."""
    kept, decode = [], segmenter.model.decode

    def record(embedding: Any, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept.append(decode(embedding, boxes))
        return kept[-1]

    segmenter.model.decode = record  # type: ignore[method-assign]
    masks, quality = segmenter([image], [boxes_in(*image.shape[:2])], image.shape[:2])[0]
    return masks, quality, torch.cat([logits for logits, _ in kept]).numpy()


@pytest.mark.parametrize(
    ("size", "level"),
    # The second image fills the square as it is; in the first, PIL rounds one value in 600 to the level next to ours.
    [((900, 1600), 0.1), ((576, 1024), 1e-3)],
)
def test_masks_are_those_of_upstreams_predictor(
    package: Any, official: Path, picture: Picture, size: tuple[int, int], level: float
) -> None:
    image = picture(size[0], *size)
    masks, quality, logits = told(sam_from_checkpoint(official, CPU), image)
    predictor = package.SamPredictor(package.sam_model_registry["vit_b"](checkpoint=str(official)))
    predictor.set_image(image)
    boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(boxes_in(*size)).float(), size)
    expected, iou, low = predictor.predict_torch(None, None, boxes=boxes, multimask_output=False)
    assert 0.01 < expected.float().mean() < 0.9
    assert low.std() > 1
    np.testing.assert_allclose(logits, low[:, 0].numpy(), atol=level)
    np.testing.assert_allclose(quality, iou[:, 0].numpy(), atol=level)
    assert (masks != expected[:, 0].numpy()).mean() < level / 50


def test_the_same_weights_as_a_model_folder_give_the_same_masks(
    package: Any, official: Path, picture: Picture, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")
    state = {}
    for name, weight in torch.load(official, weights_only=True).items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        state[name] = weight
    state["prompt_encoder.shared_embedding.positional_embedding"] = state["shared_image_embedding.positional_embedding"]
    network = transformers.SamModel(transformers.SamConfig())
    network.load_state_dict(state)
    network.save_pretrained(tmp_path)
    image = picture(3, 512, 1408)
    ours, other = (told(load, image) for load in (sam_from_checkpoint(official, CPU), sam_from_folder(tmp_path, CPU)))
    np.testing.assert_allclose(ours[2], other[2], atol=5e-3)
    np.testing.assert_allclose(ours[1], other[1], atol=1e-3)
    assert (ours[0] != other[0]).mean() < 1e-4


def test_the_width_tells_each_size(package: Any) -> None:
    for width, name in SAM_BY_WIDTH.items():
        with torch.device("meta"):
            network = package.sam_model_registry[name](checkpoint=None)
        assert network.image_encoder.pos_embed.shape[-1] == width


def test_what_is_cut_off_or_lacks_a_buffer_is_told(official: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(official.read_bytes()[: official.stat().st_size // 2])
    with pytest.raises(WeightsError, match="cut off"):
        sam_from_checkpoint(cut, CPU)
    state = torch.load(official, weights_only=True)
    del state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    torch.save(state, cut)
    with pytest.raises(WeightsError, match=r"lacks 1 weights .*positional_encoding_gaussian_matrix"):
        sam_from_checkpoint(cut, CPU)
