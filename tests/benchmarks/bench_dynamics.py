"""What repeating dynamic keyframes does to the share of dynamic rays per step, on a store with exact truth beside it.

A ray is dynamic by eq. 10 as in training (the step's own ray grid, the stored flow cue and masks), but with the exact
depth in place of the rendered one; besides, rays on what truly moves are counted. Both are independent of the scores,
which know LiDAR points only.

    python tests/benchmarks/bench_dynamics.py [STORE] [--top 0.25 0.5] [--repeat 2 4] [--steps 400]
"""

import argparse
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from storage.dynamics import dynamics_path, write_dynamics
from storage.reader import StoreReader
from storage.truth import TruthReader, truth_path
from train.config import TrainConfig, load_config
from train.dynamics import MotionRule, moves, score_store
from train.frames import ByteCache, CachedScene, render_factor
from train.neighbours import Neighbour, view_geometry
from train.order import EpochOrder
from train.rays import draw_ray_grid
from train.sampler import StepSampler
from train.selection import training_frames, with_repeats


class Rays:
    """Which pixels of a keyframe are dynamic by eq. 10, and which truly move, cameras side by side."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.reader = config, StoreReader(config.store)
        self.truth = TruthReader(truth_path(config.store))
        self.factor, self.cache = render_factor(self.reader), ByteCache(2**28)
        self.of = lru_cache(maxsize=None)(self._of)

    def _of(self, name: str, t: int) -> tuple[np.ndarray, np.ndarray]:
        scene = CachedScene(self.reader.scene(name), self.cache, self.factor, self.reader.attributes.render_size)
        size, loss = self.reader.attributes.render_size, self.config.loss
        interval = self.reader.attributes.keyframe_interval_s
        threshold = loss.dynamic_pixels * size[1] / loss.reference_width
        here = view_geometry(scene.table, t, Neighbour(t), 1 / self.factor, interval)
        v, u = (part.ravel() + 0.5 for part in np.meshgrid(*map(np.arange, size), indexing="ij"))
        uv = np.stack([u, v], axis=-1)
        dynamic, truly = [], []
        for c in np.flatnonzero(here.valid):
            exact, cue = self.truth.scene(name).camera(t, int(c)), scene.flow("next", t, int(c), 0)
            found = np.zeros(size, dtype=bool)
            if exact is not None and cue.target_frame >= 0:
                there = view_geometry(
                    scene.table, t, Neighbour(cue.target_frame, cue.target_sweep), 1 / self.factor, interval
                )
                depth = np.minimum(exact["depth"].astype(np.float64).ravel(), 1e4)
                K = here.K[c].astype(np.float64)
                along = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1)
                ego_from_cam = np.linalg.inv(here.cam_from_ref[c].astype(np.float64))
                points = (along * depth[:, None]) @ ego_from_cam[:3, :3].T + ego_from_cam[:3, 3]
                known = cue.known & scene.movable(t, int(c), self.config.data.min_mask_score)
                pose, K2 = there.cam_from_ref[c].astype(np.float64), there.K[c].astype(np.float64)
                found = moves(points, uv, pose, K2, cue.flow, known, threshold).reshape(size)
            dynamic.append(found)
            step = self.factor
            truly.append(
                np.zeros(size, bool) if exact is None else exact["moving"][step // 2 :: step, step // 2 :: step] > 0
            )
        return np.stack(dynamic), np.stack(truly)

    def shares(self, frames: list[tuple[str, int]], steps: int) -> np.ndarray:
        """(steps, 2): share of the rays of each step that is dynamic, and that truly moves."""
        run, rays, size = self.config.run, self.config.rays, self.reader.attributes.render_size
        found = []
        for step, keys in enumerate(StepSampler(EpochOrder(frames, self.config.seed, 2), run.batch, steps)):
            generator = torch.Generator().manual_seed(step)
            grid = draw_ray_grid(size, rays.grid, rays.strides, generator)
            parts = [self.of(*frames[entry]) for _, entry in keys]
            picked = [[grid.pick(torch.from_numpy(part)).double().mean().item() for part in pair] for pair in parts]
            found.append(np.mean(picked, axis=0))
        return np.array(found)


def main() -> None:
    """Score the store, then print a row per rate of repetition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?", default=Path("runs/demo/store.zarr"))
    parser.add_argument("--config", default="demo")
    parser.add_argument("--repeat", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--top", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--scores", type=Path, help="where the scores go; default beside the store")
    options = parser.parse_args()
    if not options.store.exists():
        print(f"{options.store}: no such store; name one, or run `make demo` first")
        return
    reader, path = StoreReader(options.store), options.scores or dynamics_path(options.store)
    started = time.perf_counter()
    scored = list(score_store(reader, rule=MotionRule()))
    seconds = time.perf_counter() - started
    write_dynamics(path, scored, str(options.store), vars(MotionRule()))
    quantiles = np.quantile([frame.share for frame in scored], [0, 0.25, 0.5, 0.75, 0.9, 1])
    print(f"{len(scored)} keyframes scored in {seconds:.1f} s ({1000 * seconds / len(scored):.0f} ms each)")
    print("share of moving points, quantiles 0 25 50 75 90 100 %:", " ".join(f"{q:.4f}" for q in quantiles))
    base = [f"store={options.store}", "out=unused", f"data.dynamic.scores={path}"]
    rays = Rays(load_config(options.config, base))
    print("top         repeat  dynamic an epoch dynamic rays truly moving no dynamic ray")
    for top, repeat in [(0.25, 1), *((top, repeat) for top in options.top for repeat in options.repeat)]:
        more = [f"data.dynamic.top={top}", f"data.dynamic.repeat={repeat}"]
        config = load_config(options.config, [*base, *more])
        single = training_frames(config, 2, reader)
        frames = with_repeats(config, 2, reader, single)
        shares = rays.shares(frames, options.steps)
        chosen = (len(frames) - len(single)) // max(1, repeat - 1) if repeat > 1 else 0
        empty = (shares[:, 0] == 0).mean()
        print(
            f"{top:>11g} {repeat:>6} {chosen:>4}/{len(single):<3} {len(frames):>8} {shares[:, 0].mean():>12.4%} "
            f"{shares[:, 1].mean():>12.4%} {empty:>14.1%}"
        )


if __name__ == "__main__":
    main()
