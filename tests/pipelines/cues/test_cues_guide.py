"""The extractor printed in docs/adding_a_cue.md works as printed, under the entry point that the guide names."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipelines import registry
from storage.schema import CUES

GUIDE = Path(__file__).parents[3] / "docs" / "adding_a_cue.md"


@pytest.fixture
def red_masks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The printed class, in a module that is installed as the guide says."""
    text = GUIDE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (name, target) = re.search(r'^"(.*?)" = "(.*?)"$', text, flags=re.MULTILINE).groups()  # type: ignore[union-attr]
    module = ModuleType(target.split(":")[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(GUIDE), "exec"), module.__dict__)
    monkeypatch.setattr(registry, "_installed", lambda: ((*name.split("."), target),))
    return module.RedMasks


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
