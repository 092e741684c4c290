"""Small models of the real architectures with random weights, saved as their owners save them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

WORDS = ("car", "van", "truck", "bus", "person", "bicycle", "construction", "vehicle", "pedes", "##trian")


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    """A WordPiece vocabulary with the tokens that GroundingDINO fixes by number where it wants them."""
    tokens = [f"[unused{k}]" for k in range(1100)]
    fixed = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    for place, token in fixed.items() | {(1040 + k, word) for k, word in enumerate(WORDS)}:
        tokens[place] = token
    return tokens


def stir(model: torch.nn.Module) -> None:
    """Weights of a size that lets the image, the box and the words matter; fresh ones are as good as zero."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                fan = weight[0].numel()
                torch.nn.init.normal_(weight, std=1.5 / fan**0.5)


def save_tokenizer(folder: Path, tokens: list[str]) -> None:
    from transformers import BertTokenizerFast

    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str]) -> Path:
    """GroundingDINO with one layer of everything."""
    transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")
    swin = transformers.SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_indices=[2, 3, 4],
    )
    bert = transformers.BertConfig(
        vocab_size=1100,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin.to_dict(),
        text_config=bert.to_dict(),
        num_queries=30,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        d_model=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_text_len=64,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "dino"
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    save_tokenizer(folder, vocabulary)
    preprocessing = '{"size": {"shortest_edge": 64, "longest_edge": 100}, "image_mean": [0.4, 0.5, 0.6]}'
    (folder / "preprocessor_config.json").write_text(preprocessing)
    return folder


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM on images of 64 pixels."""
    transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "mlp_dim": 64,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    torch.manual_seed(1)
    model = transformers.SamModel(config)
    stir(model)
    folder = tmp_path_factory.mktemp("weights") / "sam"
    model.save_pretrained(folder)
    return folder


def sam2_config() -> dict[str, dict]:
    """What Sam2Config and Sam2VideoConfig share."""
    from transformers import Sam2HieraDetConfig

    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[2, 2],
    )
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": hiera.to_dict(),
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16},
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    }


@pytest.fixture(scope="session")
def sam2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM 2 on images of 64 pixels."""
    transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")
    torch.manual_seed(2)
    model = transformers.Sam2Model(transformers.Sam2Config(**sam2_config()))
    stir(model)
    folder = tmp_path_factory.mktemp("weights") / "sam2"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sam2_video_folder(tmp_path_factory: pytest.TempPathFactory, sam2_folder: Path) -> Path:
    """The same SAM 2 inside a video model, as upstream's folders are."""
    from transformers import Sam2Model, Sam2VideoConfig, Sam2VideoModel

    torch.manual_seed(3)
    config = Sam2VideoConfig(
        **sam2_config(),
        memory_attention_hidden_size=32,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=16,
        mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=32,
        image_size=64,
    )
    video = Sam2VideoModel(config)
    told = video.load_state_dict(Sam2Model.from_pretrained(sam2_folder).state_dict(), strict=False)
    assert not told.unexpected_keys
    folder = tmp_path_factory.mktemp("weights") / "sam2_video"
    video.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sam3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM 3 on images of 56 pixels, with a byte-level vocabulary that merges nothing."""
    transformers = pytest.importorskip("transformers", reason="the extra `cues` is not installed")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    small = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
                "window_size": 2,
                "global_attn_indexes": [1],
                "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": len(tokens),
            "hidden_size": 32,
            "intermediate_size": 32,
            "projection_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": len(tokens) - 2,
            "eos_token_id": len(tokens) - 1,
            "pad_token_id": len(tokens) - 1,
        },
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config=small | {"num_queries": 12},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    torch.manual_seed(4)
    model = transformers.Sam3Model(config)
    stir(model)
    folder = tmp_path_factory.mktemp("weights") / "sam3"
    model.save_pretrained(folder)
    vocab = {token: number for number, token in enumerate(tokens)}
    transformers.CLIPTokenizerFast(vocab=vocab, merges=[]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    """picture(seed, height, width): a smooth random RGB image."""

    def make(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
        rng = np.random.default_rng(seed)
        coarse = torch.tensor(rng.uniform(0, 255, (1, 3, height // 6, width // 6)))
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        return fine[0].permute(1, 2, 0).clamp(0, 255).round().numpy().astype(np.uint8)

    return make
