"""The synthetic log in KITTI's tracking layout: poses to millimetres, stereo, boxes and voxels against the world."""

import json
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import in_image, pixel_centres, project, unproject
from geometry.grid import KITTI_GRID
from geometry.transforms import invert, transform_points
from pipelines.datasets.files import load_image, read_image
from pipelines.datasets.kitti_mot import KittiMotLog
from pipelines.datasets.kitti_mot_labels import velocities
from pipelines.datasets.oxts import oxts_interval, oxts_poses
from pipelines.datasets.records import DataError, Scene
from pipelines.datasets.semantic_kitti_truth import FREE, KITTI_CLASSES
from pipelines.synth import write_log
from pipelines.synth.config import SynthConfig
from pipelines.synth.kitti_mot_writer import KittiMotScene, geographic, kitti_mot_settings
from pipelines.synth.rig import KITTI_INTERVAL_S, kitti_lidar
from pipelines.synth.world import World, build_world

FRAMES = 6
NAME = "training_0000"
CONFIG = SynthConfig(
    scenes=2,
    keyframes=FRAMES,
    width=160,
    height=48,
    lidar_beams=24,
    lidar_azimuths=360,
    manoeuvres=("turn_left",),
    preset="hard",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth_mot") / "log"
    write_log(folder, CONFIG, dataset="kitti_mot")
    return folder


@pytest.fixture(scope="module")
def log(root: Path) -> KittiMotLog:
    return KittiMotLog(root, cameras=("image_02", "image_03"))


@pytest.fixture(scope="module")
def scene(log: KittiMotLog) -> Scene:
    return log.scene(NAME)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(kitti_mot_settings(CONFIG), 0, (FRAMES - 1) * KITTI_INTERVAL_S)


def test_our_reader_finds_everything(root: Path, log: KittiMotLog, scene: Scene) -> None:
    assert (log.scene_names("train"), log.scene_names("val")) == ([NAME], ["training_0001"])
    assert [frame.token for frame in scene.frames] == [f"{k:06d}" for k in range(FRAMES)]
    assert log.notes == []
    assert scene.tags == ("training", "stereo_baseline_m=0.5400")
    for frame in scene.frames:
        assert frame.lidar is not None
        assert len(log.read_lidar(frame.lidar)) > 2000
        assert [load_image(image).shape for image in frame.images.values()] == [(48, 160, 3)] * 2
    assert json.loads((root / "synth.json").read_text())["dataset"] == "kitti_mot"


def test_poses_come_back_to_millimetres(scene: Scene, world: World) -> None:
    ego_from_lidar = kitti_lidar(24, 360).ego_from_lidar
    poses = [world.world_from_ego(k * KITTI_INTERVAL_S) @ ego_from_lidar for k in range(FRAMES)]
    for frame, pose in zip(scene.frames, poses, strict=True):
        found, expected = frame.global_from_ego, invert(poses[0]) @ pose
        np.testing.assert_allclose(found[:3, 3], expected[:3, 3], atol=1e-3)
        np.testing.assert_allclose(found[:3, :3], expected[:3, :3], atol=1e-7)
    assert np.linalg.norm(scene.frames[-1].global_from_ego[:3, 3]) > 1.5, "it drives"


def test_a_long_way_keeps_its_metres() -> None:
    """The writer's map is the inverse of the reader's, kilometres away from where the scale is true as well."""
    places = np.array([[0.0, 0, 0], [700.0, 1000.0, 5.0], [-2000.0, -1500.0, -3.0]])
    rows = np.zeros((3, 30))
    rows[:, :3] = geographic(places)
    np.testing.assert_allclose(oxts_poses(rows)[:, :3, 3], places, atol=1e-6)


def test_recorded_speeds_fit_the_interval() -> None:
    config = kitti_mot_settings(CONFIG.model_copy(update={"keyframes": 60, "manoeuvres": ("straight",)}))
    sequence = KittiMotScene(Path("unused"), config, 0)
    found = oxts_interval(sequence.records())
    assert found == pytest.approx(KITTI_INTERVAL_S, rel=2e-3)


def test_the_stereo_pair_sees_one_world(log: KittiMotLog, scene: Scene) -> None:
    """A left pixel moved by focal * baseline / depth shows, in the right image, a surface at the same depth."""
    truth, baseline = log.truth(NAME), log.stereo_baseline(NAME)
    assert truth is not None
    assert baseline == pytest.approx(0.54)
    left, right = (truth.camera("000002", c) for c in log.cameras)
    assert left is not None
    assert right is not None
    focal = scene.frames[2].images["image_02"].K[0, 0]
    uv = pixel_centres(48, 160).reshape(-1, 2)
    depth = left["depth"].reshape(-1).astype(float)
    known = np.isfinite(depth)
    moved = uv[known] - np.stack([focal * baseline / depth[known], np.zeros(known.sum())], axis=-1)
    inside = moved[:, 0] >= 0
    column, row = np.floor(moved[inside]).astype(int).T
    near = np.abs(right["depth"][row, column] / depth[known][inside] - 1) < 0.05
    assert inside.sum() > 2000
    assert near.mean() > 0.85, "but for edges, and what only one eye sees"


def test_boxes_are_the_actors(log: KittiMotLog, scene: Scene, world: World) -> None:
    boxes, truth = log.tracks(NAME), log.truth(NAME)
    assert boxes is not None
    assert truth is not None
    assert {b.frame for b in boxes} == set(range(FRAMES))
    lidar = kitti_lidar(24, 360)
    for box in boxes:
        t = box.frame * KITTI_INTERVAL_S
        actor, (x, y, heading) = world.actors[box.track - 1], world.actor_poses(t)[box.track - 1]
        world_from_box = world.world_from_ego(t) @ lidar.ego_from_lidar @ box.ego_from_box
        np.testing.assert_allclose(world_from_box[:3, 3], [x, y, actor.base], atol=1e-4)
        # A label turns about camera y alone; the car's tilt, under a degree here, is lost.
        np.testing.assert_allclose(world_from_box[:2, 0], [np.cos(heading), np.sin(heading)], atol=0.03)
        np.testing.assert_allclose(box.size, actor.model.size, atol=1e-5)
    shown = 0
    for k in range(FRAMES):
        camera = truth.camera(f"{k:06d}", "image_02")
        assert camera is not None
        for box in (b for b in boxes if b.frame == k):
            rows, columns = np.nonzero(camera["instance"] == box.track)
            left, top, right, bottom = box.box
            # Wheels and lamps stand out of the nominal box by centimetres, mirrors of pixels by one.
            inside = (columns + 1 > left - 1) & (columns < right + 1) & (rows + 1 > top - 1) & (rows < bottom + 1)
            assert inside.mean() > 0.95
            shown += len(rows)
    assert shown > 1000


@pytest.mark.parametrize(
    ("ahead", "aside", "turned", "size"),
    [
        (1.5, 1.9, 0.0, (4.5, 1.8, 1.5)),
        (1.5, -2.4, 0.1, (7.5, 2.4, 3.2)),
        (0.9, 1.6, -0.4, (1.75, 0.62, 1.8)),
        (20.0, 1.0, 0.7, (4.5, 1.8, 1.5)),
    ],
    ids=["car beside", "truck beside", "bicycle beside", "car ahead"],
)
def test_an_image_box_holds_all_that_is_before_the_camera(
    ahead: float, aside: float, turned: float, size: tuple[float, float, float]
) -> None:
    """Against the projections of points all over the box's faces, those behind the camera left out."""
    sequence = KittiMotScene(Path("unused"), kitti_mot_settings(CONFIG), 0)
    camera, world_from_ego = sequence.cameras[0], sequence.world.world_from_ego(0.0)
    world_from_cam = world_from_ego @ camera.ego_from_cam
    eye, way = world_from_cam[:3, 3], world_from_cam[:3, 2]
    heading = float(np.arctan2(way[1], way[0]))
    c, s = np.cos(heading), np.sin(heading)
    x, y = eye[0] + c * ahead - s * aside, eye[1] + s * ahead + c * aside
    found, truncated = sequence._image_box(0, (x, y, heading + turned, 0.0), size)

    line = np.linspace(-0.5, 0.5, 301)
    face = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    points = np.concatenate([np.insert(face, axis, side, axis=1) for axis in range(3) for side in (-0.5, 0.5)])
    points = (points + (0.0, 0.0, 0.5)) * size
    c, s = np.cos(heading + turned), np.sin(heading + turned)
    points = points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]) + (x, y, 0.0)
    uv, depth, _ = project(camera.K, transform_points(invert(world_from_cam), points))
    uv = np.clip(uv[depth > 0.05] - 0.5, 0.0, [camera.width - 1.0, camera.height - 1.0])
    np.testing.assert_allclose(found, [*uv.min(axis=0), *uv.max(axis=0)], atol=0.5)
    assert truncated == (ahead < 5)
    assert (depth < 0).any() == (ahead < 5)


def test_velocities_of_boxes_are_the_worlds(log: KittiMotLog, scene: Scene, world: World) -> None:
    boxes = log.tracks(NAME)
    assert boxes is not None
    frames = {int(frame.token): frame for frame in scene.frames}
    lidar, compared, fastest = kitti_lidar(24, 360), 0, 0.0
    for box, found in zip(boxes, velocities(boxes, frames), strict=True):
        later = next((b.frame for b in boxes if b.track == box.track and b.frame > box.frame), None)
        if found is None or later is None:
            continue
        t, then = box.frame * KITTI_INTERVAL_S, later * KITTI_INTERVAL_S
        way = np.zeros(3)
        way[:2] = (world.actor_poses(then) - world.actor_poses(t))[box.track - 1, :2] / (then - t)
        in_ego = (world.world_from_ego(t) @ lidar.ego_from_lidar)[:3, :3].T @ way
        np.testing.assert_allclose(found[0], in_ego[:2], atol=1e-3)
        assert found[1] == pytest.approx(then - t, abs=2e-6)
        compared, fastest = compared + 1, max(fastest, float(np.linalg.norm(found[0])))
    assert compared > 20
    assert fastest > 1.0


def test_scans_lie_in_voxels_and_on_depth(log: KittiMotLog, scene: Scene) -> None:
    truth = log.truth(NAME)
    assert truth is not None
    assert truth.occupancy("000001") is None
    for k in (0, 5):
        occupancy, camera = truth.occupancy(f"{k:06d}"), truth.camera(f"{k:06d}", "image_02")
        frame = scene.frames[k]
        assert occupancy is not None
        assert camera is not None
        assert frame.lidar is not None
        semantics, flow = occupancy
        assert flow is not None
        points = log.read_lidar(frame.lidar)[:, :3].astype(float)
        kept = points[KITTI_GRID.contains(points)]
        voxels = semantics[tuple(np.floor(KITTI_GRID.index_coordinates(kept)).astype(int).T)]
        assert (voxels != 255).all()
        # The hard preset's ranges are off by 2 cm (one sigma): those near a face fall into its neighbour.
        assert (voxels != FREE).mean() > 0.9
        assert {"road", "building"} <= {KITTI_CLASSES[c] for c in np.unique(voxels[voxels < FREE])}
        assert (semantics == 255).any()
        image = frame.images["image_02"]
        uv, depth, in_front = project(image.K, transform_points(invert(image.ego_from_cam), points))
        seen = in_front & in_image(uv, 48, 160)
        column, row = np.floor(uv[seen]).astype(int).T
        assert (np.abs(camera["depth"][row, column] / depth[seen] - 1) < 0.1).mean() > 0.85


def test_camera_flow_is_depth_and_motion(log: KittiMotLog, scene: Scene) -> None:
    """On what stands still, depth carried by the poses that oxts gave lands where the exact flow says."""
    truth = log.truth(NAME)
    assert truth is not None
    found = truth.camera("000001", "image_02")
    assert found is not None
    here, there = (scene.frames[k].images["image_02"] for k in (1, 2))
    uv = pixel_centres(48, 160).reshape(-1, 2)
    depth, flow = found["depth"].reshape(-1).astype(float), found["flow_next"].reshape(2, -1).T
    still = (found["moving"].reshape(-1) == 0) & np.isfinite(depth) & np.isfinite(flow).all(axis=1)
    points = transform_points(here.global_from_ego @ here.ego_from_cam, unproject(here.K, uv[still], depth[still]))
    landed, _, _ = project(there.K, transform_points(invert(there.global_from_ego @ there.ego_from_cam), points))
    error = np.linalg.norm(landed - uv[still] - flow[still], axis=1)
    assert still.sum() > 3000
    assert np.median(error) < 1e-3
    assert (error < 0.05).mean() > 0.95, "but for actors slower than what counts as moving"


def test_one_camera_and_no_truth(tmp_path: Path) -> None:
    small = {"keyframes": 2, "scenes": 1, "width": 64, "height": 24, "lidar_beams": 8, "lidar_azimuths": 60}
    config = SynthConfig(cameras=("image_02",), truth=False, **small)  # type: ignore[arg-type]
    write_log(tmp_path / "log", config, dataset="kitti_mot")
    log = KittiMotLog(tmp_path / "log")
    log.scene(NAME)
    assert log.notes == [f"{NAME}: no label_02 (no boxes of tracked objects)"]
    assert log.truth(NAME) is None
    assert not (tmp_path / "log" / "training" / "image_03").exists()
    write_log(tmp_path / "pair", SynthConfig(truth=False, **small), dataset="kitti_mot")  # type: ignore[arg-type]
    same = Path("training") / "image_02" / "0000" / "000001.png"
    assert (tmp_path / "pair" / "training" / "image_03").exists()
    assert read_image(tmp_path / "log" / same).shape == read_image(tmp_path / "pair" / same).shape
    with pytest.raises(DataError, match=r"cameras is \['image_03'\]; KITTI-MOT's are"):
        write_log(tmp_path / "other", SynthConfig(cameras=("image_03",)), dataset="kitti_mot")
