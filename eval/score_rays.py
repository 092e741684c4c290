"""Scores rays in the challenge's submission form, against a store's truth or against rays of the same form."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eval.evaluate import progress
from eval.frames import TruthSource
from eval.mave import TP_DISTANCE, VelocityError, occ_score
from eval.plain import plain
from eval.protocols import OPENOCC_CLASSES, protocol_named
from eval.rayiou import RayIoU, all_pairs
from eval.rays import ray_directions
from eval.rules import EvaluationError
from eval.submission import RayPrediction, ray_prediction, read_submission
from geometry.grid import NUSCENES_GRID


def left_out(
    there: list[tuple[str, int]],
    frames: list[tuple[str, int]],
    skip_missing: bool,
    root: Path,
    name: Callable[[str, int], str],
) -> tuple[list[tuple[str, int]], list[str]]:
    """The keyframes that are there, and a note on the others.

    Raises:
        EvaluationError: some are absent (unless that is allowed), or all.
    """
    absent = sorted(set(frames) - set(there))
    if absent and (not skip_missing or not there):
        some = ", ".join(name(scene, t) for scene, t in absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise EvaluationError(
            f"{root}: no prediction for {len(absent)} of {len(frames)} keyframes ({some}); write them, name fewer "
            "scenes with --scenes, or leave them out with --skip-missing"
        )
    return there, [f"{len(absent)} of {len(frames)} keyframes have no prediction: left out"] if absent else []


def score_rays(
    rays: dict[str, RayPrediction],
    root: Path,
    source: TruthSource,
    frames: list[tuple[str, int]],
    protocol: str | None,
    skip_missing: bool,
    console: Console | None,
) -> dict[str, Any]:
    """A submission against the truth's own rays, all of them rounded to float16. Narrows `frames` in place."""
    if protocol not in (None, "openocc"):
        raise EvaluationError(
            f"protocol {protocol!r} frees part of the volume before rays are cast, and a submission's are cast "
            "already: score the labels, or use 'openocc'"
        )
    if source.classes != OPENOCC_CLASSES:
        raise EvaluationError(f"a submission has OpenOcc's 16 classes, the truth has {list(source.classes)}")

    def token(scene: str, t: int) -> str:
        return source.reader.scene(scene).table.tokens[t]

    there = [(scene, t) for scene, t in frames if token(scene, t) in rays]
    frames[:], absent = left_out(there, frames, skip_missing, root, token)
    metric, velocity = RayIoU("openocc", NUSCENES_GRID, OPENOCC_CLASSES, half=True), VelocityError(OPENOCC_CLASSES)
    without = 0
    for scene, t in progress(frames, "score", console):
        truth = source.at(scene, t)
        if truth is None:
            without += 1
            continue
        exact = truth_of_rays(metric, truth.semantics, truth.flow, truth.origins)
        _count(metric, velocity, exact, rays[token(scene, t)], f"{root}: {token(scene, t)}")
    notes = [*absent, *([f"{without} of {len(frames)} keyframes have no occupancy truth"] if without else [])]
    return ray_results(metric, velocity, notes)


def truth_of_rays(metric: RayIoU, semantics: np.ndarray, flow: np.ndarray, origins: np.ndarray) -> RayPrediction:
    """All rays of a keyframe through a volume, in the submission's form and order."""
    fan = ray_directions()
    hits = metric.cast(semantics != metric.free, origins, fan, all_pairs(len(origins), len(fan)))
    return ray_prediction(hits, semantics, flow, metric.free)


def score_submission(predictions: Path, truth: Path) -> dict[str, Any]:
    """A submission against ground truth in the same form: what the challenge's own server does, with a true mAVE.

    Raises:
        EvaluationError: a token of the truth that the submission lacks, or another number of rays.
    """
    found, exact = read_submission(predictions), read_submission(truth)
    absent = sorted(set(exact) - set(found))
    if absent:
        raise EvaluationError(f"{predictions}: no rays for {len(absent)} of {len(exact)} tokens ({absent[0]}, ...)")
    metric, velocity = RayIoU("openocc", NUSCENES_GRID, OPENOCC_CLASSES, half=True), VelocityError(OPENOCC_CLASSES)
    for token, rays in exact.items():
        _count(metric, velocity, rays, found[token], f"{predictions}: {token}")
    return ray_results(metric, velocity, [])


def _count(metric: RayIoU, velocity: VelocityError, truth: RayPrediction, rays: RayPrediction, where: str) -> None:
    if len(rays.category) != len(truth.category):
        raise EvaluationError(
            f"{where}: {len(rays.category)} rays, the truth has {len(truth.category)}: cast the "
            f"{len(ray_directions())} directions from every LiDAR position of eval.rays.ray_origins"
        )
    kept = (truth.category != metric.free) & (truth.category < len(metric.classes))
    category, named = truth.category[kept].astype(np.int64), rays.category[kept].astype(np.int64)
    metric.count(category, truth.distance[kept], named, rays.distance[kept])
    off = np.abs(rays.distance[kept].astype(np.float32) - truth.distance[kept].astype(np.float32))
    velocity.class_source = "prediction"
    flow, exact = (one.flow[kept].astype(np.float64) for one in (rays, truth))
    velocity.count(category, (off < TP_DISTANCE) & (named == category), flow, exact)


def ray_results(metric: RayIoU, velocity: VelocityError, notes: Sequence[str]) -> dict[str, Any]:
    """What rays alone can tell, under the names of `eval.results.summary`."""
    result, speeds, protocol = metric.compute(), velocity.compute(), protocol_named("openocc")
    return plain(
        {
            "protocol": protocol.name,
            "protocol_description": protocol.description,
            "rayiou_openocc": result.rayiou,
            "rayiou_nonground": result.nonground,
            "occscore_openocc": occ_score(result.rayiou, speeds.mave) if np.isfinite(speeds.mave) else None,
            "mave": speeds.mave,
            "baselines": {"zero_flow": {"mave": speeds.zero_flow}},
            "not_computed": ["a submission holds rays only: no voxel figures, no flow error off the rays, no depth"],
            "notes": list(notes),
            "rayiou": result.to_dict(),
            "velocity": speeds.to_dict(),
        }
    )
