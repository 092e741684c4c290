"""The sample containers that bench_store.py compares with, written and read by an interpreter that has them.

`python store_peers.py FOLDER PASSES` reads the samples in FOLDER/samples (as `write_samples` lays them), writes them in
each format that can be imported, times reading them, and prints one JSON object: format -> row. It needs numpy,
numcodecs and OpenCV beside the formats, and nothing of this project. A sample is one record there, assembled
beforehand (what several samples share is written once for each of them), of the very bytes that our chunks hold,
without checksums.
"""

import importlib.machinery
import json
import os
import random
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numcodecs import blosc, zstd

Body = tuple[str, str, tuple[int, ...], bytes]
"""One encoded array: how it is coded ("jpeg" or a chunk codec), its dtype, its shape, its bytes."""
Read = Callable[[int], object]


def one_thread() -> None:
    """No threads inside OpenCV and blosc, so that CPU time is what one core does."""
    cv2.setNumThreads(1)
    blosc.set_nthreads(1)


def decode(body: Body) -> np.ndarray:
    """The array."""
    how, dtype, shape, data = body
    if how == "jpeg":
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if how == "zstd1":
        return np.frombuffer(zstd.decompress(data), dtype).reshape(shape)
    out = np.empty(shape, dtype)
    blosc.decompress(data, out)
    return out


def write_samples(folder: Path, samples: Sequence[Sequence[Body]]) -> None:
    """For `read_samples`: one file of bytes, one of where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "bytes", "wb") as out:
        described = [
            [(how, dtype, shape, out.tell(), out.write(data)) for how, dtype, shape, data in sample]
            for sample in samples
        ]
    (folder / "index.json").write_text(json.dumps(described))


def read_samples(folder: Path) -> list[list[Body]]:
    """Samples, in memory."""
    held = (folder / "bytes").read_bytes()
    described = json.loads((folder / "index.json").read_text())
    return [
        [(how, dtype, tuple(shape), held[start : start + size]) for how, dtype, shape, start, size in sample]
        for sample in described
    ]


def cpu_ms(sources: dict[str, tuple[Read, list[int]]], passes: int) -> dict[str, float]:
    """CPU milliseconds per sample of each source: the fastest of several passes, the sources taking turns."""
    best: dict[str, float] = {}
    for _ in range(passes):
        for name, (read, order) in sources.items():
            started = time.process_time()
            for number in order:
                read(number)
            spent = 1e3 * (time.process_time() - started) / len(order)
            best[name] = min(best.get(name, spent), spent)
    return best


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _keys(samples: list[list[Body]]) -> list[str]:
    return [f"k{i:04d}" for i in range(max(len(sample) for sample in samples))]


def _decoded(samples: list[list[Body]], number: int, found: Any) -> list[np.ndarray]:
    """Decode what a container gave back for a sample; the headers are known to whoever laid the samples down."""
    return [decode((how, dtype, shape, found[f"k{i:04d}"])) for i, (how, dtype, shape, _) in enumerate(samples[number])]


def webdataset(samples: list[list[Body]], folder: Path) -> tuple[Read, str]:
    """Tar files, read from beginning to end."""
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%06d.tar"), maxsize=1 << 28, verbose=0) as sink:
        for number, sample in enumerate(samples):
            named = {f"k{i:04d}": body[3] for i, body in enumerate(sample)}
            sink.write({"__key__": f"{number:08d}", **named})
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    ahead: list[Iterator[dict[str, Any]]] = []

    def read(number: int) -> object:
        if number == 0:
            ahead[:] = [iter(wds.WebDataset(tars, shardshuffle=False, empty_check=False))]
        found = next(ahead[0])
        assert found["__key__"] == f"{number:08d}"
        return _decoded(samples, number, found)

    return read, "sequential"


def mds(samples: list[list[Body]], folder: Path) -> tuple[Read, str]:
    """MosaicML's format, each column the bytes of one array."""
    if "torchvision" not in sys.modules:  # imported for image classes that are not used here, and seldom installable
        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
            module = sys.modules.setdefault(name, types.ModuleType(name))
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    from streaming import LocalDataset, MDSWriter

    with MDSWriter(out=str(folder), columns=dict.fromkeys(_keys(samples), "bytes"), size_limit=1 << 28) as sink:
        for sample in samples:
            named = {f"k{i:04d}": body[3] for i, body in enumerate(sample)}
            sink.write({key: named.get(key, b"") for key in _keys(samples)})
    data = LocalDataset(str(folder))
    return lambda number: _decoded(samples, number, data[number]), "random"


def litdata(samples: list[list[Body]], folder: Path) -> tuple[Read, str]:
    """LitData's chunks, each sample a dictionary of bytes."""
    from litdata import StreamingDataset
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=1 << 28)
    for number, sample in enumerate(samples):
        cache[number] = {f"k{i:04d}": body[3] for i, body in enumerate(sample)}
    cache.done()
    cache.merge()
    data = StreamingDataset(str(folder))
    return lambda number: _decoded(samples, number, data[number]), "random"


FORMATS = {"WebDataset": webdataset, "MosaicML MDS": mds, "LitData": litdata}


def main(folder: Path, passes: int) -> None:
    """Rows of all formats; one that cannot be imported says so."""
    one_thread()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    samples = read_samples(folder / "samples")
    in_order = list(range(len(samples)))
    at_random = random.Random(0).sample(in_order, len(in_order))
    rows: dict[str, dict[str, Any]] = {}
    sources: dict[str, tuple[Read, list[int]]] = {"floor": (lambda n: [decode(b) for b in samples[n]], at_random)}
    for name, make in FORMATS.items():
        place = folder / name.replace(" ", "_")
        place.mkdir()
        try:
            read, access = make(samples, place)
            if not all(np.array_equal(a, decode(b)) for a, b in zip(read(0), samples[0], strict=True)):  # type: ignore[call-overload]
                raise ValueError("it gives back other arrays than were written")
        except ImportError as error:
            rows[name] = {"missing": f"not installed ({error})"}
            continue
        except Exception as error:  # a peer that breaks is a row, not the end of the table
            rows[name] = {"missing": f"{type(error).__name__}: {error}"}
            continue
        rows[name] = {"access": access, "bytes": tree_bytes(place)}
        sources[name] = (read, in_order if access == "sequential" else at_random)
    found = cpu_ms(sources, passes)
    for name, row in rows.items():
        if name in found:
            row |= {"ms": found[name], "floor_ms": found["floor"]}
    print(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
