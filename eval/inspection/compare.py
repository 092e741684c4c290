"""Two stores, or two cue models, on the same keyframes: drift per check, paired differences, what got worse."""

from pathlib import Path
from typing import Any

import numpy as np

from eval.inspection.catalogue import CHECKS, Check
from eval.inspection.measure import RIG, Measured
from eval.inspection.run import Inspection, Inspector
from eval.inspection.sampling import sample_keyframes
from eval.results import plain
from eval.rules import EvaluationError
from storage.errors import StoreError

DRAWS = 400
"""Bootstrap draws behind an interval."""
NAMED = 50

Key = tuple[str, int, str]


def compare(inspection: Inspection, other: str | Path) -> dict[str, Any]:
    """What changed from another store to the inspected one, on the sample's keyframes that both have.

    Keyframes are the same by scene and token. Per check: medians, the median of paired differences (this less other)
    with a 95 % bootstrap interval, and keyframes that only one of them finds bad. A check is worse (better) when the
    interval lies wholly on the bad (good) side.

    Raises:
        EvaluationError: no keyframe in common.
        StoreError: the other store cannot be opened.
    """
    own = inspection.inspector
    theirs = Inspector.open(other, own.settings.model_copy(update={"scenes": ()}))
    pairs: dict[str, list[tuple[Key, float, float]]] = {check.name: [] for check in CHECKS}
    keyframes = 0
    for scene, t in sample_keyframes(own.lengths, own.settings):
        there = _same(own, theirs, scene, t)
        if there is None:
            continue
        try:
            here_values = _by_key(own, own.measure(own.keyframe(scene, t)))
            there_values = _by_key(theirs, theirs.measure(theirs.keyframe(scene, there)))
        except StoreError:
            continue
        keyframes += 1
        for name, key in here_values.keys() & there_values.keys():
            pairs[name].append(((scene, t, key), here_values[name, key], there_values[name, key]))
    if not keyframes:
        raise EvaluationError(f"{other}: no keyframe of the sample is there too: scenes and tokens must be the same")
    found = [_drift(check, pairs[check.name], inspection) for check in CHECKS if pairs[check.name]]
    return plain({"store": str(theirs.reader.path), "keyframes": keyframes, "checks": found})


def _same(own: Inspector, theirs: Inspector, scene: str, t: int) -> int | None:
    if scene not in theirs.lengths:
        return None
    tokens = theirs.reader.scene(scene).table.tokens
    token = own.reader.scene(scene).table.tokens[t]
    return tokens.index(token) if token in tokens else None


def _by_key(inspector: Inspector, measured: list[Measured]) -> dict[tuple[str, str], float]:
    """Values by check and camera name ("" for the keyframe)."""
    cameras = inspector.reader.attributes.cameras
    return {
        (name, "" if one.camera == RIG else cameras[one.camera]): value
        for one in measured
        for name, value in one.values.items()
        if not np.isnan(value)
    }


def _drift(check: Check, pairs: list[tuple[Key, float, float]], inspection: Inspection) -> dict[str, Any]:
    settings = inspection.inspector.settings
    own, other = (np.array([pair[k] for pair in pairs]) for k in (1, 2))
    difference = own - other
    rng = np.random.default_rng(settings.seed)
    draws = [np.median(rng.choice(difference, len(difference))) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    bad_side = -1 if check.low else 1
    sides = np.array([low, high]) * bad_side
    newly = [p for p in pairs if settings.bad(check, p[1]) and not settings.bad(check, p[2])]
    repaired = sum(settings.bad(check, p[2]) and not settings.bad(check, p[1]) for p in pairs)
    newly.sort(key=lambda p: -bad_side * (p[1] - p[2]))
    return {
        "name": check.name,
        "title": check.title,
        "unit": check.unit,
        "pairs": len(pairs),
        "own": float(np.median(own)),
        "other": float(np.median(other)),
        "median_difference": float(np.median(difference)),
        "low": float(low),
        "high": float(high),
        "worse": bool(sides.min() > 0),
        "better": bool(sides.max() < 0),
        "newly_bad": {
            "count": len(newly),
            "frames": [
                {"scene": scene, "t": t, "camera": camera, "own": a, "other": b}
                for (scene, t, camera), a, b in newly[:NAMED]
            ],
        },
        "newly_good": int(repaired),
    }
