"""Extraction by units: what is committed, what is redone when something changes, and what bad input leaves behind."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest

from pipelines.config import CuesConfig
from pipelines.datasets.records import DataError
from pipelines.extract import extract_log, extract_scene, going_on
from pipelines.inputs import CHECKS
from pipelines.plan import plan
from storage.asides import unseal
from storage.errors import SchemaVersionError, StoreError
from storage.journal import RunJournal
from storage.reader import StoreReader
from storage.verify import verify

ConfigMaker = Callable[..., CuesConfig]
UNITS = 2 * (1 + 4 * 2)
"""Two scenes of four keyframes in blocks of three: init, and two blocks of four cues."""


def image_path(log: Path, frame: int, scene: str = "00") -> Path:
    return log / "sequences" / scene / "image_2" / f"{frame:06d}.png"


def test_a_log_becomes_a_store(cues_config: ConfigMaker, kitti_log: Path) -> None:
    config = cues_config()
    report = extract_log(config)
    assert (report.committed, report.current, report.failed) == (UNITS, 0, {})
    reader = StoreReader(config.store)
    assert reader.scenes() == ["00", "01"]
    scene = reader.scene("00")
    assert scene.length == 4
    table = scene.table
    # fx 100 at 192 columns is 50 at 96; the principal point 96.5, 32.5 (centres at +0.5) halves too.
    np.testing.assert_allclose(table.K[0, 0], [[50, 0, 48.25], [0, 50, 16.25], [0, 0, 1]])
    np.testing.assert_allclose(table.sweep_K[0, 0, 0], [[25, 0, 24.125], [0, 25, 8.125], [0, 0, 1]])
    assert table.camera_timestamp_us[:, 0].tolist() == [0, 200_000, 400_000, 600_000]
    assert table.sweep_timestamp_us[:, 0, 0].tolist() == [100_000, 300_000, 500_000, 700_000]
    # Eastward in the world is +z of camera 0, +x of the car: one metre per frame.
    np.testing.assert_allclose(table.global_from_ego[:, 0, 3], [0, 2, 4, 6], atol=1e-9)
    raw = cv2.imread(str(image_path(kitti_log, 2)))[..., ::-1].astype(float)
    expected = raw.reshape(32, 2, 96, 2, 3).mean(axis=(1, 3))
    assert np.abs(scene.image(1, 0) - expected).mean() < 6
    assert [len(scene.lidar(t).points) for t in range(4)] == [50, 52, 54, 56]
    flow, valid = scene.flow("next", 1, 0).pixels()
    # The picture moves left by 3 raw px per frame, 6 per keyframe: 1.5 render px.
    assert abs(np.median(flow[0][valid]) + 1.5) < 0.1
    assert verify(config.store) == []


def test_a_second_run_does_nothing_and_quickly(cues_config: ConfigMaker) -> None:
    config = cues_config()
    extract_log(config)
    before = {p: p.stat().st_mtime_ns for p in config.store.rglob("*") if p.is_file()}
    started = time.perf_counter()
    report = extract_log(config)
    assert time.perf_counter() - started < 2
    assert (report.committed, report.current) == (0, UNITS)
    assert {p: p.stat().st_mtime_ns for p in config.store.rglob("*") if p.is_file()} == before


def test_extract_scene_makes_one_scene_in_order(cues_config: ConfigMaker) -> None:
    records = extract_scene(cues_config(), "01")
    assert [str(record.unit) for record in records] == [
        "init--01--00000",
        *(f"{cue}--01--0000{b}" for cue in ("images", "sweeps", "lidar", "flow_next") for b in (0, 1)),
    ]
    assert plan(cues_config(), ["00"]).count("missing") == UNITS // 2


def test_touched_files_are_looked_at_but_not_redone(cues_config: ConfigMaker, kitti_log: Path) -> None:
    config = cues_config()
    extract_log(config)
    os.utime(image_path(kitti_log, 0), (1, 1))
    assert plan(config).count("stale") == UNITS // 2
    report = extract_log(config)
    assert (report.committed, report.current) == (UNITS // 2, UNITS // 2)
    assert plan(config).count("current") == UNITS


def test_changed_content_redoes_its_scene_only(cues_config: ConfigMaker, kitti_log: Path) -> None:
    config = cues_config()
    extract_log(config)
    cv2.imwrite(str(image_path(kitti_log, 0)), np.full((64, 192, 3), 77, np.uint8))
    report = extract_log(config)
    assert {name.split("--")[1] for name in report.quality} == {"00"}
    assert np.abs(StoreReader(config.store).scene("00").image(0, 0).astype(int) - 77).max() <= 2


def test_changed_parameters_redo_their_cue_only(cues_config: ConfigMaker) -> None:
    extract_log(cues_config())
    changed = cues_config(
        cues={"images": {}, "sweeps": {}, "lidar": {"min_range": 9.0}, "flow_next": {"backend": "dis"}}
    )
    report = extract_log(changed)
    assert {name.split("--")[0] for name in report.quality} == {"lidar"}
    points = StoreReader(changed.store).scene("00").lidar(0).points
    assert np.linalg.norm(points[:, :3], axis=1).min() >= 9.0


def test_other_sizes_need_another_store(cues_config: ConfigMaker) -> None:
    extract_log(cues_config())
    with pytest.raises(StoreError, match="network_size"):
        extract_log(cues_config(sizes={"network": (64, 192), "render": (32, 96)}))


def test_a_stop_leaves_whole_units_and_the_next_run_goes_on(cues_config: ConfigMaker) -> None:
    config = cues_config()
    stop = Event()
    report = extract_log(config, progress=lambda work, state: stop.set() if state == "committed" else None, stop=stop)
    assert report.interrupted
    assert 0 < report.committed < UNITS
    assert verify(config.store) == []
    rest = extract_log(config)
    assert (rest.committed, rest.current) == (UNITS - report.committed, report.committed)


def test_another_run_at_the_same_units_is_noticed(cues_config: ConfigMaker) -> None:
    config = cues_config()
    assert going_on(config, plan(config)) is None, "there is no store yet"
    extract_log(config, ["00"])
    work = plan(config)
    assert going_on(config, work) is None, "its journal has ended"
    with RunJournal(config.store, ["init--00--00000"]):
        assert going_on(config, work) is None, "at units that are current here"
    with RunJournal(config.store, [work.open[0].name]):
        assert f"process {os.getpid()}" in str(going_on(config, work))


def _zeroed_jpeg(path: Path) -> bytes:
    data = cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes()
    middle = len(data) // 2
    return data[:middle] + bytes(100) + data[middle + 100 :]


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated image": ("image_2/000002.png", lambda p: p.write_bytes(p.read_bytes()[:-200]), "truncated"),
    "empty image": ("image_2/000002.png", lambda p: p.write_bytes(b""), "empty"),
    "no image": ("image_2/000002.png", lambda p: p.write_bytes(b"<html>404</html>"), "neither a JPEG nor a PNG"),
    "damaged within": (
        "image_2/000002.png",
        lambda p: p.write_bytes(p.read_bytes()[:200] + bytes(2000) + p.read_bytes()[2200:]),
        "damaged",
    ),
    "another size": ("image_2/000002.png", lambda p: cv2.imwrite(str(p), np.zeros((30, 40, 3), np.uint8)), "40x30"),
    "zeros in LiDAR": (
        "velodyne/000002.bin",
        lambda p: p.write_bytes(p.read_bytes()[:160] + bytes(len(p.read_bytes()) - 160)),
        "zero bytes from point 10 of 52",
    ),
    "zeros in a JPEG": ("image_2/000002.png", lambda p: p.write_bytes(_zeroed_jpeg(p)), "zero bytes"),
    "truncated LiDAR": ("velodyne/000002.bin", lambda p: p.write_bytes(p.read_bytes()[:-3]), "truncated LiDAR"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_stops_the_run_and_keeps_what_is_committed(
    cues_config: ConfigMaker, kitti_log: Path, damage: str
) -> None:
    name, harm, word = DAMAGES[damage]
    path = kitti_log / "sequences" / "01" / name
    harm(path)
    config = cues_config(runner={"workers": 1})
    extract_log(config, ["00"])
    with pytest.raises(DataError) as error:
        extract_log(config)
    assert str(path) in str(error.value)
    assert word in str(error.value)
    assert verify(config.store) == []
    StoreReader(config.store).scene("00").image(3, 0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_on_error_skip_leaves_the_file_out_and_says_so(cues_config: ConfigMaker, kitti_log: Path, damage: str) -> None:
    name, harm, word = DAMAGES[damage]
    path = kitti_log / "sequences" / "01" / name
    harm(path)
    config = cues_config(on_error="skip")
    report = extract_log(config)
    assert report.failed == {}
    assert report.committed == UNITS
    assert any(str(path) in note and word in note for note in report.notes)
    assert list(report.skipped_files) == [str(path)]
    cue = "lidar" if "velodyne" in name else "images"
    assert report.quality[f"{cue}--01--00000"]["skipped_files"] == 1
    scene = StoreReader(config.store).scene("01")
    if cue == "images":
        with pytest.raises(StoreError):
            scene.image(1, 0)
        assert not scene.flow("next", 1, 0).pixels()[1].any()
        # What trains asks the table, not the disk.
        assert scene.table.camera_valid[:, 0].tolist() == [True, False, True, True]
    else:
        assert len(scene.lidar(1).points) == 0
    assert scene.image(2, 0).shape == (32, 96, 3)
    assert extract_log(config).current == UNITS


def test_files_once_taken_for_sound_are_decoded_under_on_error_skip(cues_config: ConfigMaker, kitti_log: Path) -> None:
    """A run that stops at faults leaves decoding to the cues: what it knows of a file does not say that it can be."""
    extract_log(cues_config(), ["00"])
    path = image_path(kitti_log, 2, "01")
    DAMAGES["damaged within"][1](path)
    with pytest.raises(DataError, match="damaged"):
        extract_log(cues_config())
    assert _kept_facts(cues_config(), "01")["sequences/01/image_2/000002.png"]["fault"] is None
    config = cues_config(on_error="skip")
    assert plan(config).count("current") == 0
    report = extract_log(config)
    assert list(report.skipped_files) == [str(path)]
    assert not StoreReader(config.store).scene("01").table.camera_valid[1, 0]
    assert plan(config).count("current") == UNITS


def test_facts_from_before_a_check_are_found_again(cues_config: ConfigMaker) -> None:
    config = cues_config()
    extract_log(config)
    for scene in ("00", "01"):
        old = _kept_facts(config, scene)
        for facts in old.values():
            del facts["checks"]
        (config.store / "inputs" / f"{scene}.json").write_bytes(json.dumps(old).encode() + b"\n")  # type: ignore[union-attr]
    assert plan(config).count("stale") == UNITS
    assert extract_log(config).committed == UNITS
    assert {facts["checks"] for facts in _kept_facts(config, "00").values()} == {CHECKS}
    assert plan(config).count("current") == UNITS


def _kept_facts(config: CuesConfig, scene: str) -> dict[str, dict[str, object]]:
    return json.loads(unseal((config.store / "inputs" / f"{scene}.json").read_bytes().rstrip()))


def test_a_corrected_calibration_brings_back_images_of_its_size(cues_config: ConfigMaker, kitti_log: Path) -> None:
    wrong = DAMAGES["another size"][1]
    for frame in range(1, 8):
        wrong(image_path(kitti_log, frame))
    config = cues_config(on_error="skip")
    assert len(extract_log(config).skipped_files) == 7
    # The size of a sequence is that of its first image.
    wrong(image_path(kitti_log, 0))
    assert extract_log(config).skipped_files == {}


def test_a_scene_that_cannot_be_read(cues_config: ConfigMaker, kitti_log: Path) -> None:
    times = kitti_log / "sequences" / "01" / "times.txt"
    times.write_text("0\n0.1\n0.05\n0.3\n0.4\n0.5\n0.6\n0.7\n")
    with pytest.raises(DataError, match="timestamps must increase"):
        extract_log(cues_config())
    report = extract_log(cues_config(on_error="skip"))
    assert list(report.skipped_scenes) == ["01"]
    assert report.committed == UNITS // 2


def test_singular_intrinsics(cues_config: ConfigMaker, kitti_log: Path) -> None:
    calibration = kitti_log / "sequences" / "00" / "calib.txt"
    calibration.write_text(calibration.read_text().replace("P2: 100 0", "P2: 0 0"))
    with pytest.raises(DataError, match="singular") as error:
        extract_log(cues_config())
    assert str(calibration) in str(error.value)


def test_a_store_of_another_schema_version(cues_config: ConfigMaker) -> None:
    config = cues_config()
    extract_log(config)
    for path in (config.store / "zarr.json", config.store / "commits" / "store.json"):
        if path.exists():
            text = path.read_text()
            assert '"schema_version": ' in text
            path.write_text(text.replace('"schema_version": ', '"schema_version": 9'))
    with pytest.raises(SchemaVersionError, match=str(config.store)):
        extract_log(config)


def test_a_full_disk(cues_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cues_config(runner={"workers": 1})
    extract_log(config, ["00"])
    write, left = os.write, [20_000]

    def bounded(descriptor: int, data: bytes) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", bounded)
    with pytest.raises(StoreError, match=r"(?s)store\.zarr.*[Nn]o space|full"):
        extract_log(config)
    monkeypatch.undo()
    assert verify(config.store) == []
    assert StoreReader(config.store).scene("00").image(0, 0).shape == (32, 96, 3)
    assert extract_log(config).failed == {}


def test_inputs_are_remembered_beside_the_units(cues_config: ConfigMaker, kitti_log: Path) -> None:
    config = cues_config()
    extract_log(config)
    rows = _kept_facts(config, "00")
    assert set(rows) == {
        f"sequences/00/{part}" for t in range(8) for part in (f"image_2/{t:06d}.png", f"velodyne/{t:06d}.bin")
    }
    assert rows["sequences/00/velodyne/000003.bin"]["points"] == 53
