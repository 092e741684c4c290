"""What reading a training sample costs: `python tests/benchmarks/bench_store.py --folder DIR [--peers PYTHON]`.

A sample is what a step of the second stage reads: three keyframes of images, an image beside on either side, two flows
with confidence, masks and LiDAR. Samples are drawn at random from a store: `--store PATH`, or a synthetic one that is
made in `--folder` (kept there; about two minutes the first time, `--profile small` for the other profile).

Rows, CPU milliseconds per sample with one thread (the fastest of `--passes` passes, readers taking turns): the floor,
which decodes the very same bytes from memory, without reading or checking; the project's reader, samples at random and
as `data.locality` draws them (images that several samples share are kept while their block is open); plain .jpg, .png,
.npy files; zarr-python; and, in an interpreter of their own, containers of samples assembled beforehand. Bytes are
those on disk: pre-assembled samples hold a keyframe once for every sample that it is part of. `cold`: the files'
clean pages are dropped by posix_fadvise(POSIX_FADV_DONTNEED) before every sample (no root needed; a disk's or
hypervisor's own cache stays warm), milliseconds by the clock. `bucket`: the same store behind an S3 server (moto, one
Python process on loopback: it is the larger part of that row). `loader`: PyTorch's DataLoader with spawned workers: a
sample that is there already handed over tensor by tensor, then as training does it, then with the reading; on the clock
and in CPU time of the process that trains. `scaling`: as many processes at once as there are cores, against decoding
from memory in as many.

The peers' interpreter, once:

    python3 -m venv DIR/peers
    DIR/peers/bin/pip install torch numpy zarr numcodecs opencv-python-headless webdataset
    DIR/peers/bin/pip install --no-deps mosaicml-streaming litdata
    DIR/peers/bin/pip install transformers Brotli catalogue python-snappy tqdm 'xxhash<4' zstd boto3 filelock \\
        lightning-utilities requests tifffile obstore paramiko matplotlib

(`--no-deps` because both ask for torchvision, which they need for nothing that is used here.) Without `--peers`, or
where one of them cannot be imported, its row says "not installed".
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from store_loader import hand_over, sample_bytes, tensor_by_tensor, training_loader
from store_peers import FORMATS, Body, cpu_ms, decode, one_thread, tree_bytes, write_samples
from store_samples import Sample, bodies, forget, ours, ours_near, plain_files, plan_samples, used_bytes, zarr_python
from store_scaling import scaling_rows

from storage.commit import record_units
from storage.layout import INIT, UnitId
from storage.reader import StoreReader
from storage.store import CueStore, Provenance
from train.settings import LocalityConfig

Read = Callable[[int], object]
MB = 1e6
NEAR = "the same, near ones together"
LOCALITY = LocalityConfig(block=12, lanes=2)
"""`data.locality` of that row; the cache has room for its open blocks alone."""
TABLES = ("warm", "peers", "cold", "bucket", "loader", "scaling")


def make_store(folder: Path, profile: str, keyframes: int) -> Path:
    """A synthetic nuScenes log of six cameras, 256x704 for the network, and its cues; what is there is kept."""
    from rich.console import Console

    from pipelines.config import CuesConfig
    from pipelines.extract import extract_log
    from pipelines.synth import write_log
    from pipelines.synth.config import SynthConfig

    synth = SynthConfig(scenes=2, val_scenes=0, keyframes=keyframes, width=704, height=396, truth=False)
    log, store = folder / f"log{keyframes}", folder / f"{profile}{keyframes}.zarr"
    if not (log / "made").exists():
        write_log(log, synth, dataset="nuscenes", console=Console(quiet=True))
        (log / "made").touch()
    config = CuesConfig.model_validate(
        {
            "dataset": {"kind": "nuscenes", "root": log},
            "store": store,
            "sizes": {"network": [256, 704], "render": [128, 352]},
            "cues": {
                "images": {},
                "sweeps": {},
                "lidar": {},
                "flow_next": {"backend": "dis", "max_width": 352},
                "masks": {"backend": "motion_lidar", "flows": ["flow_next"]},
                "flow_aux": {"backend": "dis", "max_width": 352},
            },
            "keyframe_interval_s": 0.5,
            "truth": False,
            "profile": profile,
        }
    )
    extract_log(config)
    return store


def row(name: str, ms: float | str, floor: float, size: float | str, access: str) -> None:
    """One line of the first table."""
    if isinstance(ms, str):
        print(f"{name:30} {ms}")
        return
    written = size if isinstance(size, str) else f"{size / MB:.1f}"
    print(f"{name:30} {ms:9.2f} {ms / floor:7.2f} {written:>9}  {access}", flush=True)


def warm_rows(store: Path, samples: Sequence[Sample], coded: list[list[Body]], files: Path, passes: int) -> None:
    """Readers of this interpreter, files in the page cache."""
    order = list(range(len(samples)))
    random.Random(1).shuffle(order)
    readers: dict[str, Read] = {
        "floor: decode from memory": lambda n: [decode(body) for body in coded[n]],
        "this store's reader": ours(store, samples),
        "jpg + png + npy files": plain_files(files, samples, coded),
        "zarr-python": zarr_python(store, samples),
    }
    sources = {name: (read, order) for name, read in readers.items()}
    sources[NEAR] = ours_near(store, samples, LOCALITY)
    found = cpu_ms(sources, passes)
    held = sum(len(data) for data in {id(body[3]): body[3] for sample in coded for body in sample}.values())
    sizes = dict.fromkeys(sources, used_bytes(store, samples))
    sizes |= {"floor: decode from memory": held, "jpg + png + npy files": tree_bytes(files)}
    access = {NEAR: f"random within {LOCALITY.lanes} blocks of {LOCALITY.block} keyframes"}
    for name, ms in found.items():
        row(name, ms, found["floor: decode from memory"], sizes[name], access.get(name, "random"))


def peer_rows(python: Path | None, coded: list[list[Body]], passes: int) -> None:
    """Containers in their own interpreter; their ratio is to the floor there."""
    if python is None:
        for name in FORMATS:
            row(name, "not installed (no --peers)", 1, 0, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder) / "samples", coded)
        script = Path(__file__).with_name("store_peers.py")
        done = subprocess.run([python, script, folder, str(passes)], capture_output=True, text=True)
    if done.returncode:
        row("peers", f"failed: {done.stderr.strip().splitlines()[-1]}", 1, 0, "")
        return
    rows = json.loads(done.stdout.splitlines()[-1])
    for name, found in rows.items():
        if "missing" in found:
            row(name, found["missing"], 1, 0, "")
        else:
            row(name, found["ms"], found["floor_ms"], found["bytes"], f"{found['access']} (pre-assembled)")
    floors = [found["floor_ms"] for found in rows.values() if "floor_ms" in found]
    if floors:
        print(f"{'  (floor in their interpreter)':30} {floors[0]:9.2f}")


def cold_rows(store: Path, samples: Sequence[Sample], coded: list[list[Body]], files: Path) -> None:
    """Milliseconds by the clock of single samples whose files were dropped from the page cache just before."""
    os.sync()
    print(f"\n{'cold':30} {'ms':>9} {'of CPU':>7} {'MB read':>9}")
    sources: list[tuple[str, Read, Path]] = [
        ("this store's reader", ours(store, samples), store),
        ("jpg + png + npy files", plain_files(files, samples, coded), files),
        ("zarr-python", zarr_python(store, samples), store),
    ]
    for name, read, folder in sources:
        read(0)
        wall = cpu = disk = 0.0
        for number in range(len(samples)):
            forget(folder)
            before = disk_bytes(), time.perf_counter(), time.process_time()
            read(number)
            disk += disk_bytes() - before[0]
            wall, cpu = wall + time.perf_counter() - before[1], cpu + time.process_time() - before[2]
        n = len(samples)
        print(f"{name:30} {1e3 * wall / n:9.2f} {1e3 * cpu / n:7.2f} {disk / n / MB:9.2f}", flush=True)


def disk_bytes() -> int:
    """Bytes that this process has had read from disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


@contextlib.contextmanager
def bucket(store: Path) -> Iterator[str]:
    """The store's committed units in a bucket of a mock server."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
    from s3_server import aws_environment, make_bucket, s3_server

    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "log.txt") as endpoint:
        os.environ |= aws_environment(endpoint)
        make_bucket(endpoint, "bench")
        here = CueStore.open(store)
        there = CueStore.create("s3://bench/store.zarr", here.attributes)
        for scene in here.scenes():
            there.commit_init(scene, here.table(scene), "bench")
        for unit in record_units(store):
            if unit.cue != INIT and here.record(unit) is not None:
                there.commit_block(UnitId(unit.cue, unit.scene, unit.block), here.read_block(unit), Provenance("bench"))
        yield "s3://bench/store.zarr"


def bucket_row(store: Path, samples: Sequence[Sample]) -> None:
    """Milliseconds per sample from a bucket, each by a reader that has seen none of its shards (but the records)."""
    print(f"\n{'bucket':30} {'ms':>9} {'of CPU':>7}")
    try:
        with bucket(store) as place:
            for name, fresh in (("first look at each shard", True), ("kept in memory", False)):
                read = ours(place, samples)
                if not fresh:
                    for number in range(len(samples)):
                        read(number)
                before = time.perf_counter(), time.process_time()
                for number in range(len(samples)):
                    read(number)
                wall, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
                n = len(samples)
                print(f"{name:30} {1e3 * wall / n:9.2f} {1e3 * cpu / n:7.2f}", flush=True)
    except ImportError as error:
        print(f"not run: {error}")


def loader_rows(store: Path, count: int) -> None:
    """The hand-over alone, and the training loader, by number of workers."""
    size, tensors = sample_bytes(store)
    print(f"\n{'loader':30} {'ms':>9} {'CPU here':>9}   a sample is {size / MB:.2f} MB in {tensors} tensors")
    measures = (
        ("tensor by tensor", tensor_by_tensor, 4 * count),
        ("hand-over", hand_over, 4 * count),
        ("training loader", training_loader, count),
    )
    for name, measure, steps in measures:
        for workers in (0, 1, 2):
            found = measure(store, workers, steps)
            label = f"{name}, {workers} workers"
            print(f"{label:30} {found['wall_ms']:9.2f} {found['main_cpu_ms']:9.2f}", flush=True)


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, help="where the synthetic store is made and kept; default: a temporary one"
    )
    parser.add_argument("--store", type=Path, help="a cue store to read instead")
    parser.add_argument("--profile", default="fast", choices=("fast", "small"), help="of the synthetic store")
    parser.add_argument("--keyframes", type=int, default=5, help="of each of its two scenes")
    parser.add_argument("--peers", type=Path, help="interpreter that has WebDataset, MosaicML streaming, LitData")
    parser.add_argument("--samples", type=int, default=40, help="at most so many samples")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of the training loader; 0 leaves it out")
    parser.add_argument("--only", nargs="*", choices=TABLES, help="tables")
    options = parser.parse_args()
    only = options.only or TABLES
    own = Path(tempfile.mkdtemp()) if options.folder is None else options.folder
    files = Path(tempfile.mkdtemp(dir=options.folder))
    one_thread()
    try:
        store = options.store or make_store(own, options.profile, options.keyframes)
        reader = StoreReader(store)
        samples = plan_samples(reader, options.samples)
        coded = bodies(store, samples)
        sizes = f"{len(reader.attributes.cameras)} cameras, network {reader.attributes.network_size}, "
        print(
            f"{len(samples)} samples, {len(samples[0].items)} chunks each, {sizes}profile {reader.attributes.profile}"
        )
        print(f"{'warm':30} {'CPU ms':>9} {'ratio':>7} {'MB':>9}  access")
        if "warm" in only:
            warm_rows(store, samples, coded, files, options.passes)
        if "peers" in only:
            peer_rows(options.peers, coded, options.passes)
        if "cold" in only:
            cold_rows(store, samples, coded, files)
        if "bucket" in only:
            bucket_row(store, samples)
        if "loader" in only and options.steps:
            loader_rows(store, options.steps)
        if "scaling" in only:
            scaling_rows(store, samples, coded, len(os.sched_getaffinity(0)), options.passes)
    finally:
        shutil.rmtree(files)
        if options.folder is None:
            shutil.rmtree(own)


if __name__ == "__main__":
    main()
