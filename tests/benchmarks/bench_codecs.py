"""What codecs and roundings of a store cost: `python tests/benchmarks/bench_codecs.py --images DIR --store PATH`.

Images: the raw .jpg and .png files below DIR, brought to `--size` as the extraction does it, by JPEG quality: size,
PSNR against the resized image, CPU time to decode. Arrays: those of a store of profile `fast` (which rounds nothing):
flow by codec and step with the error that rounding makes, confidence by levels, LiDAR by step, masks; and what JPEGs
are padded with. One thread; the mean over at most `--chunks` chunks, spread over the store.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numcodecs import blosc

from geometry.cameras import ImageTransform
from pipelines.cues.images import encode_jpeg
from pipelines.cues.resize import resize_image
from storage.codecs import decode_chunk, encode_chunk
from storage.layout import UnitId
from storage.profiles import reduced, round_confidence, round_flow
from storage.schema import FLOW_SCALE, INVALID_FLOW
from storage.store import CueStore

CODECS = ("blosc-lz4-bitshuffle", "blosc-zstd-bitshuffle", "blosc-zstd-shuffle", "zstd1")


def cpu_ms(work: Callable[[], object], times: int = 3) -> float:
    """CPU milliseconds of the fastest of a few runs."""
    best = float("inf")
    for _ in range(times):
        started = time.process_time()
        work()
        best = min(best, 1e3 * (time.process_time() - started))
    return best


def image_rows(folder: Path, size: tuple[int, int], qualities: Sequence[int], most: int) -> None:
    """Size, PSNR and decoding time by JPEG quality."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    images = []
    for path in paths[:: max(1, len(paths) // most)][:most]:
        raw = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        images.append(resize_image(raw, ImageTransform.fit(raw.shape[:2], size, keep="bottom")))
    print(f"\n{len(images)} images at {size[0]}x{size[1]}")
    print(f"{'quality':>8} {'KB':>7} {'MB/MP':>6} {'PSNR':>6} {'decode ms':>9}")
    for quality in qualities:
        coded = [np.frombuffer(encode_jpeg(image, quality), np.uint8) for image in images]
        back = [cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) for data in coded]
        error = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(images, back, strict=True)]
        psnr = np.mean([10 * np.log10(255**2 / e) for e in error])
        mean = np.mean([data.size for data in coded])
        spent = np.mean([cpu_ms(lambda data=data: cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)) for data in coded])
        print(f"{quality:8} {mean / 1e3:7.1f} {mean / size[0] / size[1]:6.3f} {psnr:6.2f} {spent:9.2f}")


def blocks_of(store: CueStore, cue: str) -> Iterator[dict[str, np.ndarray]]:
    """Committed blocks of a cue."""
    for record in store.records():
        if record.unit.cue == cue:
            yield store.read_block(UnitId(cue, record.unit.scene, record.unit.block))


def chunks_of(store: CueStore, cue: str, name: str, axes: int, most: int) -> list[np.ndarray]:
    """Chunks of an array that hold anything (`axes` leading axes are cut), spread over the store."""
    found: list[np.ndarray] = []
    for block in blocks_of(store, cue):
        array = block[name]
        found += list(array.reshape(-1, *array.shape[axes:]))
    found = [chunk for chunk in found if len(np.unique(chunk.reshape(-1)[::97])) > 1]
    return found[:: max(1, len(found) // most)][:most]


def coded_row(title: str, chunks: Sequence[np.ndarray], codec: str, items: float, note: str = "") -> None:
    """Size and times of one codec; `items` per chunk, for the rate."""
    coded = [encode_chunk(chunk, codec) for chunk in chunks]
    encode = np.mean([cpu_ms(lambda chunk=chunk: encode_chunk(chunk, codec), 1) for chunk in chunks])
    decode = np.mean(
        [
            cpu_ms(lambda data=data, chunk=chunk: decode_chunk(data, codec, chunk.dtype, chunk.shape))
            for data, chunk in zip(coded, chunks, strict=True)
        ]
    )
    size = np.mean([len(data) for data in coded])
    print(f"{title:24} {codec:22} {size / 1e3:8.1f} {size / items:7.3f} {encode:8.1f} {decode:8.2f}  {note}")


def flow_rows(store: CueStore, slot: str, most: int) -> None:
    """Codecs by step, with the error of rounding; float16 beside."""
    flows = chunks_of(store, f"flow_{slot}", f"flow/{slot}/flow", 2, most)
    pixels = flows[0].size / 2
    for step in (1, 2, 4, 8):
        kept = [round_flow(flow, step) for flow in flows]
        known = [flow != INVALID_FLOW for flow in flows]
        error = (
            np.concatenate([(a.astype(float) - b)[k] for a, b, k in zip(kept, flows, known, strict=True)]) / FLOW_SCALE
        )
        note = f"rms {np.sqrt(np.mean(error**2)):.4f} px, most {np.abs(error).max():.4f}"
        for codec in CODECS:
            coded_row(f"flow {slot}, 1/{FLOW_SCALE // step} px", kept, codec, pixels, note)
    halves = [np.where(f == INVALID_FLOW, np.nan, f / FLOW_SCALE).astype(np.float16).view(np.int16) for f in flows]
    errors = [
        (h.view(np.float16).astype(float) - f / FLOW_SCALE)[f != INVALID_FLOW]
        for h, f in zip(halves, flows, strict=True)
    ]
    error = np.concatenate(errors)
    note = f"rms {np.sqrt(np.mean(error**2)):.4f} px, most {np.abs(error).max():.4f}"
    coded_row(f"flow {slot}, float16", halves, "blosc-zstd-shuffle", pixels, note)
    levels = chunks_of(store, f"flow_{slot}", f"flow/{slot}/confidence", 2, most)
    for count in (255, 16, 8, 4):
        kept = [round_confidence(chunk, count) for chunk in levels]
        for codec in ("zstd1", "blosc-zstd-bitshuffle"):
            coded_row(f"confidence, {count} levels", kept, codec, pixels)


def other_rows(store: CueStore, most: int) -> None:
    """LiDAR, masks, and what JPEGs are padded with."""
    points = chunks_of(store, "lidar", "lidar/points", 1, most)
    small = [reduced({"lidar/points": chunk}, "small")["lidar/points"] for chunk in points]
    for title, chunks in (("lidar as it comes", points), ("lidar, 1/256 m", small)):
        for codec in ("blosc-lz4-shuffle", "blosc-zstd-shuffle", "blosc-zstd-bitshuffle"):
            coded_row(title, chunks, codec, len(chunks[0]))
    masks = chunks_of(store, "masks", "masks/instance", 2, most)
    if masks:
        coded_row("masks", masks, "zstd1", masks[0].size)
    for cue, name in (("images", "images"), ("sweeps", "sweeps/images")):
        rows = [(block[name], block[f"{name}_length"]) for block in blocks_of(store, cue)]
        if rows:
            held, used = sum(a.size for a, _ in rows), sum(int(n.sum()) for _, n in rows)
            print(f"{name}: {used / 1e6:.1f} MB of JPEG in {held / 1e6:.1f} MB of array")


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with raw images")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1408))
    parser.add_argument("--qualities", type=int, nargs="*", default=(95, 90, 85, 80, 75, 70, 60))
    parser.add_argument("--store", type=Path, help="a store of profile fast")
    parser.add_argument("--chunks", type=int, default=6)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    blosc.set_nthreads(1)
    if options.images is not None:
        image_rows(options.images, tuple(options.size), options.qualities, options.chunks)
    if options.store is not None:
        store = CueStore.open(options.store)
        if store.attributes.profile != "fast":
            parser.error(f"{options.store} has profile {store.attributes.profile}; its values are rounded already")
        print(f"\n{options.store.name}\n{'what':24} {'codec':22} {'KB':>8} {'B/item':>7} {'enc ms':>8} {'dec ms':>8}")
        present = {record.unit.cue for record in store.records()}
        for slot in ("next", "aux"):
            if f"flow_{slot}" in present:
                flow_rows(store, slot, options.chunks)
        other_rows(store, options.chunks)


if __name__ == "__main__":
    main()
