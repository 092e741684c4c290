"""From counts to a verdict: pass, warn or fail per check, with value, threshold, spread and the worst keyframes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.inspection.check import Check
from eval.inspection.ego_motion import DEPTH_EDGES_M
from eval.inspection.origins import Origins
from eval.inspection.settings import InspectionSettings
from eval.inspection.tally import Spread, Tally, summarise_motion
from eval.results import plain
from storage.reader import StoreReader
from storage.status import store_status

SCHEMA = "occflow.inspection"
SCHEMA_VERSION = 1
NAMED_SCENES = 400
"""Rows of the coverage grid, incomplete scenes first."""
NAMED_WORST = 50
NAMED_FAULTS = 50
CHANCE = 0.05
"""Probability below which good labels are not believed to have given so many bad values."""
LEAST_OF_CAMERA = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Unreadable:
    """Keyframes that could not be read: all counted, the first `NAMED_FAULTS` named."""

    count: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """One more."""
        self.count += 1
        if len(self.lines) < NAMED_FAULTS:
            self.lines.append(line)


def state_of(spread: Spread) -> str:
    """pass, warn (some values are bad), fail (`too_many` of all, or of one camera), or none (nothing was measured)."""
    if not spread.count:
        return "none"
    if too_many(spread.bad, spread.count, spread.settings.share(spread.check)) or bad_cameras(spread):
        return "fail"
    return "warn" if spread.bad else "pass"


def too_many(bad: int, count: int, share: float) -> bool:
    """Whether so many bad values say that the labels are bad, and not that a few values are.

    `share` of the values of good labels may be bad; 0: none may. A few values are no proof of a larger share: it is
    taken for one when good labels would give so many with a probability of less than `CHANCE` (one-sided binomial
    test), or when the median value is bad, which no few exceptions can do.
    """
    if not share:
        return bad > 0
    if bad > max(0.5, share) * count:
        return True
    from scipy.special import bdtrc

    return bad > share * count and float(bdtrc(bad - 1, count, share)) < CHANCE


def bad_cameras(spread: Spread) -> list[int]:
    """Cameras whose own median is bad although the others' may be good: one camera's calibration is enough to spoil
    its labels. Needs `LEAST_OF_CAMERA` values of it."""
    if spread.check.values.scope != "camera":
        return []
    half = max(0.5, spread.settings.share(spread.check))
    counts = sorted(spread.cameras.items())
    return [c for c, (bad, count) in counts if count >= LEAST_OF_CAMERA and bad > half * count]


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
        "histogram": {"low": check.values.extent[0], "high": check.values.extent[1], "counts": list(spread.histogram)},
        "bad_cameras": bad_cameras(spread),
        "by_camera": {str(c): {"bad": bad, "count": count} for c, (bad, count) in sorted(spread.cameras.items())},
        "worst": [
            {"scene": scene, "t": t, "camera": camera, "value": -badness if check.bad.low else badness}
            for badness, scene, t, camera in worst
        ],
    }


def _described(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "title": check.title,
        "unit": check.values.unit,
        "scope": check.values.scope,
        "low": check.bad.low,
        "measures": check.measures,
        "meaning": check.meaning,
    }


def result(
    reader: StoreReader,
    settings: InspectionSettings,
    lengths: dict[str, int],
    frames: list[tuple[str, int]],
    tally: Tally,
    origins: Origins,
    unreadable: Unreadable,
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
            "provenance": origins.rows(),
            "lidar": {**tally.sweeps.result(), "own_car_share": origins.own_car_share()}
            if tally.sweeps.sweeps
            else None,
            "masks": tally.masks.result() if tally.masks else None,
            "against_truth": tally.truth.result(),
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
            "unreadable": unreadable.lines,
            "unreadable_count": unreadable.count,
        }
    )


def _means(table: np.ndarray) -> list[list[float]]:
    """[count, u, v, length] from the sums weighted by count."""
    count = np.maximum(table[:, :1], 1)
    return np.concatenate([table[:, :1], table[:, 1:] / count], axis=1).tolist()


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
