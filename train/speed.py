"""What makes a GPU faster and changes no result beyond rounding: reduced products, compiled blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from model.backbone import ConvNeXtBlock
from model.network import OccFlow

Precision = Literal["32-true", "tf32", "bf16-mixed", "16-mixed"]


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Within it, float32 matrix products and convolutions on a GPU keep 10 bits of their operands, but for `32-true`.

    Under autocast some stay in float32, and there the 7 bits of the others are the coarser ones. Geometry is never a
    matrix product (`geometry/transforms.py`).
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != "32-true"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def compile_blocks(network: OccFlow, backend: str = "inductor") -> int:
    """Compile ConvNeXt block by block, in place; how many there are. Another kind of backbone has none.

    Block by block, because blocks of one stage share their code: it takes a minute at the first steps, not many.
    """
    # Widths, padded sizes and whether gradients are wanted differ between calls of the one code they share.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    blocks = [module for module in network.backbone.modules() if isinstance(module, ConvNeXtBlock)]
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
    return len(blocks)
