"""Two stores, or two cue models, on the same keyframes: drift per check, paired differences, what got worse."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.inspection.catalogue import CHECKS
from eval.inspection.drift import Drift
from eval.inspection.measure import RIG, Measured
from eval.inspection.run import Inspection, Inspector
from eval.inspection.sampling import sample_keyframes
from eval.inspection.tally import Tally
from eval.results import plain
from eval.rules import EvaluationError
from storage.errors import StoreError


@dataclass
class Comparison:
    """What changed: `result` is what the JSON twin says; the other store's inspector can draw its side.

    their_camera: index in the other store of each camera, by its index here, that both have.
    drifts: of the checks that both stores have values of, those that got worse first.
    """

    theirs: Inspector
    their_camera: dict[int, int]
    drifts: list[Drift]
    result: dict[str, Any]


def compare(inspection: Inspection, other: str | Path) -> Comparison:
    """What changed from another store to the inspected one, on the sample's keyframes that both have.

    Keyframes are the same by scene and token, cameras by name; what only one of the stores has is not compared, and the
    result names it. Values that belong to a scene are pooled over those keyframes; what is
    judged against the usual is judged against what is usual in the inspected store.

    Raises:
        EvaluationError: no keyframe in common.
        StoreError: the other store cannot be opened.
    """
    own = inspection.inspector
    theirs = Inspector.open(other, own.settings.model_copy(update={"scenes": ()}))
    cameras, other_cameras = (one.reader.attributes.cameras for one in (own, theirs))
    their_camera = {c: other_cameras.index(name) for c, name in enumerate(cameras) if name in other_cameras}
    # One yardstick for both: what is usual differs with the scenes that were drawn for it.
    theirs.usual = own.usual
    theirs.usual_offset_ms[list(their_camera.values())] = own.usual_offset_ms[list(their_camera)]
    numbered = {c: c for c in their_camera}, {there: here for here, there in their_camera.items()}
    drifts = {check.name: Drift(check, own.settings) for check in CHECKS}
    tallies = Tally(own.settings), Tally(own.settings)
    keyframes = unreadable = 0
    for scene, t in sample_keyframes(own.lengths, own.settings):
        own.forget(scene)
        try:
            there = same_keyframe(own, theirs, scene, t)
            if there is None:
                continue
            sides = [
                _values(inspector, scene, at, kept)
                for inspector, at, kept in zip((own, theirs), (t, there), numbered, strict=True)
            ]
        except StoreError:
            unreadable += 1
            continue
        keyframes += 1
        here_values, there_values = (_by_camera(found) for found in sides)
        for name, camera in sorted(here_values.keys() & there_values.keys()):
            pair = here_values[name, camera], there_values[name, camera]
            drifts[name].add(scene, t, camera, *pair, there)
        for tally, found in zip(tallies, sides, strict=True):
            for one in found:
                tally.add(one)
    if not keyframes:
        raise EvaluationError(f"{other}: no keyframe of the sample is there too: scenes and tokens must be the same")
    _pair_scenes(drifts, *tallies)
    comparison = _comparison(theirs, their_camera, drifts, cameras, keyframes, unreadable)
    comparison.result["cameras_not_compared"] = {
        "own": [name for name in cameras if name not in other_cameras],
        "other": [name for name in other_cameras if name not in cameras],
    }
    return comparison


def same_keyframe(own: Inspector, theirs: Inspector, scene: str, t: int) -> int | None:
    """Index in their scene of the keyframe with the same token; None where there is none."""
    if scene not in theirs.lengths:
        return None
    theirs.forget(scene)
    tokens = theirs.reader.scene(scene).table.tokens
    token = own.reader.scene(scene).table.tokens[t]
    return tokens.index(token) if token in tokens else None


def _values(inspector: Inspector, scene: str, t: int, numbered: dict[int, int]) -> list[Measured]:
    """What is measured of the keyframe and of the cameras in `numbered`, under the numbers that this gives them."""
    keyframe = inspector.keyframe(scene, t)
    found = inspector.all_values(keyframe)
    keyframe.close()
    numbered = {RIG: RIG, **numbered}
    return [replace(one, camera=numbered[one.camera]) for one in found if one.camera in numbered]


def _by_camera(measured: list[Measured]) -> dict[tuple[str, int], float]:
    """Values by check and camera (RIG for the keyframe)."""
    return {(name, one.camera): value for one in measured for name, value in one.values.items() if not np.isnan(value)}


def _pair_scenes(drifts: dict[str, Drift], own: Tally, theirs: Tally) -> None:
    here, there = own.scene_values(), theirs.scene_values()
    for name, scene in sorted(here.keys() & there.keys()):
        drifts[name].add(scene, RIG, RIG, here[name, scene], there[name, scene], RIG)


def _comparison(
    theirs: Inspector,
    their_camera: dict[int, int],
    drifts: dict[str, Drift],
    cameras: tuple[str, ...],
    keyframes: int,
    unreadable: int,
) -> Comparison:
    found = []
    for drift in drifts.values():
        if drift.count:
            drift.close()
            found.append((drift, drift.result(cameras)))
    found.sort(key=lambda item: (not item[1]["worse"], item[1]["better"], -item[1]["newly_bad"]["count"]))
    checks = [row for _, row in found]
    result = {"store": str(theirs.reader.path), "keyframes": keyframes, "unreadable": unreadable, "checks": checks}
    return Comparison(theirs, their_camera, [drift for drift, _ in found], plain(result))
