"""Small constant tensors, made once per device: copied to a GPU at every use they would make the host wait for it."""

from functools import lru_cache

import torch
from torch import Tensor


def constant(values: tuple, like: Tensor) -> Tensor:
    """`like.new_tensor(values)` for (nested) tuples of numbers, kept for the next call. Never write into it."""
    return _kept(values, like.dtype, like.device)


@lru_cache(maxsize=256)
def _kept(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
