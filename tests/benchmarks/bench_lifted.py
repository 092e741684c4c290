"""How far lifted motion is from the truth: `python tests/benchmarks/bench_lifted.py STORE` (its truth beside it).

What `loss.lifted_flow` learns from, spot by spot, against the motion of the nearest voxel of a movable thing in the
truth; by LiDAR, and by the ground that things stand on as in a camera-only run.
"""

import argparse

import numpy as np
from scipy.spatial import cKDTree

from geometry.grid import VoxelGrid
from storage.reader import StoreReader
from storage.truth import TruthReader, truth_path
from train.batch import Batch
from train.config import TrainConfig, load_config
from train.data import KeyframeDataset
from train.selection import training_frames

NEAR_M = 1.5
"""A spot farther than this from every thing lies on none."""
MOVES = 0.4
"""Metres per second from which on a thing counts as moving."""
CLASSES = 10
"""Classes below this number are movable in OpenOcc's order."""


def errors(config: TrainConfig, truth: TruthReader) -> dict[str, np.ndarray]:
    """By spot: `error` and `zero` (of no motion) where things move, m/s; `claimed` where they are parked; `off` all."""
    reader = StoreReader(config.store)
    frames = training_frames(config, 2, reader)
    data, grid = KeyframeDataset(config, 2, frames, 2**28), config.model.grid.build()
    interval = reader.attributes.keyframe_interval_s
    found: dict[str, list[np.ndarray]] = {"error": [], "zero": [], "claimed": [], "off": []}
    for k, (scene, t) in enumerate(frames):
        batch: Batch = data[k, k]
        occupancy = truth.scene(scene).occupancy(t)
        if batch.moving_points is None or batch.moving_valid is None or occupancy is None:
            continue
        assert batch.moving_motion is not None
        there = batch.moving_valid.numpy()
        velocity = batch.moving_motion.numpy()[there].astype(np.float64) / interval
        things = (occupancy[0] < CLASSES) & np.isfinite(occupancy[1]).all(axis=-1)
        if not there.any() or not things.any():
            continue
        distance, nearest = cKDTree(centres(grid, things)).query(batch.moving_points.numpy()[there])
        true = occupancy[1][things][nearest].astype(np.float64)
        on, speed = distance < NEAR_M, np.linalg.norm(true, axis=1)
        found["off"].append(~on)
        found["error"].append(np.linalg.norm(velocity - true, axis=1)[on & (speed > MOVES)])
        found["zero"].append(speed[on & (speed > MOVES)])
        found["claimed"].append(np.linalg.norm(velocity, axis=1)[on & (speed <= MOVES)])
    return {name: np.concatenate([np.zeros(0), *parts]) for name, parts in found.items()}


def centres(grid: VoxelGrid, things: np.ndarray) -> np.ndarray:
    """Centres of the truth's voxels, which fill the same volume, metres."""
    lower, upper = np.asarray(grid.lower), np.asarray(grid.upper)
    return lower + (np.argwhere(things) + 0.5) * (upper - lower) / things.shape


def main() -> None:
    """One line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="a store with masks, flow_next, flow_prev and LiDAR, and truth beside it")
    parser.add_argument("--base", default="ablation")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help='such as data.scenes=["a"]')
    given = parser.parse_args()
    truth = TruthReader(truth_path(given.store))
    for name, lidar in (("by LiDAR", "true"), ("by the ground", "false")):
        changes = [f"store={given.store}", "rays.moving=100000", f"ablation.lidar={lidar}", *given.set]
        of = errors(load_config(given.base, changes), truth)
        parked = f"{of['claimed'].mean():.2f} ({len(of['claimed'])} spots)" if len(of["claimed"]) else "no spots"
        print(
            f"{name}: {len(of['error'])} spots on what moves, error {of['error'].mean():.2f} m/s "
            f"(median {np.median(of['error']):.2f}), no motion {of['zero'].mean():.2f} ({np.median(of['zero']):.2f}); "
            f"{of['off'].mean():.0%} on nothing; claimed of parked things {parked}",
            flush=True,
        )


if __name__ == "__main__":
    main()
