"""Results of the ablation matrix as tables: means per row, paired differences, and what they say of the paper's."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from eval.beyond import BEYOND
from eval.paired import CONFIDENCE, paired_difference
from eval.paper import COMPARISONS, PAPER, Comparison
from eval.results import plain
from storage.spans import parse_span

FIGURES = {
    "RayIoU": "RayIoU %",
    "non-ground": "non-ground %",
    "mAVE": "mAVE m/s",
    "flow error": "flow error, moving, m/s",
    "Abs Rel": "Abs Rel",
    "DE": "DE px",
    "DE_FG": "DE_FG px",
    "EPE": "EPE px",
    "EPE_FG": "EPE_FG px",
    "FL_10%": "FL_10%",
}
"""Figures of a run, by the paper's names where it has them, and their headings."""

HIGHER_IS_BETTER = frozenset({"RayIoU", "non-ground"})
"""All others of `FIGURES` are errors."""

STANDS_FOR = (
    "RayIoU, mAVE: as the paper's on nuScenes (protocol geometry; true positives by distance alone), on the truth of "
    "the synthetic log. The occupancy threshold is chosen run by run on training scenes.",
    "DE, EPE, DE_FG, EPE_FG, FL_10%: for the paper's on KITTI-MOT. Exact per-pixel depth and flow of the synthetic log "
    "stand in for projected LiDAR and a flow cue, every fourth pixel, pixels at a width of 1216; FG: movable things.",
    "Abs Rel is against LiDAR. The flow error is that of all voxels that truly move, found or not.",
)
_BASELINES = ("flat ground", "zero flow")

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Row → seed → result.json."""


def figures_of(evaluation: Mapping[str, Any], motion: Mapping[str, Any]) -> dict[str, Any]:
    """A run's figures under the names of `FIGURES`, from `evaluate` and `image_motion`."""
    protocol = evaluation["protocol"]

    def per_cent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return {
        "RayIoU": per_cent(evaluation[f"rayiou_{protocol}"]),
        "non-ground": per_cent(evaluation["rayiou_nonground"]),
        "mAVE": evaluation["mave"],
        "flow error": evaluation["flow_epe_dynamic"],
        "Abs Rel": evaluation["abs_rel"],
        **{name: motion.get(name) for name in ("DE", "DE_FG", "EPE", "EPE_FG", "FL_10%")},
    }


def unlike(result: Mapping[str, Any], digests: Mapping[str, str], held_out: Sequence[str]) -> str:
    """Why a result.json does not belong to a matrix of these settings (digest by row) and held-out scenes; "" where it
    does, wherever it was made."""
    row, seed = result.get("row"), result.get("seed")
    if not isinstance(row, str) or row not in digests or not isinstance(seed, int):
        return f"row {row!r}, seed {seed!r}, of which this matrix has none"
    if result.get("digest") != digests[row]:
        return f"settings {result.get('digest')!r}, and {row} has {digests[row]!r} here"
    wanted, judged = set(held_out), result.get("held_out")
    if judged is None:  # earlier versions kept the scenes' names alone, and of a run that diverged none
        wanted, judged = {parse_span(entry).scene for entry in held_out}, result.get("evaluation", {}).get("scenes")
    if judged is not None and set(judged) != wanted:
        return f"judged by {', '.join(judged)}, and this matrix by {', '.join(held_out)}"
    return ""


def finished_runs(
    folder: Path, digests: Mapping[str, str], held_out: Sequence[str]
) -> tuple[dict[str, dict[int, dict[str, Any]]], dict[str, str]]:
    """Results in a matrix's folder by row and seed, wherever they were made; and the folders of those that are
    `unlike`, with the reason: in one table with the others they would compare what is not alike."""
    results: dict[str, dict[int, dict[str, Any]]] = {}
    refused: dict[str, str] = {}
    for path in sorted((folder / "runs").glob("*/result.json")):
        result = json.loads(path.read_text())
        reason = unlike(result, digests, held_out)
        if reason:
            refused[path.parent.name] = reason
        else:
            results.setdefault(result["row"], {})[result["seed"]] = result
    return results, refused


def compare(results: Results, same: Mapping[str, str]) -> dict[str, Any]:
    """Everything the tables show, as plain types.

    Args:
        results: of every row; rows that are one and the same configuration share theirs.
        same: for such a row, the one that was run for it.
    """
    seen = {(result["row"], seed): result for runs in results.values() for seed, result in runs.items()}
    return plain(
        {
            "confidence": CONFIDENCE,
            "runs": len(seen),
            "failed": {f"{row}, seed {seed}": r["reason"] for (row, seed), r in seen.items() if r["status"] != "done"},
            "devices": sorted({r["device"] for r in seen.values() if "device" in r}),
            "same": dict(same),
            "rows": {row: _means(runs) for row, runs in results.items() if runs},
            "baselines": _baselines(seen),
            "comparisons": _compared(results),
            "stands_for": list(STANDS_FOR),
        }
    )


def _figure(result: Mapping[str, Any], name: str) -> float | None:
    return result.get("figures", {}).get(name)


def _means(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": sorted(runs), "failed": sum(r["status"] != "done" for r in runs.values())}
    for name in FIGURES:
        values = [v for result in runs.values() if (v := _figure(result, name)) is not None]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "sd": spread, "n": len(values)} if values else None
    return found


def _compared(results: Results) -> list[dict[str, Any]]:
    entries = []
    for comparison in (*COMPARISONS, *BEYOND):
        row, reference = results.get(comparison.row, {}), results.get(comparison.reference, {})
        for metric in comparison.metrics:
            sides = [{seed: _figure(result, metric) for seed, result in side.items()} for side in (row, reference)]
            found = paired_difference(*sides)
            paper = in_paper(comparison, metric)
            entries.append(
                {
                    "table": comparison.table,
                    "row": comparison.row,
                    "reference": comparison.reference,
                    "metric": metric,
                    "paper": paper,
                    "seeds": list(found.seeds),
                    "without_value": list(found.missing),
                    "mean": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "verdict": found.verdict(better(metric), ("better", "worse"))
                    if paper is None
                    else found.verdict((paper > 0) - (paper < 0)),
                }
            )
    return entries


def in_paper(comparison: Comparison, metric: str) -> float | None:
    """Row less reference as the paper has it, None where it has no such row."""
    row, reference = PAPER.get(comparison.row), PAPER.get(comparison.reference)
    return None if row is None or reference is None else row[metric] - reference[metric]


def better(metric: str) -> int:
    """The sign of a change for the better."""
    return 1 if metric in HIGHER_IS_BETTER else -1


def _baselines(seen: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """A flat ground is the same for every run; zero flow is taken on each run's own true positives: its range."""
    done = [r["evaluation"] for r in seen.values() if r["status"] == "done" and "evaluation" in r]
    if not done:
        return {}
    flat, protocol = done[0]["baselines"]["flat_ground"], done[0]["protocol"]
    still = [r["baselines"]["zero_flow"] for r in done]
    mave = [s["mave"] for s in still if s.get("mave") is not None]
    ground = {"RayIoU": flat.get(f"rayiou_{protocol}"), "non-ground": flat.get("rayiou_nonground")}
    return {
        "flat ground": {
            **{name: 100 * v for name, v in ground.items() if v is not None},
            "Abs Rel": flat["abs_rel"],
        },
        "zero flow": {
            **({"mAVE": min(mave), "mAVE (highest)": max(mave)} if mave else {}),
            "flow error": still[0].get("flow_epe_dynamic"),
        },
    }


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:.3f}" + (f" ± {found['sd']:.3f}" if found["sd"] is not None else "")


def _row_cells(summary: Mapping[str, Any]) -> list[list[str]]:
    cells = []
    for row, found in summary["rows"].items():
        name = f"{row} (= {summary['same'][row]})" if row in summary["same"] else row
        seeds = f"{len(found['seeds'])}" + (f", {found['failed']} failed" if found["failed"] else "")
        cells.append([name, seeds, *(_cell(found[figure]) for figure in FIGURES)])
    for name in _BASELINES:
        baseline = summary["baselines"].get(name, {})
        values = [baseline.get(figure) for figure in FIGURES]
        if any(value is not None for value in values):
            cells.append([name, "", *("" if value is None else f"{value:.3f}" for value in values)])
    return cells


def _comparison_cells(summary: Mapping[str, Any]) -> list[list[str]]:
    cells = []
    for found in summary["comparisons"]:
        seeds = str(len(found["seeds"]))
        if found["without_value"]:
            seeds += f", {len(found['without_value'])} without a value"
        mean = "" if found["mean"] is None else f"{found['mean']:+.3f}"
        interval = "" if found["low"] is None else f"{found['low']:+.3f} to {found['high']:+.3f}"
        compared = f"{found['row']} - {found['reference']}"
        paper = "" if found["paper"] is None else f"{found['paper']:+.3f}"
        cells.append([found["table"], compared, found["metric"], paper, mean, interval, seeds, found["verdict"]])
    return cells


_ROW_HEADINGS = ("row", "seeds", *FIGURES.values())
_COMPARISON_HEADINGS = ("table", "row - reference", "metric", "paper", "here", "95 % interval", "seeds", "")


def console_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Rows, then comparisons."""
    tables = []
    for headings, cells in (
        (_ROW_HEADINGS, _row_cells(summary)),
        (_COMPARISON_HEADINGS, _comparison_cells(summary)),
    ):
        table = Table(*headings, box=None)
        for row in cells:
            table.add_row(*row)
        tables.append(table)
    return tables


def markdown(summary: Mapping[str, Any], command: str, setting: str) -> str:
    """The same as a page, with the command that makes it and a line on what was trained and judged on what."""
    parts = ["# Ablations", "", "```sh", command, "```", "", setting]
    parts += ["", "## Rows", "", "Mean ± standard deviation over seeds, held-out scenes.", ""]
    parts += _markdown_table(_ROW_HEADINGS, _row_cells(summary))
    parts += ["", "## Paired differences", ""]
    parts += [
        "Row minus reference per seed; interval of the mean by Student's t over seeds, not corrected for the number of "
        "comparisons. `as the paper` and `opposite`, and of what the paper does not have `better` and `worse`: the "
        "interval leaves out zero. Seeds vary the network's start and all that training draws, not the log.",
        "",
    ]
    parts += _markdown_table(_COMPARISON_HEADINGS, _comparison_cells(summary))
    parts += ["", *(f"- {line}" for line in summary["stands_for"])]
    parts += [f"- failed: {name}: {reason}" for name, reason in summary["failed"].items()]
    parts += [f"- not counted: {name}: {reason}" for name, reason in summary.get("refused", {}).items()]
    parts += [f"- device: {', '.join(summary['devices'])}"] if summary["devices"] else []
    return "\n".join(parts) + "\n"


def _markdown_table(headings: tuple[str, ...], cells: list[list[str]]) -> list[str]:
    lines = [headings, ("---",) * len(headings), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]
