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
    """The device of that name, "auto" for a GPU where there is one. ConfigError for one that is unknown or not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda, or one of several GPUs such as cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch {torch.__version__} sees no GPU here; use auto or cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # not built in, or no GPU of that number
        why = str(error).partition("\n")[0]
        raise ConfigError(f"device {name!r}: torch {torch.__version__} cannot use it here ({why}); use auto") from None
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
