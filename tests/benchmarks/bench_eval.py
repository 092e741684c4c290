"""RayIoU of one nuScenes-size keyframe: compiled, numpy, torch, and plain Python ray by ray; all in this run.

    python tests/benchmarks/bench_eval.py [--repeats 5] [--device cuda]

Eight origins times 14,040 directions through 200 x 200 x 16 voxels, truth and prediction. Times are CPU seconds of this
process (a busy machine does not spoil them; on a GPU: wall seconds), the least of the repeats. Plain Python runs on a
sample of the rays and is scaled up. The whole validation set of nuScenes has 6,019 keyframes.
"""

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from eval.mave import VelocityError
from eval.protocols import OPENOCC_CLASSES, PROTOCOLS
from eval.raycast import Hits, cast_rays
from eval.raycast_torch import cast_rays_torch
from eval.rayiou import RayIoU
from eval.rays import ray_directions
from geometry.grid import NUSCENES_GRID

KEYFRAMES = 6019
SAMPLE = 1000
FREE = 16


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes of a street with boxes and walls, of the same seen a voxel off, and eight origins along the road."""
    rng, centres = np.random.default_rng(seed), NUSCENES_GRID.centres()
    x, y, z = np.moveaxis(centres, -1, 0)
    semantics = np.full(NUSCENES_GRID.shape, FREE, dtype=np.uint8)
    semantics[np.abs(z) < 0.2] = 10
    semantics[(np.abs(np.abs(y) - 25) < 0.5) & (z > 0)] = 14
    for _ in range(60):
        (cx, cy), (length, width, height) = rng.uniform(-38, 38, 2), rng.uniform(1, 5, 3)
        if abs(cy) > 3:
            inside = (np.abs(x - cx) < length / 2) & (np.abs(y - cy) < width / 2) & (z > 0) & (z < height)
            semantics[inside] = rng.choice([0, 1, 7, 9, 15])
    origins = np.stack([np.linspace(-20, 20, 8), np.zeros(8), np.full(8, 1.84)], axis=1)
    return semantics, np.roll(semantics, 1, axis=0), origins


def plain_walk(occupied: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> tuple[int, float]:
    """One ray by Amanatides and Woo (1987) in plain Python, from an origin inside the grid."""
    n, size, low = occupied.shape, NUSCENES_GRID.voxel_size, NUSCENES_GRID.lower
    at = [(float(origin[a]) - low[a]) / size[a] for a in range(3)]
    pace = [float(direction[a]) / size[a] for a in range(3)]
    cell = [math.floor(v) for v in at]
    ahead = [1 if p > 0 else 0 for p in pace]
    plane = [(cell[a] + ahead[a] - at[a]) / pace[a] if pace[a] else math.inf for a in range(3)]
    while True:
        a = plane.index(min(plane))
        if occupied[cell[0], cell[1], cell[2]]:
            return (cell[0] * n[1] + cell[1]) * n[2] + cell[2], plane[a]
        leave = plane[a]
        cell[a] += 1 if ahead[a] else -1
        if not 0 <= cell[a] < n[a]:
            return -1, leave
        plane[a] = (cell[a] + ahead[a] - at[a]) / pace[a]


def least(work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of the fastest of some runs, after one that compiles and warms."""
    work()
    times = []
    for _ in range(repeats):
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def main() -> None:
    """Measure, check that all agree, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    semantics, predicted, origins = scene()
    fan = ray_directions()
    starts, ways = np.repeat(origins, len(fan), axis=0), np.tile(fan, (len(origins), 1))
    occupied = semantics != FREE
    volume = torch.from_numpy(occupied).to(given.device)

    sample = np.random.default_rng(1).choice(len(starts), SAMPLE, replace=False)
    started = time.process_time()
    plain = [plain_walk(occupied, starts[r], ways[r]) for r in sample]
    seconds = {"plain Python, ray by ray": (time.process_time() - started) / SAMPLE * len(starts)}
    gpu = given.device != "cpu"

    def on_device() -> Hits:
        return cast_rays_torch(volume, NUSCENES_GRID, starts, ways)

    seconds["numpy, all rays at once"] = least(lambda: cast_rays(occupied, NUSCENES_GRID, starts, ways, "numpy"), 1)
    seconds[f"torch, {given.device}"] = least(on_device, 1 + 4 * gpu, time.perf_counter if gpu else time.process_time)
    seconds["numba, one core"] = least(lambda: cast_rays(occupied, NUSCENES_GRID, starts, ways, "numba"), given.repeats)

    fast, slow = (cast_rays(occupied, NUSCENES_GRID, starts, ways, backend) for backend in ("numba", "numpy"))
    for other in (slow, on_device()):
        assert np.array_equal(fast.voxel, other.voxel)
        assert fast.distance.tobytes() == other.distance.tobytes()
    assert [int(v) for v in fast.voxel[sample]] == [voxel for voxel, _ in plain]
    assert fast.distance[sample].tolist() == [distance for _, distance in plain]

    print(f"casting {len(starts)} rays through one volume, {(fast.voxel >= 0).mean():.0%} of which hit; all agree")
    for name, value in seconds.items():
        print(f"  {name:28} {value:9.4f} s   {value / seconds['numba, one core']:8.1f} x numba")

    for name in sorted(PROTOCOLS):
        metric, velocity = RayIoU(name, NUSCENES_GRID, OPENOCC_CLASSES), VelocityError(OPENOCC_CLASSES)
        flow = np.zeros((*NUSCENES_GRID.shape, 2), np.float32)

        def keyframe(metric: RayIoU = metric, velocity: VelocityError = velocity, flow: np.ndarray = flow) -> None:
            rays = metric.truth_rays(semantics, origins)
            hits = metric.update(rays, predicted != FREE, predicted)
            velocity.update(rays, hits, flow, flow)

        value = least(keyframe, given.repeats)
        whole = value * KEYFRAMES / 60
        print(f"keyframe, RayIoU {name} and mAVE: {value:.3f} s on one core; {KEYFRAMES} keyframes: {whole:.1f} min")


if __name__ == "__main__":
    main()
