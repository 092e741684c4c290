"""What the page counts and no check judges, by hand: masks by class, errors against truth; and drift between scenes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.inspection.mask_summary import PARTS, MaskSummary
from eval.inspection.measure import RIG, Measured
from eval.inspection.settings import InspectionSettings
from eval.inspection.tally import Tally
from eval.inspection.truth_summary import TruthSummary
from eval.inspection.views import View


def view(masks: np.ndarray | None, rows: list[list[float]], t: int = 0, length: int = 4, **more: Any) -> View:
    """A camera image with these masks; rows of (id, class, score)."""
    table = np.array([[*row, 0, 0, 0, 0, 0] for row in rows], np.float32).reshape(-1, 8)
    scene = SimpleNamespace(length=length, mask_table=lambda t, c: table)
    keyframe = SimpleNamespace(factor=1, attributes=SimpleNamespace(classes=("car", "person")))
    one = View.__new__(View)  # its layers are given, not read: what is read once lies in the object's dictionary
    one.__dict__.update(masks=masks, t=t, c=0, scene=scene, keyframe=keyframe, **more)
    return one


def test_masks_are_counted_by_class_over_the_scene() -> None:
    masks = np.zeros((10, 10), np.uint16)
    masks[0, :10] = 1  # a tenth of the image
    masks[5, 5] = 2  # a hundredth
    found = MaskSummary(("car", "person"))
    found.add(view(masks, [[1, 0, 0.92], [2, 1, 0.5]], t=0))
    found.add(view(masks, [[1, 0, 0.92], [2, 255, 0.5]], t=2))
    found.add(view(np.zeros((10, 10), np.uint16), [], t=3))
    found.add(view(None, []))
    result = found.result()
    assert result is not None
    assert result["images"] == 3
    classes = {row["class"]: row for row in result["classes"]}
    assert {name: row["instances"] for name, row in classes.items()} == {"car": 2, "person": 1, "unknown": 1}
    assert classes["car"]["per_image"] == pytest.approx(2 / 3)
    assert classes["car"]["mean_area"] == pytest.approx(0.1)
    assert [k for k, mean in enumerate(classes["car"]["over_time"]) if mean] == [0, PARTS // 2]
    # log10 0.1 = -1 is four fifths of the way from -5 to 0, log10 0.01 = -2 three fifths.
    assert {k: n for k, n in enumerate(result["area_log10"]["counts"]) if n} == {20: 2, 15: 2}
    assert {k: n for k, n in enumerate(result["score"]["counts"]) if n} == {18: 2, 10: 2}


def test_without_masks_nothing_is_said() -> None:
    assert MaskSummary(()).result() is None
    assert TruthSummary().result() is None


def test_errors_against_truth_by_depth_and_class() -> None:
    masks = np.zeros((4, 10), np.uint16)
    masks[0, :4], masks[1, :4] = 1, 2
    moving = np.zeros((4, 10), np.uint8)
    moving[0, :4] = moving[2, :4] = 1
    depth = np.full((4, 10), 7.0)
    depth[2:] = 50.0
    depth[3] = np.inf
    exact = {"depth": depth, "moving": moving, "instance": moving.astype(np.uint16), "flow_next": np.zeros((2, 4, 10))}
    flow = np.zeros((2, 4, 10))
    flow[0, :2], flow[0, 2:] = 2.0, 5.0
    flow[:, 1, 9] = np.nan
    summary = TruthSummary()
    for _ in range(2):
        summary.add(view(masks, [[1, 0, 1.0], [2, 1, 1.0]], flow=flow, truth=exact))
    summary.add(view(masks, [], flow=flow, truth=None))
    found = summary.result()
    assert found is not None
    # 19 pixels of 2 px and 20 of 5 px, twice; the far half's lower row has no depth.
    assert found["flow"]["epe"] == {"value": pytest.approx((19 * 2 + 20 * 5) / 39), "count": 78}
    assert found["flow"]["fl_all"]["value"] == pytest.approx(20 / 39)
    values = [(one["value"], one["count"]) for one in found["epe_by_depth"]]
    assert values == [(None, 0), (pytest.approx(2.0), 38), (None, 0), (None, 0), (pytest.approx(5.0), 20)]
    # Half of the masks moves, half of what moves is masked: 4 of 12 pixels are both.
    assert found["masks"]["iou"]["value"] == pytest.approx(1 / 3)
    assert found["masks"]["recall"] == {"value": 0.5, "count": 16}
    assert found["precision_by_class"] == {"car": {"value": 1.0, "count": 8}, "person": {"value": 0.0, "count": 8}}


def test_a_scene_with_far_more_masked_area_drifts() -> None:
    tally = Tally(InspectionSettings())
    for scene, area in (("a", 0.02), ("b", 0.03), ("c", 0.57), ("d", 0.0)):
        for t in range(3):
            tally.add(Measured(scene, t, 0, counts={"mask_area_drift": (area, 1.0)}))
    values = {scene: value for (_, scene), value in tally.scene_values().items()}
    # The middle of four scenes is 0.025, and 0.03 of the image are added to both.
    assert values == {
        s: pytest.approx(v) for s, v in {"a": 1.1, "b": 0.06 / 0.055, "c": 0.6 / 0.055, "d": 0.055 / 0.03}.items()
    }
    tally.close()
    spread = tally.spreads["mask_area_drift"]
    assert (spread.count, spread.bad) == (4, 1)
    assert max(spread.worst)[1:] == ("c", RIG, RIG)


def test_masks_are_not_judged_by_two_far_things() -> None:
    tally = Tally(InspectionSettings())
    for t in range(10):
        # IoU 0 in both. Of all ten images 0.9 % and 1.1 % are masked or move.
        tally.add(Measured("far", t, 0, counts={"truth_masks": (0.0, 0.09 * (t == 0))}))
        tally.add(Measured("near", t, 0, counts={"truth_masks": (0.0, 0.11 * (t == 0))}))
    assert set(tally.scene_values()) == {("truth_masks", "near")}
