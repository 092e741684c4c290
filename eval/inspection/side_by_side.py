"""The same camera image from two stores, worst drift first: what the page shows of `--against`."""

from collections.abc import Iterator
from typing import Any

from eval.inspection.compare import Comparison, same_keyframe
from eval.inspection.drift import Drift, Pair
from eval.inspection.gallery import reopen, standing_for, telling_layer, thumbnails
from eval.inspection.measure import RIG
from eval.inspection.run import Inspection
from storage.errors import StoreError


def pair_cards(inspection: Inspection, comparison: Comparison, pictures: bool = True) -> list[dict[str, Any]]:
    """Cards as plain types: check, where, both values, the commands that open both, and thumbnails of both stores.

    The checks take turns, those that got worse first, each with what moved farthest to its bad side; no image twice.
    """
    found: list[dict[str, Any]] = []
    seen = set()
    for drift, pair in _in_turn(comparison.drifts):
        place = _place(inspection, comparison, pair)
        if place is None or place[:2] in seen:
            continue
        seen.add(place[:2])
        found.append(_card(inspection, comparison, drift, pair, place, pictures))
        if len(found) == inspection.inspector.settings.worst:
            break
    return found


def _in_turn(drifts: list[Drift]) -> Iterator[tuple[Drift, Pair]]:
    """Beyond the limit here and not there comes first, check by check in turn, then what merely moved."""
    for queues in ([(d, d.spoilt) for d in drifts], [(d, d.moved) for d in drifts]):
        for rank in range(max((len(queue) for _, queue in queues), default=0)):
            for drift, queue in queues:
                if rank < len(queue):
                    yield drift, queue[rank]


Place = tuple[tuple[str, int], int, int]
"""Scene and keyframe here, camera, and the keyframe there."""


def _place(inspection: Inspection, comparison: Comparison, pair: Pair) -> Place | None:
    """An image that stands for the pair; None where a store does not have it."""
    own, theirs = inspection.inspector, comparison.theirs
    place = standing_for(own, pair.scene, pair.t, pair.camera)
    if place is None:
        return None
    scene, t, camera = place
    there = same_keyframe(own, theirs, scene, t) if pair.other_t == RIG else pair.other_t
    other = comparison.their_camera.get(camera)
    if there is None or other is None or not theirs.reader.scene(scene).table.camera_valid[there][other]:
        return None
    return (scene, t), camera, there


def _card(
    inspection: Inspection, comparison: Comparison, drift: Drift, pair: Pair, place: Place, pictures: bool
) -> dict[str, Any]:
    (scene, t), c, there = place
    camera, width = inspection.result["cameras"][c], inspection.inspector.settings.thumbnail
    card: dict[str, Any] = {
        "check": drift.check.name,
        "layer": telling_layer(drift.check.name),
        "scene": scene,
        "t": t,
        "camera": camera,
        "own": pair.own,
        "other": pair.other,
        "command": reopen(inspection.result["store"], scene, t, camera),
        "other_command": reopen(comparison.result["store"], scene, there, camera),
    }
    if pictures:
        try:
            card["pictures"] = thumbnails(inspection.inspector.keyframe(scene, t).camera(c), width)
            other = comparison.their_camera[c]
            card["other_pictures"] = thumbnails(comparison.theirs.keyframe(scene, there).camera(other), width)
        except StoreError as error:
            card["error"] = str(error)
    return card
