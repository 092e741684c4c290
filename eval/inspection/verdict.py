"""From counts to a verdict: pass, warn or fail per check, with value, threshold, spread and the worst keyframes."""

from typing import Any

import numpy as np

from eval.inspection.catalogue import Check
from eval.inspection.ego_motion import DEPTH_EDGES_M
from eval.inspection.settings import InspectionSettings
from eval.inspection.tally import Spread, Tally, summarise_motion
from eval.results import plain
from storage.reader import StoreReader
from storage.schema import CUES
from storage.status import store_status

SCHEMA = "occflow.inspection"
SCHEMA_VERSION = 1
NAMED_SCENES = 400
"""Rows of the coverage grid, incomplete scenes first."""
NAMED_WORST = 50
NAMED_FAULTS = 50
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def state_of(spread: Spread) -> str:
    """pass, warn (some values are bad), fail (more than the check allows), or none (nothing was measured)."""
    if not spread.count:
        return "none"
    if spread.bad > spread.settings.share(spread.check) * spread.count:
        return "fail"
    return "warn" if spread.bad else "pass"


def check_result(spread: Spread) -> dict[str, Any]:
    """Everything about one check."""
    check, settings = spread.check, spread.settings
    values = np.array(spread.kept) if spread.kept else np.array([np.nan])
    worst = sorted(spread.worst, reverse=True)[:NAMED_WORST]
    return {
        **_described(check),
        "state": state_of(spread),
        "value": float(np.median(values)),
        "limit": settings.limit(check),
        "share_allowed": settings.share(check),
        "excludes": settings.excludes(check),
        "count": spread.count,
        "bad": spread.bad,
        "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
        "histogram": {"low": check.extent[0], "high": check.extent[1], "counts": list(spread.histogram)},
        "by_camera": {str(c): {"bad": bad, "count": count} for c, (bad, count) in sorted(spread.cameras.items())},
        "worst": [
            {"scene": scene, "t": t, "camera": camera, "value": -badness if check.low else badness}
            for badness, scene, t, camera in worst
        ],
    }


def _described(check: Check) -> dict[str, Any]:
    keys = ("name", "title", "unit", "scope", "low", "measures", "meaning")
    return {key: getattr(check, key) for key in keys}


def result(
    reader: StoreReader,
    settings: InspectionSettings,
    lengths: dict[str, int],
    frames: list[tuple[str, int]],
    tally: Tally,
    unreadable: list[str],
) -> dict[str, Any]:
    """The JSON twin, less the seconds; None stands for what is not a number."""
    checks = [check_result(spread) for spread in tally.spreads.values()]
    states = {check["state"] for check in checks}
    total = sum(lengths.values())
    return plain(
        {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "store": str(reader.path),
            "dataset": reader.attributes.dataset,
            "cameras": list(reader.attributes.cameras),
            "verdict": next((s for s in ("fail", "warn") if s in states), "pass"),
            "sample": {
                "keyframes": len(frames),
                "of": total,
                "scenes": len(lengths),
                "seed": settings.seed,
                "all": len(frames) == total,
            },
            "settings": settings.model_dump(mode="json"),
            "provenance": provenance(reader, frames),
            "coverage": coverage(reader, set(lengths)),
            "checks": checks,
            "static_residual": {
                "depth_edges_m": [edge if np.isfinite(edge) else None for edge in DEPTH_EDGES_M],
                **{name: _means(table) for name, table in tally.bins.items()},
                "camera_motion": {str(k): v for k, v in summarise_motion(tally.motions).items()},
            },
            "excluded": [
                {"scene": scene, "t": t, "checks": sorted(names)}
                for (scene, t), names in sorted(tally.excluded.items())
            ],
            "unreadable": unreadable[:NAMED_FAULTS],
            "unreadable_count": len(unreadable),
        }
    )


def _means(table: np.ndarray) -> list[list[float]]:
    """[count, u, v, length] from the sums weighted by count."""
    count = np.maximum(table[:, :1], 1)
    return np.concatenate([table[:, :1], table[:, 1:] / count], axis=1).tolist()


def provenance(reader: StoreReader, frames: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Where the labels come from: a row per cue, licence, weights and code version that was met, and how many units
    and different configurations (a scene's sizes are part of one) it stands for."""
    rows: dict[tuple[str, ...], list[str]] = {}
    seen = set()
    for scene, t in frames:
        for cue in CUES:
            unit = reader.scene(scene).unit(cue, t)
            if unit in seen or not reader.scene(scene).has(cue, t):
                continue
            seen.add(unit)
            origin = reader.scene(scene).record(cue, t).provenance
            row = (cue, origin.licence, origin.weights_digest, origin.code_version)
            rows.setdefault(row, []).append(origin.config_digest)
    keys = ("cue", "licence", "weights_digest", "code_version")
    return [
        {
            **dict(zip(keys, row, strict=True)),
            "units": len(digests),
            "configurations": len(set(digests)),
            "config_digest": digests[0] if len(set(digests)) == 1 else "",
        }
        for row, digests in sorted(rows.items())
    ]


def coverage(reader: StoreReader, scenes: set[str]) -> dict[str, Any]:
    """Scene x cue x state, as `occflow status` sees it; incomplete scenes first."""
    rows: dict[str, dict[str, str]] = {}
    for row in store_status(str(reader.path)).rows:
        if row.scene in scenes:
            rows.setdefault(row.scene, {})[row.cue] = row.state
    cues = list(dict.fromkeys(c for row in rows.values() for c in row))
    used = [c for c in cues if any(row.get(c) not in (None, "missing") for row in rows.values())]
    grid = [{"scene": scene, **{c: row.get(c, "missing") for c in used}} for scene, row in sorted(rows.items())]
    grid.sort(key=lambda row: all(row[c] == "complete" for c in used))
    return {"cues": used, "scenes": grid[:NAMED_SCENES], "scenes_left_out": max(0, len(grid) - NAMED_SCENES)}
