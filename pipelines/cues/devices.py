"""The device that a parameter names, and networks loaded once in a process. PyTorch is imported when asked for."""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from pipelines.config import ConfigError

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
NetworkT = TypeVar("NetworkT")


def pick_device(name: str) -> "torch.device":
    """The device of that name, "auto" for a GPU where there is one. Raises ConfigError for a GPU that is not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch {torch.__version__} sees no GPU here; use auto or cpu")
    return device


class loaded_once(Generic[P, NetworkT]):
    """A loader with its last two answers kept: the slots of a flow share a network, also where they ask at once.

    functools.lru_cache alone lets two threads that ask at the same time load the same file twice.
    """

    def __init__(self, load: Callable[P, NetworkT]) -> None:
        self._kept: Any = lru_cache(2)(load)  # typed to take what is hashable, which P cannot say
        self._loading = threading.Lock()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> NetworkT:
        """The network, loaded where it is not kept; arguments are hashable."""
        with self._loading:
            return self._kept(*args, **kwargs)

    def cache_clear(self) -> None:
        """Forget both."""
        self._kept.cache_clear()
