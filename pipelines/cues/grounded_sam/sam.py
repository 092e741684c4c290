"""SAM and SAM 2 through transformers: masks of boxes. An image is encoded once, its boxes are decoded in batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float

from pipelines.cues.grounded_sam.folders import ModelFolder
from pipelines.cues.grounded_sam.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    chunks,
    longest_edge,
    normalised,
    resized,
    stack_images,
    upsampled,
)
from pipelines.cues.grounded_sam.records import Image
from pipelines.cues.grounded_sam.runtime import Runtime

Segments = tuple[Bool[np.ndarray, "n height width"], Float[np.ndarray, " n"]]


class PromptableModel(Protocol):
    """What differs between the models: the image they see, what encoding leaves, and how a box becomes a mask."""

    side: int
    """Height and width in pixels of the square image that the model sees."""

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size that an image of `size` is resampled to; the rest of the square is padding, right and below."""
        ...

    def encode(self, pixels: Float[torch.Tensor, "n 3 side side"]) -> list[Any]:
        """Embedding of each image, levels 0..255 with zero padding after normalisation."""
        ...

    def decode(
        self, embedding: Any, boxes: Float[torch.Tensor, "n 4"]
    ) -> tuple[Float[torch.Tensor, "n h w"], Float[torch.Tensor, " n"]]:
        """Mask logits over the square, and the estimated IoU, of boxes in pixels of the square; float32."""
        ...


class BoxSegmenter:
    """A Segmenter around a PromptableModel."""

    def __init__(self, model: PromptableModel, runtime: Runtime, mean: Sequence[float], std: Sequence[float]) -> None:
        self.model, self.runtime, self.mean, self.std = model, runtime, mean, std

    def __call__(
        self, images: Sequence[Image], boxes: Sequence[Float[np.ndarray, "n 4"]], size: tuple[int, int]
    ) -> list[Segments]:
        """See Segmenter."""
        found: list[Segments] = [(np.zeros((0, *size), bool), np.zeros(0)) for _ in images]
        for batch in chunks([i for i, own in enumerate(boxes) if len(own)], self.runtime.images):
            shown = (images[batch[0]].shape[0], images[batch[0]].shape[1])
            for i, embedding in zip(batch, self._embeddings([images[i] for i in batch]), strict=True):
                found[i] = self._masks(embedding, boxes[i], shown, size)
        return found

    def _embeddings(self, images: Sequence[Image]) -> list[Any]:
        pixels = stack_images(images, self.runtime.torch_device)
        size = (pixels.shape[-2], pixels.shape[-1])
        height, width = self.model.input_size(size)
        square = pixels.new_zeros(len(pixels), 3, self.model.side, self.model.side)
        # Normalised before it is padded: the padding is zero to the model, not black.
        square[..., :height, :width] = normalised(resized(pixels, (height, width)), self.mean, self.std)
        with self.runtime.networks():
            return self.model.encode(square)

    def _masks(
        self, embedding: Any, boxes: Float[np.ndarray, "n 4"], shown: tuple[int, int], size: tuple[int, int]
    ) -> Segments:
        height, width = self.model.input_size(shown)
        scale = np.array([width / shown[1], height / shown[0]] * 2)
        scaled = torch.as_tensor(boxes * scale, dtype=torch.float32, device=self.runtime.torch_device)
        masks, quality = [], []
        for batch in torch.split(scaled, self.runtime.boxes):
            with torch.inference_mode():
                logits, iou = self.model.decode(embedding, batch)
                # Upsampled to the square first, as upstream does: the image's edge need not meet the mask grid's.
                whole = upsampled(logits, (self.model.side, self.model.side))[:, :height, :width]
                masks.append((upsampled(whole, size) > 0).cpu().numpy())
                quality.append(iou.float().cpu().numpy())
        return np.concatenate(masks), np.concatenate(quality).astype(np.float64)


class Sam:
    """SAM: the longer edge fills the square."""

    def __init__(self, model: Any) -> None:
        self.net = model
        self.side = int(model.config.vision_config.image_size)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """See PromptableModel."""
        return longest_edge(size, self.side)

    def encode(self, pixels: Float[torch.Tensor, "n 3 side side"]) -> list[Any]:
        """See PromptableModel."""
        return list(self.net.get_image_embeddings(pixels).float().split(1))

    def decode(
        self, embedding: Any, boxes: Float[torch.Tensor, "n 4"]
    ) -> tuple[Float[torch.Tensor, "n h w"], Float[torch.Tensor, " n"]]:
        """See PromptableModel. A box says what is meant: one mask for each, not three to choose from."""
        out = self.net(image_embeddings=embedding, input_boxes=boxes[None], multimask_output=False)
        return out.pred_masks[0, :, 0], out.iou_scores[0, :, 0]


class Sam2(Sam):
    """SAM 2: both edges fill the square, each by its own scale; three levels of features."""

    def __init__(self, model: Any) -> None:
        self.net = model
        self.side = int(model.config.prompt_encoder_config.image_size)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """See PromptableModel."""
        return self.side, self.side

    def encode(self, pixels: Float[torch.Tensor, "n 3 side side"]) -> list[Any]:
        """See PromptableModel."""
        levels = [level.float() for level in self.net.get_image_embeddings(pixels)]
        return [[level[i : i + 1] for level in levels] for i in range(len(pixels))]


_MODELS: dict[str, tuple[str, Callable[[Any], PromptableModel]]] = {
    "sam": ("SamModel", Sam),
    "sam2": ("Sam2Model", Sam2),
    # Upstream's SAM 2 folders are saved as the video model, of which the image model is a part.
    "sam2_video": ("Sam2Model", Sam2),
}


def sam_from_folder(folder: Path, runtime: Runtime) -> BoxSegmenter:
    """SAM or SAM 2, by what the folder's config.json says. Raises WeightsError."""
    files = ModelFolder.open(folder)
    files.expect({kind: name for kind, (name, _) in _MODELS.items()})
    name, wrap = _MODELS[files.model_type]
    told = files.preprocessing
    return BoxSegmenter(
        wrap(files.model(name, runtime.torch_device)),
        runtime,
        told.get("image_mean", IMAGENET_MEAN),
        told.get("image_std", IMAGENET_STD),
    )
