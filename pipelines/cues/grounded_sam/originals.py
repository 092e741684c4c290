"""The original packages, for holders of the original .pth files: `segment-anything` and `groundingdino`.

Both import torchvision. Their networks are used, not their preprocessing; files are read as weights only.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pipelines.cues.grounded_sam.caption_detector import Asked, CaptionDetector
from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.pixels import IMAGENET_MEAN, IMAGENET_STD, longest_edge
from pipelines.cues.grounded_sam.prompts import Prompts, captions
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.sam import BoxSegmenter
from pipelines.weights import WeightsError, load_checkpoint

SAM_BY_WIDTH = {1280: "vit_h", 1024: "vit_l", 768: "vit_b"}
"""Channels of the image encoder to the name of the model."""
DINO_BY_WIDTH = {96: "GroundingDINO_SwinT_OGC", 128: "GroundingDINO_SwinB_cfg"}
"""Channels of the first stage to the configuration in the package."""


def package(name: str, install: str) -> Any:
    """A user-installed package. WeightsError that says how to install it, or what it lacks itself."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == name.partition(".")[0]:
            raise WeightsError(f"this backend needs the package {name.partition('.')[0]}: {install}") from None
        raise WeightsError(f"the package {name} is here, but needs {error.name}, which is not: install it") from None
    except (ImportError, RuntimeError) as error:
        # torchvision of another build than torch fails so, deep inside.
        raise WeightsError(f"the package {name} is here, but cannot be imported: {error}") from None


class OriginalSam:
    """A PromptableModel of the package segment-anything."""

    def __init__(self, net: Any) -> None:
        self.net = net
        self.side = int(net.image_encoder.img_size)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """See PromptableModel."""
        return longest_edge(size, self.side)

    def encode(self, pixels: Float[torch.Tensor, "n 3 side side"]) -> list[Any]:
        """See PromptableModel."""
        return list(self.net.image_encoder(pixels).float().split(1))

    def decode(
        self, embedding: Any, boxes: Float[torch.Tensor, "n 4"]
    ) -> tuple[Float[torch.Tensor, "n h w"], Float[torch.Tensor, " n"]]:
        """See PromptableModel."""
        sparse, dense = self.net.prompt_encoder(points=None, boxes=boxes, masks=None)
        logits, quality = self.net.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.net.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits[:, 0], quality[:, 0]


def sam_from_checkpoint(file: Path, runtime: Runtime) -> BoxSegmenter:
    """SAM from sam_vit_{h,l,b}_*.pth; which of them, the file itself tells. Raises WeightsError."""
    module = package("segment_anything", "pip install segment-anything torchvision")
    state = load_checkpoint(file)
    place = state.get("image_encoder.pos_embed")
    width = int(place.shape[-1]) if place is not None else 0
    if width not in SAM_BY_WIDTH:
        raise WeightsError(f"{file}: not a checkpoint of segment-anything (its encoder has {width} channels)")
    net = module.sam_model_registry[SAM_BY_WIDTH[width]](checkpoint=None)
    _load(net, state, file)
    return BoxSegmenter(OriginalSam(net.to(runtime.torch_device).eval()), runtime, IMAGENET_MEAN, IMAGENET_STD)


class OriginalGroundingDino(CaptionDetector[Asked]):
    """A Detector of the package groundingdino. `text_encoder` is a folder of bert-base-uncased."""

    def __init__(
        self,
        file: Path,
        text_encoder: Path,
        prompts: Prompts,
        least: Float[np.ndarray, " prompts"],
        rule: DetectionRule,
        runtime: Runtime,
    ) -> None:
        """Loads the model. Raises WeightsError; ValueError for a caption that does not fit in."""
        model = _build_dino(file, text_encoder, str(runtime.torch_device))
        texts = []
        for caption in captions(prompts, rule.joint):
            offsets = model.tokenizer(caption.text, return_offsets_mapping=True)["offset_mapping"]
            texts.append(
                Asked(caption, caption.word_tokens([(int(a), int(b)) for a, b in offsets[: model.max_text_len]]))
            )
        super().__init__(model, texts, least, rule, runtime)

    def outputs(self, text: Asked, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See CaptionDetector."""
        out = self.model(pixels, captions=[text.caption.text] * len(pixels))
        return out["pred_logits"], out["pred_boxes"]


def _build_dino(file: Path, text_encoder: Path, device: str) -> Any:
    hint = "pip install groundingdino-py 'transformers<5' torchvision, in an environment of its own"
    models = package("groundingdino.models", hint)
    read_config = package("groundingdino.util.slconfig", hint).SLConfig.fromfile
    if device.startswith("cuda"):
        check_operator()
    state = load_checkpoint(file)
    state = {key.removeprefix("module."): value for key, value in state.get("model", state).items()}
    first = state.get("backbone.0.patch_embed.proj.weight")
    width = int(first.shape[0]) if first is not None else 0
    if width not in DINO_BY_WIDTH:
        raise WeightsError(f"{file}: not a checkpoint of groundingdino (its first stage has {width} channels)")
    settings = read_config(str(Path(models.__file__).parents[1] / "config" / f"{DINO_BY_WIDTH[width]}.py"))
    settings.device = device
    # The package would fetch this by its name; a folder keeps it from the network.
    settings.text_encoder_type = str(text_encoder)
    # Checkpointing spares the memory of gradients, of which there are none; PyTorch warns of it at every layer.
    settings.use_checkpoint = settings.use_transformer_ckpt = False
    try:
        net = models.build_model(settings)
    except Exception as error:  # a folder that is no BERT, or a transformers that no longer has what the package calls
        raise WeightsError(
            f"groundingdino cannot be built with the text encoder {text_encoder}: {str(error).strip()[:300]}. "
            f"It needs a folder of bert-base-uncased, and transformers<5 ({hint})"
        ) from None
    _load(net, state, file)
    for module in net.modules():
        if type(module).__name__ == "MultiScaleDeformableAttention":
            module.forward = in_float32(module.forward, torch.device(device).type)
    return net.to(device).eval()


def check_operator() -> None:
    """WeightsError without groundingdino's compiled operator, which it has nothing else for on a GPU."""
    if not hasattr(package("groundingdino.models.GroundingDINO.ms_deform_attn", ""), "_C"):
        raise WeightsError(
            "the package groundingdino is here, but without its compiled operator (groundingdino._C), which it needs "
            "on a GPU: install it anew where CUDA_HOME names a CUDA toolkit, or take kind: transformers, or device: cpu"
        )


def in_float32(forward: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """The layer outside of autocast: groundingdino's compiled operator knows float32 and float64, but not bfloat16."""

    def exact(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def run(*given: Any, **named: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return forward(*map(exact, given), **{name: exact(value) for name, value in named.items()})

    return run


def _load(net: Any, state: dict[str, Any], file: Path) -> None:
    """Weights into a network. What only the file has is let go, and tables of whole numbers, which a network makes."""
    try:
        told = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{file}: does not fit the network: {str(error).strip()[:300]}") from None
    # Buffers too: SAM's encoding of places is drawn at random once, so a network's own is not the trained one's.
    # A layer that goes by two names may be in the file under one.
    own = net.state_dict()
    filled = {own[key].data_ptr() for key in own.keys() - set(told.missing_keys)}
    missing = [key for key in told.missing_keys if own[key].is_floating_point() and own[key].data_ptr() not in filled]
    if missing:
        raise WeightsError(f"{file}: lacks {len(missing)} weights of the network ({', '.join(missing[:3])}, ...)")
