"""Plain voxel IoU and mIoU by hand and against a slow version, at the edges too."""

import numpy as np
import pytest

from eval.voxel_iou import VoxelIoU

CLASSES = ("car", "road", "free")


def test_by_hand() -> None:
    semantics = np.array([0, 0, 1, 1, 2, 2, 255, 255], dtype=np.uint8).reshape(8, 1, 1)
    predicted = np.array([0, 2, 1, 0, 1, 2, 0, 2], dtype=np.uint8).reshape(8, 1, 1)
    metric = VoxelIoU(CLASSES)
    metric.update(predicted != 2, semantics, predicted)
    found = metric.compute()
    assert (found["tp"], found["fp"], found["fn"], found["unknown_voxels"]) == (3, 1, 1, 2)
    assert found["voxel_iou"] == pytest.approx(3 / 5)
    assert found["precision"] == found["recall"] == pytest.approx(3 / 4)
    assert found["per_class"] == {"car": pytest.approx(1 / 3), "road": pytest.approx(1 / 3)}
    assert found["voxel_miou"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_against_a_slow_version(density: float) -> None:
    rng = np.random.default_rng(7)
    semantics = rng.choice([0, 1, 2, 255], (4, 4, 4)).astype(np.uint8)
    occupied = rng.random((4, 4, 4)) < density
    metric = VoxelIoU(CLASSES)
    metric.update(occupied, semantics)
    both = either = 0
    for at in np.ndindex(semantics.shape):
        if semantics[at] != 255:
            both += bool(occupied[at]) and semantics[at] != 2
            either += bool(occupied[at]) or semantics[at] != 2
    assert metric.compute()["voxel_iou"] == pytest.approx(both / either)
    assert "voxel_miou" not in metric.compute()


def test_all_free_is_no_figure_and_merging_is_pooling() -> None:
    free = np.full((2, 2, 2), 2, np.uint8)
    metric = VoxelIoU(CLASSES)
    metric.update(np.zeros((2, 2, 2), bool), free, free)
    assert np.isnan(metric.compute()["voxel_iou"])
    assert np.isnan(metric.compute()["voxel_miou"])
    other = VoxelIoU(CLASSES)
    other.update(np.ones((2, 2, 2), bool), np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8))
    metric.merge(other)
    assert metric.compute()["voxel_iou"] == metric.compute()["per_class"]["car"] == 1.0
    assert metric.compute()["frames"] == 2
    with pytest.raises(ValueError, match="cannot merge"):
        metric.merge(VoxelIoU(("road", "free")))
