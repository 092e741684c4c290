"""Milliseconds of a demo training step by part, on this machine: `python tests/benchmarks/bench_train.py`."""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import train.module
from geometry.transforms import invert
from model.network import FrameInput, OccFlow
from train.batch import Batch, FlowTarget, View
from train.config import TrainConfig, load_config
from train.module import StageModule

CAMERAS, HEIGHT, WIDTH = 6, 64, 176
PARTS = (
    "cast_camera_rays", "separate_motion", "compare_with", "photometric_loss", "supervise_flow", "calm_static",
    "smooth_flow", "supervise_ranges", "eikonal_everywhere", "hessian", "smooth_depth", "matter_on_jittered_grid",
    "matter_behind",
)  # fmt: skip


def random_batch(config: TrainConfig) -> Batch:
    """Noise seen by six cameras of a car that drives: every cue present, half of the flow known, 5 % movable."""
    focal = WIDTH / 2 / np.tan(np.radians(70) / 2)
    K = torch.tensor([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]], dtype=torch.float32)
    poses = torch.eye(4).repeat(CAMERAS, 1, 1)
    for c, angle in enumerate(2 * np.pi * np.arange(CAMERAS) / CAMERAS):
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        poses[c, :3, :4] = torch.tensor([[sin, 0, cos, cos], [-cos, 0, sin, sin], [0, -1, 0, 1.5]])
    K, poses = K.repeat(1, CAMERAS, 1, 1), poses[None]
    there = torch.ones(1, CAMERAS, dtype=torch.bool)

    def images(*lead: int) -> torch.Tensor:
        return torch.randint(0, 256, (*lead, CAMERAS, 3, HEIGHT, WIDTH), dtype=torch.uint8)

    def view(metres: float, interval: float) -> View:
        moved = torch.eye(4)
        moved[0, 3] = -metres
        return View(invert(poses) @ moved, K, torch.full((1, CAMERAS), interval), there, images(1))

    def flow(metres: float, interval: float) -> FlowTarget:
        pixels = torch.randint(-600, 600, (1, CAMERAS, 2, HEIGHT, WIDTH), dtype=torch.int16)
        return FlowTarget(pixels, torch.rand(1, CAMERAS, HEIGHT, WIDTH) > 0.5, view(metres, interval))

    queue = config.model.fusion.history + 1
    returns = config.rays.lidar
    return Batch(
        frames=FrameInput(
            images=images(1, queue),
            K=K[:, None].repeat(1, queue, 1, 1, 1),
            ref_from_cam=poses[:, None].repeat(1, queue, 1, 1, 1),
            current_from_ref=torch.eye(4).repeat(1, queue, 1, 1),
            camera_valid=there[:, None].repeat(1, queue, 1),
        ),
        images=images(1),
        K=K,
        ref_from_cam=poses,
        camera_valid=there,
        earlier=view(-0.5, -0.2),
        later=view(4.0, 1.0),
        flow_next=flow(4.0, 1.0),
        flow_back=flow(-4.0, -1.0),
        movable=torch.rand(1, CAMERAS, HEIGHT, WIDTH) > 0.95,
        lidar_points=torch.randn(1, returns, 3) * torch.tensor([12.0, 12.0, 0.8]) + torch.tensor([0.0, 0.0, 1.0]),
        lidar_valid=torch.ones(1, returns, dtype=torch.bool),
        lidar_origin=torch.tensor([[0.0, 0.0, 1.8]]),
    )


class Clock:
    """Adds up CPU time by part; CPU time, because other load on the machine disturbs it less than elapsed time."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[name] += time.process_time() - start  # type: ignore[assignment]

        return timed


def measure(stage: int, steps: int, overrides: list[str]) -> None:
    """Print the parts of a stage's step."""
    config = load_config("demo", overrides)
    torch.manual_seed(0)
    module = StageModule(config, stage, OccFlow(config.model), total_steps=steps)
    optimiser = module.configure_optimizers()
    batch, clock = random_batch(config), Clock()
    originals = {name: getattr(train.module, name) for name in PARTS}
    for name, original in originals.items():
        setattr(train.module, name, clock.around(name, original))
    module.network.forward = clock.around("network", module.network.forward)  # type: ignore[method-assign]
    forward = clock.around("whole forward", module.training_step)
    for step in range(steps + 2):
        if step == 2:
            clock.spent.clear()
            start = time.perf_counter()
        optimiser.zero_grad()
        loss = forward(batch, 0)
        clock.around("whole backward", loss.backward)()
        clock.around("optimiser", optimiser.step)()
        module.step += 1
    elapsed = (time.perf_counter() - start) / steps * 1e3
    for name, original in originals.items():
        setattr(train.module, name, original)
    print(f"stage {stage}: {elapsed:.0f} ms elapsed per step on {torch.get_num_threads()} thread(s); CPU ms by part:")
    for name, seconds in clock.spent.most_common():
        print(f"  {name:26s}{seconds / steps * 1e3:8.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="such as rays.grid=[8,22]")
    arguments = parser.parse_args()
    for number in (1, 2):
        measure(number, arguments.steps, arguments.overrides)
