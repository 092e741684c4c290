"""Recordings for Rerun: without the package an error that helps; with it, recordings that it reads again."""

import builtins
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.inspection.rerun_export import export_recordings, first_from_ego, rerun_sdk
from eval.inspection.run import Inspector
from eval.inspection.settings import InspectionSettings
from eval.rules import EvaluationError


def test_without_the_package_the_error_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "rerun":
            raise ImportError("No module named 'rerun'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EvaluationError, match=r"pip install 'occflow\[rerun\]'"):
        rerun_sdk()


def test_another_package_of_that_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", types.ModuleType("rerun"))
    with pytest.raises(EvaluationError, match=r"rerun-sdk>=0\.23"):
        rerun_sdk()


def test_poses_are_relative_to_the_first(street: type) -> None:
    table = street().table()
    np.testing.assert_allclose(first_from_ego(table, 0), np.eye(4), atol=1e-9)
    # 6 m/s for 0.25 s ahead, 0.2 m/s to the left, 0.04 rad/s of turn.
    pose = first_from_ego(table, 1)
    np.testing.assert_allclose(pose[:3, 3], [1.5, 0.05, 0.0], atol=1e-6)
    assert np.arctan2(pose[1, 0], pose[0, 0]) == pytest.approx(0.01)


def test_recordings_are_read_again(clean_store: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'occflow[rerun]'")
    inspector = Inspector.open(clean_store, InspectionSettings())
    frames = [("street-0", 0), ("street-0", 3), ("street-1", 2)]
    ticks: list[tuple[int, int]] = []
    paths = export_recordings(inspector, frames, tmp_path / "out", lambda *done: ticks.append(done))
    assert [path.name for path in paths] == ["street-0.rrd", "street-1.rrd"]
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    printed = [_printed(path) for path in paths]
    for wanted in (
        "/world/ego/lidar",
        "/world/ego/CAM_FRONT/image",
        "/world/ego/CAM_LEFT/masks",
        "/world/ego/CAM_FRONT/static\\ residual",
        "/layers/CAM_FRONT/flow",
        "/checks/static_bias/keyframe",
        "/checks/exposure/CAM_LEFT",
    ):
        assert all(wanted in text for text in printed), wanted
    assert "keyframe" in printed[0]
    assert all("unreadable" not in text for text in printed)


def _printed(path: Path) -> str:
    """What Rerun's own program finds in a recording; it fails on one that it cannot read."""
    program = [sys.executable, "-m", "rerun", "rrd"]
    for command in ("verify", "print"):
        done = subprocess.run([*program, command, str(path)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    return done.stdout
