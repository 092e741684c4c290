"""nuScenes' occupancy truth in both published layouts, and scenes chosen by the words of their descriptions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.datasets.nuscenes import NuScenesLog
from pipelines.datasets.records import DataError
from pipelines.datasets.splits import nuscenes_splits
from pipelines.datasets.truth import OCC3D_CLASSES, OCCUPANCY_CLASSES

SCENE, TOKEN = "scene-0061", "scene-0061-sample-1"


def write_labels(root: Path, folder: str, free: int, **more: np.ndarray) -> np.ndarray:
    semantics = np.random.default_rng(free).integers(0, free + 1, (200, 200, 16), dtype=np.uint8)
    path = root / folder / SCENE / TOKEN / "labels.npz"
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, semantics=semantics, **more)
    return semantics


def test_classes_by_number_are_the_published_ones() -> None:
    """Occ3D counts from `others`, OpenOcc from the cars; the same sixteen things otherwise."""
    assert (len(OCC3D_CLASSES), OCC3D_CLASSES[0], OCC3D_CLASSES[4], OCC3D_CLASSES[11]) == (
        17,
        "others",
        "car",
        "driveable_surface",
    )
    assert set(OCC3D_CLASSES) == {*OCCUPANCY_CLASSES, "others"}


@pytest.mark.parametrize("folder", ["gts", "occ3d"])
def test_occ3d(tiny_nuscenes: Any, folder: str) -> None:
    root = tiny_nuscenes.write()
    mask = np.ones((200, 200, 16), dtype=np.uint8)
    semantics = write_labels(root, folder, 17, mask_lidar=mask, mask_camera=mask)
    log = NuScenesLog(root)
    assert log.occupancy_classes == OCC3D_CLASSES
    truth = log.truth(SCENE)
    assert truth is not None
    found = truth.occupancy(TOKEN)
    assert found is not None
    np.testing.assert_array_equal(found[0], semantics)
    assert found[1] is None, "Occ3D has no flow"
    assert truth.occupancy("scene-0061-sample-0") is None
    assert log.truth("scene-0103") is None
    assert NuScenesLog(root, occupancy="openocc").truth(SCENE) is None


def test_both_layouts_side_by_side(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    openocc, occ3d = write_labels(root, "openocc_v2", 16), write_labels(root, "gts", 17)
    log = NuScenesLog(root)
    assert "both OpenOcc's and Occ3D's labels are here: OpenOcc's are read (option occupancy: occ3d)" in log.notes
    for chosen, expected, classes in (
        (log, openocc, OCCUPANCY_CLASSES),
        (NuScenesLog(root, occupancy="occ3d"), occ3d, OCC3D_CLASSES),
    ):
        truth = chosen.truth(SCENE)
        assert truth is not None
        found = truth.occupancy(TOKEN)
        assert found is not None
        np.testing.assert_array_equal(found[0], expected)
        assert chosen.occupancy_classes == classes
    assert not any("both" in line for line in NuScenesLog(root, occupancy="occ3d").notes), "asked for is no surprise"


def test_one_layout_in_the_others_folder_is_refused(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    write_labels(root, "openocc_v2", 17)
    write_labels(root, "gts", 16)
    truth = NuScenesLog(root).truth(SCENE)
    assert truth is not None
    with pytest.raises(DataError, match=r"class index 17, but OpenOcc's run 0\.\.16 .*dataset\.options\.occupancy"):
        truth.occupancy(TOKEN)
    truth = NuScenesLog(root, occupancy="occ3d").truth(SCENE)
    assert truth is not None
    with pytest.raises(DataError, match=r"no voxel has Occ3D's number of free \(17\)"):
        truth.occupancy(TOKEN)
    with pytest.raises(DataError, match="occupancy is 'surround', expected openocc or occ3d"):
        NuScenesLog(root, occupancy="surround")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "counts"),
    [("v1.0-trainval", (700, 150, 150)), ("v1.0-test", (700, 150, 150)), ("v1.0-mini", (8, 2, 150))],
)
def test_official_splits_have_their_published_sizes(version: str, counts: tuple[int, int, int]) -> None:
    pytest.importorskip("nuscenes", reason="nuscenes-devkit holds the official splits")
    found = nuscenes_splits(version)
    assert tuple(len(set(found[name])) for name in ("train", "val", "test")) == counts
    assert not set(found["train"]) & set(found["val"])


def test_scenes_by_the_words_of_their_description(tiny_nuscenes: Any) -> None:
    descriptions = {"scene-0061": "Night, after rain", "scene-0103": "Parked cars, brain surgery clinic"}
    for name, description in descriptions.items():
        tiny_nuscenes.row("scene", name)["description"] = description
    root = tiny_nuscenes.write()

    def names(**options: Any) -> list[str]:
        return NuScenesLog(root, **options).scene_names()

    assert names(tags=["RAIN"]) == names(tags=["night", "rain"]) == ["scene-0061"], "whole words, all of them"
    assert names(without_tags=["night", "fog"]) == ["scene-0103"]
    assert names(tags=["night"], without_tags=["rain"]) == []
    log = NuScenesLog(root, without_tags=["night"])
    assert "1 of 2 scenes are left out by tags or without_tags" in log.notes
    assert len(log.scene("scene-0103").keyframes) == 3
    assert log.scene("scene-0103").tags == ("Parked cars", "brain surgery clinic")
    with pytest.raises(DataError, match="no scene 'scene-0061'"):
        log.scene("scene-0061")
