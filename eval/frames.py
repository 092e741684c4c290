"""The keyframes that are evaluated, each with its truth and with the LiDAR positions that rays start from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8

from eval.rays import ray_origins
from eval.rules import EvaluationError, with_free
from storage.location import ObjectPath
from storage.reader import SceneReader, StoreReader
from storage.truth import TruthReader, truth_path

_ENTRY = re.compile(r"(?P<scene>.+?)(:(?P<first>\d+)(-(?P<last>\d+))?)?", re.DOTALL)


@dataclass(frozen=True)
class KeyframeTruth:
    """Truth of one keyframe in its ego frame: class per voxel, velocity in m/s, and ray origins in metres."""

    semantics: UInt8[np.ndarray, "x y z"]
    flow: Float32[np.ndarray, "x y z 2"]
    origins: Float[np.ndarray, "origins 3"]


def open_truth(store: str | Path | ObjectPath) -> TruthReader | None:
    """The truth store beside a cue store, None where there is none."""
    path = truth_path(store)
    return TruthReader(path) if path.exists() else None


def chosen_keyframes(
    reader: StoreReader,
    scenes: Sequence[str] | None,
    queue_length: int,
    limit: int | None = None,
    excluded: frozenset[tuple[str, int]] = frozenset(),
) -> list[tuple[str, int]]:
    """(scene, t) of the keyframes with at least one camera image in their queue; `limit` of them, evenly spaced.

    Args:
        scenes: `scene`, `scene:t` or `scene:first-last`, as in training's `data.exclude`; default all.
        excluded: keyframes that are left out; they may still be in another's queue.

    Raises:
        CueMissing: a scene that the store does not hold.
        EvaluationError: nothing is left to evaluate.
    """
    found = []
    for entry in scenes or reader.scenes():
        scene, first, last = _span(entry)
        valid = reader.scene(scene).table.camera_valid
        span = range(first, min(last + 1, len(valid)))
        found += [(scene, t) for t in span if valid[max(0, t - queue_length + 1) : t + 1].any()]
    found = [frame for frame in found if frame not in excluded]
    if not found:
        raise EvaluationError(
            f"{reader.path}: no keyframe with an image in scenes {list(scenes or reader.scenes())}; "
            "extract the cue 'images', or name other scenes"
        )
    if limit is not None and len(found) > limit:
        found = [found[i] for i in np.round(np.linspace(0, len(found) - 1, limit)).astype(np.int64)]
    return found


def _span(entry: str) -> tuple[str, int, int]:
    """Scene and first and last keyframe that `scene`, `scene:t` or `scene:first-last` names."""
    match = _ENTRY.fullmatch(entry)
    assert match is not None
    if match["first"] is None:
        return entry, 0, 10**9
    return match["scene"], int(match["first"]), int(match["last"] or match["first"])


def lidar_centres(scene: SceneReader) -> Float[np.ndarray, "frames 3"]:
    """The LiDAR's position in each keyframe's own ego frame, metres; nan where a keyframe has no sweep."""
    centres = np.full((scene.length, 3), np.nan)
    for t in range(scene.length):
        if scene.has("lidar", t):
            cue = scene.lidar(t)
            if len(cue.points):
                centres[t] = cue.origin
    return centres


class TruthSource:
    """Truth by keyframe, from a truth store and the cue store beside it; `classes` with the one that means free."""

    def __init__(self, reader: StoreReader, truth: TruthReader | None) -> None:
        self.reader, self.truth = reader, truth
        self.classes = with_free(truth.attributes.occupancy_classes) if truth is not None else ()
        self._scenes = set(truth.scenes()) if truth is not None else set()
        # Centres of one scene serve all its keyframes; reading them means reading its whole LiDAR.
        self._centres = lru_cache(maxsize=2)(lambda scene: lidar_centres(reader.scene(scene)))

    def volume(self, scene: str, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Class (X, Y, Z) and velocity (X, Y, Z, 2) in m/s, None where this keyframe has no occupancy truth."""
        if self.truth is None or scene not in self._scenes:
            return None
        source = self.truth.scene(scene)
        return source.occupancy(t) if source.has("occupancy", t) else None

    def at(self, scene: str, t: int) -> KeyframeTruth | None:
        """Truth and ray origins, None where either is missing (no LiDAR within 39 m: no ray to measure along)."""
        volume = self.volume(scene, t)
        if volume is None:
            return None
        origins = ray_origins(self.reader.scene(scene).table.global_from_ego, self._centres(scene), t)
        return KeyframeTruth(*volume, origins) if len(origins) else None
