"""Options of a reader that change truth: its units are made anew, those under default options stay what they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import CuesConfig, json_digest
from pipelines.datasets.kitti_mot_truth import KittiMotTruth
from pipelines.datasets.semantic_kitti_truth import FREE, SemanticKittiTruth
from pipelines.extract import extract_log
from pipelines.plan import fingerprint, plan
from pipelines.workbench import workbench
from storage.layout import UnitId
from storage.truth import TruthReader, truth_path

SHAPE = (256, 256, 32)


@pytest.fixture
def config(cues_config: Callable[..., CuesConfig], kitti_log: Path) -> Callable[..., CuesConfig]:
    """A function from options to a configuration of a log whose first frame has voxels of "other structure" (52)."""
    folder = kitti_log / "sequences" / "00" / "voxels"
    folder.mkdir()
    raw = np.zeros(SHAPE, "<u2")
    raw[3, 4, 5], raw[3, 4, 6] = 52, 50
    raw.tofile(folder / "000000.label")

    def build(**options: object) -> CuesConfig:
        dataset = {"kind": "semantic_kitti", "root": kitti_log, "scenes": ["00"], "options": options}
        return cues_config(dataset=dataset, cues={"images": {}}, truth=True)

    return build


def stale(config: CuesConfig) -> set[str]:
    return {item.name for item in plan(config).open}


def test_truth_follows_its_options(config: Callable[..., CuesConfig]) -> None:
    extract_log(config())
    assert stale(config()) == stale(config(unlabelled="occupied")) == set()
    free = config(unlabelled="free")
    assert stale(free) == {f"truth/occupancy--00--{block:05d}" for block in range(3)}
    extract_log(free)
    found = TruthReader(truth_path(free.store)).scene("00").occupancy(0)
    assert found is not None
    assert found[0][3, 4, 5] == FREE
    assert found[0][3, 4, 6] != FREE
    assert stale(free) == set()
    assert stale(config()) == {f"truth/occupancy--00--{block:05d}" for block in range(3)}


def test_under_default_options_fingerprints_are_what_they_were(config: Callable[..., CuesConfig]) -> None:
    bench = workbench(config())
    for cue in ("occupancy", "camera"):
        unit = UnitId(cue, "00", 1)
        parts = ["truth", str(unit), "digest", ["image_2"], bench.truth_extractors[cue].config_digest(), {}]
        assert fingerprint(bench, unit, "digest", True) == json_digest([bench.config.digest(), *parts])
    every = workbench(config(keyframe_every=2))
    camera, occupancy = UnitId("camera", "00"), UnitId("occupancy", "00")
    assert fingerprint(every, camera, "digest", True) != fingerprint(bench, camera, "digest", True), "flow is left out"
    assert fingerprint(every, occupancy, "digest", True) == fingerprint(bench, occupancy, "digest", True)


def test_true_flow_of_kitti_ends_in_the_next_frame() -> None:
    for truth in (SemanticKittiTruth(Path("v"), Path("e"), SHAPE), KittiMotTruth(None, SHAPE)):
        assert truth.flow_target("000009") == "000010"
