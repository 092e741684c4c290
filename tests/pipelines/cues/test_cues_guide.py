"""The extractor printed in docs/adding_a_cue.md works as printed, under the entry point that the guide names."""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import registry
from storage.schema import CUES

GUIDE = Path(__file__).parents[3] / "docs" / "adding_a_cue.md"


@pytest.fixture
def red_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The printed class in a package of its own, with what pip leaves behind for the printed entry point."""
    text = GUIDE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (entry,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    ((group, points),) = tomllib.loads(entry)["project"]["entry-points"].items()
    (target,) = points.values()
    module = target.partition(":")[0]
    (tmp_path / f"{module}.py").write_text(code)
    info = tmp_path / "red_masks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: red-masks\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    monkeypatch.syspath_prepend(tmp_path)
    registry._installed.cache_clear()  # what was installed when this process looked first
    yield import_module(module).RedMasks
    sys.modules.pop(module)
    registry._installed.cache_clear()


def test_the_printed_extractor(red_masks: Any, flat_world: Callable[..., Any]) -> None:
    def picture(image: object) -> np.ndarray:
        pixels = np.full((96, 160, 3), 100, np.uint8)
        pixels[20:40, 30:60] = (220, 20, 20)
        return pixels

    context = flat_world(keyframes=3, sweeps=0, missing={1}).context(load_image=picture)
    block = red_masks().extract(context)
    assert set(block.arrays) == {spec.name for spec in CUES["masks"]}
    # 20 x 30 raw pixels at half the size.
    assert block.quality["red"] == {"value": pytest.approx(10 * 15 / (48 * 80)), "count": 2 * 48 * 80}
    assert np.unique(block.arrays["masks/instance"]).tolist() == [0, 1, 2]
    assert block.arrays["masks/table"][2, 0, 0].tolist() == [2, 255, 1, 15, 10, 30, 20, 0]
    assert block.notes == ["keyframe frame1: no image of CAM, no masks"]


def test_the_printed_entry_point(red_masks: Any) -> None:
    assert registry.extractor_class("masks", {"backend": "red"}) is red_masks
    registry.check_cue("masks", {"backend": "red", "margin": 60})
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        registry.check_cue("masks", {"backend": "red", "margn": 60})
    assert red_masks(margin=60).config_digest() != red_masks().config_digest()
