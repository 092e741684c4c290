"""`python -m model` compiles the CPU's kernels, which otherwise the first steps of a training wait for."""

import torch

from geometry.compiled import installed
from geometry.grid import VoxelGrid
from geometry.lookup import look_up
from model.fused import FlatMaps, fused_attention


def main() -> None:
    """Run each once, forward and backward, and forget it; numba keeps what it compiled beside the sources."""
    if not installed():
        return
    volume = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    look_up(volume, torch.zeros(1, 1, 3), VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2))).sum().backward()
    values = torch.zeros(1, 4, 8, requires_grad=True)
    references, offsets = torch.zeros(1, 1, 1, 2, 8), torch.zeros(1, 1, 1, 1, 2, 8)
    logits = torch.zeros(1, 1, 1, 1, 8)
    fused_attention(FlatMaps(values, ((2, 2),)), references, offsets, logits, kernel="numba").sum().backward()


if __name__ == "__main__":
    main()
