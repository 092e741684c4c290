"""Reading checkpoints of the flow network: the published ones, and our own in the same form (network.save_network)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.cues.unimatch.network import UniMatch
from pipelines.cues.unimatch.variants import SCALE1, SCALE2, SCALE2_REFINE6, Variant
from pipelines.weights import WeightsError, load_checkpoint

LICENCE = "MIT"
LEFT_OVER = "upsampler."
"""A network with regression steps upsamples by itself; files trained on from one without may still hold these."""
_PUBLISHED = "flow weights are the files gmflow-*.pth of `occflow weights list`"
_SHOWN = 6


def load_network(path: Path) -> UniMatch:
    """The network that a checkpoint was made for, on the CPU, in evaluation mode, its parameters frozen.

    The file is a dictionary with the parameters under "model", or holds nothing but them, as packages do that ship a
    trained network. Which of the published variants they are is read off their names; networks of other shapes carry
    theirs under "variant".

    Raises:
        WeightsError: no whole checkpoint, or parameters missing, unknown, of another shape, not finite.
    """
    content = load_checkpoint(path)
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        content = {"model": content}
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        found = ", ".join(map(str, list(content)[:_SHOWN])) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path}: expected the parameters under 'model', found {found or 'nothing'}; {_PUBLISHED}")
    variant = _variant(path, content)
    network = UniMatch(variant)
    state = content["model"]
    if variant.refinements:
        state = {name: value for name, value in state.items() if not name.startswith(LEFT_OVER)}
    _compare(path, variant, network.state_dict(), state)
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)


def _variant(path: Path, content: Mapping[str, Any]) -> Variant:
    """The shape that the file names, or the published one that its parameters' names tell."""
    if "variant" in content:
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["variant"].items()}
            return Variant(**given)
        except (TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{path}: 'variant' is not one of this version: {error}; write it anew") from error
    names = content["model"]
    if any(name.startswith("refine.") for name in names):
        return SCALE2_REFINE6
    return SCALE2 if "backbone.trident_conv.weight" in names else SCALE1


def _compare(path: Path, variant: Variant, own: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Raise a WeightsError that names every kind of misfit between the network's parameters and the file's."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    both = [name for name in own if name in tensors]
    faults = {
        "missing": [name for name in own if name not in tensors],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
            for name in both
            if tensors[name].shape != own[name].shape
        ],
        "not finite": [name for name in both if not torch.isfinite(tensors[name]).all()],
    }
    told = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
    if told:
        raise WeightsError(
            f"{path}: not the parameters of {variant.name}: {told}. Stereo and depth files do not fit; {_PUBLISHED}"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{more})"
