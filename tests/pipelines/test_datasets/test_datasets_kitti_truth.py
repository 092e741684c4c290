"""SemanticKITTI voxel files: labels, flags of unknown voxels, single-scan occupancy, and the real files' alignment."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import in_image, project
from geometry.transforms import invert, transform_points
from pipelines.datasets.files import load_image
from pipelines.datasets.records import DataError
from pipelines.datasets.semantic_kitti import SemanticKittiLog
from pipelines.datasets.semantic_kitti_truth import CLASS_OF_RAW_LABEL, FREE, KITTI_CLASSES, SemanticKittiTruth

SHAPE = (256, 256, 32)


def _pack(path: Path, voxels: list[tuple[int, int, int]]) -> None:
    """Bits as SemanticKITTI packs them: voxel number (x * 256 + y) * 32 + z, highest bit of a byte first."""
    data = bytearray(256 * 256 * 32 // 8)
    for x, y, z in voxels:
        number = (x * 256 + y) * 32 + z
        data[number // 8] |= 128 >> (number % 8)
    path.write_bytes(bytes(data))


def _truth(root: Path, **options: str) -> SemanticKittiTruth:
    truth = SemanticKittiLog(root, **options).truth("08")  # type: ignore[arg-type]
    assert truth is not None
    return truth


def test_labels_and_invalid(tiny_kitti: Path) -> None:
    folder = tiny_kitti / "sequences" / "08" / "voxels"
    raw = np.zeros(SHAPE, dtype="<u2")
    raw[3, 4, 5], raw[3, 4, 6], raw[200, 7, 1], raw[0, 0, 0], raw[1, 1, 1] = 10, 252, 52, 81, 40
    raw.tofile(folder / "000000.label")
    _pack(folder / "000000.invalid", [(1, 1, 1), (255, 255, 31)])
    found = _truth(tiny_kitti).occupancy("000000")
    assert found is not None
    semantics, flow = found
    assert flow is None
    assert semantics.dtype == np.uint8
    named = {voxel: int(semantics[voxel]) for voxel in [(3, 4, 5), (3, 4, 6), (200, 7, 1), (0, 0, 0)]}
    assert named == {(3, 4, 5): 0, (3, 4, 6): 0, (200, 7, 1): 19, (0, 0, 0): 18}
    assert semantics[1, 1, 1] == semantics[255, 255, 31] == 255
    assert (semantics == FREE).sum() == np.prod(SHAPE) - 6
    free = _truth(tiny_kitti, unlabelled="free").occupancy("000000")
    assert free is not None
    assert free[0][200, 7, 1] == FREE
    assert _truth(tiny_kitti).occupancy("000001") is None


def test_every_documented_label_has_its_class() -> None:
    known = {0: "free", 10: "car", 31: "bicyclist", 60: "road", 71: "trunk", 99: "occupied", 257: "other_vehicle"}
    names = (*KITTI_CLASSES, "free")
    assert {raw: names[CLASS_OF_RAW_LABEL[raw]] for raw in known} == known
    assert len(KITTI_CLASSES) == FREE == 20
    assert CLASS_OF_RAW_LABEL[300] == 255


def test_a_single_scans_occupancy(tiny_kitti: Path) -> None:
    folder = tiny_kitti / "sequences" / "08" / "voxels"
    _pack(folder / "000002.bin", [(10, 20, 3)])
    _pack(folder / "000002.occluded", [(10, 20, 3), (11, 20, 3)])
    _pack(folder / "000002.invalid", [(12, 20, 3)])
    found = _truth(tiny_kitti).occupancy("000002")
    assert found is not None
    assert found[0][10:14, 20, 3].tolist() == [19, 255, 255, FREE]
    assert (found[0] == FREE).sum() == np.prod(SHAPE) - 3


def test_files_of_the_wrong_size(tiny_kitti: Path) -> None:
    folder = tiny_kitti / "sequences" / "08" / "voxels"
    (folder / "000003.label").write_bytes(b"1234")
    with pytest.raises(DataError, match=r"000003\.label: 4 bytes, expected 4194304"):
        _truth(tiny_kitti).occupancy("000003")
    (folder / "000003.label").unlink()
    (folder / "000003.bin").write_bytes(b"1234")
    with pytest.raises(DataError, match=r"000003\.bin: 4 bytes, expected 262144"):
        _truth(tiny_kitti).occupancy("000003")


def test_exact_truth_beside_the_voxels(tiny_kitti: Path) -> None:
    np.zeros(SHAPE, dtype="<u2").tofile(tiny_kitti / "sequences" / "08" / "voxels" / "000000.label")
    folder = tiny_kitti / "truth" / "08" / "000000"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "labels.npz", flow=np.full((*SHAPE, 2), 2.5, np.float16))
    np.savez_compressed(folder / "image_2.npz", depth=np.full((30, 80), 7.0), instance=np.zeros((30, 80), np.uint8))
    truth = _truth(tiny_kitti)
    found = truth.occupancy("000000")
    assert found is not None
    assert found[1] is not None
    assert found[1].dtype == np.float32
    assert (found[1] == 2.5).all()
    camera = truth.camera("000000", "image_2")
    assert camera is not None
    assert camera["depth"].dtype == np.float32
    assert truth.camera("000001", "image_2") is None
    np.savez_compressed(folder / "image_2.npz", depth=np.zeros((30, 80)), moving=np.zeros((15, 40), np.uint8))
    with pytest.raises(DataError, match=r"image_2\.npz: arrays of different image sizes"):
        truth.camera("000000", "image_2")


def _overlap(points: np.ndarray, occupied: np.ndarray, z_origin: float) -> float:
    """IoU of the voxels that hold points, from a grid of 0.2 m at (0, -25.6, z_origin), with `occupied`."""
    # float32 coordinates lie within 2e-6 m of the edges they were written for
    index = np.floor((points - [0, -25.6, z_origin]) / 0.2 + 1e-5).astype(int)
    index = index[((index >= 0) & (index < SHAPE)).all(axis=1)]
    mine = np.zeros(SHAPE, dtype=bool)
    mine[tuple(index.T)] = True
    return float((mine & occupied).sum() / (mine | occupied).sum())


def test_real_voxels_start_at_minus_2_2(shared_data: Callable[[str], Path]) -> None:
    log = SemanticKittiLog(shared_data("semantic_kitti"))
    truth = log.truth("04")
    assert truth is not None
    assert log.occupancy_grid.lower == (0.0, -25.6, -2.2)
    for frame in log.scene("04").frames:
        found = truth.occupancy(frame.token)
        if found is None:
            continue
        assert frame.lidar is not None
        points = log.read_lidar(frame.lidar)[:, :3].astype(np.float64)
        occupied = found[0] == KITTI_CLASSES.index("occupied")
        assert _overlap(points, occupied, -2.2) > 0.9
        assert _overlap(points, occupied, -2.0) < 0.15
        assert _overlap(points, occupied, -2.4) < 0.15
        # and with the axes exchanged it could not fit
        assert _overlap(points[:, [1, 0, 2]] * [-1, 1, 1] + [25.6, -25.6, 0], occupied, -2.2) < 0.2


def test_real_frames_are_noted(shared_data: Callable[[str], Path]) -> None:
    log = SemanticKittiLog(shared_data("semantic_kitti"))
    assert log.scene_names("train") == ["04"]
    scene = log.scene("04")
    assert len(scene.keyframes) == 10
    assert log.notes == ["04: 261 of the 271 frames in poses.txt have no image: left out (10-270)"]
    truth = log.truth("04")
    assert truth is not None
    assert [f.token for f in scene.frames if truth.occupancy(f.token) is not None] == ["000000", "000005"]


def test_real_lidar_fits_the_image(shared_data: Callable[[str], Path]) -> None:
    """Depth edges of the projected scan lie on image edges, and no longer when shifted by a few pixels."""
    log = SemanticKittiLog(shared_data("semantic_kitti"))
    scores: dict[int, list[float]] = {}
    for frame in log.scene("04").frames[::3]:
        image = frame.images["image_2"]
        assert frame.lidar is not None
        points = log.read_lidar(frame.lidar)[:, :3].astype(np.float64)
        uv, depth, valid = project(image.K, transform_points(invert(image.ego_from_cam), points))
        inside = valid & in_image(uv, image.height, image.width)
        assert 0.12 < inside.mean() < 0.2  # 82 degrees of 360, less what lies above and below the picture
        assert points[inside, 0].min() > 1.0
        # Along a beam (points are stored beam by beam) a near point followed by a much farther one is a depth edge.
        edge = inside & (np.roll(depth, -1) - depth > 1.0) & (np.linalg.norm(points, axis=1) < 40)
        edge &= np.abs(np.roll(uv, -1, axis=0)[:, 0] - uv[:, 0]) < 6
        assert edge.sum() > 300
        grey = load_image(image).astype(np.float64).mean(axis=2)
        gradient = np.abs(np.gradient(grey, axis=1))
        for shift in (-12, 0, 12):
            columns = np.floor(uv[edge, 0] + shift).astype(int).clip(2, image.width - 3)
            rows = np.floor(uv[edge, 1]).astype(int)
            near = np.stack([gradient[rows, columns + k] for k in (-2, -1, 0, 1, 2)]).max(axis=0)
            scores.setdefault(shift, []).append(float(near.mean()))
    aligned = np.mean(scores[0])
    assert aligned > 1.15 * np.mean(scores[-12])
    assert aligned > 1.15 * np.mean(scores[12])


def test_real_poses_bring_scans_together(shared_data: Callable[[str], Path]) -> None:
    """Nearest-neighbour distance of static surroundings between frames 0 and 6, with and without ego-motion."""
    from scipy.spatial import cKDTree

    log = SemanticKittiLog(shared_data("semantic_kitti"))
    frames = log.scene("04").frames
    first, later = frames[0], frames[6]
    assert first.lidar is not None
    assert later.lidar is not None
    a = log.read_lidar(first.lidar)[:, :3].astype(np.float64)
    b = log.read_lidar(later.lidar)[:, :3].astype(np.float64)
    a, b = a[(np.abs(a) < 25).all(axis=1) & (a[:, 2] > -1)], b[(np.abs(b) < 15).all(axis=1) & (b[:, 2] > -1)][::5]
    tree = cKDTree(a)
    moved = transform_points(invert(first.global_from_ego) @ later.global_from_ego, b)
    distance = np.linalg.norm(later.global_from_ego[:3, 3] - first.global_from_ego[:3, 3])
    assert 5 < distance < 12
    with_motion, without = (np.median(tree.query(points)[0]) for points in (moved, b))
    assert with_motion < 0.15
    assert without > 1.5 * with_motion
