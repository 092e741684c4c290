"""Seconds that `occflow status` takes on a store of 10,000 units: `python tests/benchmarks/bench_status.py`.

The store holds commit records alone, of a real size, and no data: status reads none. Without the index, with it, and
with it after 100 units more were committed; the library's call, and the whole command.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from storage.commit import CommitRecord, commit_path, encode_record
from storage.index import INDEX
from storage.layout import INIT, UnitId
from storage.schema import CUES, SceneTable, StoreAttributes
from storage.status import store_status
from storage.store import CueStore, Provenance

CAMERAS, FRAMES, BLOCKS = 6, 40, 14
SCENE_UNITS = 1 + BLOCKS * len(CUES)


def table() -> SceneTable:
    """A scene of forty keyframes, six cameras and no sweeps."""
    T, C = FRAMES, CAMERAS
    pose, no_sweeps = np.tile(np.eye(4), (T, C, 1, 1)), np.zeros((T, 0, C, 4, 4))
    return SceneTable(
        tokens=tuple(f"{t:032x}" for t in range(T)),
        timestamp_us=np.arange(T) * 500_000,
        global_from_ego=np.tile(np.eye(4), (T, 1, 1)),
        camera_valid=np.ones((T, C), bool),
        camera_timestamp_us=np.zeros((T, C), np.int64),
        camera_global_from_ego=pose,
        ego_from_cam=pose,
        K=np.ones((T, C, 3, 3)),
        image_from_raw=np.ones((T, C, 3, 3)),
        sweep_valid=np.zeros((T, 0, C), bool),
        sweep_timestamp_us=np.zeros((T, 0, C), np.int64),
        sweep_global_from_ego=no_sweeps,
        sweep_ego_from_cam=no_sweeps,
        sweep_K=np.zeros((T, 0, C, 3, 3)),
    )


def first_scene(root: Path) -> list[CommitRecord]:
    """A store with one scene: its init unit, and records of its blocks as `commit_block` would leave them."""
    cameras = tuple(f"CAM_{c}" for c in range(CAMERAS))
    attributes = StoreAttributes("bench", cameras, ("car",), (8, 16), (4, 8), 0.5, -(-FRAMES // BLOCKS))
    store = CueStore.create(root, attributes)
    init = store.commit_init("scene-0000", table(), "f" * 64)
    sizes = {"C": CAMERAS, "P": 0, "H": 8, "W": 16, "h": 4, "w": 8, "L": 1, "S": 1, "N": 1, "M": 64}
    records = [init]
    for cue, specs in CUES.items():
        if cue == "sweeps":
            continue
        arrays = {}
        for spec in specs:
            shape = (len(store.blocks("scene-0000")[0]), *(sizes[n] if isinstance(n, str) else n for n in spec.shape))
            arrays[spec.name] = np.full(shape, spec.fill, spec.dtype)
        quality = {"warp_error": {"value": 0.31, "count": 41_000}, "valid": {"value": 0.9, "count": 700_000}}
        digests = {"config_digest": "c" * 64, "input_digest": "d" * 64, "upstream": {"masks": "f" * 64}}
        given = Provenance("f" * 64, **digests, seconds=12.0, quality=quality, notes=["keyframe 3: one camera is dark"])
        records.append(store.commit_block(UnitId(cue, "scene-0000"), arrays, given))
    records.append(replace(records[1], unit=UnitId("sweeps", "scene-0000")))
    return records


def write_scene(root: Path, name: str, records: list[CommitRecord]) -> int:
    """Records of a whole scene; how many."""
    for record in records:
        for block in range(1 if record.unit.cue == INIT else BLOCKS):
            unit = UnitId(record.unit.cue, name, block)
            commit_path(root, unit).write_bytes(encode_record(replace(record, unit=unit)))
    return SCENE_UNITS


def timed(root: Path, what: str) -> None:
    """Print wall and CPU seconds of the library's call."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = store_status(root).rows
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:48} {wall:6.2f} s, of the CPU {cpu:5.2f} s ({len(rows)} rows)")


def main() -> None:
    """Build the store, then look at it four times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=10_000)
    units = parser.parse_args().units
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store.zarr"
        records = first_scene(root)
        count = scenes = 0
        while count < units:
            count += write_scene(root, f"scene-{scenes:04d}", records)
            scenes += 1
        sizes = [path.stat().st_size for path in (root / "commits").glob("*--*.json")]
        print(f"{len(sizes):,} records of {sum(sizes) / len(sizes):,.0f} bytes")
        timed(root, "without an index (it is written on the way)")
        timed(root, "with it")
        write_scene(root, "scene-new", records)
        timed(root, f"with it, {SCENE_UNITS} units committed since")
        print(f"the index: {(root / INDEX).stat().st_size / 1e6:.1f} MB")
        code = "import sys; sys.argv[0] = 'occflow'; from occflow import app; app()"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, "status", str(root)], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        print(f"{'the whole command, interpreter and all':48} {time.perf_counter() - started:6.2f} s")


if __name__ == "__main__":
    main()
