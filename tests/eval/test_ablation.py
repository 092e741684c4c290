"""Paired differences by hand, the paper's own orders, and tables in which no seed gets lost."""

import json
from typing import Any

import numpy as np
import pytest

from eval.ablation import FIGURES, compare, figures_of, in_paper, markdown, unlike
from eval.beyond import BEYOND
from eval.paired import paired_difference
from eval.paper import COMPARISONS, PAPER


def test_a_difference_by_hand() -> None:
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975; 2) = 4.3027."""
    found = paired_difference({0: 5.0, 1: 5.0, 2: 5.0, 9: 1.0}, {0: 4.0, 1: 3.0, 2: 2.0, 8: 1.0})
    assert (found.seeds, found.mean, found.missing) == ((0, 1, 2), 2.0, ())
    assert (found.low, found.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert found.verdict(1) == "unresolved"


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 10, 6)
    noise = rng.normal(0, 0.1, 6)
    row, reference = dict(enumerate(seeds - 1 + noise)), dict(enumerate(seeds))
    found = paired_difference(row, reference)
    assert found.low < -1 < found.high < 0
    assert (found.verdict(-1), found.verdict(1), found.verdict(0)) == ("as the paper", "opposite", "unresolved")


def test_a_missing_value_leaves_all_unresolved() -> None:
    row, reference = {0: 1.0, 1: 1.1, 2: None}, {0: 9.0, 1: 9.1, 2: 9.0}
    assert paired_difference({0: 1.0, 1: 1.1}, reference).verdict(-1) == "as the paper"
    found = paired_difference(row, reference)
    assert (found.seeds, found.missing, found.verdict(-1)) == ((0, 1), (2,), "unresolved")
    alone = paired_difference({0: 1.0}, {0: 2.0})
    assert (alone.mean, alone.low, alone.verdict(-1)) == (-1.0, -np.inf, "unresolved")
    assert paired_difference({}, {}).verdict(1) == "unresolved"


def test_the_papers_orders() -> None:
    """What the text says of its tables, against the numbers that were copied."""
    signs = {(c.row, c.reference, m): np.sign(in_paper(c, m) or 0.0) for c in COMPARISONS for m in c.metrics}
    assert signs["camera_lidar", "camera_only", "RayIoU"] == 1
    assert all(
        signs["t4_full", f"t4_{other}", "EPE"] == -1 for other in ("concat", "bev_pool_forward", "bev_pool_bfam")
    )
    for pair in (("t5_two_stage", "t5_joint"), ("t5_full", "t5_two_stage"), ("t6_forward", "t6_none")):
        assert signs[(*pair, "DE")] == signs[(*pair, "EPE")] == -1
    assert signs["t7_with_flow", "t7_without_flow", "EPE_FG"] == -1
    assert signs["t7_with_flow", "t7_without_flow", "DE"] == 1, "depth is slightly worse with flow"
    assert signs["t8_two_stage", "t8_joint", "mAVE"] == 1, "mAVE is lowest without two stages"
    assert all(row in PAPER for c in COMPARISONS for row in (c.row, c.reference))
    assert all(metric in FIGURES for c in (*COMPARISONS, *BEYOND) for metric in c.metrics)


def test_what_the_paper_does_not_have_is_better_or_worse() -> None:
    """By the figure's own sense: less error, more RayIoU."""
    base = {seed: result("camera_lidar", seed, **{"RayIoU": 40.0, "flow error": 5.0}) for seed in (0, 1)}
    row = {seed: result("own_confidence", seed, **{"RayIoU": 41.0, "flow error": 6.0}) for seed in (0, 1)}
    summary = compare({"camera_lidar": base, "own_confidence": row}, {})
    found = {c["metric"]: c for c in summary["comparisons"] if c["row"] == "own_confidence"}
    assert {name: c["verdict"] for name, c in found.items()} == {
        "RayIoU": "better", "flow error": "worse", "EPE_FG": "unresolved",
    }  # fmt: skip
    assert found["RayIoU"]["paper"] is None
    text = markdown(summary, "make ablate", "Trained on a; held out: b.")
    assert "| own | own_confidence - camera_lidar | RayIoU |  | +1.000 | +1.000 to +1.000 | 2 | better |" in text


def result(row: str, seed: int, **figures: Any) -> dict[str, Any]:
    """A finished run as `make ablate` writes it."""
    still = {"mave": 4.0 + seed, "flow_epe_dynamic": 6.0}
    flat = {"rayiou_geometry": 0.25, "rayiou_nonground": 0.03, "abs_rel": 0.5}
    evaluation = {"protocol": "geometry", "baselines": {"flat_ground": flat, "zero_flow": still}}
    all_figures = {**dict.fromkeys(FIGURES), **figures}
    return {
        "row": row, "seed": seed, "status": "done", "reason": None, "figures": all_figures,
        "evaluation": evaluation, "device": "cpu",
    }  # fmt: skip


def test_tables_of_a_matrix_that_is_half_done() -> None:
    lidar = {seed: result("camera_lidar", seed, RayIoU=40.0 + seed, DE=1.0) for seed in (0, 1)}
    without = {seed: result("t7_without_flow", seed, DE=0.5 + seed / 10) for seed in (0, 1)}
    failed = {"row": "t8_joint", "seed": 0, "status": "failed", "reason": "loss not finite", "figures": {}}
    rows = {"camera_lidar": lidar, "t7_with_flow": lidar, "t7_without_flow": without, "t8_joint": {0: failed}}
    summary = compare({**rows, "camera_only": {}}, {"t7_with_flow": "camera_lidar"})
    assert summary["runs"] == 5
    assert summary["failed"] == {"t8_joint, seed 0": "loss not finite"}
    assert summary["rows"]["camera_lidar"]["RayIoU"] == {"mean": 40.5, "sd": pytest.approx(0.5**0.5), "n": 2}
    assert "camera_only" not in summary["rows"]
    assert summary["baselines"]["flat ground"] == {"RayIoU": 25.0, "non-ground": 3.0, "Abs Rel": 0.5}
    assert summary["baselines"]["zero flow"] == {"mAVE": 4.0, "mAVE (highest)": 5.0, "flow error": 6.0}
    table7 = next(c for c in summary["comparisons"] if (c["table"], c["metric"]) == ("7", "DE"))
    assert table7["mean"] == pytest.approx(0.45)
    # Differences 0.5 and 0.4: t(0.975; 1) = 12.7062 times 0.05.
    assert table7["low"] == pytest.approx(0.45 - 12.7062 * 0.05, abs=1e-4)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    text = markdown(summary, "make ablate", "Trained on a; held out: b.")
    assert text.startswith("# Ablations\n\n```sh\nmake ablate\n```\n\nTrained on a; held out: b.\n\n## Rows\n")
    assert "| camera_lidar | 2 | 40.500 ± 0.707 |" in text
    assert "| t7_with_flow (= camera_lidar) | 2 |" in text
    assert "| t8_joint | 1, 1 failed |" in text
    assert "| 7 | t7_with_flow - t7_without_flow | DE | +0.163 | +0.450 | -0.185 to +1.085 | 2 | unresolved |" in text
    assert "| flat ground |  | 25.000 |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {len(FIGURES) + 3, 9}


def test_figures_keep_their_gaps() -> None:
    evaluation = {
        "protocol": "geometry", "rayiou_geometry": 0.5, "rayiou_nonground": None, "mave": None,
        "flow_epe_dynamic": 2.0, "abs_rel": 0.1,
    }  # fmt: skip
    found = figures_of(evaluation, {"DE": 1.0})
    assert (found["RayIoU"], found["non-ground"], found["mAVE"], found["EPE"]) == (50.0, None, None, None)
    assert set(found) == set(FIGURES)


def test_results_of_earlier_versions_go_by_the_scenes_that_were_evaluated() -> None:
    digests, old = {"r": "d"}, {"row": "r", "seed": 0, "digest": "d"}
    assert unlike(old, digests, ("b:0-3",)) == "", "it diverged: nothing was judged"
    assert unlike(old | {"evaluation": {"scenes": ["b"]}}, digests, ("b:0-3",)) == ""
    assert "judged by c" in unlike(old | {"evaluation": {"scenes": ["c"]}}, digests, ("b:0-3",))
    assert "judged by b:0-4" in unlike(old | {"held_out": ["b:0-4"]}, digests, ("b:0-3",))
    assert "settings None" in unlike({"row": "r", "seed": 0}, digests, ("b",))
