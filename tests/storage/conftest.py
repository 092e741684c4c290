"""Small stores with known content: every array of every cue, drawn from a seed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage.schema import CUES, TRUTH, SceneTable, StoreAttributes
from storage.store import CueStore, Provenance, UnitId

with contextlib.suppress(ModuleNotFoundError):  # kill_worker.py imports this file from its own folder
    from tests.storage.killable import worker  # noqa: F401
    from tests.storage.s3_server import bucket, proxy, s3  # noqa: F401

CAMERAS = ("CAM_FRONT", "CAM_BACK")


def make_attributes(**changes: object) -> StoreAttributes:
    """Attributes of a tiny store."""
    values: dict[str, object] = {
        "dataset": "tiny",
        "cameras": CAMERAS,
        "classes": ("car", "truck"),
        "network_size": (8, 12),
        "render_size": (4, 6),
        "keyframe_interval_s": 0.5,
        "block_keyframes": 2,
    }
    return StoreAttributes(**{**values, **changes})


def make_table(frames: int = 5, slots: int = 3, seed: int = 0, cameras: int = 2, **changes: object) -> SceneTable:
    """A scene table of random numbers."""
    rng = np.random.default_rng(seed)
    T, P, C = frames, slots, cameras
    values: dict[str, object] = {
        "tokens": tuple(f"token-{seed}-{t}" for t in range(T)),
        "timestamp_us": np.arange(T, dtype=np.int64) * 500_000,
        "global_from_ego": rng.normal(size=(T, 4, 4)),
        "camera_valid": np.ones((T, C), bool),
        "camera_timestamp_us": rng.integers(0, 2**60, (T, C)),
        "camera_global_from_ego": rng.normal(size=(T, C, 4, 4)),
        "ego_from_cam": rng.normal(size=(T, C, 4, 4)),
        "K": rng.normal(size=(T, C, 3, 3)),
        "image_from_raw": rng.normal(size=(T, C, 3, 3)),
        "sweep_valid": np.ones((T, P, C), bool),
        "sweep_timestamp_us": rng.integers(0, 2**60, (T, P, C)),
        "sweep_global_from_ego": rng.normal(size=(T, P, C, 4, 4)),
        "sweep_ego_from_cam": rng.normal(size=(T, P, C, 4, 4)),
        "sweep_K": np.full((T, P, C, 3, 3), np.nan),
        "max_image_bytes": 64,
        "max_sweep_bytes": 32,
        "max_lidar_points": 20,
        "tags": ("night",),
    }
    return SceneTable(**{**values, **changes})


def make_arrays(cue: str, frames: int, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Random content for one block of one cue, whole ragged axes."""
    default = {"C": 2, "P": 3, "H": 8, "W": 12, "h": 4, "w": 6, "L": 64, "S": 32, "N": 20, "M": 64}
    axes = {**default, "X": 3, "Y": 4, "Z": 2, **(sizes or {})}
    rng = np.random.default_rng([seed, frames, *cue.encode()])
    arrays = {}
    for spec in {**CUES, **TRUTH}[cue]:
        shape = (frames, *(axes[n] if isinstance(n, str) else n for n in spec.shape))
        dtype = np.dtype(spec.dtype)
        if spec.name.endswith("target_frame"):
            arrays[spec.name] = rng.integers(-1, 1, shape).astype(dtype)
        elif dtype.kind == "f":
            arrays[spec.name] = rng.normal(size=shape).astype(dtype)
        else:
            arrays[spec.name] = rng.integers(0, 5, shape).astype(dtype)
    return arrays


def commit_random(store: CueStore, cue: str, block: int, seed: int = 0, scene: str = "a") -> dict[str, np.ndarray]:
    """Commit random content with fingerprint `fp-<seed>`; returns the arrays."""
    arrays = make_arrays(cue, len(store.blocks(scene)[block]), seed)
    store.commit_block(UnitId(cue, scene, block), arrays, Provenance(f"fp-{seed}"))
    return arrays


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file, modulo its length."""
    data = bytearray(path.read_bytes())
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The builders of this folder's tests."""
    return SimpleNamespace(
        attributes=make_attributes,
        table=make_table,
        arrays=make_arrays,
        commit=commit_random,
        flip_bit=flip_bit,
        provenance=Provenance,
    )


@contextlib.contextmanager
def folder_in_memory(fallback: Path) -> Iterator[Path]:
    """Memory where there is some: these tests sync a lot, and a killed process is not a power cut."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield fallback
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """As `tmp_path`, in memory where there is some."""
    with folder_in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="session")
def built_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """An opened and a full store, to copy."""
    with folder_in_memory(tmp_path_factory.mktemp("built")) as folder:
        made = CueStore.create(folder / "empty.zarr", make_attributes())
        made.commit_init("a", make_table(), "init-1")
        shutil.copytree(made.path, folder / "full.zarr")
        full = CueStore.open(folder / "full.zarr")
        for cue in CUES:
            for block in range(3):
                commit_random(full, cue, block)
        yield made.path, full.path


@pytest.fixture
def store(memory: Path, built_stores: tuple[Path, Path]) -> CueStore:
    """A store of `make_attributes`, scene `a` opened with five keyframes (blocks of 2, 2, 1), no block committed."""
    return CueStore.open(shutil.copytree(built_stores[0], memory / "store.zarr"))


@pytest.fixture
def full_store(memory: Path, built_stores: tuple[Path, Path]) -> CueStore:
    """As `store`, every cue of every block committed with seed 0."""
    return CueStore.open(shutil.copytree(built_stores[1], memory / "full.zarr"))
