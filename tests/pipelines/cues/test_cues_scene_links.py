"""Ids over the borders of blocks: a square that moves to the right, one keyframe after another."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.cues.base import ImageSizes
from pipelines.cues.flow_field import empty_flow
from pipelines.cues.instance_links import LinkRule
from pipelines.cues.instances import InstanceTable
from pipelines.cues.scene_links import link_scene
from storage.commit import Provenance
from storage.errors import CueMissing
from storage.layout import TABLE_ARRAYS, UnitId
from storage.reader import StoreReader
from storage.schema import FLOW_SCALE, SceneTable, StoreAttributes
from storage.status import status
from storage.store import CueStore
from storage.verify import verify

SIZE = (12, 48)
KEYFRAMES, BLOCK, STEP = 6, 2, 6


def store_of(folder: Path, missed: tuple[int, ...] = ()) -> CueStore:
    """Blocks of two keyframes. Two objects, 0 (moves) and 1 (stays, of another class); 0 is not found at `missed`."""
    attributes = StoreAttributes("tiny", ("CAM",), ("car", "bus"), SIZE, SIZE, 0.5, block_keyframes=BLOCK)
    store = CueStore.create(folder / "s.zarr", attributes)
    axes = {"T": KEYFRAMES, "C": 1, "P": 0}
    values: dict[str, object] = {"tokens": tuple(str(t) for t in range(KEYFRAMES))}
    for name, (dtype, symbols) in TABLE_ARRAYS.items():
        values[name] = np.zeros([axes[n] if isinstance(n, str) else n for n in symbols], dtype)
    store.commit_init("a", SceneTable(**values), "init")  # type: ignore[arg-type]
    for block in range(KEYFRAMES // BLOCK):
        table = InstanceTable((BLOCK, 1), SIZE)
        flow = empty_flow("next", BLOCK, 1, SIZE)
        motions = []
        for i in range(BLOCK):
            t = block * BLOCK + i
            labels = np.zeros(SIZE, np.int32)
            motion = np.zeros((2, *SIZE))
            labels[8:11, 40:44] = 1
            found = [0.9]
            motion[0, 1:5, 2 + STEP * t : 6 + STEP * t] = STEP
            if t not in missed:
                labels[1:5, 2 + STEP * t : 6 + STEP * t] = 2
                found.append(0.8)
            table.add(i, 0, labels, found, [1, 0])
            motions.append(motion.astype(np.float32))
            if t + 1 < KEYFRAMES:
                flow["flow/next/flow"][i, 0] = motion * FLOW_SCALE
                flow["flow/next/target_frame"][i, 0] = t + 1
        table.link(LinkRule(), ImageSizes(SIZE, SIZE), lambda i, c, motions=motions: motions[i - 1])
        arrays = {"masks/instance": table.instance, "masks/table": table.table}
        store.commit_block(UnitId("masks", "a", block), arrays, Provenance(f"masks-{block}"))
        store.commit_block(UnitId("flow_next", "a", block), flow, Provenance(f"flow-{block}"))
    return store


def ids(store: CueStore, keyframes: int = KEYFRAMES) -> list[list[int]]:
    scene = StoreReader(store.path).scene("a")
    return [scene.scene_ids(t, 0).tolist() for t in range(keyframes)]


def test_ids_go_on_over_two_borders(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    scene = StoreReader(store.path).scene("a")
    assert [row[-1] for t in (0, 2, 4) for row in scene.mask_table(t, 0)] == [1, 2] * 3, "every block counts anew"
    assert link_scene(store, "a") == 4
    assert ids(store) == [[1, 2]] * KEYFRAMES
    assert verify(store.path) == []


def test_what_one_keyframe_misses_is_found_again(tmp_path: Path) -> None:
    store = store_of(tmp_path, missed=(1,))
    link_scene(store, "a", LinkRule(patience=1))
    assert ids(store) == [[1, 2], [1], [1, 2], [1, 2], [1, 2], [1, 2]]
    link_scene(store, "a", LinkRule(patience=0))
    assert ids(store)[2] == [1, 3], "without patience it is another"


def test_missed_where_a_block_begins(tmp_path: Path) -> None:
    store = store_of(tmp_path, missed=(2,))
    link_scene(store, "a")
    assert ids(store) == [[1, 2], [1, 2], [1], [1, 2], [1, 2], [1, 2]]


def test_without_flow_before_it_a_block_has_new_ids(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    store.discard(UnitId("flow_next", "a", 0))
    assert link_scene(store, "a") == 2
    assert ids(store) == [[1, 2]] * 2 + [[3, 4]] * 4
    store.discard(UnitId("flow_next", "a", 1))
    assert link_scene(store, "a") == 0
    assert ids(store) == [[1, 2]] * 2 + [[3, 4]] * 2 + [[5, 6]] * 2
    record = store.record(UnitId("instances", "a", 1))
    assert record is not None
    assert record.provenance.notes == ["no flow_next before this block: no id goes on into it"]


def test_only_what_changed_is_made_anew(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    link_scene(store, "a")
    assert link_scene(store, "a") == 0, "all of it is current"
    masks = store.read_block(UnitId("masks", "a", 1))
    store.commit_block(UnitId("masks", "a", 1), masks, Provenance("anew"))
    before = {record.unit.block: record.generation for record in store.records() if record.unit.cue == "instances"}
    assert link_scene(store, "a") == 4
    after = {record.unit.block: record.generation for record in store.records() if record.unit.cue == "instances"}
    assert {block: after[block] - before[block] for block in after} == {0: 0, 1: 1, 2: 1}
    assert ids(store) == [[1, 2]] * KEYFRAMES


def test_blocks_after_a_missing_one_wait(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    store.discard(UnitId("masks", "a", 1))
    link_scene(store, "a")
    assert ids(store, 2) == [[1, 2]] * 2
    with pytest.raises(CueMissing, match="masks--a--00001"):
        ids(store)


def test_status_tells_of_derived_cues_only_where_there_are_some(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    assert "instances" not in {row.cue for row in status(store.path)}
    link_scene(store, "a")
    assert {row.state for row in status(store.path) if row.cue == "instances"} == {"complete"}
