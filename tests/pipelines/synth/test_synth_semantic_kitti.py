"""The synthetic log in SemanticKITTI's layout: our reader, KITTI's own equations, truth against scans and motion."""

import json
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import in_image, pixel_centres, project, unproject
from geometry.grid import KITTI_GRID, VoxelGrid
from geometry.transforms import from_rotation_translation, invert, transform_points
from pipelines.datasets.files import load_image
from pipelines.datasets.records import Frame
from pipelines.datasets.semantic_kitti import SemanticKittiLog, read_calibration
from pipelines.datasets.semantic_kitti_truth import CLASS_OF_RAW_LABEL, FREE, KITTI_CLASSES
from pipelines.synth import write_log
from pipelines.synth.config import SynthConfig
from pipelines.synth.kitti_classes import coded
from pipelines.synth.kitti_sequence import kitti_settings
from pipelines.synth.rig import KITTI_INTERVAL_S, kitti_camera, kitti_lidar
from pipelines.synth.semantic_kitti_writer import pack_bits
from pipelines.synth.visibility import seen_voxels
from pipelines.synth.world import build_world

FRAMES = 6
CONFIG = SynthConfig(
    scenes=2, keyframes=FRAMES, width=160, height=48, lidar_beams=24, lidar_azimuths=360, manoeuvres=("turn_left",)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth_kitti") / "log"
    write_log(folder, CONFIG, dataset="semantic_kitti")
    return folder


@pytest.fixture(scope="module")
def frames(root: Path) -> tuple[Frame, ...]:
    return SemanticKittiLog(root).scene("00").frames


def scan(root: Path, k: int) -> np.ndarray:
    return np.fromfile(root / "sequences" / "00" / "velodyne" / f"{k:06d}.bin", "<f4").reshape(-1, 4).astype(float)


def point_labels(root: Path, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw semantic number and object number."""
    values = np.fromfile(root / "sequences" / "00" / "labels" / f"{k:06d}.label", "<u4")
    return values & 0xFFFF, values >> 16


def voxel_index(points: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.floor(KITTI_GRID.index_coordinates(points)).astype(int).T)


def test_our_reader_finds_everything(root: Path, frames: tuple[Frame, ...]) -> None:
    log = SemanticKittiLog(root)
    assert (log.scene_names(), log.scene_names("train"), log.scene_names("val")) == (["00", "01"], ["00"], ["01"])
    assert [frame.token for frame in frames] == [f"{k:06d}" for k in range(FRAMES)]
    assert log.notes == []
    assert frames[1].timestamp_us == pytest.approx(KITTI_INTERVAL_S * 1e6, abs=1)
    image = frames[2].images["image_2"]
    assert load_image(image).shape == (48, 160, 3)
    assert frames[2].lidar is not None
    points = log.read_lidar(frames[2].lidar)
    assert points[:, 3].max() <= 1.0
    assert len(points) == len(point_labels(root, 2)[0]) > 2000
    for folder, suffix, count in (("image_2", "png", 6), ("velodyne", "bin", 6), ("labels", "label", 6)):
        assert len(list((root / "sequences" / "01" / folder).glob(f"*.{suffix}"))) == count
    assert sorted(p.name for p in (root / "sequences" / "00" / "voxels").iterdir()) == [
        f"{k:06d}.{kind}" for k in (0, 5) for kind in ("bin", "invalid", "label", "occluded")
    ]
    assert json.loads((root / "synth.json").read_text())["dataset"] == "semantic_kitti"


def test_calibration_and_poses_come_back(root: Path, frames: tuple[Frame, ...]) -> None:
    camera, world = kitti_camera(160, 48), build_world(kitti_settings(CONFIG), 0, (FRAMES - 1) * KITTI_INTERVAL_S)
    ego_from_lidar = kitti_lidar(24, 360).ego_from_lidar
    calibration = read_calibration(root / "sequences" / "00" / "calib.txt")
    np.testing.assert_allclose(calibration.K, camera.K, atol=1e-9)
    np.testing.assert_allclose(calibration.ego_from_cam, invert(ego_from_lidar) @ camera.ego_from_cam, atol=1e-9)
    poses = [world.world_from_ego(k * KITTI_INTERVAL_S) @ ego_from_lidar for k in range(FRAMES)]
    assert poses[0][2, 3] == pytest.approx(1.73)
    for frame, pose in zip(frames, poses, strict=True):
        np.testing.assert_allclose(frame.global_from_ego, invert(poses[0]) @ pose, atol=1e-9)
    assert np.linalg.norm(frames[-1].global_from_ego[:3, 3]) > 1.5, "it drives"


def test_kittis_own_equation_puts_points_on_their_objects(root: Path) -> None:
    """y = P2 Tr x: where a scan's point of an object projects, the image's truth shows that object at that depth."""
    rows = dict(line.split(": ") for line in (root / "sequences" / "00" / "calib.txt").read_text().splitlines())
    P2 = np.array(rows["P2"].split(), float).reshape(3, 4)
    Tr = np.vstack([np.array(rows["Tr"].split(), float).reshape(3, 4), [0, 0, 0, 1]])
    truth = SemanticKittiLog(root).truth("00")
    assert truth is not None
    agree, compared = 0, 0
    for k in range(FRAMES):
        found = truth.camera(f"{k:06d}", "image_2")
        assert found is not None
        points = scan(root, k)
        y = P2 @ Tr @ np.concatenate([points[:, :3], np.ones((len(points), 1))], axis=1).T
        # Pixel centres on whole numbers: rounding finds the pixel.
        column, row = np.rint(y[:2] / y[2]).astype(int)
        kept = (y[2] > 1) & (column >= 1) & (column < 159) & (row >= 1) & (row < 47)
        numbers = point_labels(root, k)[1][kept]
        instance, depth = found["instance"][row[kept], column[kept]], found["depth"][row[kept], column[kept]]
        agree += ((numbers == instance) & (np.abs(depth - y[2][kept]) < 0.1 * y[2][kept])).sum()
        compared += len(numbers)
    assert compared > 1000
    assert agree / compared > 0.85, "but for edges, seen from two places, and slopes within a pixel"


def test_scan_points_lie_in_occupied_voxels_of_their_class(root: Path) -> None:
    truth = SemanticKittiLog(root).truth("00")
    assert truth is not None
    for k in (0, 5):
        occupancy = truth.occupancy(f"{k:06d}")
        assert occupancy is not None
        semantics, flow = occupancy
        points = scan(root, k)[:, :3]
        kept = KITTI_GRID.contains(points)
        voxels = semantics[voxel_index(points[kept])]
        assert (voxels != 255).all(), "a voxel with a point in it is valid"
        assert (voxels != FREE).mean() > 0.98
        classes = CLASS_OF_RAW_LABEL[point_labels(root, k)[0][kept]]
        assert (voxels == classes).mean() > 0.93
        assert flow is not None
        assert np.isfinite(flow).all()
        assert {"road", "sidewalk", "building"} <= {KITTI_CLASSES[c] for c in np.unique(classes)}


def test_velocity_carries_points_of_moving_objects_onto_the_next_scan(root: Path, frames: tuple[Frame, ...]) -> None:
    """The middle of an object's box of voxels, moved by its flow, goes as far as the actor does in the world."""
    truth = SemanticKittiLog(root).truth("00")
    assert truth is not None
    occupancy = truth.occupancy("000000")
    assert occupancy is not None
    semantics, flow = occupancy
    assert flow is not None
    world = build_world(kitti_settings(CONFIG), 0, (FRAMES - 1) * KITTI_INTERVAL_S)
    speeds = [float(a.trajectory.speed.speed(0.05)[0]) for a in world.actors]
    found = np.linalg.norm(flow, axis=-1)
    top = max(speeds)
    assert found.max() <= top * 1.35, "no faster than the fastest actor, but for a turning one's far corner"
    assert not found[(semantics != 255) & (semantics >= 8)].any(), "static classes stand still"
    raw = np.fromfile(root / "sequences" / "00" / "voxels" / "000000.label", "<u2").reshape(KITTI_GRID.shape)
    np.testing.assert_array_equal(raw >= 252, found >= 0.5)


def test_camera_flow_is_depth_and_motion(root: Path, frames: tuple[Frame, ...]) -> None:
    truth = SemanticKittiLog(root).truth("00")
    assert truth is not None
    for k in range(FRAMES - 1):
        found = truth.camera(f"{k:06d}", "image_2")
        assert found is not None
        here, there = frames[k].images["image_2"], frames[k + 1].images["image_2"]
        uv = pixel_centres(48, 160).reshape(-1, 2)
        depth = found["depth"].reshape(-1).astype(float)
        still = (found["instance"].reshape(-1) == 0) & np.isfinite(depth)
        points = unproject(here.K, uv[still], depth[still])
        move = invert(there.global_from_ego @ there.ego_from_cam) @ here.global_from_ego @ here.ego_from_cam
        expected, _, valid = project(there.K, transform_points(move, points))
        flow = found["flow_next"].reshape(2, -1).T[still]
        known = np.isfinite(flow[:, 0])
        assert (known <= (valid & in_image(expected, 48, 160, border=-1e-3))).all()
        assert known.mean() > 0.6
        np.testing.assert_allclose(flow[known], (expected - uv[still])[known], atol=2e-3)
    last = truth.camera(f"{FRAMES - 1:06d}", "image_2")
    assert last is not None
    assert "flow_next" not in last


def test_hidden_voxels_are_those_behind_something(root: Path) -> None:
    """A wall before the sensor: centres up to its face are seen, those behind it are not, nor those above the beams."""
    from dataclasses import replace

    from pipelines.synth.shapes import BOX, primitive

    world = build_world(kitti_settings(CONFIG), 0, 0.5)
    block = world.city.across[1:3], world.city.along[1:3]
    x, y = ((a[0].centre + a[1].centre) / 2 for a in block[:1] + block[1:])
    wall = primitive(BOX, (x + 6.0, y, 2.0), (0.5, 2.0, 2.0), 0, (1, 1, 1), 14)
    world = replace(world, city=replace(world.city, static=wall[None]), actors=[])
    pose = from_rotation_translation(np.eye(3), np.array([x, y, 1.73]))
    grid = VoxelGrid((0.0, -4.0, -1.2), (12.0, 4.0, 0.4), (60, 40, 8))
    seen = seen_voxels(world, 0.0, pose, kitti_lidar(24, 360), pose, grid)
    centres = grid.centres()
    distance = np.linalg.norm(centres, axis=-1)
    slope = centres[..., 2] / distance
    beams = (slope > np.sin(np.deg2rad(-24.8)) + 1e-3) & (slope < np.sin(np.deg2rad(2.0)) - 1e-3)
    before, shadow = centres[..., 0] < 5.4, (centres[..., 0] > 5.9) & (np.abs(centres[..., 1]) < 1.9)
    assert seen[beams & before].all()
    assert not seen[shadow].any()
    assert not seen[~((slope > np.sin(np.deg2rad(-24.8)) - 1e-3) & (slope < np.sin(np.deg2rad(2.0)) + 1e-3))].any()
    assert seen[(np.abs(centres[..., 1]) > 2.9) & beams & (centres[..., 0] < 8)].all(), "beside the wall"
    known = np.zeros_like(seen)
    known[50, 20, 3] = True
    assert seen_voxels(world, 0.0, pose, kitti_lidar(24, 360), pose, grid, known)[50, 20, 3]


def test_bits_are_packed_as_the_data_set_packs_them() -> None:
    voxels = np.zeros((2, 2, 8), bool)
    voxels[0, 0, 0] = voxels[1, 0, 7] = voxels[1, 1, 2] = True
    assert list(pack_bits(voxels)) == [128, 0, 1, 32]


def test_sizes_follow_kittis_aspect_unless_given() -> None:
    def size(**values: int) -> tuple[int, int, int]:
        config = kitti_settings(SynthConfig(**values))  # type: ignore[arg-type]
        return config.width, config.height, config.lidar_beams

    assert size() == (416, 128, 64)
    assert size(width=1241) == (1241, 376, 64)
    assert size(width=320, height=96, lidar_beams=16) == (320, 96, 16)


def test_every_thing_of_the_world_has_a_class_of_the_data_set() -> None:
    from pipelines.synth.kitti_classes import RAW_OF_CODE
    from pipelines.synth.shapes import CLASS

    world = coded(build_world(SynthConfig(preset="hard"), 0))
    codes = world.primitives(0.0)[:, CLASS].astype(int)
    raw = RAW_OF_CODE[codes]
    assert set(np.unique(raw)) >= {50, 70, 71, 80, 81, 10, 30, 31}
    assert (CLASS_OF_RAW_LABEL[raw] < FREE).all()


def test_an_own_image_size_and_the_same_bytes_again(root: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "log", CONFIG.model_copy(update={"scenes": 1, "threads": 1}), dataset="semantic_kitti")
    for path in (tmp_path / "log" / "sequences").rglob("*.*"):
        twin = root / path.relative_to(tmp_path / "log")
        assert twin.read_bytes() == path.read_bytes(), path
