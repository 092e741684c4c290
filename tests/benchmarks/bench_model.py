"""Milliseconds of a training step of the network by part, on this machine: `python tests/benchmarks/bench_model.py`."""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.network import FrameInput, OccFlow
from model.render import camera_rays


def surround_frames(cameras: int = 6, size: tuple[int, int] = (64, 176), queue: int = 3) -> FrameInput:
    """A car that drives 4 m per keyframe, with cameras that look evenly around from 1.5 m above the ground."""
    height, width = size
    focal = width / 2 / np.tan(np.radians(70) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)
    poses = torch.zeros(cameras, 4, 4)
    for c in range(cameras):
        angle = 2 * np.pi * c / cameras
        forward = np.array([np.cos(angle), np.sin(angle), 0.0])
        right = np.array([np.sin(angle), -np.cos(angle), 0.0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
        pose[:3, 3] = forward + [0.0, 0.0, 1.5]
        poses[c] = torch.as_tensor(pose)
    current = torch.eye(4).repeat(1, queue, 1, 1)
    current[0, :, 0, 3] = -4.0 * torch.arange(queue - 1, -1, -1)
    return FrameInput(
        images=torch.randint(0, 256, (1, queue, cameras, 3, height, width), dtype=torch.uint8),
        K=K.expand(1, queue, cameras, 3, 3),
        ref_from_cam=poses.expand(1, queue, cameras, 4, 4),
        current_from_ref=current,
        camera_valid=torch.ones(1, queue, cameras, dtype=torch.bool),
    )


def timed(call: Callable[[], object], repeats: int) -> str:
    """Median milliseconds of `call` after two warm-up calls: elapsed, and CPU time, which other load disturbs less."""
    for _ in range(2):
        call()
    elapsed, busy = [], []
    for _ in range(repeats):
        start, start_busy = time.perf_counter(), time.process_time()
        call()
        elapsed.append((time.perf_counter() - start) * 1e3)
        busy.append((time.process_time() - start_busy) * 1e3)
    return f"{statistics.median(elapsed):7.1f} (CPU {statistics.median(busy):7.1f})"


def part(name: str, forward: Callable[..., object], inputs: list[Tensor], repeats: int) -> None:
    """Print one part's forward and forward + backward milliseconds, from leaf inputs to random output gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def tensors() -> list[Tensor]:
        out = forward(*leaves)
        return [x for x in (out if isinstance(out, list | tuple) else [out]) if isinstance(x, Tensor)]

    def without() -> None:
        with torch.no_grad():
            tensors()

    gradients = [torch.randn_like(x) for x in tensors()]
    alone = timed(without, repeats)
    both = timed(lambda: torch.autograd.backward(tensors(), gradients), repeats)
    print(f"  {name:<28} forward {alone}   forward + backward {both}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rays", type=int, default=2112, help="rays rendered per step")
    parser.add_argument("--fusion", default="full")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = ModelConfig.demo()
    config = config.model_copy(update={"fusion": config.fusion.model_copy(update={"kind": arguments.fusion})})
    model, frames, n = OccFlow(config), surround_frames(), arguments.repeats
    print(f"demo network, {sum(p.numel() for p in model.parameters()):,} parameters, {arguments.threads} threads, ms")

    current = FrameInput(*(entry[:, -1:] for entry in frames))
    images = model.normalise(current.images.flatten(0, 1), current.camera_valid.flatten(0, 1)).flatten(0, 1)
    part("backbone + FPN, 6 images", lambda x: model.pyramid(model.backbone(x)), [images], n)
    volumes = [volume.detach() for volume in model.lift_queue(frames)[0]]
    part("lift, 1 keyframe", lambda _: model.lift(current), [images], n)
    part("fusion", lambda *v: model.fusion(list(v), frames.current_from_ref), volumes, n)
    part("refine", model.refine, [volumes[-1]], n)
    features = model.refine(volumes[-1])
    part("SDF head", model.sdf_head, [features], n)
    part("flow head", model.flow_head, [features], n)

    def network() -> None:
        fields = model(frames)
        torch.autograd.backward([fields.sdf, fields.flow], [torch.ones_like(fields.sdf), torch.ones_like(fields.flow)])

    print(f"  {'network':<28} forward + backward {timed(network, n)}")
    fields = model(frames).detach()
    uv = torch.rand(6, arguments.rays // 6, 2) * torch.tensor([176.0, 64.0])
    origins, directions = (x.reshape(1, -1, 3) for x in camera_rays(frames.K[0, -1], frames.ref_from_cam[0, -1], uv))

    def render(sdf: Tensor, flow: Tensor) -> list[Tensor]:
        rays = model.renderer(type(fields)(sdf, flow, fields.grid), origins, directions, step=0)
        return [rays.range(), rays.mean_flow()]

    label = f"render {origins.shape[1]} x {config.render.samples}"
    part(label, render, [fields.sdf, fields.flow], n)


if __name__ == "__main__":
    main()
