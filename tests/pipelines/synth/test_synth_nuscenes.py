"""The log on disk: what nuscenes-devkit and our own reader make of it, and how writing goes on after it was stopped."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.datasets.nuscenes import NuScenesLog
from pipelines.datasets.records import DataError
from pipelines.synth import write_log, writer
from pipelines.synth.config import SynthConfig
from pipelines.synth.rig import nuscenes_camera
from pipelines.synth.world import build_world

SMALL = SynthConfig(
    scenes=2, keyframes=2, width=96, height=54, cameras=("CAM_FRONT", "CAM_BACK"), lidar_beams=12, lidar_azimuths=240
)


def digests(root: Path) -> dict[str, str]:
    """Of every file but the settings."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name != writer.SETTINGS]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synth") / "log"
    write_log(root, SMALL)
    return root


def test_the_devkit_loads_it(log: Path) -> None:
    devkit = pytest.importorskip("nuscenes.nuscenes", reason="nuscenes-devkit is not installed")
    nusc = devkit.NuScenes("v1.0-synth", str(log), verbose=False)
    assert [scene["nbr_samples"] for scene in nusc.scene] == [2, 2]
    sample = nusc.get("sample", nusc.scene[0]["first_sample_token"])
    assert set(sample["data"]) == {"CAM_FRONT", "CAM_BACK", "LIDAR_TOP"}
    path, boxes, K = nusc.get_sample_data(sample["data"]["CAM_FRONT"])
    assert Path(path).exists()
    np.testing.assert_allclose(K[:2, 2] + 0.5, nuscenes_camera("CAM_FRONT", 96, 54).K[:2, 2])
    assert boxes
    chain, token = 0, sample["data"]["CAM_FRONT"]
    while token:
        record = nusc.get("sample_data", token)
        assert (log / record["filename"]).exists()
        chain, token = chain + 1, record["next"]
    assert chain == 7, "two keyframes and the five sweeps between them"


def test_boxes_hold_their_lidar_points(log: Path) -> None:
    """By the devkit's own geometry: the returns counted in an annotation lie inside its box."""
    pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    nusc = NuScenes("v1.0-synth", str(log), verbose=False)
    counted = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        cloud = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            expected = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            if expected >= 5:
                counted += 1
                assert points_in_box(box, cloud, wlh_factor=1.1).sum() >= 0.95 * expected
    assert counted >= 3


def test_our_reader_gives_back_the_world(log: Path) -> None:
    found = NuScenesLog(log)
    assert found.scene_names() == ["scene-0001", "scene-0002"]
    assert (found.scene_names("train"), found.scene_names("val")) == (["scene-0001"], ["scene-0002"])
    scene, world = found.scene("scene-0001"), build_world(SMALL, 0)
    assert len(scene.keyframes) == 2
    assert len(scene.sweeps_after(0)) == 5
    assert scene.tags[0] == world.manoeuvre
    first = scene.keyframes[0]
    for channel in SMALL.cameras:
        image, camera = first.images[channel], nuscenes_camera(channel, 96, 54)
        assert image.timestamp_us - first.timestamp_us == camera.offset_us
        np.testing.assert_allclose(image.K, camera.K, atol=1e-9)
        np.testing.assert_allclose(image.ego_from_cam, camera.ego_from_cam, atol=1e-9)
        pose = world.global_from_world @ world.world_from_ego(camera.offset_us / 1e6)
        np.testing.assert_allclose(image.global_from_ego, pose, atol=1e-6)
    assert first.lidar is not None
    assert found.read_lidar(first.lidar).shape[1] == 4
    truth = found.truth("scene-0001")
    assert truth is not None
    occupancy = truth.occupancy(first.token)
    assert occupancy is not None
    assert occupancy[0].shape == (200, 200, 16)
    camera_truth = truth.camera(first.token, "CAM_BACK")
    assert camera_truth is not None
    assert {k: v.shape[-2:] for k, v in camera_truth.items()} == dict.fromkeys(
        ("depth", "instance", "moving", "flow_next"), (54, 96)
    )
    last = truth.camera(scene.keyframes[1].token, "CAM_BACK")
    assert last is not None
    assert "flow_next" not in last, "nothing follows the last keyframe"


def test_the_same_bytes_whatever_the_threads_and_the_number_of_scenes(log: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "one", SMALL.model_copy(update={"scenes": 1, "threads": 1}))
    mine, other = digests(log), digests(tmp_path / "one")
    shared = [name for name in other if not name.startswith(("v1.0", "splits"))]
    assert len(shared) > 20
    assert {name: mine[name] for name in shared} == {name: other[name] for name in shared}
    write_log(tmp_path / "one", SMALL)
    assert digests(tmp_path / "one") == mine, "a scene was added"


def test_an_interrupted_log_goes_on(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real, calls = tmp_path / "log", writer.NuScenesScene.table_rows, []

    def stop_at_the_second(scene: writer.NuScenesScene) -> dict:
        calls.append(scene.index)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(scene)

    monkeypatch.setattr(writer.NuScenesScene, "table_rows", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_log(root, SMALL)
    assert not (root / "v1.0-synth").exists(), "tables come last: a half-written log is not taken for a whole one"
    write_log(root, SMALL)
    assert calls == [0, 1, 1], "the first scene was kept"
    assert digests(root) == digests(log)


def test_other_settings_and_foreign_folders_are_refused(log: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"seed = 0 \(now 7\)"):
        write_log(log, SMALL.model_copy(update={"seed": 7}))
    (tmp_path / "precious").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        write_log(tmp_path, SMALL)
    with pytest.raises(DataError, match="'waymo'"):
        write_log(tmp_path / "new", SMALL, dataset="waymo")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("dataset", "cameras"),
    [
        ("nuscenes", ()),
        ("nuscenes", ("CAM_TOP",)),
        ("nuscenes", ("CAM_FRONT", "CAM_FRONT")),
        ("semantic_kitti", ("image_3",)),
        ("kitti_mot", ("image_03",)),
    ],
)
def test_cameras_that_there_are_not_are_refused_before_anything_is_written(
    tmp_path: Path, dataset: str, cameras: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="cameras is "):
        write_log(tmp_path / "log", SynthConfig(scenes=1, keyframes=2, cameras=cameras), dataset=dataset)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"manoeuvres": []},
        {"difficulty": {"moving_vehicles": [5, 2]}},
        {"difficulty": {"pedestrians": [-3, -1]}},
        {"difficulty": {"tilt_deg": float("inf")}},
        {"difficulty": {"noise": float("inf")}},
        {"difficulty": {"exposure": float("inf")}},
        {"difficulty": {"lidar_noise_m": float("inf")}},
    ],
    ids=str,
)
def test_numbers_that_make_no_world_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SynthConfig.model_validate(values)


def test_an_error_in_a_thread_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.synth import nuscenes_writer

    def full(path: Path, *args: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(nuscenes_writer, "write_image", full)
    with pytest.raises(OSError, match="No space left"):
        write_log(tmp_path / "log", SMALL)
