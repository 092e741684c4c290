"""What it costs to hand a training sample from a loader's worker process to the one that trains."""

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from storage.reader import StoreReader
from train.batch import Batch, collate, stack
from train.config import TrainConfig, build_config
from train.data import KeyframeDataset, build_loader
from train.selection import training_frames


class ReadySamples(Dataset[Batch]):
    """`count` times the same sample, read once: what remains is the hand-over."""

    def __init__(self, config: TrainConfig, frames: list[tuple[str, int]], count: int) -> None:
        self._keyframes, self._count = KeyframeDataset(config, 2, frames, 0), count
        self._sample: Batch | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Batch:
        if self._sample is None:
            self._sample = self._keyframes[0, 0]
        return self._sample


def train_config(store: Path, workers: int) -> TrainConfig:
    """Second stage with all its cues; no decoded frame is kept, so that every sample is read."""
    reader = StoreReader(store)
    scene = reader.scene(reader.scenes()[0])
    values: dict[str, Any] = {
        "store": store,
        "out": store.parent / "unused",
        "model": {"base": "nuscenes"},
        "data": {
            "workers": workers,
            "cache_mb": 0,
            "backward_cue": "aux" if scene.has("flow_aux", 1) else "prev",
            "neighbour": {"sweeps": bool(scene.table.sweep_valid.shape[1])},
        },
    }
    return build_config(values)


def sample_bytes(store: Path) -> tuple[int, int]:
    """Bytes of a sample as a step gets it, and how many tensors it is."""
    config = train_config(store, 0)
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    KeyframeDataset(config, 2, training_frames(config, 2, StoreReader(store)), 0)[0, 0].map(count)
    return sum(sizes), len(sizes)


def per_sample(loader: DataLoader[Batch], skip: int) -> dict[str, float]:
    """Milliseconds per sample after the first `skip`: on the clock, and of the main process's CPU; and of all CPUs."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun, count = None, 0
    for number, _ in enumerate(loader):
        if number == skip - 1:
            begun = time.perf_counter(), time.process_time()
        count = number + 1 - skip
    assert begun is not None
    wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime) * 1e3
    return {"wall_ms": 1e3 * wall / count, "main_cpu_ms": 1e3 * cpu / count, "workers_cpu_s": spent / 1e3}


def tensor_by_tensor(store: Path, workers: int, count: int) -> dict[str, float]:
    """As `hand_over`, by PyTorch's own way with a batch of many tensors."""
    return hand_over(store, workers, count, stack)


def hand_over(
    store: Path, workers: int, count: int, together: Callable[[Sequence[Batch]], object] = collate
) -> dict[str, float]:
    """Cost per sample of passing on what is there already, put together by `together`."""
    config = train_config(store, 0)
    frames = training_frames(config, 2, StoreReader(store))[:1]
    loader = DataLoader(
        ReadySamples(config, frames, count),
        batch_size=1,
        collate_fn=together,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    return per_sample(loader, count // 4)


def training_loader(store: Path, workers: int, count: int) -> dict[str, float]:
    """Cost per sample of the loader that training uses."""
    config = train_config(store, workers)
    frames = training_frames(config, 2, StoreReader(store))
    return per_sample(build_loader(config, 2, frames, steps=count), count // 4)
