"""One self-contained page about an evaluation: figures beside their baselines, what they mean, and pictures."""

import html
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from eval.page import GLOSSARY, PAGE, Row, number, section, table
from eval.picture_page import picture_sections
from eval.pictures import KeyframePictures
from storage.whole_file import whole_file

MASKED_ERROR = "flow error, moving, free counts as still"
_SCENES = 12
"""Scenes that are named; results.json has all."""
_BOX_COLUMNS = {
    "moving": "moving_boxes",
    "found": "boxes_found",
    "error m/s": "box_velocity_error",
    "of the found": "box_velocity_error_found",
    "zero flow": "box_velocity_error_zero_flow",
    "voxels' error": "voxel_error_in_boxes",
    "parked": "parked_boxes",
    "their speed": "parked_box_speed",
}
"""Figures of `eval.box_velocity.BoxVelocity` by their headings."""


def write_report(results: dict[str, Any], path: str | Path, pictures: Sequence[KeyframePictures] = ()) -> Path:
    """Write the page of an evaluation (`eval.evaluate.evaluate`, or `eval.score.score` of predictions in files) with
    the pictures of a few of its keyframes.

    Images are embedded, nothing is loaded from elsewhere: the file can be mailed. Returns `path`.
    """
    parts = [
        cards(results),
        remarks(results),
        section("How it is measured", table(("", ""), protocol_rows(results))),
        per_class(results),
        box_table(results),
        depth_table(results),
        motion_table(results),
        sweep_table(results),
        picture_sections([{"prediction": found} for found in pictures]),
        section("Where it comes from", table(("", ""), provenance_rows(results))),
    ]
    page = Template(PAGE).substitute(
        title=html.escape(
            f"Occupancy and flow: {results.get('checkpoint') or results.get('predictions') or 'a network'}"
        ),
        lead=html.escape(_lead(results)),
        body="\n".join(part for part in parts if part),
    )
    path = Path(path)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _lead(results: dict[str, Any]) -> str:
    counted = f"{results['keyframes']} keyframes of {len(results['scenes'])} scenes of {results['dataset']}"
    if "layout" in results:
        return f"{counted}; predictions in files, layout {results['layout']}."
    return f"{counted}, occupied where the signed distance is at most {results['threshold_m']:g} m."


def verdicts(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The chief figures: name, value, unit, baseline's name and value, whether higher is better, what it says."""
    protocol = results["protocol"]
    flat, still = (results["baselines"].get(name, {}) for name in ("flat_ground", "zero_flow"))
    named = [
        (f"rayiou_{protocol}", f"RayIoU, {protocol}", "", "flat ground", flat, True),
        ("rayiou_nonground", "RayIoU, off the ground", "", "flat ground", flat, True),
        ("mave", "mAVE", "m/s", "zero flow", still, False),
        ("flow_epe_dynamic", "flow error, moving", "m/s", "zero flow", still, False),
        ("abs_rel", "depth, Abs Rel", "", "flat ground", flat, False),
    ]
    if results.get("box_velocity_error") is not None:
        named.append(("box_velocity_error", "velocity of boxes", "m/s", "zero flow", still, False))
    if "layout" in results:  # what files cannot tell is no gap of their evaluation
        named.append(("flow_epe_dynamic_masked", MASKED_ERROR, "m/s", "zero flow", still, False))
        named = [row for row in named if results.get(row[0]) is not None]
    return [
        {
            "key": key,
            "name": name,
            "unit": unit,
            "value": results.get(key),
            "against": against,
            "baseline": base.get(key),
            "higher": higher,
            "meaning": GLOSSARY[key if key in GLOSSARY else "rayiou"],
        }
        for key, name, unit, against, base, higher in named
    ]


def better(verdict: dict[str, Any]) -> bool | None:
    """Whether the figure beats its baseline; None where either is missing."""
    value, baseline = verdict["value"], verdict["baseline"]
    if value is None or baseline is None:
        return None
    return value > baseline if verdict["higher"] else value < baseline


def cards(results: dict[str, Any]) -> str:
    """The strip of chief figures beside their baselines."""
    parts = []
    for verdict in verdicts(results):
        state = {True: "good", False: "bad", None: "open"}[better(verdict)]
        arrow = "Higher is better." if verdict["higher"] else "Lower is better."
        compared = f"{verdict['against']}: {number(verdict['baseline'])}" if verdict["baseline"] is not None else ""
        parts.append(
            f'<div class="card {state}"><h3>{html.escape(verdict["name"])}</h3>'
            f'<p class="value">{number(verdict["value"])}<span> {verdict["unit"]}</span></p>'
            f'<p class="against">{compared}</p><p class="meaning">{html.escape(verdict["meaning"])} {arrow}</p></div>'
        )
    return f'<div class="cards">{"".join(parts)}</div>'


def remarks(results: dict[str, Any]) -> str:
    """What was not computed and why, and other remarks; nothing when there are none."""
    lines = [f"Not computed: {line}." for line in results["not_computed"]] + [f"{line}." for line in results["notes"]]
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)


def protocol_rows(results: dict[str, Any]) -> list[Row]:
    """How the figures are defined."""
    rows: list[Row] = [("RayIoU protocol", f"{results['protocol']}: {results['protocol_description']}")]
    found = results.get("rayiou")
    if found is not None:
        thresholds = ", ".join(f"{number(value)} at {name}" for name, value in found["per_threshold"].items())
        rows.append(("RayIoU by distance", thresholds))
        rows.append(("averaging", f"{found['averaging']}; mean over classes: {number(found['per_class_mean'])}"))
        rows.append(("counted", f"{found['rays']:,} rays of {found['frames']} keyframes"))
    velocity = results.get("velocity")
    if velocity is not None:
        rows.append(("mAVE", f"class from the {velocity['class_source']}, true positives within 2 m"))
        rows.append(("mAVE, unmasked (legacy form)", f"{number(velocity['mave_unmasked_legacy'])} m/s"))
    if results.get("recall_dynamic") is not None:
        rows.append(("moving voxels found", number(results["recall_dynamic"])))
        parked = "false_flow_parked_masked" if "layout" in results else "false_flow_parked"
        rows.append(("false speed of parked things", f"{number(results[parked])} m/s"))
    masked = (
        ("flow_epe_dynamic_masked", MASKED_ERROR, " m/s"),
        ("threeway_epe", "three-way end-point error", " m/s"),
        ("bucketed_epe_dynamic", "bucket-normalised end-point error", ""),
        ("voxel_iou", "voxel IoU", ""),
    )
    rows += [(text, number(results[key]) + unit) for key, text, unit in masked if results.get(key) is not None]
    if "time_step" in results:
        rows.append(("time step", time_step_text(results["time_step"])))
    if "depth_size" in results:
        height, width = results["depth_size"]
        scaling = "with" if results["depth"]["median_scaling"] else "without"
        rows.append(("depth", f"against LiDAR on {width}x{height} pixels, 0.1 to 80 m, {scaling} median scaling"))
    return rows


def time_step_text(steps: dict[str, Any]) -> str:
    """Which Δt velocities are stated by (`eval.time_steps.time_steps`), in a line."""
    found = steps["keyframes_s"]
    apart = "no keyframe has a next one"
    if found["count"]:
        apart = f"keyframes {found['mean']:.4g} s apart ({found['min']:.4g} to {found['max']:.4g} s)"
    return f"{steps['dataset']}: {apart}; velocities: {steps['velocities']} (stated: {steps['interval_s']:.4g} s)"


def per_class(results: dict[str, Any]) -> str:
    """RayIoU and velocity error by the truth's classes."""
    found = results.get("rayiou", {}).get("per_class")
    if not found:
        return ""
    speeds = results.get("velocity", {}).get("per_class", {})
    moving = results.get("dynamic_flow", {}).get("per_class", {})
    rows = [
        (
            name.replace("_", " "),
            row["gt"],
            row["rayiou"],
            speeds.get(name, {}).get("ave"),
            speeds.get(name, {}).get("ave_zero_flow"),
            moving.get(name, {}).get("epe"),
            moving.get(name, {}).get("recall"),
        )
        for name, row in sorted(found.items(), key=lambda item: -item[1]["gt"])
    ]
    heads = ("class", "rays", "RayIoU", "AVE m/s", "AVE, zero flow", "flow error, moving m/s", "moving found")
    return section("By class", table(heads, rows))


def box_table(results: dict[str, Any]) -> str:
    """Velocity over labelled boxes, by class; nothing where none is labelled."""
    found = results.get("boxes")
    if found is None:
        return ""
    heads = ("class", *_BOX_COLUMNS)
    rows = [
        (name, *(row[key] for key in _BOX_COLUMNS.values()))
        for name, row in {**found["per_class"], "all": found}.items()
    ]
    steps = found["time_step_s"]
    text = "no velocity of a box is known"
    if steps["count"]:
        text = f"their velocities are over {steps['mean']:.4g} s ({steps['min']:.4g} to {steps['max']:.4g} s)"
    left = f"{found['boxes_of_unknown_velocity']} of unknown velocity and {found['boxes_outside_the_grid']} outside"
    note = f'<p class="meaning">Labelled boxes; {text}. {left} the volume are left out.</p>'
    return section("Labelled boxes", table(heads, rows) + note)


def motion_table(results: dict[str, Any]) -> str:
    """The paper's figures of depth and motion in the image; nothing but on KITTI-MOT."""
    found = results.get("image_motion")
    if found is None:
        return ""
    rows = [(name, found[name], count) for name, count in found["pixels"].items()]
    note = f'<p class="meaning">Against LiDAR and the flow cue; {html.escape(found["rule"])}.</p>'
    return section("Depth and motion in the image", table(("", "value", "pixels"), rows) + note)


def depth_table(results: dict[str, Any]) -> str:
    """The seven figures of depth."""
    depth = results.get("depth")
    if depth is None or not depth["images"]:
        return ""
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta_1.25", "delta_1.25^2", "delta_1.25^3")
    heads = ("Abs Rel", "Sq Rel", "RMSE m", "RMSE log", "δ < 1.25", "δ < 1.25²", "δ < 1.25³", "pixels", "not rendered")
    row = (*(depth[name] for name in names), depth["pixels"], depth["pixels_without_prediction"])
    return section("Depth against LiDAR", table(heads, [row]))


def sweep_table(results: dict[str, Any]) -> str:
    """RayIoU by occupancy threshold, where it was asked for."""
    rows = [(f"{r['threshold_m']:g}", r["rayiou"], r["rayiou_nonground"]) for r in results.get("sweep", [])]
    if not rows:
        return ""
    return section("By occupancy threshold", table(("sdf at most, m", "RayIoU", "off the ground"), rows))


def provenance_rows(results: dict[str, Any]) -> list[Row]:
    """Store, checkpoint and the rest."""
    grid, more = results["grid"], len(results["scenes"]) - _SCENES
    box = f"{'x'.join(map(str, grid['shape']))} voxels, {_three(grid['lower'])} to {_three(grid['upper'])} m"
    return [
        ("store", results["store"]),
        *_excluded_rows(results),
        ("truth", results["truth"] or "none"),
        *_whose_rows(results),
        ("scenes", ", ".join(results["scenes"][:_SCENES]) + (f" and {more} more" if more > 0 else "")),
        ("grid", box),
        ("seconds", f"{results['seconds']:g}"),
    ]


def _whose_rows(results: dict[str, Any]) -> list[Row]:
    """The network, or the files."""
    if "layout" in results:
        return [("predictions", results["predictions"]), ("layout", results["layout"])]
    return [
        ("checkpoint", results["checkpoint"] or "not named"),
        ("weights", results["weights_digest"] or "not named"),
        ("configuration", results["config_digest"]),
    ]


def _excluded_rows(results: dict[str, Any]) -> list[Row]:
    """Keyframes that files of marks left out, and marks that no longer hold; nothing where no file was given."""
    found = results.get("excluded")
    if found is None:
        return []
    text = f"{found['keyframes']} keyframes by {', '.join(found['files'])}; {found['stale']} marks no longer hold"
    return [("left out", text)]


def _three(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
