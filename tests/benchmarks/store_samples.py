"""What a training sample is made of, and the readers in this project's own environment that bench_store.py times."""

import io
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from store_peers import Body, decode

from storage.chunks import ChunkReader
from storage.layout import UnitId
from storage.queue import queue_keyframes
from storage.reader import SceneReader, StoreReader
from train.frames import ByteCache
from train.order import EpochOrder
from train.settings import LocalityConfig

QUEUE = 3
"""Keyframes that the network sees at once."""
LIDAR_ARRAYS = ("lidar/points", "lidar/cameras")


@dataclass(frozen=True)
class Item:
    """One chunk of a sample: unit's cue, array, keyframe, and what follows it (camera, or sweep slot and camera)."""

    cue: str
    array: str
    t: int
    rest: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sample:
    """Keyframe `t` of a scene with all that a step of the second stage reads for it."""

    scene: str
    t: int
    items: tuple[Item, ...]


def plan_samples(reader: StoreReader, count: int, seed: int = 0) -> list[Sample]:
    """`count` samples at random (each of the store's at most once) whose neighbours are there on both sides."""
    found = []
    for name in reader.scenes():
        scene = reader.scene(name)
        found += [Sample(name, t, tuple(_items(reader, name, t))) for t in range(1, scene.length - 1)]
    return random.Random(seed).sample(found, min(count, len(found)))


def _items(reader: StoreReader, name: str, t: int) -> list[Item]:
    scene, cameras = reader.scene(name), range(len(reader.attributes.cameras))
    slots = scene.table.sweep_valid.shape[1]
    neighbours = [(t - 1, slots - 1), (t, 0)] if slots else []
    frames = queue_keyframes(t, QUEUE) + ([] if slots else [t + 1])
    back = next((slot for slot in ("aux", "prev") if scene.has(f"flow_{slot}", t)), None)
    items = [Item("images", "images", k, (c,)) for k in frames for c in cameras]
    items += [Item("sweeps", "sweeps/images", k, (p, c)) for k, p in neighbours for c in cameras]
    for slot in ("next", back):
        if slot is not None and scene.has(f"flow_{slot}", t):
            arrays = (f"flow/{slot}/flow", f"flow/{slot}/confidence")
            items += [Item(f"flow_{slot}", array, t, (c,)) for c in cameras for array in arrays]
    if scene.has("masks", t):
        items += [Item("masks", "masks/instance", t, (c,)) for c in cameras]
    return items + [Item("lidar", array, t) for array in LIDAR_ARRAYS if scene.has("lidar", t)]


def bodies(path: Path, samples: Sequence[Sample]) -> list[list[Body]]:
    """Each sample's chunks as they are coded in the store, without checksum; an image as its JPEG bytes alone."""
    source, memo = ChunkReader(path), dict[tuple[str, Item], Body]()

    def body(scene: str, item: Item) -> Body:
        record = source.require(UnitId(item.cue, scene, _block(source, scene, item)))
        layout = record.shard(item.array).layout
        if item.array.endswith("images"):
            length = int(source.chunk(record, f"{item.array}_length", item.t)[item.rest])
            return "jpeg", "uint8", (), source.chunk(record, item.array, item.t, *item.rest)[:length].tobytes()
        entry = record.shard(item.array)
        number = 0
        position = (item.t - record.frames[0], *item.rest)
        for axis, cells in enumerate(layout.grid):
            number = number * cells + (position[axis] if axis < len(position) else 0)
        shard = source._open(record, entry)
        offset, size = (int(n) for n in shard.index[number])
        shape = layout.chunk[len(position) :]
        return layout.codec, layout.dtype, shape, bytes(shard.read(number, offset, size))[:-4]

    for sample in samples:
        for item in sample.items:
            if (sample.scene, item) not in memo:
                memo[sample.scene, item] = body(sample.scene, item)
    return [[memo[sample.scene, item] for item in sample.items] for sample in samples]


def _block(source: ChunkReader, scene: str, item: Item) -> int:
    step = source.require(UnitId("images", scene)).shard("images").layout.shard[0]
    return item.t // step


def ours(path: Path | str, samples: Sequence[Sample]) -> Callable[[int], object]:
    """The project's reader, as training calls it."""
    reader = StoreReader(path)

    def read(number: int) -> list[object]:
        sample = samples[number]
        scene = reader.scene(sample.scene)
        scene.prefetch({(item.cue, item.t) for item in sample.items})
        return [_read_item(scene, item) for item in sample.items if not item.array.endswith(READ_BESIDE)]

    return read


READ_BESIDE = ("lidar/cameras", "/confidence")
"""Arrays that come with another one's call, as a flow's confidence does."""


def _read_item(scene: SceneReader, item: Item) -> object:
    if item.array == "images":
        return scene.image(item.t, *item.rest)
    if item.array == "sweeps/images":
        return scene.sweep_image(item.t, *item.rest)
    if item.array.endswith("/flow"):
        return scene.flow(item.cue.removeprefix("flow_"), item.t, *item.rest)
    if item.array == "masks/instance":
        return scene.masks(item.t, *item.rest)
    return scene.lidar(item.t) if item.array == "lidar/points" else None


def ours_near(
    path: Path, samples: Sequence[Sample], locality: LocalityConfig
) -> tuple[Callable[[int], object], list[int]]:
    """The same as `data.locality` draws it, and the order: images go through training's cache, which holds no more than
    the open blocks and is empty at the beginning of the order."""
    reader = StoreReader(path)
    order = [int(k) for k in EpochOrder([(s.scene, s.t) for s in samples], 0, 2, locality)(0)]
    height, width = reader.attributes.network_size
    room = locality.lanes * (locality.block + QUEUE) * len(reader.attributes.cameras) * height * width * 3
    caches = [ByteCache(room)]

    def read(number: int) -> list[object]:
        if number == order[0]:
            caches[0] = ByteCache(room)
        sample, cache = samples[number], caches[0]
        scene = reader.scene(sample.scene)
        wanted = [item for item in sample.items if (sample.scene, item) not in cache]
        scene.prefetch({(item.cue, item.t) for item in wanted})
        got: list[object] = []
        for item in sample.items:
            if item.array == "images":
                got.append(cache.get((sample.scene, item), lambda s=scene, i=item: (s.image(i.t, *i.rest),))[0])
            elif not item.array.endswith(READ_BESIDE):
                got.append(_read_item(scene, item))
        return got

    return read, order


def zarr_python(path: Path, samples: Sequence[Sample]) -> Callable[[int], object]:
    """Zarr's own reader, every array opened once, the lengths of JPEGs in memory."""
    import zarr

    source = ChunkReader(path)
    arrays, lengths = dict[tuple[str, str], zarr.Array](), dict[tuple[str, str], np.ndarray]()
    for sample in samples:
        for item in sample.items:
            key = sample.scene, item.array
            if key not in arrays:
                record = source.require(UnitId(item.cue, sample.scene))
                arrays[key] = zarr.open_array(path / record.shard(item.array).layout.path, mode="r")
                if item.array.endswith("images"):
                    lengths[key] = np.asarray(zarr.open_array(path / f"{record.shard(item.array).layout.path}_length"))

    def read(number: int) -> list[np.ndarray]:
        sample, got = samples[number], []
        for item in sample.items:
            data = np.asarray(arrays[sample.scene, item.array][(item.t, *item.rest)])
            if item.array.endswith("images"):
                length = lengths[sample.scene, item.array][(item.t, *item.rest)]
                data = decode(("jpeg", "uint8", (), data[:length].tobytes()))
            got.append(data)
        return got

    return read


def plain_files(folder: Path, samples: Sequence[Sample], coded: Sequence[Sequence[Body]]) -> Callable[[int], object]:
    """A .jpg per image, a .png per mask, a .npy per other array."""
    names: list[list[Path]] = []
    for sample, sample_bodies in zip(samples, coded, strict=True):
        names.append([])
        for item, body in zip(sample.items, sample_bodies, strict=True):
            stem = "_".join(str(n) for n in (item.t, *item.rest))
            kind = "jpg" if body[0] == "jpeg" else "png" if item.cue == "masks" else "npy"
            path = folder / sample.scene / item.array / f"{stem}.{kind}"
            names[-1].append(path)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "jpg":
                path.write_bytes(body[3])
            elif kind == "png":
                cv2.imwrite(str(path), decode(body))
            else:
                buffer = io.BytesIO()
                np.save(buffer, decode(body))
                path.write_bytes(buffer.getvalue())

    def load(path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            return np.load(path)
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if path.suffix == ".jpg" else cv2.IMREAD_UNCHANGED
        return cv2.imread(str(path), flags)

    return lambda number: [load(path) for path in names[number]]


def used_bytes(path: Path, samples: Sequence[Sample]) -> int:
    """Size of the shards of the arrays that samples are made of."""
    source = ChunkReader(path)
    units = {(s.scene, item.cue, _block(source, s.scene, item)) for s in samples for item in s.items}
    return sum(source.require(UnitId(cue, scene, block)).bytes for scene, cue, block in units)


def forget(folder: Path) -> None:
    """Take a folder's files out of the page cache: POSIX_FADV_DONTNEED, which drops the clean pages of a file."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
