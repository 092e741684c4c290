"""The bound under the renderer's temperature: where it lies over a stage, and that only a learning one obeys it."""

import pytest
import torch
from pydantic import ValidationError

from model.opacity import Temperature
from train.schedule import temperature_bound
from train.settings import StageConfig

STAGE = StageConfig(max_steps=100, temperature_floor=0.25, temperature_span=(0.1, 0.7))


@pytest.mark.parametrize(("progress", "bound"), [(0.0, 0.1), (0.1, 0.1), (0.4, 0.175), (0.7, 0.25), (1.0, 0.25)])
def test_bound_rises_over_its_span(progress: float, bound: float) -> None:
    assert temperature_bound(STAGE, 0.1, progress) == pytest.approx(bound)


def test_no_floor_no_bound() -> None:
    assert temperature_bound(StageConfig(max_steps=100), 0.1, 0.5) is None


@pytest.mark.parametrize("span", [(0.5, 0.5), (0.7, 0.1), (-0.1, 0.5), (0.5, 1.2)])
def test_a_span_is_two_rising_fractions(span: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="temperature_span"):
        StageConfig(max_steps=100, temperature_span=span)


def test_a_learning_temperature_is_raised_and_never_lowered() -> None:
    temperature = Temperature(0.1)
    temperature.keep_above(None)
    assert temperature.v.item() == pytest.approx(0.1)
    temperature.keep_above(0.2)
    assert temperature().item() == pytest.approx(torch.e**2, rel=1e-5)
    temperature.keep_above(0.15)
    assert temperature.v.item() == pytest.approx(0.2)


def test_a_frozen_temperature_stays() -> None:
    """The second stage takes it as the first one left it."""
    temperature = Temperature(0.1)
    temperature.freeze()
    temperature.keep_above(0.2)
    assert temperature.v.item() == pytest.approx(0.1)
