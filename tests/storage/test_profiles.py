"""Profiles: what `small` keeps of the values, that its stores read as any other, and that a store keeps its own."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.errors import StoreError
from storage.layout import cue_specs
from storage.profiles import PROFILES, reduced, round_confidence, round_flow
from storage.reader import StoreReader
from storage.schema import CUES, INVALID_FLOW
from storage.store import CueStore, Provenance, UnitId
from storage.verify import verify


def test_flow_by_hand() -> None:
    flow = np.array([0, 1, 2, 3, -1, -2, -3, 5, 32767, 32765, 32766, -32767, INVALID_FLOW], np.int16)
    kept = round_flow(flow, 4)
    assert kept.dtype == np.int16
    np.testing.assert_array_equal(kept, [0, 0, 4, 4, 0, 0, -4, 4, 32764, 32764, 32764, -32764, INVALID_FLOW])


@given(hnp.arrays(np.int16, (50,)), st.sampled_from([1, 2, 4, 8]))
def test_flow_is_off_by_half_a_step_at_most(flow: np.ndarray, step: int) -> None:
    kept = round_flow(flow, step)
    known = flow != INVALID_FLOW
    assert (kept[~known] == INVALID_FLOW).all()
    assert (kept[known] != INVALID_FLOW).all()
    assert (kept[known] % step == 0).all()
    inside = known & (np.abs(flow.astype(int)) <= 32767 - step)
    assert np.abs(kept.astype(int) - flow)[inside].max(initial=0) <= step / 2
    assert np.abs(kept.astype(int) - flow)[known].max(initial=0) < step
    np.testing.assert_array_equal(round_flow(kept, step), kept)


@pytest.mark.parametrize("levels", [1, 4, 8, 254, 255])
def test_confidence_keeps_zero_apart_and_its_order(levels: int) -> None:
    given_ = np.arange(256, dtype=np.uint8)
    kept = round_confidence(given_, levels)
    assert kept[0] == 0
    assert kept[255] == 255
    assert (kept[1:] > 0).all()
    assert (np.diff(kept.astype(int)) >= 0).all()
    assert len(np.unique(kept[1:])) == levels
    # The lowest level takes in everything above 0; elsewhere half a level, and half for the rounding to whole numbers.
    bound = np.where(given_ < 255 / levels, 255 / levels, 127.5 / levels) + 0.5
    assert (np.abs(kept.astype(int) - given_) <= bound)[1:].all()
    np.testing.assert_array_equal(round_confidence(kept, levels), kept)


def test_four_levels_of_confidence_by_hand() -> None:
    given_ = np.array([0, 1, 64, 95, 96, 128, 160, 223, 224, 255], np.uint8)
    np.testing.assert_array_equal(round_confidence(given_, 4), [0, 64, 64, 64, 128, 128, 191, 191, 255, 255])


def test_lidar_coordinates_are_rounded_and_nothing_else_is() -> None:
    points = np.array([[[1.001, -2.0, 0.002, 0.3], [np.nan, 70.123, np.inf, 17.0]]], np.float32)
    given_ = {"lidar/points": points, "lidar/count": np.array([2], np.int32)}
    kept = reduced(given_, "small")
    expected = np.array([[[256 / 256, -2.0, 1 / 256, 0.3], [np.nan, 17951 / 256, np.inf, 17.0]]], np.float32)
    np.testing.assert_array_equal(kept["lidar/points"], expected)
    assert kept["lidar/points"].dtype == np.float32
    assert kept["lidar/count"] is given_["lidar/count"]
    assert points[0, 0, 0] == np.float32(1.001)


def test_fast_keeps_everything(tiny: SimpleNamespace) -> None:
    for cue in CUES:
        arrays = tiny.arrays(cue, 2)
        kept = reduced(arrays, "fast")
        assert all(kept[name] is arrays[name] for name in arrays)
    assert cue_specs("cues", "fast") == CUES


def test_every_codec_of_a_profile_is_of_an_array_that_exists() -> None:
    names = {spec.name for specs in CUES.values() for spec in specs}
    for how in PROFILES.values():
        assert set(how.codecs) <= names


def small_store(folder: Path, tiny: SimpleNamespace) -> CueStore:
    store = CueStore.create(folder / "small.zarr", tiny.attributes(profile="small"))
    store.commit_init("a", tiny.table(), "init-1")
    return store


def test_a_small_store_reads_back_what_its_profile_keeps(memory: Path, tiny: SimpleNamespace) -> None:
    store = small_store(memory, tiny)
    for cue in CUES:
        given_ = {b: tiny.commit(store, cue, b) for b in range(3)}
        for block, arrays in given_.items():
            found = store.read_block(UnitId(cue, "a", block))
            for name, kept in reduced(arrays, "small").items():
                np.testing.assert_array_equal(found[name], kept)
                layout = store.record(UnitId(cue, "a", block)).shard(name).layout  # type: ignore[union-attr]
                theirs = zarr.open_array(store.path / layout.path, mode="r")
                np.testing.assert_array_equal(np.asarray(theirs[block * 2 : block * 2 + len(kept)]), kept)
    assert verify(store.path) == []
    assert StoreReader(store.path).attributes.profile == "small"
    assert StoreReader(store.path).scene("a").flow("next", 0, 0).flow.dtype == np.int16


def test_a_lost_zarr_json_of_a_small_store_is_restored_with_its_codec(memory: Path, tiny: SimpleNamespace) -> None:
    from storage.repair import repair

    store = small_store(memory, tiny)
    path = store.path / "scenes/a/lidar/points/zarr.json"
    before = path.read_bytes()
    assert b"zstd" in before
    path.unlink()
    assert repair(store.path, verify(store.path)) == []
    assert path.read_bytes() == before


def test_a_store_keeps_the_profile_it_was_made_with(memory: Path, tiny: SimpleNamespace) -> None:
    store = small_store(memory, tiny)
    with pytest.raises(StoreError, match=r"profile: 'small' there, 'fast' asked for"):
        CueStore.create(store.path, tiny.attributes())
    plain = CueStore.create(memory / "fast.zarr", tiny.attributes())
    with pytest.raises(StoreError, match=r"profile: 'fast' there, 'small' asked for"):
        CueStore.create(plain.path, tiny.attributes(profile="small"))


def test_a_store_from_before_there_were_profiles_is_fast(memory: Path, tiny: SimpleNamespace) -> None:
    store = CueStore.create(memory / "old.zarr", tiny.attributes())
    written = json.loads((store.path / "zarr.json").read_bytes())["attributes"]["occflow"]
    assert "profile" not in written
    assert CueStore.open(store.path).attributes == replace(tiny.attributes(), profile="fast")


def test_an_unknown_profile_is_named(memory: Path, tiny: SimpleNamespace) -> None:
    with pytest.raises(StoreError, match=r"profile 'tiny' is unknown; expected one of fast, small"):
        CueStore.create(memory / "x.zarr", tiny.attributes(profile="tiny"))
    with pytest.raises(StoreError, match="unknown"):
        reduced({}, "tiny")


def test_a_rebuild_under_another_fingerprint_keeps_the_profile(memory: Path, tiny: SimpleNamespace) -> None:
    store = small_store(memory, tiny)
    first = tiny.arrays("lidar", 2)
    store.commit_block(UnitId("lidar", "a", 0), first, Provenance("one"))
    record = store.commit_block(UnitId("lidar", "a", 0), first, Provenance("two"))
    assert record.generation == 1
    assert record.shard("lidar/points").layout.codec == "blosc-zstd-shuffle"
