"""The figures of an evaluation as one plain dictionary, and what they were computed from."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.baselines import zero_flow
from eval.cue_motion import NEEDS
from eval.mave import occ_score
from eval.plain import plain
from eval.predict import Predictor
from eval.tally import Tally
from eval.time_steps import odd_interval
from model.checkpoint import WEIGHTS_NAME
from model.config import ModelConfig
from storage.truth import TruthReader


def summary(tally: Tally, steps: dict[str, Any]) -> dict[str, Any]:
    """What a tally found, and the time steps (`eval.time_steps.time_steps`) that its velocities are stated by.

    Keys: `protocol` and its description; the chief figures `rayiou_<protocol>`, `rayiou_nonground`,
    `occscore_<protocol>`, `mave` (m/s), `flow_epe_dynamic` (m/s), `recall_dynamic`, `false_flow_parked` (m/s),
    `abs_rel`, `voxel_iou`, `flow_epe_dynamic_masked`, `false_flow_parked_masked` and `threeway_epe` (m/s),
    `bucketed_epe_dynamic`, `box_velocity_error` (m/s, where boxes are labelled); `time_step`; `baselines` with such
    keys for `flat_ground` and `zero_flow`; the detail behind them in `rayiou`, `voxels`, `velocity`, `dynamic_flow`,
    `three_way`, `bucketed`, `depth`, `boxes`, `image_motion` (KITTI-MOT: DE, EPE, ...), `sweep`; `not_computed`, a line
    per missing group, and `notes`.
    None where a figure does not exist: `flow_epe_dynamic` and `false_flow_parked` are of a velocity field, which files
    of labels do not hold where they are free.
    """
    protocol = tally.rules.protocol
    detail = _detail(tally)
    return plain(
        {
            "protocol": protocol.name,
            "protocol_description": protocol.description,
            **_chief(protocol.name, detail, tally.rendered),
            "baselines": _baselines(tally, detail),
            "not_computed": _missing(tally),
            "notes": [*_notes(tally), *odd_interval(steps)],
            "time_step": steps,
            **detail,
        }
    )


def provenance(
    predictor: Predictor, checkpoint: str | Path | None, truth: TruthReader | None, frames: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """Where the figures come from: data set, store, checkpoint, digests, scenes, keyframes, grid and threshold."""
    grid, reader = predictor.grid, predictor.reader
    return plain(
        {
            "dataset": reader.attributes.dataset,
            "store": str(reader.path),
            "truth": None if truth is None else str(truth.path),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "weights_digest": None if checkpoint is None else weights_digest(checkpoint),
            "config_digest": config_digest(predictor.model.config),
            "scenes": list(dict.fromkeys(scene for scene, _ in frames)),
            "keyframes": len(frames),
            "threshold_m": predictor.threshold,
            "grid": {"lower": list(grid.lower), "upper": list(grid.upper), "shape": list(grid.shape)},
            "depth_size": list(reader.attributes.render_size),
        }
    )


def config_digest(config: ModelConfig) -> str:
    """First twelve hex digits of the SHA-256 of a network's configuration."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_digest(checkpoint: str | Path) -> str | None:
    """First twelve hex digits of the SHA-256 of a checkpoint's weights; None without such a file."""
    path = Path(checkpoint) / WEIGHTS_NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _detail(tally: Tally) -> dict[str, Any]:
    found: dict[str, Any] = {"depth": tally.depth.compute()}
    if tally.motion is not None and tally.motion_cameras:
        found["image_motion"] = tally.motion.compute()
    if tally.boxes.frames:
        found["boxes"] = tally.boxes.compute()
    if not tally.measured:
        return found
    found["rayiou"] = tally.rayiou.compute().to_dict()
    found["voxels"] = tally.voxels.compute()
    if tally.sweep:
        results = {threshold: metric.compute() for threshold, metric in sorted(tally.sweep.items())}
        found["sweep"] = [
            {"threshold_m": threshold, "rayiou": result.rayiou, "rayiou_nonground": result.nonground}
            for threshold, result in results.items()
        ]
    if tally.true_motion and tally.with_flow:
        found["velocity"] = tally.velocity.compute().to_dict()
        found["dynamic_flow"] = tally.dynamic.compute()
        found["three_way"], found["bucketed"] = tally.three_way.compute(), tally.bucketed.compute()
    return found


def _chief(protocol: str, detail: Mapping[str, Any], field: bool) -> dict[str, Any]:
    rayiou, velocity, dynamic = (detail.get(key, {}) for key in ("rayiou", "velocity", "dynamic_flow"))
    scored = "rayiou" in rayiou and math.isfinite(velocity.get("mave", math.nan))
    return {
        f"rayiou_{protocol}": rayiou.get("rayiou"),
        "rayiou_nonground": rayiou.get("nonground"),
        f"occscore_{protocol}": occ_score(rayiou["rayiou"], velocity["mave"]) if scored else None,
        "mave": velocity.get("mave"),
        "flow_epe_dynamic": dynamic.get("flow_epe_dynamic") if field else None,
        "recall_dynamic": dynamic.get("recall_dynamic"),
        "false_flow_parked": dynamic.get("false_flow_parked") if field else None,
        "abs_rel": detail["depth"]["abs_rel"],
        "voxel_iou": detail.get("voxels", {}).get("voxel_iou"),
        "flow_epe_dynamic_masked": dynamic.get("flow_epe_dynamic_masked"),
        "false_flow_parked_masked": dynamic.get("false_flow_parked_masked"),
        "threeway_epe": detail.get("three_way", {}).get("threeway_epe"),
        "bucketed_epe_dynamic": detail.get("bucketed", {}).get("dynamic_normalised_epe"),
        "box_velocity_error": detail.get("boxes", {}).get("box_velocity_error"),
    }


def _baselines(tally: Tally, detail: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"abs_rel": tally.flat_depth.compute()["abs_rel"], "height_m": tally.ground}
    if tally.measured and tally.flat is not None:
        result = tally.flat_rayiou.compute()
        flat |= {f"rayiou_{tally.rules.protocol.name}": result.rayiou, "rayiou_nonground": result.nonground}
    still = zero_flow(detail.get("velocity"), detail.get("dynamic_flow"))
    if "boxes" in detail:
        still = {**still, "box_velocity_error": detail["boxes"]["box_velocity_error_zero_flow"]}
    return {"flat_ground": flat, "zero_flow": still}


def _missing(tally: Tally) -> list[str]:
    lines = list(tally.rules.missing)
    if tally.rules.classes and not tally.measured:
        lines.append("no keyframe has both occupancy truth and LiDAR near it: no RayIoU, no velocity errors")
    elif tally.measured and not tally.true_motion:
        lines.append("no voxel of the truth has a velocity: no mAVE, no flow error")
    elif tally.measured and not tally.with_flow:
        lines.append("no prediction has flow: no mAVE, no flow error")
    if not tally.rendered:
        lines.append("depth is rendered from a network's field, which files of labels do not hold: no depth figures")
    elif not tally.depth.images:
        lines.append("no LiDAR point in any camera (is the cue 'lidar' extracted?): no depth figures")
    if tally.motion is not None and not tally.motion_cameras:
        reason = f"no camera has {', '.join(NEEDS)} and a flow that ends in its next keyframe image"
        lines.append(f"{reason if tally.rendered else 'files of labels hold no field to render'}: no DE, no EPE")
    return lines


def _notes(tally: Tally) -> list[str]:
    lines = []
    if tally.measured and tally.without_truth:
        lines.append(
            f"{tally.without_truth} of {tally.keyframes} keyframes have no occupancy truth and count for depth only"
        )
    if tally.with_flow and tally.without_flow:
        lines.append(f"{tally.without_flow} keyframes' predictions have no flow: they count for occupancy only")
    if tally.nan_voxels:
        lines.append(f"{tally.nan_voxels} predicted voxels are not a number: they count as free")
    return lines
