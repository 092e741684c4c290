"""Deformable attention by itself: the fused kernels beside plain PyTorch.

    python tests/benchmarks/bench_attention.py            # the encoder, forward and backward, both ways
    python tests/benchmarks/bench_attention.py --sweep    # besides, each of a GPU's kernels by launch shape

On a GPU at the paper's nuScenes shapes. What the encoder asks of the kernel is recorded from a whole network that looks
at noise through six cameras, so that each query is seen by as many cameras as on a car. Milliseconds are medians
between events on the GPU.

On a CPU at the shapes of the preset `ablation`: encoder and fusion as they are in a step, in milliseconds of CPU time,
medians of both ways alternately.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_train import SIZES, random_batch
from torch import Tensor

import model.tpv
from model import fused
from model.fused import LaunchShape, fused_attention
from model.network import OccFlow
from train.config import load_config

SHAPES = tuple(LaunchShape(*pair) for pair in ((64, 8), (64, 4), (32, 4), (16, 4), (16, 1), (8, 2)))
REPEATS = 12


def median_ms(work: Callable[[], object]) -> float:
    """Milliseconds of one call, the median of several after three that compile and warm."""
    for _ in range(3):
        work()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


class Calls:
    """Arguments of the kernel's calls in one pass of the encoder, one of each kind."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Any, ...]] = {}

    def __call__(
        self, maps: Any, references: Tensor, offsets: Tensor, logits: Tensor, *rest: Any, **options: Any
    ) -> Tensor:
        levels, points, queries = logits.shape[2:]
        name = f"{len(maps.values)} views, {queries} queries, {levels}x{points} samples"
        arguments = (maps._replace(values=maps.values.detach()), references, offsets.detach(), logits.detach(), *rest)
        self.seen.setdefault(name, arguments)
        return fused_attention(maps, references, offsets, logits, *rest, **options)


def attention_ms(arguments: tuple[Any, ...], forward: LaunchShape, backward: LaunchShape) -> tuple[float, float]:
    """Forward, and backward, of one recorded call."""
    fused.FORWARD, fused.BACKWARD = forward, backward
    maps, references, offsets, logits, *rest = arguments
    leaves = [x.clone().requires_grad_() for x in (maps.values, offsets, logits)]
    out = fused_attention(maps._replace(values=leaves[0]), references, leaves[1], leaves[2], *rest)
    gradient = torch.randn_like(out)
    with torch.no_grad():
        ahead = median_ms(lambda: fused_attention(maps, references, offsets, logits, *rest))
    back = median_ms(lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True))
    return ahead, back


def encoder_ms(network: OccFlow, levels: list[Tensor], rig: Any) -> tuple[float, float, float]:
    """The TPV encoder of the current keyframe: forward without gradients, forward with them, forward and backward."""
    given = [level.detach().requires_grad_() for level in levels]

    def forth() -> Tensor:
        return network.tpv(given, rig)

    leaves = [*given, *network.tpv.parameters()]

    def both() -> None:
        torch.autograd.grad(forth().square().mean(), leaves, allow_unused=True)

    with torch.no_grad():
        quiet = median_ms(forth)
    return quiet, median_ms(forth), median_ms(both)


def on_cpu() -> None:
    """Print what encoder and fusion cost, plain and with the kernel for CPUs."""
    config = load_config("ablation")
    torch.manual_seed(0)
    batch = random_batch(config, *SIZES["ablation"])
    frames = type(batch.frames)(*(part[:, -1:] for part in batch.frames))
    pose, networks = batch.frames.current_from_ref, {}
    for kernel in ("plain", "numba"):
        torch.manual_seed(0)
        networks[kernel] = OccFlow(config.model.model_copy(update={"attention": kernel}))
    with torch.no_grad():
        levels, rig = networks["plain"].look(frames)
        volumes = [networks["plain"].tpv(levels, rig)] * pose.shape[1]
    given = [level.requires_grad_() for level in levels]
    newest = volumes[-1].clone().requires_grad_()

    def encode(network: OccFlow) -> Tensor:
        return network.tpv(given, rig)

    def fuse(network: OccFlow) -> Tensor:
        return network.fusion([*volumes[:-1], newest], pose)

    def both(network: OccFlow, work: Callable[[OccFlow], Tensor]) -> None:
        leaves = [*given, newest, *network.parameters()]
        torch.autograd.grad(work(network).square().mean(), leaves, allow_unused=True)

    print(f"CPU, {torch.get_num_threads()} thread(s), preset ablation: ms of CPU time, plain, numba, ratio")
    for name, call in (
        ("encoder, forward without gradients", torch.no_grad()(encode)),
        ("encoder, forward and backward", lambda network: both(network, encode)),
        ("fusion, forward without gradients", torch.no_grad()(fuse)),
        ("fusion, forward and backward", lambda network: both(network, fuse)),
    ):
        spent: dict[str, list[float]] = {kernel: [] for kernel in networks}
        for _ in range(REPEATS + 3):
            for kernel, network in networks.items():
                began = time.process_time()
                call(network)
                spent[kernel].append((time.process_time() - began) * 1e3)
        plain, numba = (sorted(times[3:])[REPEATS // 2] for times in spent.values())
        print(f"  {name:36s} {plain:7.1f} {numba:7.1f} {plain / numba:6.2f}", flush=True)


def main() -> None:
    """Print the encoder's table, then the sweep's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        on_cpu()
        return
    config = load_config("nuscenes", ["model.attention=triton"])
    batch = random_batch(config, *SIZES["nuscenes"]).to("cuda")
    torch.manual_seed(0)
    network = OccFlow(config.model).cuda()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    calls = Calls()
    for dtype in (torch.float32, torch.bfloat16):
        mixed = torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
        with mixed:
            with torch.no_grad():
                frames = type(batch.frames)(*(part[:, -1:] for part in batch.frames))
                levels, rig = network.look(frames)
            for kernel in ("plain", "triton"):
                network.tpv.kernel = kernel
                for layer in network.tpv.layers:
                    layer.hybrid.kernel = kernel
                quiet, forth, both = encoder_ms(network, levels, rig)
                print(
                    f"encoder, {'bf16' if dtype == torch.bfloat16 else 'TF32'}, {kernel}: forward {quiet:.2f} ms "
                    f"without gradients, {forth:.2f} with, {both:.2f} with backward",
                    flush=True,
                )
            if dtype == torch.bfloat16:
                model.tpv.fused_attention = calls  # type: ignore[assignment]
                network.tpv(levels, rig)
                model.tpv.fused_attention = fused_attention
    totals = {shape: [0.0, 0.0] for shape in SHAPES}
    for name, arguments in calls.seen.items():
        dtypes = ", ".join(str(x.dtype).removeprefix("torch.") for x in (arguments[0].values, *arguments[2:4]))
        print(f"{name} ({dtypes})")
        for shape in SHAPES if given.sweep else ():
            ahead, back = attention_ms(arguments, shape, shape)
            totals[shape][0] += ahead
            totals[shape][1] += back
            print(f"  {shape.queries:3d} queries, {shape.warps} warps: {ahead:.3f} ms, backward {back:.3f}", flush=True)
    for way, name in enumerate(("FORWARD", "BACKWARD")) if given.sweep else ():
        best = min(SHAPES, key=lambda shape: totals[shape][way])
        print(f"{name} {best.queries} {best.warps}")


if __name__ == "__main__":
    main()
