"""Truth lives beside the cues, and only its own reader opens it."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage.errors import CueMissing, StoreError
from storage.schema import INVALID_FLOW
from storage.status import store_status
from storage.store import CueStore, Provenance, UnitId
from storage.truth import TruthReader, truth_path
from storage.verify import verify

GRID = {"lower": [-1.0, -1.0, 0.0], "upper": [1.0, 1.0, 1.0], "shape": [3, 4, 2]}


@pytest.fixture
def truth_store(tmp_path: Path, tiny: SimpleNamespace) -> CueStore:
    """Scene `a` of three keyframes, truth for block 0 only; keyframe 1 has no occupancy, its camera 1 nothing."""
    made = CueStore.create(truth_path(tmp_path / "store.zarr"), tiny.attributes(kind="truth", occupancy_grid=GRID))
    made.commit_init("a", tiny.table(frames=3), "init")
    occupancy, camera = tiny.arrays("occupancy", 2), tiny.arrays("camera", 2)
    occupancy["occupancy/valid"][:] = [1, 0]
    camera["camera/valid"][:] = [[1, 1], [1, 0]]
    camera["camera/depth"][0, 0, 0, 0] = np.inf
    camera["camera/flow_next"][0, 0, :, 1, 2] = INVALID_FLOW
    made.commit_block(UnitId("occupancy", "a"), occupancy, Provenance("fp"))
    made.commit_block(UnitId("camera", "a"), camera, Provenance("fp"))
    return made


def test_path_is_the_sibling() -> None:
    assert truth_path("runs/store.zarr") == Path("runs/store.truth.zarr")
    assert truth_path("runs/plain") == Path("runs/plain.truth.zarr")


def test_truth_comes_back(truth_store: CueStore, tiny: SimpleNamespace) -> None:
    scene = TruthReader(truth_store.path).scene("a")
    assert scene.length == 3
    want = tiny.arrays("occupancy", 2)
    found = scene.occupancy(0)
    assert found is not None
    np.testing.assert_array_equal(found[0], want["occupancy/semantics"][0])
    np.testing.assert_array_equal(found[1], want["occupancy/flow"][0])
    assert scene.occupancy(1) is None
    camera = scene.camera(0, 0)
    assert camera is not None
    assert camera["depth"][0, 0] == np.inf
    assert np.isnan(camera["flow_next"][:, 1, 2]).all()
    stored = tiny.arrays("camera", 2)["camera/flow_next"][0, 0, :, 0, 0]
    np.testing.assert_array_equal(camera["flow_next"][:, 0, 0], stored / 64)
    assert camera["flow_next"].dtype == np.float32
    assert scene.camera(1, 1) is None
    assert verify(truth_store.path) == []


def test_boxes_come_where_a_data_set_has_them(truth_store: CueStore, tiny: SimpleNamespace) -> None:
    """Stores without them hold nothing of them, as before there were any."""
    folder = truth_store.path / "scenes" / "a" / "boxes"
    assert not folder.exists()
    assert not TruthReader(truth_store.path).scene("a").has("boxes", 0)
    arrays = tiny.arrays("boxes", 2)
    arrays["boxes/count"][:] = [3, -1]
    truth_store.commit_block(UnitId("boxes", "a"), arrays, Provenance("fp"))
    scene = TruthReader(truth_store.path).scene("a")
    found = scene.boxes(0)
    assert found is not None
    np.testing.assert_array_equal(found, arrays["boxes/table"][0, :3])
    assert scene.boxes(1) is None, "nobody labelled it"
    assert folder.exists()
    assert scene.occupancy(0) is not None
    assert verify(truth_store.path) == []


def test_uncommitted_truth_is_missing(truth_store: CueStore) -> None:
    scene = TruthReader(truth_store.path).scene("a")
    assert scene.has("occupancy", 1)
    assert not scene.has("occupancy", 2)
    with pytest.raises(CueMissing, match="occupancy--a--00001"):
        scene.occupancy(2)
    with pytest.raises(IndexError):
        scene.camera(3, 0)


def test_truth_reader_pickles_and_refuses_cues(truth_store: CueStore, store: CueStore) -> None:
    copy: TruthReader = pickle.loads(pickle.dumps(TruthReader(truth_store.path)))
    assert copy.scenes() == ["a"]
    with pytest.raises(StoreError, match=r"holds 'cues', not truth.*truth_path"):
        TruthReader(store.path)


def test_cue_and_truth_arrays_do_not_mix(truth_store: CueStore, store: CueStore, tiny: SimpleNamespace) -> None:
    with pytest.raises(StoreError, match="cue 'masks' is not one of this store's: occupancy, camera"):
        truth_store.commit_block(UnitId("masks", "a"), tiny.arrays("masks", 2), Provenance("fp"))
    with pytest.raises(StoreError, match="cue 'occupancy' is not one of this store's"):
        store.commit_block(UnitId("occupancy", "a"), tiny.arrays("occupancy", 2), Provenance("fp"))


def test_truth_by_the_keyframes_of_a_cue_store(truth_store: CueStore) -> None:
    reader = TruthReader(truth_store.path)
    own, tokens = reader.scene("a"), reader.scene("a").table.tokens
    assert reader.paired("b", tokens) is None
    same = reader.paired("a", tokens)
    other = reader.paired("a", ("unknown", tokens[1], tokens[0]))
    assert same is not None
    assert other is not None
    wanted = own.camera(0, 0)
    assert wanted is not None
    for paired, t in ((same, 0), (other, 2)):
        found, camera = paired.occupancy(t), paired.camera(t, 0)
        assert found is not None
        assert camera is not None
        np.testing.assert_array_equal(found[0], own.occupancy(0)[0])  # type: ignore[index]
        np.testing.assert_array_equal(camera["depth"], wanted["depth"])
        assert np.isnan(camera["flow_next"]).all() == (paired is other), "no next keyframe here, or that of the truth"
        assert paired.has("camera", t)
        assert not paired.has("boxes", t)
    assert not other.has("occupancy", 0)
    assert other.occupancy(0) is None
    assert other.camera(0, 0) is None
    assert other.boxes(0) is None
    with pytest.raises(IndexError, match="keyframes 0 to 2, not -1"):
        other.has("occupancy", -1)


def test_status_names_truth_of_other_keyframes(truth_store: CueStore, tiny: SimpleNamespace) -> None:
    store = CueStore.create(truth_store.path.with_name("store.zarr"), tiny.attributes())
    table = tiny.table(frames=3)
    store.commit_init("a", table, "init")
    assert not any(row.apart for row in store_status(store.path).truth)
    store.commit_init("a", tiny.table(frames=3, max_image_bytes=65), "init-2")
    assert not any(row.apart for row in store_status(store.path).truth), "another table, but of the same keyframes"
    tokens = (table.tokens[0], table.tokens[2], "later")
    store.commit_init("a", tiny.table(frames=3, tokens=tokens), "init-3")
    rows = {row.cue: row for row in store_status(store.path).truth}
    assert {cue for cue, row in rows.items() if row.apart} == {"occupancy", "camera"}
    assert rows["occupancy"].wanting
    assert rows["occupancy"].why.startswith("of other keyframes than the cues: 2 of 3 have truth;")
    assert "with truth among --cues" in rows["occupancy"].why
