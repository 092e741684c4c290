"""No path to a velocity assumes a time step: whatever a log's clock, what is exact scores as exact, and Δt is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.evaluate import evaluate
from eval.export import export_predictions
from eval.predict import Predictor
from eval.report import time_step_text, write_report
from eval.score import score
from eval.time_steps import Spread, mean_step
from geometry.grid import VoxelGrid
from storage.reader import StoreReader

SMALL = VoxelGrid((-14.4, -8.0, -1.0), (24.0, 8.0, 5.4), (96, 40, 16))
CLOCKS = {
    "KITTI": (0.1037, (0.0, 0.1037, 0.2074)),
    "slow": (2.0, (0.0, 2.0, 4.0)),
    "uneven": (0.5, (0.0, 0.42, 1.02)),
    "not as stated": (0.5, (0.0, 0.1, 0.2)),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_what_is_exact_scores_as_exact_by_any_clock(
    clock: str, make_log: type, exact: Callable[..., Any], tmp_path: Path
) -> None:
    """From the network, from its files, and from UniOcc's displacements per step: always the same m/s."""
    interval, times = CLOCKS[clock]
    log = make_log(grid=SMALL, interval_s=interval, times_s=times)
    store, model = log.write(tmp_path / "store.zarr"), exact(log)
    speed = np.hypot(*log.speed)
    own = evaluate(model, store)
    written = list(Predictor(model, StoreReader(store), SMALL).run("a", tmp_path / "out"))
    with np.load(written[0]) as labels:
        assert labels["interval_s"] == interval
    assert export_predictions(tmp_path / "out", store, tmp_path / "uniocc")[0] == "uniocc"
    found = {"network": own, "files": score(tmp_path / "out", store), "uniocc": score(tmp_path / "uniocc", store)}
    for name, results in found.items():
        for key in ("mave", "flow_epe_dynamic_masked", "threeway_epe", "bucketed_epe_dynamic"):
            assert results[key] == pytest.approx(0.0, abs=2e-3), (name, key)
        assert results["baselines"]["zero_flow"]["flow_epe_dynamic"] == pytest.approx(speed, rel=1e-5), name
        steps = results["time_step"]
        between = np.diff(times)
        assert steps["keyframes_s"]["count"] == 2
        for key, value in (("mean", between.mean()), ("min", between.min()), ("max", between.max())):
            assert steps["keyframes_s"][key] == pytest.approx(value), (name, key)
        assert (steps["interval_s"], steps["dataset"]) == (interval, "nuscenes")
        assert any("apart in the mean" in note for note in results["notes"]) == (clock == "not as stated"), name
    assert len({results["time_step"]["velocities"] for results in found.values()}) == 3


def test_the_step_is_on_the_page_and_in_the_table(make_log: type, exact: Callable[..., Any], tmp_path: Path) -> None:
    log = make_log(grid=SMALL, interval_s=0.5, times_s=(0.0, 0.4, 1.0), truth_at=None)
    results = evaluate(exact(log), log.write(tmp_path / "store.zarr"))
    line = time_step_text(results["time_step"])
    assert line.startswith("nuscenes: keyframes 0.5 s apart (0.4 to 0.6 s); velocities: a network's metres")
    text = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "keyframes 0.5 s apart (0.4 to 0.6 s)" in text


def test_spreads_merge() -> None:
    one, other = Spread(), Spread()
    for seconds in (0.1, 0.3):
        one.add(seconds)
    other.add(0.8)
    one.merge(other)
    assert one.compute() == {"mean": pytest.approx(0.4), "min": 0.1, "max": 0.8, "count": 3}
    assert Spread().compute()["mean"] is None
    one.merge(Spread())
    assert one.compute()["count"] == 3


def test_a_film_runs_at_the_logs_own_pace() -> None:
    assert mean_step(np.array([0, 400_000, 1_000_000]), 0.1) == pytest.approx(0.5)
    assert mean_step(np.array([7]), 0.1) == 0.1
