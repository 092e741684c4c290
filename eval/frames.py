"""The keyframes that are evaluated, each with its truth and with the LiDAR positions that rays start from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8

from eval.rays import ray_origins
from eval.rules import EvaluationError, with_free
from storage.exclusions import excluded_by
from storage.location import ObjectPath
from storage.reader import SceneReader, StoreReader
from storage.schema import StoreAttributes
from storage.spans import parse_span
from storage.truth import TruthReader, truth_path


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
    queue_length: int | None,
    limit: int | None = None,
    excluded: frozenset[tuple[str, int]] = frozenset(),
) -> list[tuple[str, int]]:
    """(scene, t) of the keyframes with at least one camera image in their queue; `limit` of them, evenly spaced.

    Args:
        queue_length: keyframes up to t in which the image may be; None: none is needed.
        scenes: `scene`, `scene:t` or `scene:first-last`, as in training's `data.exclude`; default all.
        excluded: keyframes that are left out; they may still be in another's queue.

    Raises:
        CueMissing: a scene that the store does not hold.
        EvaluationError: nothing is left to evaluate.
    """
    named = named_keyframes(reader, scenes, queue_length)
    found = [frame for frame in named if frame not in excluded]
    if not found:
        where = f"{reader.path}: no keyframe with an image in scenes {list(scenes or reader.scenes())}"
        if named:
            where += f" but the {len(named)} that are marked"
        raise EvaluationError(f"{where}; extract the cue 'images', or name other scenes")
    if limit is not None and len(found) > limit:
        found = [found[i] for i in np.round(np.linspace(0, len(found) - 1, limit)).astype(np.int64)]
    return found


def named_keyframes(
    reader: StoreReader, scenes: Sequence[str] | None, queue_length: int | None
) -> list[tuple[str, int]]:
    """As `chosen_keyframes`, before any is left out: in the order in which they are named, each once."""
    found: dict[tuple[str, int], None] = {}
    for entry in scenes or reader.scenes():
        named = parse_span(entry)
        valid = reader.scene(named.scene).table.camera_valid
        for t in named.keyframes(len(valid)):
            if queue_length is None or valid[max(0, t - queue_length + 1) : t + 1].any():
                found[named.scene, t] = None
    return list(found)


def evaluated_keyframes(
    reader: StoreReader,
    scenes: Sequence[str] | None,
    queue_length: int | None,
    limit: int | None = None,
    exclude: Sequence[str | Path] = (),
) -> list[tuple[str, int]]:
    """The keyframes that `eval.evaluate.evaluate` measures with these options: what it draws is among them.

    Raises:
        CueMissing, EvaluationError: as `chosen_keyframes`.
        StoreError: a file of marks that cannot be read.
    """
    return chosen_keyframes(reader, scenes, queue_length, limit, excluded_by(reader, exclude).frames)


def lidar_centres(scene: SceneReader) -> Float[np.ndarray, "frames 3"]:
    """The LiDAR's position in each keyframe's own ego frame, metres; nan where a keyframe has no sweep."""
    centres = np.full((scene.length, 3), np.nan)
    for t in range(scene.length):
        if scene.has("lidar", t):
            cue = scene.lidar(t)
            if len(cue.points):
                centres[t] = cue.origin
    return centres


@runtime_checkable
class SceneOccupancy(Protocol):
    """Truth of one scene, as `TruthScene` gives it."""

    def has(self, cue: str, t: int) -> bool:
        """Whether there is truth `occupancy` (or `boxes`) at this keyframe."""

    def occupancy(self, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Class (X, Y, Z) and velocity (X, Y, Z, 2) in m/s; None where the keyframe has none."""

    def boxes(self, t: int) -> np.ndarray | None:
        """Labelled boxes by `storage.schema.BOX_FIELDS`; None where the keyframe has none."""


@runtime_checkable
class OccupancyTruth(Protocol):
    """Occupancy truth of scenes, in a store or in a data set's own folders."""

    @property
    def attributes(self) -> StoreAttributes:
        """With the grid and the classes of the truth."""

    def scenes(self) -> list[str]:
        """Names of the scenes that have truth."""

    def scene(self, name: str) -> SceneOccupancy:
        """One scene."""


class TruthSource:
    """Truth by keyframe of a cue store, from the truth store beside it; `classes` with the one that means free."""

    def __init__(self, reader: StoreReader, truth: OccupancyTruth | None) -> None:
        self.reader, self.truth = reader, truth
        self.classes = with_free(truth.attributes.occupancy_classes) if truth is not None else ()
        self._scenes = set(truth.scenes()) if truth is not None else set()
        # Centres of one scene serve all its keyframes; reading them means reading its whole LiDAR.
        self._centres = lru_cache(maxsize=2)(lambda scene: lidar_centres(reader.scene(scene)))

    def volume(self, scene: str, t: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Class (X, Y, Z) and velocity (X, Y, Z, 2) in m/s, None where this keyframe has no occupancy truth."""
        source = self._scene(scene)
        return source.occupancy(t) if source is not None and source.has("occupancy", t) else None

    def boxes(self, scene: str, t: int) -> np.ndarray | None:
        """Labelled boxes by `storage.schema.BOX_FIELDS`, None where nobody labelled this keyframe."""
        source = self._scene(scene)
        return source.boxes(t) if source is not None and source.has("boxes", t) else None

    def _scene(self, scene: str) -> SceneOccupancy | None:
        """Truth by the cue store's keyframes: a truth store may hold others, so that its own numbers say nothing."""
        if self.truth is None or scene not in self._scenes:
            return None
        if isinstance(self.truth, TruthReader):
            return self.truth.paired(scene, self.reader.scene(scene).table.tokens)
        return self.truth.scene(scene)

    def at(self, scene: str, t: int) -> KeyframeTruth | None:
        """Truth and ray origins, None where either is missing (no LiDAR within 39 m: no ray to measure along)."""
        volume = self.volume(scene, t)
        if volume is None:
            return None
        origins = self.origins(scene, t)
        return KeyframeTruth(*volume, origins) if len(origins) else None

    def origins(self, scene: str, t: int) -> Float[np.ndarray, "origins 3"]:
        """Ray origins of a keyframe, metres, its ego frame; none where no LiDAR was near."""
        return ray_origins(self.reader.scene(scene).table.global_from_ego, self._centres(scene), t)
