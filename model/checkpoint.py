"""A network on disk: `model.safetensors` beside `model.yaml`, its configuration."""

from pathlib import Path

import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from model.network import OccFlow

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "model.yaml"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read as a network: says which file, what is wrong, what to do."""


def save_model(model: OccFlow, folder: str | Path) -> Path:
    """Write weights and configuration into `folder` (made if missing) and return it.

    Each file is replaced in one step, so that a kill leaves the old one whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights, config = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    temporary = folder / f".{WEIGHTS_NAME}.writing"
    save_file(state, temporary)
    temporary.replace(weights)
    temporary = folder / f".{CONFIG_NAME}.writing"
    temporary.write_text(yaml.safe_dump(model.config.model_dump(mode="json"), sort_keys=False))
    temporary.replace(config)
    return folder


def load_config(folder: str | Path) -> ModelConfig:
    """The configuration of a saved network.

    Raises:
        CheckpointError: `model.yaml` is missing, not YAML, or not a configuration of this version.
    """
    path = Path(folder) / CONFIG_NAME
    try:
        return ModelConfig.model_validate(yaml.safe_load(path.read_text()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint folder holds {CONFIG_NAME}, {WEIGHTS_NAME}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise CheckpointError(f"{path}: not a network configuration of this version: {error}") from error


def load_model(folder: str | Path) -> OccFlow:
    """The saved network on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, or weights and configuration do not belong together; lists the
            missing and unexpected names.
    """
    model = OccFlow(load_config(folder))
    load_weights(model, folder)
    return model.eval()


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of `folder`'s `model.safetensors`, by name. Raises CheckpointError: it is missing or damaged."""
    path = Path(folder) / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a checkpoint folder holds {CONFIG_NAME}, {WEIGHTS_NAME}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error}); take an earlier one") from error


def load_weights(model: OccFlow, folder: str | Path) -> None:
    """Load `model.safetensors` of `folder` into `model`, all names and shapes or nothing (see `load_model`)."""
    path, state = Path(folder) / WEIGHTS_NAME, read_weights(folder)
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{path} does not fit the configuration: missing {_few(missing)}, unexpected {_few(unexpected)}, other "
            f"shape {_few(shapes)}; use the {CONFIG_NAME} that was written with these weights"
        )
    model.load_state_dict(state)


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{len(names)} ({shown}{', ...' if len(names) > 4 else ''})" if names else "none"
