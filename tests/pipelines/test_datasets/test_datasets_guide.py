"""The reader printed in docs/adding_a_dataset.md works as printed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.datasets.records import DataError

GUIDE = Path(__file__).parents[3] / "docs" / "adding_a_dataset.md"


def _drive(root: Path, times: list[int]) -> None:
    folder = root / "drives" / "monday"
    folder.mkdir(parents=True)
    for i, time in enumerate(times):
        row = {
            "time_us": time,
            "ego": {"wxyz": [1, 0, 0, 0], "xyz": [float(i), 0.0, 0.0]},
            "camera": {"wxyz": [0.5, -0.5, 0.5, -0.5], "xyz": [1.0, 0.0, 1.5]},
            "K": [[50, 0, 31.5], [0, 50, 17.5], [0, 0, 1]],
            "width": 64,
            "height": 36,
        }
        (folder / f"{i:03d}.json").write_text(json.dumps(row))


@pytest.fixture(scope="module")
def drives_log() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    return names["DrivesLog"]


def test_the_printed_reader(tmp_path: Path, drives_log: Any) -> None:
    _drive(tmp_path, [0, 500_000, 1_000_000])
    log = drives_log(tmp_path)
    assert log.scene_names() == ["monday"]
    scene = log.scene("monday")
    assert len(scene.keyframes) == 3
    image = scene.keyframes[2].images["front"]
    np.testing.assert_array_equal(image.K, [[50, 0, 32], [0, 50, 18], [0, 0, 1]])
    np.testing.assert_array_equal(image.global_from_ego[:3, 3], [2, 0, 0])
    np.testing.assert_allclose(image.ego_from_cam @ [0, 0, 7, 1], [8, 0, 1.5, 1])
    assert log.truth("monday") is None


def test_the_printed_reader_refuses_damage(tmp_path: Path, drives_log: Any) -> None:
    _drive(tmp_path, [0, 500_000, 500_000])
    with pytest.raises(DataError, match="drive monday: timestamps must increase"):
        drives_log(tmp_path).scene("monday")
