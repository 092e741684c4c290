"""The device that a parameter names. PyTorch is imported when it is asked for."""

from typing import TYPE_CHECKING

from pipelines.config import ConfigError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> "torch.device":
    """The device of that name, "auto" for a GPU where there is one. Raises ConfigError for a GPU that is not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch {torch.__version__} sees no GPU here; use auto or cpu")
    return device
