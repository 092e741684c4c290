"""Trilinear look-ups on a CPU by themselves, at the ablation preset's shapes: compiled beside grid_sample.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_lookup.py

Milliseconds of CPU time, all threads together, and of elapsed time; medians of runs taken in turn, so that what else
the machine does falls on both. Points lie along rays from the car, as the renderer's do.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.lookup import look_up, use_compiled
from geometry.warp import sample_volume

GRID = VoxelGrid((-40.0, -40.0, -1.0), (40.0, 40.0, 5.4), (100, 100, 8))
FRUSTUM = VoxelGrid((0.0, -1.0, -1.0), (32.0, 1.0, 1.0), (32, 16, 44))


def along_rays(rays: int, samples: int) -> Tensor:
    """Points (1, rays * samples, 3) in metres, up to 45 m from near the grid's middle."""
    directions = torch.nn.functional.normalize(torch.randn(rays, 1, 3) * torch.tensor([1.0, 1.0, 0.1]), dim=-1)
    return (directions * torch.linspace(0, 45, samples)[:, None]).reshape(1, -1, 3)


def shapes() -> dict[str, tuple[Tensor, Tensor, VoxelGrid]]:
    """Volume, points and grid of each look-up in a step."""
    frustum = torch.rand(6, 15101, 3) * torch.tensor([34.0, 2.0, 2.0]) - 1
    return {
        "sdf and slope, camera rays": (torch.randn(1, 4, *GRID.shape), along_rays(2304, 64), GRID),
        "flow, camera rays": (torch.randn(1, *GRID.shape, 2).movedim(-1, 1), along_rays(2304, 64), GRID),
        "sdf and slope, LiDAR rays": (torch.randn(1, 4, *GRID.shape), along_rays(4096, 64), GRID),
        "slope, eikonal": (torch.randn(1, 3, *GRID.shape), along_rays(256, 64), GRID),
        "sdf, sparsity": (torch.randn(1, 1, *GRID.shape), torch.rand(1, 10_000, 3) * 80 - 40, GRID),
        "likelihood, lifting": (torch.randn(6, 2, *FRUSTUM.shape), frustum, FRUSTUM),
    }


def in_turn(works: list[Callable[[], object]], repeats: int) -> list[tuple[float, float]]:
    """Median CPU and elapsed milliseconds of each."""
    spent: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, times in zip(works, spent, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            times.append((1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))
    return [(statistics.median(t[0] for t in times[1:]), statistics.median(t[1] for t in times[1:])) for times in spent]


def main() -> None:
    """Print one row per look-up and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}; CPU ms (elapsed)")
    print(f"{'':38s}{'grid_sample':>18s}{'compiled':>18s}{'CPU':>8s}{'elapsed':>9s}")
    for name, (volume, points, grid) in shapes().items():
        volume.requires_grad_()
        if not use_compiled(volume, points):
            raise SystemExit("nothing to compare: numba is not installed")
        ways = [lambda f=f: f(volume, points, grid) for f in (sample_volume, look_up)]  # noqa: B023 (used at once)
        results = [way() for way in ways]
        gradient = torch.randn_like(results[0])
        backs = [lambda r=r: torch.autograd.grad(r, volume, gradient, retain_graph=True) for r in results]  # noqa: B023
        for direction, works in (("forward", ways), ("backward", backs)):
            plain, fast = in_turn(works, repeats)
            cells = "".join(f"{f'{cpu:.2f} ({wall:.2f})':>18s}" for cpu, wall in (plain, fast))
            print(
                f"{f'{name}, {direction}':38s}{cells}{plain[0] / fast[0]:>7.1f}x{plain[1] / fast[1]:>8.1f}x", flush=True
            )


if __name__ == "__main__":
    main()
