"""Runs a network over keyframes of a store and says how good it is, with baselines, protocol and provenance."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

from eval.frames import TruthSource, chosen_keyframes, evaluated_keyframes, named_keyframes, open_truth
from eval.predict import Predictor
from eval.results import provenance, summary
from eval.rules import EvaluationError, Rules, rules_for
from eval.tally import Tally
from eval.time_steps import PER_INTERVAL, time_steps
from model.network import OccFlow
from storage.exclusions import Excluded, excluded_by
from storage.location import ObjectPath
from storage.reader import StoreReader
from storage.truth import TruthReader

ItemT = TypeVar("ItemT")

SWEEP = (-0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Occupancy thresholds, metres, that are worth a look."""


def evaluate(
    model: OccFlow,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    *,
    checkpoint: str | Path | None = None,
    protocol: str | None = None,
    threshold: float | None = None,
    sweep: Sequence[float] = (),
    keyframes: int | None = None,
    workers: int = 2,
    exclude: Sequence[str | Path] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """All figures of a network on scenes of a store, as plain types that JSON can hold (None where not a number).

    Args:
        store: the cue store; its truth store is looked for beside it, and without one only depth is measured.
        scenes: default all.
        checkpoint: where the network came from; named in the result.
        protocol: of RayIoU; default by the truth's grid (see `rules_for`).
        threshold: occupied where sdf <= this many metres; default the network's own.
        sweep: further thresholds at which RayIoU is computed.
        keyframes: at most so many, evenly spaced; default all.
        workers: threads that cast rays.
        exclude: files of marks (`occflow inspect`) whose keyframes are left out; the result counts those of `scenes`.
        console: shows a progress bar.

    Returns:
        See `eval.results.summary`.

    Raises:
        EvaluationError: a protocol that this network cannot be measured by, or nothing to evaluate.
        StoreError: no store, or a scene or image that is not committed.
    """
    started = time.perf_counter()
    reader = StoreReader(store)
    truth = open_truth(reader.path)
    rules = _rules(model, reader, truth, protocol)
    predictor = Predictor(model, reader, rules.grid, threshold)
    source, tally = TruthSource(reader, truth), Tally(rules, reader, sweep, workers)
    marked = excluded_by(reader, exclude)
    frames = chosen_keyframes(reader, scenes, predictor.queue_length, keyframes, marked.frames)
    for scene, t in progress(frames, "evaluate", console):
        prediction = predictor.predict(scene, t)
        tally.add_volume(prediction, source.at(scene, t), source.boxes(scene, t))
        tally.add_depth(model.renderer, prediction, scene, t)
    return {
        **summary(tally, time_steps(reader, frames, PER_INTERVAL)),
        **provenance(predictor, checkpoint, truth, frames),
        **excluded_counts(exclude, marked, named_keyframes(reader, scenes, predictor.queue_length)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def excluded_counts(files: Sequence[str | Path], marked: Excluded, named: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """How many of the named keyframes marks left out, and how many marks of the files no longer hold, wherever they
    are; nothing where no file was given."""
    if not files:
        return {}
    counts = {"keyframes": len(marked.frames.intersection(named)), "stale": len(marked.stale)}
    return {"excluded": {"files": [str(file) for file in files], **counts}}


def choose_threshold(
    model: OccFlow,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None,
    candidates: Sequence[float],
    *,
    keyframes: int = 6,
    workers: int = 2,
    exclude: Sequence[str | Path] = (),
) -> float:
    """The candidate (metres) with the best RayIoU on a few evenly spaced keyframes; the lower one on a tie.

    Meant for training scenes: chosen on the scenes that are then evaluated it flatters the figure. `exclude`: files of
    marks, whose keyframes say nothing here either.

    Raises:
        EvaluationError: no candidate, or no occupancy truth to choose by.
    """
    reader = StoreReader(store)
    truth = open_truth(reader.path)
    rules = _rules(model, reader, truth)
    if not candidates or not rules.classes:
        raise EvaluationError(f"{store}: a threshold is chosen from candidates by occupancy truth: one is missing")
    predictor, source = Predictor(model, reader, rules.grid), TruthSource(reader, truth)
    tally = Tally(rules, reader, sorted(candidates), workers)
    for scene, t in evaluated_keyframes(reader, scenes, predictor.queue_length, keyframes, exclude):
        tally.add_sweep(predictor.predict(scene, t), source.at(scene, t))
    scores = {threshold: metric.compute().rayiou for threshold, metric in tally.sweep.items()}
    if not np.isfinite(list(scores.values())).all():
        raise EvaluationError(
            f"{store}: none of the chosen keyframes has occupancy truth and LiDAR, from where rays are cast; "
            "name other scenes, or a store of the same log that has LiDAR: a checkpoint runs on either"
        )
    return max(scores, key=lambda threshold: scores[threshold])


def _rules(model: OccFlow, reader: StoreReader, truth: TruthReader | None, protocol: str | None = None) -> Rules:
    attributes = None if truth is None else truth.attributes
    return rules_for(attributes, reader.attributes.dataset, model.config.grid.build(), protocol)


def progress(items: Sequence[ItemT], label: str, console: Console | None) -> Iterator[ItemT]:
    """The items, with a bar on the console when there is one."""
    with nullcontext() if console is None else Progress(console=console, transient=True) as bar:
        yield from items if bar is None else bar.track(items, description=label)
