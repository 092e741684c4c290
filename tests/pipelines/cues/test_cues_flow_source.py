"""The source of each flow pixel in the store: there where it was committed, absent where a block came without it."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from pipelines.cues.flow_field import empty_flow
from storage.errors import StoreError
from storage.layout import TABLE_ARRAYS, UnitId
from storage.reader import StoreReader
from storage.schema import FLOW_INSIDE, FLOW_OUTSIDE, SceneTable, StoreAttributes
from storage.store import CueStore, Provenance
from storage.verify import verify

SIZES = {"T": 4, "C": 1, "P": 0}


@pytest.fixture
def store(tmp_path: Path) -> CueStore:
    """Four keyframes of one camera in blocks of two."""
    made = CueStore.create(
        tmp_path / "s.zarr", StoreAttributes("tiny", ("CAM",), ("car",), (4, 6), (4, 6), 0.5, block_keyframes=2)
    )
    values: dict[str, object] = {"tokens": tuple("abcd")}
    for name, (dtype, symbols) in TABLE_ARRAYS.items():
        values[name] = np.zeros([SIZES[n] if isinstance(n, str) else n for n in symbols], dtype)
    assert {field.name for field in fields(SceneTable)} >= set(values)
    made.commit_init("a", SceneTable(**values), "init")  # type: ignore[arg-type]
    return made


def commit(store: CueStore, block: int, source: np.ndarray | None) -> None:
    arrays = empty_flow("next", 2, 1, (4, 6))
    if source is not None:
        arrays["flow/next/source"] = source
    store.commit_block(UnitId("flow_next", "a", block), arrays, Provenance(f"block-{block}-{source is None}"))


def test_a_block_with_and_a_block_without(store: CueStore) -> None:
    source = np.zeros((2, 1, 4, 6), np.uint8)
    source[1, 0, 1], source[1, 0, 2] = FLOW_OUTSIDE, FLOW_INSIDE
    commit(store, 0, None)
    commit(store, 1, source)
    scene = StoreReader(store.path).scene("a")
    assert scene.flow_source("next", 1, 0) is None
    got = scene.flow_source("next", 3, 0)
    assert got is not None
    np.testing.assert_array_equal(got, source[1, 0])
    assert set(store.read_block(UnitId("flow_next", "a", 0))) == set(empty_flow("next", 2, 1, (4, 6)))
    np.testing.assert_array_equal(store.read_block(UnitId("flow_next", "a", 1))["flow/next/source"], source)
    assert verify(store.path) == []


def test_made_anew_without_it_nothing_of_it_is_left(store: CueStore) -> None:
    commit(store, 0, np.ones((2, 1, 4, 6), np.uint8))
    commit(store, 0, None)
    assert StoreReader(store.path).scene("a").flow_source("next", 0, 0) is None
    assert isinstance(store.path, Path)
    assert not [path for path in store.path.rglob("c.*") if path.parent.name == "source"]
    assert verify(store.path) == []


def test_a_store_has_no_such_array_before_a_block_has(store: CueStore) -> None:
    assert isinstance(store.path, Path)
    assert not list(store.path.rglob("source"))
    commit(store, 1, np.ones((2, 1, 4, 6), np.uint8))
    zarr = pytest.importorskip("zarr")
    whole = zarr.open_array(store.path / "scenes/a/flow/next/source", mode="r")[:]
    assert whole[2:].all()
    assert not whole[:2].any()


def test_it_is_checked_like_every_array(store: CueStore) -> None:
    with pytest.raises(StoreError, match="source"):
        commit(store, 0, np.ones((2, 1, 4, 6), np.int16))
    arrays = empty_flow("next", 2, 1, (4, 6))
    del arrays["flow/next/flow"]
    with pytest.raises(StoreError, match=r"missing \['flow/next/flow'\]"):
        store.commit_block(UnitId("flow_next", "a", 0), arrays, Provenance("x"))
