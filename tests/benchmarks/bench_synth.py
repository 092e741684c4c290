"""Speed of the synthetic log's renderer, in megapixels per second: `python tests/benchmarks/bench_synth.py`.

Beside it the depth alone, one ray per pixel and no shading, by slab tests in numpy against the same primitives
boxes: what one would write without compiled kernels.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from geometry.cameras import camera_directions, pixel_centres
from pipelines.synth.capture import Stand, take_shot
from pipelines.synth.config import SynthConfig
from pipelines.synth.rig import NUSCENES_CAMERAS, nuscenes_camera
from pipelines.synth.shapes import COS, CX, CY, CZ, HX, HY, HZ, SIN
from pipelines.synth.world import World, build_world


def rendered(world: World, width: int, height: int, threads: int, images: int) -> float:
    """Megapixels per second of `images` shots spread over the six cameras."""
    cameras = [nuscenes_camera(channel, width, height) for channel in NUSCENES_CAMERAS]

    def one(i: int) -> None:
        take_shot(world, cameras[i % 6], i % 6, 0.1 * i, 0.004, i)

    one(0)
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(images)))
    return images * width * height / 1e6 / (time.perf_counter() - started)


def brute_force(world: World, width: int, height: int) -> float:
    """Megapixels per second of depth alone, by slab tests against every primitive's box in numpy."""
    camera = nuscenes_camera("CAM_FRONT", width, height)
    stand = Stand.at(world, camera, 0.0)
    pose = stand.view.world_from_cam
    started = time.perf_counter()
    rays = camera_directions(camera.K, pixel_centres(height, width).reshape(-1, 2)) @ pose[:3, :3].T
    depth = np.full(len(rays), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for p in stand.primitives:
            turn = np.array([[p[COS], p[SIN], 0], [-p[SIN], p[COS], 0], [0, 0, 1]])
            eye, ways = turn @ (pose[:3, 3] - p[[CX, CY, CZ]]), rays @ turn.T
            half = p[[HX, HY, HZ]]
            near, far = (-eye - np.sign(ways) * half) / ways, (-eye + np.sign(ways) * half) / ways
            low, high = near.max(axis=1), far.min(axis=1)
            depth = np.where((low < high) & (low > 0), np.minimum(depth, low), depth)
    return width * height / 1e6 / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    images = parser.parse_args().images
    world = build_world(SynthConfig(), 0)
    slow = brute_force(world, 176, 99)
    print(f"{'what':44} {'MP/s':>7} {'ratio':>7}")
    print(f"{'numpy, boxes only, no shading, 176x99':44} {slow:7.3f} {1.0:7.1f}")
    for width, height in ((352, 198), (800, 450)):
        for threads in (1, 2):
            speed = rendered(world, width, height, threads, images)
            print(f"{f'rendered, {width}x{height}, {threads} thread(s)':44} {speed:7.3f} {speed / slow:7.1f}")


if __name__ == "__main__":
    main()
