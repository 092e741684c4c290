"""A unit that is made from others is made from those of its own run, or not at all."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipelines.config import CuesConfig
from pipelines.cues.masks_motion import LidarMotionMasks
from pipelines.extract import extract_log, extract_unit
from pipelines.plan import plan
from storage.errors import StoreError
from storage.layout import UnitId
from storage.store import CueStore

ConfigMaker = Callable[..., CuesConfig]
MASKS, FLOW = UnitId("masks", "00", 0), UnitId("flow_next", "00", 0)


@pytest.fixture
def runs(cues_config: ConfigMaker) -> tuple[CuesConfig, CuesConfig]:
    """Two configurations on one store that differ in the flow that masks are made from."""

    def build(width: int) -> CuesConfig:
        masks = {"backend": "motion_lidar", "flows": ["flow_next"]}
        cues = {"lidar": {}, "flow_next": {"backend": "dis", "max_width": width}, "masks": masks}
        return cues_config(cues=cues, truth=False)

    one, other = build(192), build(96)
    for cue in ("init", "lidar", "flow_next"):
        extract_unit(one, UnitId(cue, "00"))
    return one, other


def states(config: CuesConfig) -> dict[str, str]:
    return {work.unit.cue: work.state for work in plan(config, ["00"]).work if work.unit.block == 0}


def test_another_runs_upstream_is_refused(runs: tuple[CuesConfig, CuesConfig]) -> None:
    one, other = runs
    extract_unit(other, FLOW)
    with pytest.raises(StoreError, match=r"store\.zarr: unit masks--00--00000 .*flow_next--00--00000.* other settings"):
        extract_unit(one, MASKS)
    assert states(one) == {"init": "current", "lidar": "current", "flow_next": "stale", "masks": "missing"}
    extract_unit(one, FLOW)
    extract_unit(one, MASKS)
    assert states(one)["masks"] == "current"


def test_an_upstream_that_is_rebuilt_meanwhile_is_refused(
    runs: tuple[CuesConfig, CuesConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = runs
    make = LidarMotionMasks.extract

    def slowly(self: LidarMotionMasks, context: object) -> object:
        block = make(self, context)  # type: ignore[arg-type]
        extract_unit(other, FLOW)
        return block

    monkeypatch.setattr(LidarMotionMasks, "extract", slowly)
    with pytest.raises(StoreError, match="other settings"):
        extract_unit(one, MASKS)
    assert CueStore.open(one.store).record(MASKS) is None


def test_what_was_made_from_another_runs_upstream_is_made_anew(runs: tuple[CuesConfig, CuesConfig]) -> None:
    """As stores from before this was refused may hold: the right fingerprint, the wrong source."""
    one, _ = runs
    store = CueStore.open(one.store)
    made = extract_unit(one, MASKS)
    arrays = store.read_block(MASKS)
    store.discard(MASKS)
    wrong = {name: np.zeros_like(values) for name, values in arrays.items()}
    store.commit_block(
        MASKS, wrong, replace(made.provenance, upstream={**made.provenance.upstream, "flow_next": "0" * 64})
    )
    assert states(one) == {"init": "current", "lidar": "current", "flow_next": "current", "masks": "stale"}
    extract_log(one, ["00"])
    assert states(one)["masks"] == "current"
    assert store.record(MASKS).provenance.upstream == made.provenance.upstream  # type: ignore[union-attr]
    for name, values in store.read_block(MASKS).items():
        np.testing.assert_array_equal(values, arrays[name])
