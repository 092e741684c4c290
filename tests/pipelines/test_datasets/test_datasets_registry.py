"""Readers by name: the built-in ones, and one that an installed package offers."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.nuscenes import NuScenesLog
from pipelines.datasets.records import DataError
from pipelines.datasets.registry import BUILT_IN, dataset_kinds, open_log
from pipelines.datasets.semantic_kitti import SemanticKittiLog

READER = """
class HouseLog:
    dataset = "house"
    cameras = ("front",)
    def __init__(self, root, colour="red"):
        self.root, self.colour, self.notes = root, colour, []
"""


def _install(folder: Path, entry: str) -> None:
    """What pip leaves behind for a distribution with one entry point."""
    (folder / "house_log.py").write_text(READER)
    info = folder / "house_log-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house-log\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[occflow.datasets]\n{entry}\n")


def test_built_in_readers(tiny_nuscenes: Any, tiny_kitti: Path) -> None:
    assert set(BUILT_IN) <= set(dataset_kinds())
    assert isinstance(open_log("nuscenes", tiny_nuscenes.write(), version=None), NuScenesLog)
    log = open_log("semantic_kitti", str(tiny_kitti), version=None, keyframe_every=2)
    assert isinstance(log, SemanticKittiLog)
    assert log.keyframe_every == 2


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        ("nuscenes", "without_tags", "straight", r"not allowed as a Sequence value; a list of one is \[straight\]"),
        ("nuscenes", "scenes", ["scene-0001", 3], "valid string"),
        ("nuscenes", "sweeps", "no", "valid boolean"),
        ("nuscenes", "occupancy", "occ4d", "'openocc' or 'occ3d'"),
        ("semantic_kitti", "keyframe_every", 2.5, "valid integer"),
        ("semantic_kitti", "keyframe_every", "x", "valid integer"),
        ("semantic_kitti", "z_origin", "a", "valid number"),
        ("semantic_kitti", "z_origin", float("nan"), "finite number"),
        ("kitti_mot", "cameras", "image_02", r"a list of one is \[image_02\]"),
    ],
)
def test_options_of_another_type_are_refused(
    tiny_nuscenes: Any, tiny_kitti: Path, tiny_mot: Any, kind: str, name: str, value: object, expected: str
) -> None:
    root = {"nuscenes": tiny_nuscenes.write, "semantic_kitti": lambda: tiny_kitti, "kitti_mot": lambda: tiny_mot.root}
    with pytest.raises(DataError, match=rf"data set {kind}: option {name} is {re.escape(repr(value))}: .*{expected}"):
        open_log(kind, root[kind](), **{name: value})


def test_options_of_the_right_type_are_not(tiny_nuscenes: Any, tiny_kitti: Path) -> None:
    open_log("nuscenes", tiny_nuscenes.write(), tags=["night"], without_tags=("rain",), sweeps=False, scenes=None)
    open_log("semantic_kitti", tiny_kitti, keyframe_every=1, z_origin=-2, unlabelled="free")


def test_a_reader_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, "house = house_log:HouseLog")
    monkeypatch.syspath_prepend(tmp_path)
    assert "house" in dataset_kinds()
    log: Any = open_log("house", tmp_path, colour="blue")
    assert (log.dataset, log.root, log.colour) == ("house", tmp_path, "blue")
    with pytest.raises(DataError, match=r"data set house: .*size.*options given: size"):
        open_log("house", tmp_path, size=3)


def test_a_package_cannot_replace_a_built_in_reader(
    tiny_nuscenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, "nuscenes = house_log:HouseLog")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(open_log("nuscenes", tiny_nuscenes.write()), NuScenesLog)


def test_a_reader_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, "house = house_log:NoSuchLog")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"house_log:NoSuchLog does not load"):
        open_log("house", tmp_path)


def test_unknown_kind_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'nuscenes'"):
        open_log("nuscene", tmp_path)
    with pytest.raises(DataError, match=r"known: .*semantic_kitti"):
        open_log("zzz", tmp_path)
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        open_log("nuscenes", tmp_path / "nowhere")
