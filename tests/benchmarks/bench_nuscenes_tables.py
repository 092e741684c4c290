"""Seconds and memory of reading nuScenes' tables: `python tests/benchmarks/bench_nuscenes_tables.py [--scenes 850]`.

Writes tables of v1.0-trainval's size (850 scenes of 40 samples, 2.6 million rows of sample_data and of ego_pose, over
2 GB of JSON; no images) into a temporary folder and reads them in processes of their own: the whole index, the index
of two scenes, one scene built from it; beside them json.load of the largest table alone, as the devkit reads it (with
`--json`: it takes several GB).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

SAMPLES = 40
SAMPLE_US = 500_000
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RADARS = tuple(f"RADAR_{place}" for place in ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK_LEFT", "BACK_RIGHT"))
RATES = {**dict.fromkeys(CAMERAS, 6), "LIDAR_TOP": 10, **dict.fromkeys(RADARS, 6.6)}
"""Rows between two samples (12, 20 and about 13 Hz): 3.1 thousand rows a scene, as in the published tables."""
START_US = 1_532_402_900_000_000


def token(kind: int, number: int) -> str:
    """32 hexadecimal digits, like the published ones."""
    return f"{kind:04x}{number * 2654435761 % (1 << 48):012x}{number:016x}"


def scene_rows(scene: int) -> Iterator[tuple[str, int, int, bool]]:
    """Channel, time, sample number and whether it is a keyframe, of every row of a scene."""
    for channel, rate in RATES.items():
        count = int(rate * (SAMPLES - 1)) + 1
        per_sample = max(1, round(rate))
        for i in range(count):
            sample = min(i // per_sample, SAMPLES - 1)
            stamp = START_US + scene * 60_000_000 + int(i * SAMPLE_US / rate)
            yield channel, stamp, scene * SAMPLES + sample, i % per_sample == 0


def write_tables(folder: Path, scenes: int) -> int:
    """All tables of `scenes` scenes; returns the rows of sample_data."""
    folder.mkdir(parents=True)
    small: dict[str, list[dict[str, Any]]] = {"sensor": [], "calibrated_sensor": [], "scene": [], "sample": []}
    for n, channel in enumerate(RATES):
        small["sensor"].append({"token": token(1, n), "channel": channel, "modality": channel.split("_")[0].lower()})
    for scene in range(scenes):
        small["scene"].append(
            {"token": token(3, scene), "name": f"scene-{scene:04d}", "description": "Night", "nbr_samples": SAMPLES}
        )
        for n, channel in enumerate(RATES):
            K = [[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]] if channel in CAMERAS else []
            small["calibrated_sensor"].append(
                {
                    "token": token(2, scene * 16 + n),
                    "sensor_token": token(1, n),
                    "translation": [1.7, 0.1 * n, 1.5],
                    "rotation": [0.4998, -0.5030, 0.4997, -0.4974],
                    "camera_intrinsic": K,
                }
            )
        for k in range(scene * SAMPLES, (scene + 1) * SAMPLES):
            stamp = START_US + scene * 60_000_000 + (k - scene * SAMPLES) * SAMPLE_US
            small["sample"].append({"token": token(4, k), "timestamp": stamp, "scene_token": token(3, scene)})
    for name, rows in small.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    with (folder / "sample_data.json").open("w") as data, (folder / "ego_pose.json").open("w") as poses:
        return _write_large(data, poses, scenes)


def _write_large(data: TextIO, poses: TextIO, scenes: int) -> int:
    number, separator = 0, "[\n"
    channels = {channel: n for n, channel in enumerate(RATES)}
    for scene in range(scenes):
        data_rows, pose_rows = [], []
        for channel, stamp, sample, keyframe in scene_rows(scene):
            end = "jpg" if channel in CAMERAS else "pcd"
            height, width = (900, 1600) if channel in CAMERAS else (0, 0)
            identity = token(5, number)
            name = f"n015-2018-07-24-11-22-45+0800__{channel}__{stamp}.{end}"
            data_rows.append(
                f'{{\n"token": "{identity}",\n"sample_token": "{token(4, sample)}",\n"ego_pose_token": "{identity}",\n'
                f'"calibrated_sensor_token": "{token(2, scene * 16 + channels[channel])}",\n"timestamp": {stamp},\n'
                f'"fileformat": "{end}",\n"is_key_frame": {"true" if keyframe else "false"},\n"height": {height},\n'
                f'"width": {width},\n"filename": "{"samples" if keyframe else "sweeps"}/{channel}/{name}",\n'
                f'"prev": "{token(5, number - 1 if number else 0)}",\n"next": "{token(5, number + 1)}"\n}}'
            )
            x = 400 + 1e-5 * (stamp - START_US - scene * 60_000_000)
            pose_rows.append(
                f'{{\n"token": "{identity}",\n"timestamp": {stamp},\n"rotation": [\n0.5720320396729045,\n'
                f"-0.0016977771610471074,\n0.011798001930183783,\n-0.8201446642457809\n],\n"
                f'"translation": [\n{x:.12f},\n1180.8910790758732,\n0.0\n]\n}}'
            )
            number += 1
        data.write(separator + ",\n".join(data_rows))
        poses.write(separator + ",\n".join(pose_rows))
        separator = ",\n"
    for file in (data, poses):
        file.write("\n]")
    return number


def measure(root: Path, scenes: int) -> dict[str, float]:
    """In this process: the index of the first `scenes` scenes (0: all), and one scene built from it."""
    from pipelines.datasets.nuscenes import NuScenesLog

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    log = NuScenesLog(root, scenes=[f"scene-{i:04d}" for i in range(scenes)] if scenes else None)
    index = log.index
    read = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    started = time.perf_counter()
    frames = len(log.scene("scene-0001").keyframes)
    built = time.perf_counter() - started
    assert frames == SAMPLES
    return {
        "read_s": read, "scene_s": built, "rows": len(index.token),
        "columns_mb": index.nbytes / 1e6, "peak_mb": peak / 1e3,
    }  # fmt: skip


def whole_json(path: Path) -> dict[str, float]:
    """In this process: json.load of one table."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with path.open() as file:
        rows = json.load(file)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"read_s": time.perf_counter() - started, "rows": len(rows), "peak_mb": peak / 1e3}


def apart(*arguments: object) -> dict[str, float]:
    """This script in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, *(str(a) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=850)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the tables go; default a temporary folder")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        root, what = Path(options.measure[0]), options.measure[1]
        found = whole_json(root / "v1.0-trainval" / "sample_data.json") if what == "json" else measure(root, int(what))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root, started = Path(name), time.perf_counter()
        rows = write_tables(root / "v1.0-trainval", options.scenes)
        size = sum(path.stat().st_size for path in (root / "v1.0-trainval").iterdir())
        seconds = time.perf_counter() - started
        print(
            f"{options.scenes} scenes, {rows} rows of sample_data, {size / 1e9:.2f} GB, written in {seconds:.0f} s",
            flush=True,
        )
        print(f"{'what':26} {'rows kept':>10} {'s':>6} {'columns MB':>11} {'peak MB':>8} {'one scene s':>12}")
        for what, scenes in (("all scenes", 0), ("two scenes", 2)):
            found = apart("--measure", root, scenes)
            figures = (
                f"{found['read_s']:6.1f} {found['columns_mb']:11.1f} {found['peak_mb']:8.0f} {found['scene_s']:12.2f}"
            )
            print(f"{what:26} {found['rows']:10.0f} {figures}", flush=True)
        if options.json:
            found = apart("--measure", root, "json")
            print(
                f"{'json.load of sample_data':26} {found['rows']:10.0f} {found['read_s']:6.1f} {found['peak_mb']:20.0f}"
            )


if __name__ == "__main__":
    main()
