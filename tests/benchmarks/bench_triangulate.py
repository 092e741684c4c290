"""How exact the points are that flow cues and ego-motion give (`rays.triangulated`), on a store with exact truth.

Every triangulated point against the exact depth of its pixel.

    python tests/benchmarks/bench_triangulate.py [STORE] [--scenes GLOB] [--backward prev|aux]
"""

import argparse
import fnmatch
import time
from pathlib import Path

import numpy as np

from geometry.cameras import project
from geometry.transforms import invert, transform_points
from storage.reader import StoreReader
from storage.truth import TruthReader, truth_path
from train.batch import Batch
from train.config import load_config
from train.data import KeyframeDataset


def compared(sample: Batch, exact: list[dict[str, np.ndarray] | None]) -> np.ndarray:
    """(n, 3) of a keyframe's points: camera, depth by triangulation and exactly, metres."""
    assert sample.return_points is not None
    assert sample.return_valid is not None
    assert sample.return_origins is not None
    valid = sample.return_valid.numpy()
    points, origins = (x.double().numpy()[valid] for x in (sample.return_points, sample.return_origins))
    rows = [np.zeros((0, 3))]
    for c in np.flatnonzero(sample.camera_valid.numpy()):
        truth, ref_from_cam = exact[c], sample.ref_from_cam[c].double().numpy()
        mine = np.abs(origins - ref_from_cam[:3, 3]).max(axis=1) < 1e-4
        if truth is None or not mine.any():
            continue
        uv, depth, _ = project(sample.K[c].double().numpy(), transform_points(invert(ref_from_cam), points[mine]))
        u, v = np.floor(uv + 1e-6).astype(np.int64).T
        rows.append(np.column_stack([np.full(len(depth), c), depth, truth["depth"][v, u].astype(np.float64)]))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?", default=Path("runs/demo/store.zarr"))
    parser.add_argument("--scenes", default="*")
    parser.add_argument("--backward", default="prev", choices=["prev", "aux"])
    options = parser.parse_args()
    reader, truth = StoreReader(options.store), TruthReader(truth_path(options.store))
    config = load_config(
        "demo_camera_only",
        [
            f"store={options.store}",
            "rays.triangulated=200000",
            "rays.lidar_reach=0",
            f"data.backward_cue={options.backward}",
        ],
    )
    names = [name for name in reader.scenes() if fnmatch.fnmatchcase(name, options.scenes)]
    frames = [(name, t) for name in names for t in range(reader.scene(name).length)]
    dataset, found, counts, seconds = KeyframeDataset(config, 1, frames, 2**28), [], [], []
    for n, (name, t) in enumerate(frames):
        started = time.process_time()
        sample = dataset[0, n]
        seconds.append(time.process_time() - started)
        exact = [truth.scene(name).camera(t, c) for c in range(len(sample.camera_valid))]
        found.append(compared(sample, exact))
        counts.append(len(found[-1]))
    rows = np.concatenate(found)
    sky = ~np.isfinite(rows[:, 2]) | (rows[:, 2] > 1e3)
    off = np.abs(np.log(rows[~sky, 1] / rows[~sky, 2]))
    print(
        f"{len(frames)} keyframes, {np.mean(counts):.0f} points each ({np.mean(np.array(counts) == 0):.0%} have none), "
        f"{1e3 * np.mean(seconds):.0f} ms of CPU a sample; {sky.mean():.1%} of the points lie before the sky"
    )
    most = np.quantile(off, 0.9)
    print(f"relative error of depth: median {np.median(off):.3f}, mean {off.mean():.3f}, 90 % below {most:.3f}")
    print("| camera | points | median | mean |\n|---|---|---|---|")
    for c in np.unique(rows[~sky, 0]):
        of = off[rows[~sky, 0] == c]
        print(f"| {int(c)} | {len(of)} | {np.median(of):.3f} | {of.mean():.3f} |")


if __name__ == "__main__":
    main()
