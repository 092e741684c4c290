"""What a piece of PyTorch code asks of the machine: how many operations, and at which the host would wait for a GPU."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]

FREE = frozenset(
    (
        "view", "_unsafe_view", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze", "slice", "select",
        "detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "_reshape_alias", "unfold",
        "lift_fresh", "diagonal",
    )
)  # fmt: skip
"""Views: no kernel."""
WAITS = frozenset(["_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"])
"""Operations whose result, or its size, the host must know."""
INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_"])
"""They wait where they are given a mask."""


class Census(TorchDispatchMode):
    """Counts, while entered, what is dispatched below autograd; the backward pass too.

    operations: by name, without views; about one kernel each on a GPU. waits: by `operation file:line`, where the host
    would wait for a GPU. copies: by `file:line`, from host memory to another device, for which the host waits as well
    unless they are `non_blocking`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Number of operations."""
        return sum(self.operations.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name not in FREE:
            self.operations[name] += 1
        masked = name in INDEXING and any(index is not None and not index.dtype.is_signed for index in args[1])
        if name in WAITS or masked:
            self.waits[f"{name} {_where()}"] += 1
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and not kwargs.get("non_blocking"):
            source = args[0] if name == "_to_copy" else args[1]
            target = out if isinstance(out, Tensor) else source
            if source.device.type == "cpu" and target.device.type != "cpu":
                self.copies[_where()] += 1
        return out


def _where() -> str:
    """The innermost line of this repository that led here."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        inside = path.is_relative_to(ROOT) and ".venv" not in path.parts and path.name != "census.py"
        if inside:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "backward"
