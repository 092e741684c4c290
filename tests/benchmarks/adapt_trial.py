"""Does fine-tuning without labels lower the end-point error? A small network, taught on toy pairs, meets a driving log.

The starting point learns from labels of another world (noise that shifts and grows, with moving patches); the log is
synthetic, so that its true flow is known, and looked at only to measure. On a GPU, or with real weights, the very same
function runs: pipelines.adapt.loop.adapt.

    python tests/benchmarks/adapt_trial.py [--steps 300] [--folder runs/adapt_trial]
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.adapt.collect import CollectSettings, collect_pairs
from pipelines.adapt.loop import AdaptSettings, adapt
from pipelines.adapt.pairs import FramePairs
from pipelines.cues.unimatch.matching import coordinates, warp
from pipelines.cues.unimatch.network import UniMatch, save_network
from pipelines.cues.unimatch.variants import Variant
from pipelines.cues.unimatch.weights import load_network
from pipelines.datasets.registry import open_log
from pipelines.inputs import ImageCache

SMALL = Variant("small", scales=1, splits=(2,), widths=(16, 24, 32), channels=32, layers=3)


def toy_pairs(count: int, height: int, width: int, random: torch.Generator) -> tuple[torch.Tensor, ...]:
    """First and second images (0..255) and the flow between: noise that shifts and grows, with patches that move."""

    def texture() -> torch.Tensor:
        total = torch.zeros(count, 3, height, width)
        for cells in (3, 6, 12, 24, 48):
            coarse = torch.randn(count, 3, cells * height // width + 2, cells, generator=random)
            total = total + F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
        return (128 + 28 * total).clamp(0, 255)

    def spread(size: float, *shape: int) -> torch.Tensor:
        return (2 * torch.rand(*shape, generator=random) - 1) * size

    u, v = coordinates(torch.zeros(1, 1, height, width))
    from_middle = torch.stack([u - width / 2, v - height / 2])
    flow = spread(14, count, 2, 1, 1) * torch.tensor([1.0, 0.3]).view(1, 2, 1, 1)
    flow = flow + spread(0.12, count, 1, 1, 1) * from_middle
    for _ in range(3):
        centre = spread(0.4, count, 2, 1, 1) * torch.tensor([width, height]).view(1, 2, 1, 1)
        inside = ((from_middle - centre).abs().amax(1, keepdim=True)) < 8 + 8 * torch.rand(
            count, 1, 1, 1, generator=random
        )
        flow = torch.where(inside, spread(14, count, 2, 1, 1) * torch.tensor([1.0, 0.3]).view(1, 2, 1, 1), flow)
    second = texture()
    return warp(second, flow, padding="border"), second, flow


def starting_point(path: Path, steps: int) -> UniMatch:
    """A network taught with labels on toy pairs, kept on disk."""
    if not path.exists():
        torch.manual_seed(0)
        random = torch.Generator().manual_seed(1)
        network = UniMatch(SMALL).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
        for step in range(steps):
            first, second, flow = toy_pairs(4, 64, 160, random)
            answers = network(first, second, steps=True).steps
            errors = [(answer[:4] - flow).abs().mean() for answer in answers]
            loss = sum(0.9 ** (len(errors) - 1 - k) * error for k, error in enumerate(errors))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 200 == 0:
                print(f"  toy step {step}: L1 {errors[-1].item():.2f} px, of zero flow {flow.abs().mean().item():.2f}")
        save_network(network, path)
    return load_network(path)


def log_pairs(folder: Path, multiple: int) -> FramePairs:
    """Pairs of a synthetic SemanticKITTI log of small images."""
    if (folder / "pairs" / "pairs.npy").exists():
        return FramePairs.open(folder / "pairs")
    from rich.console import Console

    from pipelines.synth import write_log
    from pipelines.synth.config import SynthConfig

    config = SynthConfig(scenes=3, keyframes=24, width=208, height=64, lidar_beams=4, lidar_azimuths=64, seed=5)
    write_log(folder / "log", config, dataset="semantic_kitti", console=Console(quiet=True))
    log = open_log("semantic_kitti", folder / "log")
    images = ImageCache(64 << 20)
    return collect_pairs(log, log.scene_names(), images, multiple, CollectSettings(), folder / "pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--toy-steps", type=int, default=1500)
    parser.add_argument("--folder", type=Path, default=Path("runs/adapt_trial"))
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--teacher", type=float, default=0.3)
    parser.add_argument("--smoothness", type=float, default=2.0)
    parser.add_argument("--tolerance", type=float, default=1.5, help="of a start that misses by a pixel or two")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    network = starting_point(arguments.folder / "start.pth", arguments.toy_steps)
    pairs = log_pairs(arguments.folder, network.variant.multiple)
    print(f"{len(pairs)} pairs of {pairs.size[0]}x{pairs.size[1]}, prepared in {time.perf_counter() - started:.0f} s")
    settings = AdaptSettings(
        steps=arguments.steps, batch=2, learning_rate=arguments.learning_rate, every=max(1, arguments.steps // 4),
        teacher=arguments.teacher, smoothness=arguments.smoothness, tolerance=arguments.tolerance, held_out=4,
        seed=arguments.seed,
    )  # fmt: skip
    started = time.perf_counter()

    def show(step: int, figures: dict[str, float]) -> None:
        print(f"step {step:5d}  " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)

    history = adapt(network, pairs, settings, arguments.folder / "run", report=show)
    seconds = time.perf_counter() - started
    before, after = history[0]["epe"], history[-1]["epe"]
    print(f"EPE {before:.3f} -> {after:.3f} px (zero flow {history[0]['zero_epe']:.3f}); {seconds:.0f} s")
    assert np.isfinite(after)


if __name__ == "__main__":
    main()
