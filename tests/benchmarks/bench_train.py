"""Samples per second, milliseconds by part and memory of a training step, plain and fast in the same run.

    python tests/benchmarks/bench_train.py                                  # the demo's network on this machine
    python tests/benchmarks/bench_train.py --preset nuscenes --steps 10     # the paper's, for a GPU of 80 GB

The input is noise that six cameras saw: what a step costs hardly depends on what is in the pictures. Parts are forward
times (CPU time on a CPU, where other load on the machine disturbs it less than elapsed time; CUDA events on a GPU); the
backward pass and the optimiser are one number each. Besides, on any machine: operations dispatched (about one kernel
each on a GPU), and at how many the host would wait for a GPU.

Kernel counts need no GPU and no time: a small network of the paper's shape is enough.

    python tests/benchmarks/bench_train.py --preset nuscenes --small --count-only
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import train.module
import train.motion_terms
from geometry.transforms import invert
from model.network import FrameInput, OccFlow
from train.batch import Batch, FlowTarget, View
from train.census import Census
from train.config import TrainConfig, load_config
from train.module import StageModule
from train.speed import Precision, compile_blocks, products

CAMERAS = 6
SIZES = {"demo": ((64, 176), (64, 176)), "ablation": ((64, 176), (64, 176)), "nuscenes": ((512, 1408), (256, 704))}
"""Height and width of what the network sees and of what is rendered, by preset."""
PARTS = {
    train.module: (
        "cast_camera_rays", "separate_motion", "compare_with", "photometric_loss", "supervise_ranges",
        "eikonal_everywhere", "hessian", "smooth_depth", "matter_on_jittered_grid", "matter_behind",
    ),
    train.motion_terms: ("supervise_flow", "calm_static", "smooth_flow"),
}  # fmt: skip
"""Functions of a step that are timed, by the module that calls them."""
MODULES = ("backbone", "pyramid", "tpv", "fusion", "refine", "sdf_head", "flow_head")
SMALL = (
    "model.backbone={dims: [16, 16, 16, 16]}", "model.fpn_dim=24", "model.tpv={dim: 24, ffn_dim: 32}",
    "model.grid.voxel=1.6", "model.refine.channels=8", "model.heads.hidden=8", "model.render.samples=16",
    "rays.grid=[8, 22]", "rays.strides=[2, 3]", "rays.lidar=256",
)  # fmt: skip
"""The paper's nuScenes network with as many layers, levels, anchors and points, and few channels, cells and rays."""
SMALL_SIZES = ((64, 176), (32, 88))
VARIANTS = ("float32", "tf32", "bf16", "compiled")
"""`float32` is the plain step that the others are measured against; `tf32` rounds the operands of products to 10 bits,
`bf16` is mixed precision by autocast, `compiled` is that with compiled ConvNeXt blocks."""

WARM_UP = 3
"""Steps before the clock starts: kernels are chosen, caches filled."""


def random_batch(config: TrainConfig, network_size: tuple[int, int], render_size: tuple[int, int]) -> Batch:
    """Noise seen by six cameras of a car that drives: every cue present, half of the flow known, 5 % movable."""
    poses = torch.eye(4).repeat(CAMERAS, 1, 1)
    for c, angle in enumerate(2 * np.pi * np.arange(CAMERAS) / CAMERAS):
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        poses[c, :3, :4] = torch.tensor([[sin, 0, cos, cos], [-cos, 0, sin, sin], [0, -1, 0, 1.5]])
    poses = poses[None]
    there = torch.ones(1, CAMERAS, dtype=torch.bool)
    height, width = render_size

    def intrinsics(size: tuple[int, int]) -> torch.Tensor:
        focal = size[1] / 2 / np.tan(np.radians(70) / 2)
        K = torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]], dtype=torch.float32)
        return K.repeat(1, CAMERAS, 1, 1)

    def images(size: tuple[int, int], *lead: int) -> torch.Tensor:
        return torch.randint(0, 256, (*lead, CAMERAS, 3, *size), dtype=torch.uint8)

    def view(metres: float, interval: float) -> View:
        moved = torch.eye(4)
        moved[0, 3] = -metres
        there_from_here, K = invert(poses) @ moved, intrinsics(render_size)
        return View(there_from_here, K, torch.full((1, CAMERAS), interval), there, images(render_size, 1))

    def flow(metres: float, interval: float) -> FlowTarget:
        pixels = torch.randint(-600, 600, (1, CAMERAS, 2, height, width), dtype=torch.int16)
        return FlowTarget(pixels, torch.rand(1, CAMERAS, height, width) > 0.5, view(metres, interval))

    queue = config.model.fusion.history + 1
    returns = config.rays.lidar
    return Batch(
        frames=FrameInput(
            images=images(network_size, 1, queue),
            K=intrinsics(network_size)[:, None].repeat(1, queue, 1, 1, 1),
            ref_from_cam=poses[:, None].repeat(1, queue, 1, 1, 1),
            current_from_ref=torch.eye(4).repeat(1, queue, 1, 1),
            camera_valid=there[:, None].repeat(1, queue, 1),
        ),
        images=images(render_size, 1),
        K=intrinsics(render_size),
        ref_from_cam=poses,
        camera_valid=there,
        earlier=view(-0.5, -0.2),
        later=view(4.0, 1.0),
        flow_next=flow(4.0, 1.0),
        flow_back=flow(-4.0, -1.0),
        movable=torch.rand(1, CAMERAS, height, width) > 0.95,
        return_points=torch.randn(1, returns, 3) * torch.tensor([12.0, 12.0, 0.8]) + torch.tensor([0.0, 0.0, 1.0]),
        return_valid=torch.ones(1, returns, dtype=torch.bool),
        return_own=torch.ones(1, returns, dtype=torch.bool),
        return_origins=torch.tensor([0.0, 0.0, 1.8]).expand(1, returns, 3),
    )


class Clock:
    """Adds up milliseconds by part: CPU time on a CPU, time between events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        """Forget what was measured."""
        self._spent: Counter[str] = Counter()
        self._events: list[tuple[str, Any, Any]] = []

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.time(name):
                return call(*args, **kwargs)

        return timed

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time the work inside."""
        if self.gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
            return
        began = time.process_time()
        yield
        self._spent[name] += (time.process_time() - began) * 1e3  # type: ignore[assignment]

    def spent(self) -> Counter[str]:
        """Milliseconds by part."""
        total = self._spent.copy()
        if self.gpu:
            torch.cuda.synchronize()
            for name, start, end in self._events:
                total[name] += start.elapsed_time(end)
        return total


@contextmanager
def timed_parts(module: StageModule, clock: Clock) -> Iterator[None]:
    """Time the losses of the training step and the modules of the network."""
    originals = [(caller, name, getattr(caller, name)) for caller, names in PARTS.items() for name in names]
    for caller, name, original in originals:
        setattr(caller, name, clock.around(name, original))
    for name in MODULES:
        part = getattr(module.network, name)
        part.forward = clock.around(f"network: {name}", part.forward)
    try:
        yield
    finally:
        for caller, name, original in originals:
            setattr(caller, name, original)


def precision_of(variant: str) -> Precision:
    """The trainer's name for it."""
    return {"float32": "32-true", "tf32": "tf32"}.get(variant, "bf16-mixed")  # type: ignore[return-value]


def measure(
    config: TrainConfig, stage: int, steps: int, batch: Batch, device: torch.device, variant: str
) -> tuple[Counter[str], float, float]:
    """Milliseconds per step by part, elapsed milliseconds per step, and peak memory in GiB (GPU only)."""
    torch.manual_seed(0)
    module = StageModule(config, stage, OccFlow(config.model).to(device), total_steps=steps)
    if variant == "compiled":
        compile_blocks(module.network)
    optimiser = module.configure_optimizers()
    clock = Clock(device)
    mixed = torch.autocast(device.type, dtype=torch.bfloat16, enabled=variant in ("bf16", "compiled"))
    if clock.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with timed_parts(module, clock), products(precision_of(variant)):
        for step in range(steps + WARM_UP):
            if step == WARM_UP:
                clock.spent()
                clock.clear()
                start = time.perf_counter()
            optimiser.zero_grad()
            with clock.time("whole forward"), mixed:
                loss = module.training_step(batch, 0)
            with clock.time("whole backward"):
                loss.backward()
            with clock.time("optimiser"):
                optimiser.step()
            module.step += 1
        spent = clock.spent()
    elapsed = (time.perf_counter() - start) / steps * 1e3
    memory = torch.cuda.max_memory_allocated() / 2**30 if clock.gpu else 0.0
    return Counter({name: value / steps for name, value in spent.items()}), elapsed, memory


def count(config: TrainConfig, stage: int, batch: Batch, device: torch.device) -> None:
    """Print operations of one step, forward and backward, and the places where the host would wait for a GPU."""
    torch.manual_seed(0)
    module = StageModule(config, stage, OccFlow(config.model).to(device), total_steps=10)
    with Census() as forward:
        loss = module.training_step(batch, 0)
    with Census() as backward:
        loss.backward()
    both = forward.operations + backward.operations
    print(f"operations: {forward.total} forward, {backward.total} backward, {forward.total + backward.total} together")
    print("  most: " + ", ".join(f"{name} {number}" for name, number in both.most_common(8)))
    waits = forward.waits + backward.waits
    print(f"  host waits: {sum(waits.values())}; {', '.join(f'{place} {n}' for place, n in waits.most_common())}")


def profile(config: TrainConfig, stage: int, batch: Batch, device: torch.device, variant: str) -> None:
    """Print the kernels that a step spends most time in, and how long the device was busy."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    module = StageModule(config, stage, OccFlow(config.model).to(device), total_steps=10)
    if variant == "compiled":
        compile_blocks(module.network)
    mixed = torch.autocast(device.type, dtype=torch.bfloat16, enabled=variant in ("bf16", "compiled"))
    optimiser = module.configure_optimizers()

    def step() -> None:
        optimiser.zero_grad()
        with mixed:
            loss = module.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        torch.cuda.synchronize()

    with products(precision_of(variant)):
        for _ in range(WARM_UP):
            step()
        with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            step()
    kernels = [event for event in recorded.key_averages() if event.device_type == DeviceType.CUDA]
    busy, launches = sum(k.self_device_time_total for k in kernels) / 1e3, sum(k.count for k in kernels)
    print(f"{variant}: {launches} kernels, {busy:.1f} ms of device time; most of it in")
    for kernel in sorted(kernels, key=lambda k: -k.self_device_time_total)[:40]:
        print(f"  {kernel.self_device_time_total / 1e3:8.2f} ms {kernel.count:6d} x  {kernel.key[:110]}")


def show(results: dict[str, tuple[Counter[str], float, float]], batch: int) -> None:
    """One column per variant; ratios against the first."""
    variants = list(results)
    base = results[variants[0]][1]
    rows = {"ms per step": [f"{r[1]:.1f}" for r in results.values()]}
    rows["samples / s"] = [f"{1e3 * batch / r[1]:.2f}" for r in results.values()]
    rows["times as fast"] = [f"{base / r[1]:.2f}" for r in results.values()]
    rows["peak GiB"] = [f"{r[2]:.1f}" for r in results.values()]
    for name, _ in results[variants[0]][0].most_common():
        rows[name] = [f"{r[0][name]:.1f}" for r in results.values()]
    print(f"{'':30s}" + "".join(f"{v:>12s}" for v in variants))
    for name, values in rows.items():
        print(f"{name:30s}" + "".join(f"{v:>12s}" for v in values))


def main() -> None:
    """Print one table per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(SIZES), default="demo")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1, help="keyframes per step")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: float32; on a GPU all")
    parser.add_argument("--small", action="store_true", help="few channels, cells and rays, all layers and points")
    parser.add_argument("--count-only", action="store_true", help="operations and host waits, no times")
    parser.add_argument("--profile", action="store_true", help="a GPU's kernels by time, of each variant")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as rays.grid=[8,22]")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = load_config(arguments.preset, [*(SMALL if arguments.small else ()), *arguments.set])
    torch.manual_seed(0)
    batch = random_batch(config, *(SMALL_SIZES if arguments.small else SIZES[arguments.preset]))
    batch = batch.map(lambda tensor: torch.cat([tensor] * arguments.batch)).to(device)
    variants = arguments.variants or (VARIANTS if device.type == "cuda" else VARIANTS[:1])
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    for stage in arguments.stages:
        print(f"stage {stage}, preset {arguments.preset}, batch {arguments.batch}, {name}, torch {torch.__version__}")
        count(config, stage, batch, device)
        if arguments.count_only:
            continue
        results = {}
        for variant in variants:
            if arguments.profile:
                profile(config, stage, batch, device, variant)
                continue
            try:
                results[variant] = measure(config, stage, arguments.steps, batch, device, variant)
                print(f"{variant}: {results[variant][1]:.1f} ms per step", flush=True)
            except torch.cuda.OutOfMemoryError as error:
                print(f"{variant}: does not fit: {str(error).splitlines()[0]}")
        if results:
            show(results, arguments.batch)


if __name__ == "__main__":
    main()
