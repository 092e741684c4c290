"""`inspect_store`: samples a store, runs every check, and says what they found as plain types (schema version 1)."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.frames import open_truth
from eval.inspection.lidar_extent import UsualExtent, sweep_extent, usual_extent
from eval.inspection.mask_checks import Persistence
from eval.inspection.measure import RIG, Measured, measure_keyframe, measure_table
from eval.inspection.origins import Origins
from eval.inspection.sampling import chosen_scenes, sample_keyframes
from eval.inspection.settings import InspectionSettings
from eval.inspection.table_checks import camera_offsets_ms
from eval.inspection.tally import Tally
from eval.inspection.verdict import Unreadable, result
from eval.inspection.views import Keyframe
from storage.errors import StoreError
from storage.location import ObjectPath
from storage.reader import StoreReader
from storage.schema import CUES
from storage.truth import TruthReader

USUAL_SWEEPS = 24
"""Sweeps, and scenes, by which it is judged what is usual in a store."""
KEPT_SCENES = 20
"""Scenes whose tables and records are kept in memory."""
Progress = Callable[[int, int], None]


@dataclass
class Inspector:
    """A store that is being inspected: readers, and what is usual in it."""

    reader: StoreReader
    truth: TruthReader | None
    settings: InspectionSettings
    lengths: dict[str, int]
    cues: tuple[str, ...]
    usual: UsualExtent | None
    usual_offset_ms: np.ndarray
    _seen: set[str] = field(default_factory=set)
    _table: tuple[str, list[Measured]] = ("", [])
    """The scene whose table was measured last, and its values."""

    @classmethod
    def open(cls, store: str | Path | ObjectPath, settings: InspectionSettings) -> "Inspector":
        """Open a store. Raises StoreError, EvaluationError."""
        reader = StoreReader(store)
        names = chosen_scenes(reader, settings)
        lengths = {name: reader.scene(name).length for name in names}
        drawn = settings.model_copy(update={"every": False, "sample": USUAL_SWEEPS})
        some = sample_keyframes(lengths, drawn)
        cues = tuple(c for c in CUES if any(reader.scene(scene).has(c, t) for scene, t in some))
        usual_offset_ms = _usual_offset_ms(reader, list(dict.fromkeys(scene for scene, _ in some)))
        return cls(reader, open_truth(reader.path), settings, lengths, cues, _usual(reader, some), usual_offset_ms)

    def forget(self, scene: str) -> None:
        """Open the readers anew once `KEPT_SCENES` scenes went by: they keep every table and record they have read."""
        self._seen.add(scene)
        if len(self._seen) > KEPT_SCENES:
            self._seen = {scene}
            self.reader = StoreReader(self.reader.path)
            self.truth = open_truth(self.reader.path)

    def keyframe(self, scene: str, t: int) -> Keyframe:
        """One keyframe, nothing read yet. Raises CueMissing, IndexError."""
        source = self.reader.scene(scene)
        if not 0 <= t < source.length:
            raise IndexError(f"scene {scene!r} has keyframes 0 to {source.length - 1}, not {t}")
        truth = self.truth.paired(scene, source.table.tokens) if self.truth is not None else None
        return Keyframe(source, self.reader.attributes, t, truth)

    def measure(self, keyframe: Keyframe) -> list[Measured]:
        """All values of a keyframe and its cameras, less what its scene's table tells."""
        return list(measure_keyframe(keyframe, self.cues, self.usual))

    def all_values(self, keyframe: Keyframe) -> list[Measured]:
        """The same with the table's values."""
        scene = keyframe.scene.name
        if self._table[0] != scene:
            self._table = scene, list(measure_table(scene, keyframe.table, self.usual_offset_ms))
        return [*self.measure(keyframe), *(one for one in self._table[1] if one.t == keyframe.t)]


def _usual_offset_ms(reader: StoreReader, scenes: list[str]) -> np.ndarray:
    found = [np.zeros((0, len(reader.attributes.cameras)))]
    for scene in scenes:
        with suppress(StoreError):  # said where the scene itself is inspected
            offsets = camera_offsets_ms(reader.scene(scene).table)
            found.append(np.where(np.isnan(offsets).all(axis=0), 0.0, offsets))
    every = np.concatenate(found)
    return np.nanmedian(every, axis=0) if len(every) else np.zeros(every.shape[1])


def _usual(reader: StoreReader, some: list[tuple[str, int]]) -> UsualExtent | None:
    sweeps = []
    for scene, t in some:
        if reader.scene(scene).has("lidar", t):
            try:
                cue = reader.scene(scene).lidar(t)
            except StoreError:  # one damaged sweep of the store must not keep all others from being judged
                continue
            points = cue.points[:, :3].astype(np.float64)
            points = points[np.isfinite(points).all(axis=1)]
            if len(points):
                sweeps.append(sweep_extent(points, np.nan_to_num(cue.origin.astype(np.float64))))
    return usual_extent(sweeps) if sweeps else None


@dataclass
class Inspection:
    """What an inspection found: `result` is the JSON twin; the inspector can draw what it names."""

    inspector: Inspector
    tally: Tally
    frames: list[tuple[str, int]]
    result: dict[str, Any]


def inspect_store(
    store: str | Path | ObjectPath, settings: InspectionSettings | None = None, progress: Progress | None = None
) -> Inspection:
    """Run every check on a sample of a store's keyframes, and the table checks on all of them.

    Memory does not grow with the store: one keyframe is decoded at a time, values go into histograms.

    Args:
        progress: called with keyframes done and to do.

    Raises:
        StoreError: no store, or one of another schema version. What is damaged inside is reported instead.
        EvaluationError: an unknown scene, or nothing committed.
    """
    started = time.perf_counter()
    settings = settings or InspectionSettings()
    inspector, tally = Inspector.open(store, settings), Tally(settings)
    frames = sample_keyframes(inspector.lengths, settings)
    origins, unreadable = Origins(), Unreadable()
    _measure_tables(inspector, tally, unreadable, {scene for scene, _ in frames})
    persistence = [Persistence() for _ in inspector.reader.attributes.cameras]
    for number, (scene, t) in enumerate(frames):
        inspector.forget(scene)
        try:
            keyframe = inspector.keyframe(scene, t)
            for measured in inspector.measure(keyframe):
                tally.add(measured)
            tally.add_contents(keyframe)
            origins.add(keyframe)
            for view in keyframe.cameras():
                if view.masks is not None:
                    persistence[view.c].add(scene, view.masks > 0)
            keyframe.close()
        except StoreError as error:
            unreadable.add(f"{scene}:{t}: {error}")
            tally.note("coverage", 0.0, scene, t, RIG)
        if progress is not None:
            progress(number + 1, len(frames))
    for c, one in enumerate(persistence):
        if not np.isnan(one.share()):
            tally.note("mask_own_car", one.share(), "", RIG, c)
    tally.close()
    found = result(inspector.reader, settings, inspector.lengths, frames, tally, origins, unreadable)
    found["seconds"] = round(time.perf_counter() - started, 1)
    found["cues"], found["truth"] = list(inspector.cues), inspector.truth is not None
    return Inspection(inspector, tally, frames, found)


def _measure_tables(inspector: Inspector, tally: Tally, unreadable: Unreadable, sampled: set[str]) -> None:
    for scene in inspector.lengths:
        inspector.forget(scene)
        try:
            table = inspector.reader.scene(scene).table
        except StoreError as error:
            if scene not in sampled:  # of the others each keyframe says so
                unreadable.add(f"{scene}: {error}")
                tally.note("coverage", 0.0, scene, 0, RIG)
            continue
        for measured in measure_table(scene, table, inspector.usual_offset_ms):
            tally.add(measured)
