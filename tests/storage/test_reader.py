"""The training reader: only what is committed, only what was committed, from threads and spawned processes."""

import io
import itertools
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from PIL import Image

from storage import chunks, reader
from storage.errors import CueMissing, StoreDamage, StoreError
from storage.reader import StoreReader
from storage.schema import CUES
from storage.store import CueStore, Provenance, UnitId


def jpeg(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth picture as JPEG bytes, different for each seed."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    levels = np.stack([np.sin(x * 3 + seed), np.cos(y * 2 + seed), np.sin(x + y + 2 * seed)], -1)
    buffer = io.BytesIO()
    Image.fromarray((127 + 100 * levels).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def pixels(data: np.ndarray) -> np.ndarray:
    with Image.open(io.BytesIO(data.tobytes())) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture
def picture_store(tmp_path: Path, tiny: SimpleNamespace) -> CueStore:
    """Scene `a`, two keyframes, images and sweeps of real JPEG; camera 1 has no image at keyframe 1."""
    made = CueStore.create(tmp_path / "pictures.zarr", tiny.attributes())
    made.commit_init("a", tiny.table(frames=2, slots=1, max_image_bytes=2000, max_sweep_bytes=1500), "init")
    images, lengths = np.zeros((2, 2, 2000), np.uint8), np.zeros((2, 2), np.uint32)
    sweeps, sweep_lengths = np.zeros((2, 1, 2, 1500), np.uint8), np.zeros((2, 1, 2), np.uint32)
    for t, c in ((0, 0), (0, 1), (1, 0)):
        data, small = jpeg(10 * t + c, (8, 12)), jpeg(5 + 10 * t + c, (4, 6))
        images[t, c, : len(data)], lengths[t, c] = data, len(data)
        sweeps[t, 0, c, : len(small)], sweep_lengths[t, 0, c] = small, len(small)
    made.commit_block(UnitId("images", "a"), {"images": images, "images_length": lengths}, Provenance("fp"))
    arrays = {"sweeps/images": sweeps, "sweeps/images_length": sweep_lengths}
    made.commit_block(UnitId("sweeps", "a"), arrays, Provenance("fp"))
    return made


@pytest.mark.parametrize("backend", ["opencv", "pillow"])
def test_images_are_decoded_as_rgb(picture_store: CueStore, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if backend == "pillow":
        monkeypatch.setattr(reader, "decode_jpeg", reader._decode_jpeg_pillow)
    else:
        pytest.importorskip("cv2")
    scene = StoreReader(picture_store.path).scene("a")
    for t, c in ((0, 0), (0, 1), (1, 0)):
        image, small = scene.image(t, c), scene.sweep_image(t, 0, c)
        assert (image.dtype, image.shape, small.shape) == (np.uint8, (8, 12, 3), (4, 6, 3))
        # JPEG decoders may round differently; a swapped channel order is off by tens.
        assert np.abs(image.astype(int) - pixels(jpeg(10 * t + c, (8, 12)))).max() <= 2
        assert np.abs(small.astype(int) - pixels(jpeg(5 + 10 * t + c, (4, 6)))).max() <= 2


def test_an_absent_image_is_named(picture_store: CueStore) -> None:
    scene = StoreReader(picture_store.path).scene("a")
    with pytest.raises(CueMissing, match=r"images--a--00000.*keyframe 1.*no such image.*camera_valid"):
        scene.image(1, 1)
    with pytest.raises(CueMissing, match="no such image"):
        scene.sweep_image(1, 0, 1)


def test_bytes_that_are_no_image_are_named(full_store: CueStore) -> None:
    scene = StoreReader(full_store.path).scene("a")
    # Random content has lengths of 0 to 4; take a frame that claims some bytes.
    t, c = np.argwhere(full_store.read_block(UnitId("images", "a", 1))["images_length"] > 0)[0]
    with pytest.raises(StoreDamage, match=r"images--a--00001.*no image"):
        scene.image(2 + int(t), int(c))


def test_cues_come_back_by_frame_and_camera(full_store: CueStore, tiny: SimpleNamespace) -> None:
    scene = StoreReader(full_store.path).scene("a")
    for t, c in itertools.product(range(5), range(2)):
        frames, row = (1, 0) if t == 4 else (2, t % 2)
        masks, flow, lidar = (tiny.arrays(cue, frames) for cue in ("masks", "flow_prev", "lidar"))
        np.testing.assert_array_equal(scene.masks(t, c), masks["masks/instance"][row, c])
        table = masks["masks/table"][row, c]
        np.testing.assert_array_equal(scene.mask_table(t, c), table[table[:, 0] > 0])
        cue = scene.flow("prev", t, c)
        np.testing.assert_array_equal(cue.flow, flow["flow/prev/flow"][row, c])
        np.testing.assert_array_equal(cue.confidence, flow["flow/prev/confidence"][row, c])
        assert cue.target_frame == flow["flow/prev/target_frame"][row, c]
        assert cue.target_sweep == flow["flow/prev/target_sweep"][row, c]
        found, count = scene.lidar(t), int(lidar["lidar/count"][row])
        np.testing.assert_array_equal(found.points, lidar["lidar/points"][row, :count])
        np.testing.assert_array_equal(found.cameras, lidar["lidar/cameras"][row, :count])
        np.testing.assert_array_equal(found.origin, lidar["lidar/origin"][row])


def test_fast_path_equals_zarr_python(full_store: CueStore) -> None:
    group = zarr.open_group(full_store.path, mode="r")
    for record in full_store.records():
        for name, array in full_store.read_block(record.unit).items():
            theirs = group[record.shard(name).layout.path]
            assert isinstance(theirs, zarr.Array)
            np.testing.assert_array_equal(array, np.asarray(theirs[slice(*record.frames)]), err_msg=name)


def test_only_committed_units_are_seen(store: CueStore, tiny: SimpleNamespace) -> None:
    reader = StoreReader(store.path)
    assert reader.scenes() == ["a"]
    scene = reader.scene("a")
    assert not any(scene.has(cue, t) for cue in CUES for t in range(5))
    with pytest.raises(CueMissing, match=r"masks--a--00001 is not committed.*occflow cues.*--scenes a --cues masks"):
        scene.masks(2, 0)
    with pytest.raises(CueMissing, match="init--b--00000"):
        reader.scene("b")
    tiny.commit(store, "masks", 1)
    assert [scene.has("masks", t) for t in range(5)] == [False, False, True, True, False]
    record = store.path / "commits" / "masks--a--00001.json"
    record.unlink()
    with pytest.raises(CueMissing):
        StoreReader(store.path).scene("a").masks(2, 0)


def test_places_outside_the_scene(full_store: CueStore) -> None:
    scene = StoreReader(full_store.path).scene("a")
    for t, c in ((-1, 0), (5, 0), (0, 2), (0, -1)):
        with pytest.raises(IndexError):
            scene.masks(t, c)
    with pytest.raises(IndexError, match="keyframes 0 to 4, not 5"):
        scene.has("masks", 5)
    with pytest.raises(IndexError):
        scene.sweep_image(0, 3, 0)


@pytest.mark.parametrize("opened_before", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("delete", r"this committed file is missing.*verify --repair"),
        ("truncate", r"\d+ bytes, but \d+ were committed.*verify --repair"),
        ("grow", r"\d+ bytes, but \d+ were committed"),
        ("zero", "crc32c"),
    ],
)
def test_damage_is_an_error_and_never_zeros(
    full_store: CueStore, damage: str, message: str, opened_before: bool
) -> None:
    scene = StoreReader(full_store.path).scene("a")
    path = full_store.path / "scenes/a/masks/instance/c.0.0.0.0"
    if opened_before:
        scene.masks(1, 1)
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "grow":
        path.write_bytes(data + b"\0")
    else:
        path.write_bytes(bytes(len(data)))
    with pytest.raises(StoreDamage, match=message) as caught:
        scene.masks(0, 0)
    assert str(path) in str(caught.value)
    assert scene.masks(2, 0).shape == (8, 12)


def test_a_flipped_count_never_shortens_a_cue(full_store: CueStore, tiny: SimpleNamespace) -> None:
    path = full_store.path / "scenes/a/lidar/count/c.0"
    want = {t: StoreReader(full_store.path).scene("a").lidar(t).points for t in (0, 1)}
    noticed = 0
    for bit in range(8 * path.stat().st_size):
        tiny.flip_bit(path, bit)
        scene = StoreReader(full_store.path).scene("a")
        for t, points in want.items():
            try:
                np.testing.assert_array_equal(scene.lidar(t).points, points)
            except StoreDamage:
                noticed += 1
        tiny.flip_bit(path, bit)
    # A bit of one frame's chunk leaves the other frame readable; one of the shard's index makes both unreadable.
    assert 8 * path.stat().st_size < noticed < 2 * 8 * path.stat().st_size


def test_damaged_table_of_a_scene(full_store: CueStore, tiny: SimpleNamespace) -> None:
    path = full_store.path / "scenes/a/frames/zarr.json"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"token-0-0", b"token-0-9"))
    with pytest.raises(StoreDamage, match=r"frames/zarr\.json: changed after it was committed"):
        _ = StoreReader(full_store.path).scene("a").table
    path.unlink()
    with pytest.raises(StoreDamage, match="missing"):
        _ = StoreReader(full_store.path).scene("a").table


def test_many_shards_do_not_use_up_descriptors(full_store: CueStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "OPEN_SHARDS", 3)
    scene = StoreReader(full_store.path).scene("a")
    here = Path("/proc/self/fd")
    if not here.exists():
        pytest.skip("no /proc to count descriptors in")
    before = len(list(here.iterdir()))
    for t, c in itertools.product(range(5), range(2)):
        scene.masks(t, c)
        scene.flow("next", t, c)
        scene.lidar(t)
    assert len(list(here.iterdir())) <= before + 3


def test_threads_share_a_reader(full_store: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "OPEN_SHARDS", 2)
    scene = StoreReader(full_store.path).scene("a")
    want = {t: tiny.arrays("flow_next", 1 if t == 4 else 2)["flow/next/flow"][0 if t == 4 else t % 2] for t in range(5)}
    order = [(t, c) for t, c in itertools.product(range(5), range(2)) for _ in range(20)]
    np.random.default_rng(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: scene.flow("next", *place).flow, order))
    for (t, c), flow in zip(order, found, strict=True):
        np.testing.assert_array_equal(flow, want[t][c])


def test_spawned_workers_read_the_same(full_store: CueStore) -> None:
    scene = StoreReader(full_store.path).scene("a")
    here = scene.masks(3, 1), scene.lidar(0).points
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        masks = pool.starmap(scene.masks, [(3, 1)] * 4)
        lidar = pool.map(scene.lidar, [0] * 4)
    for other in masks:
        np.testing.assert_array_equal(other, here[0])
    for cue in lidar:
        np.testing.assert_array_equal(cue.points, here[1])


def test_reader_pickles_as_its_path(full_store: CueStore) -> None:
    reader = StoreReader(full_store.path)
    reader.scene("a").masks(0, 0)
    data = pickle.dumps(reader)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).scene("a").masks(0, 0), reader.scene("a").masks(0, 0))


def test_reading_needs_no_zarr(full_store: CueStore) -> None:
    heavy = ("zarr", "prefect", "torch", "cv2", "numba", "pydantic")
    code = f"""
import sys
for name in {heavy!r}:
    sys.modules[name] = None
from storage.reader import StoreReader
scene = StoreReader(sys.argv[1]).scene("a")
assert scene.flow("aux", 0, 0).flow.shape == (2, 4, 6) and scene.masks(4, 1).shape == (8, 12)
assert scene.lidar(0).points.shape[1] == 4 and scene.length == 5
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(full_store.path)], check=True, cwd=root, timeout=60)


def test_a_store_of_truth_is_refused(tmp_path: Path, tiny: SimpleNamespace) -> None:
    CueStore.create(tmp_path / "store.truth.zarr", tiny.attributes(kind="truth"))
    with pytest.raises(StoreError, match=r"holds 'truth'.*reads 'cues' only"):
        StoreReader(tmp_path / "store.truth.zarr")


def test_images_stay_what_they_are_while_others_are_read(picture_store: CueStore) -> None:
    """Chunks are read into memory that the next read of the thread uses again."""
    scene = StoreReader(picture_store.path).scene("a")
    places = [(0, 0), (0, 1), (1, 0)]
    expected = {place: pixels(jpeg(10 * place[0] + place[1], (8, 12))).astype(int) for place in places}
    kept = [(place, scene.image(*place)) for place in places * 20]
    with ThreadPoolExecutor(4) as pool:
        kept += zip(places * 50, pool.map(lambda place: scene.image(*place), places * 50), strict=True)
    for place, image in kept:
        assert np.abs(image - expected[place]).max() <= 2


def test_raw_arrays_are_copies(picture_store: CueStore) -> None:
    source = chunks.ChunkReader(picture_store.path)
    record = source.require(UnitId("images", "a"))
    first = source.chunk(record, "images", 0, 0)
    before = first.copy()
    source.chunk(record, "images", 1, 0)
    np.testing.assert_array_equal(first, before)
    first[:] = 0
    np.testing.assert_array_equal(source.chunk(record, "images", 0, 0), before)


def test_lengths_and_targets_are_kept_read_only_and_bounded(
    picture_store: CueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "KEPT_SMALL", 1)
    source = chunks.ChunkReader(picture_store.path)
    record = source.require(UnitId("images", "a"))
    first = source.small(record, "images_length", 0)
    np.testing.assert_array_equal(first, source.chunk(record, "images_length", 0))
    assert source.small(record, "images_length", 0) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    np.testing.assert_array_equal(source.small(record, "images_length", 1), source.chunk(record, "images_length", 1))
    assert source.small(record, "images_length", 0) is not first
