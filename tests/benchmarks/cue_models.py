"""Model folders with random weights for bench_cues: the published architectures, or small ones of the same make."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

transformers: Any = import_module("transformers")
"""By name: it makes its classes as they are asked for, which type checkers do not follow."""

WORDS = ("car", "van", "truck", "bus", "trailer", "crane", "bicycle", "motorcycle", "person")
PROMPTS = {word: (word,) for word in ("car", "truck", "bus", "trailer", "crane", "bicycle", "motorcycle", "person")}
"""Eight classes of one noun each, all in the vocabulary below."""
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


def build(name: str, full: bool, folder: Path) -> Path:
    """The folder of one model ("dino", "sam", "sam2", "sam3") as its owners save it, made where it is not there."""
    place = folder / f"{name}-{'full' if full else 'small'}"
    if not (place / "config.json").exists():
        torch.manual_seed(0)
        model = {"dino": _dino, "sam": _sam, "sam2": _sam2, "sam3": _sam3}[name](full)
        with torch.no_grad():  # fresh weights let nothing through; a CPU takes minutes over denormal numbers
            for weight in model.parameters():
                if weight.ndim > 1:
                    torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        model.save_pretrained(place)
        if name == "dino":
            _save_bert_tokenizer(place, 30522 if full else 1100, 0 if full else 64)
        if name == "sam3":
            _save_clip_tokenizer(place)
    return place


def _dino(full: bool) -> Any:
    if full:  # GroundingDINO tiny
        config = transformers.GroundingDinoConfig(
            backbone_config=transformers.SwinConfig(window_size=7, out_indices=[2, 3, 4]).to_dict()
        )
        return transformers.GroundingDinoForObjectDetection(config)
    swin = transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, out_indices=[2, 3, 4]
    )
    bert = transformers.BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin.to_dict(), text_config=bert.to_dict(), num_queries=60, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=32, encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    return transformers.GroundingDinoForObjectDetection(config)


def _sam(full: bool) -> Any:
    vision: dict[str, Any] = {"initializer_range": 0.02}
    if full:  # ViT-H
        vision |= {
            "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
            "global_attn_indexes": [7, 15, 23, 31],
        }  # fmt: skip
        return transformers.SamModel(transformers.SamConfig(vision_config=vision))
    vision |= {
        "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 128,
        "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_dim": 64,
    }  # fmt: skip
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    return transformers.SamModel(config)


def _sam2(full: bool) -> Any:
    if not full:
        raise ValueError("sam2 is measured at its published size only")
    return transformers.Sam2Model(transformers.Sam2Config())


def _sam3(full: bool) -> Any:
    if full:
        return transformers.Sam3Model(transformers.Sam3Config())
    small = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    trunk = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 56, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": 54, "hidden_size": 32, "intermediate_size": 32,
        "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
        "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53,
    }  # fmt: skip
    levels = [[16, 16], [8, 8], [4, 4]]
    config = transformers.Sam3Config(
        vision_config={"backbone_config": trunk, "fpn_hidden_size": 32, "backbone_feature_sizes": levels},
        text_config=text, geometry_encoder_config=small, detr_encoder_config=small,
        detr_decoder_config=small | {"num_queries": 40},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip
    return transformers.Sam3Model(config)


def _save_bert_tokenizer(folder: Path, size: int, shortest_edge: int) -> None:
    tokens = [f"[unused{k}]" for k in range(size)]
    for place, token in SPECIAL.items() | {(1040 + k, word) for k, word in enumerate(WORDS)}:
        tokens[place] = token
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    if shortest_edge:
        edges = f'{{"shortest_edge": {shortest_edge}, "longest_edge": {2 * shortest_edge}}}'
        (folder / "preprocessor_config.json").write_text(f'{{"size": {edges}}}')


def _save_clip_tokenizer(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    transformers.CLIPTokenizerFast(vocab={token: k for k, token in enumerate(tokens)}, merges=[]).save_pretrained(
        folder
    )
