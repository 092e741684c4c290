"""Two networks or more on the same keyframes: their figures in one table, their pictures side by side."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from eval.frames import TruthSource, evaluated_keyframes
from eval.page import PAGE, Row, section, table
from eval.picture_page import picture_sections
from eval.pictures import draw_keyframe, picture_sources, spread, with_images
from eval.predict import Predictor
from eval.report import verdicts
from eval.rules import EvaluationError
from eval.sheet import Sides, save_sheet
from model.checkpoint import load_model
from model.network import OccFlow
from storage.location import ObjectPath


def compare(
    models: Mapping[str, OccFlow],
    results: Mapping[str, dict[str, Any]],
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None,
    folder: Path,
    count: int = 3,
    workers: int = 2,
    **evaluated: Any,
) -> Path:
    """Write `comparison.html` and a PNG sheet per keyframe into `folder`; returns the page.

    Args:
        models, results: by the same names; results are those of `eval.evaluate.evaluate` on the same keyframes.
        count: keyframes that are drawn, evenly spread over the scenes.
        evaluated: the `keyframes` and `exclude` with which they were measured.

    Raises:
        EvaluationError: as `draw_sides`, or results of different keyframes.
    """
    thresholds = {name: result["threshold_m"] for name, result in results.items()}
    keyframes = draw_sides(models, store, scenes, count, thresholds, workers, **evaluated)
    for sides in keyframes:
        first = next(iter(sides.values()))
        save_sheet(sides, folder / "sheets" / f"{first.scene}_{first.t:04d}.png")
    return write_comparison(results, folder / "comparison.html", keyframes)


def compare_checkpoints(
    results: Mapping[Path, dict[str, Any]],
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None,
    folder: Path,
    count: int = 3,
    **evaluated: Any,
) -> Path:
    """As `compare`, of checkpoint folders with their results; they are shown under what their paths differ in."""
    names = dict(zip(results, telling_names(list(results)), strict=True))
    models = {name: load_model(path) for path, name in names.items()}
    named = {names[path]: result for path, result in results.items()}
    return compare(models, named, store, scenes, folder, count, **evaluated)


def draw_sides(
    models: Mapping[str, OccFlow],
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    count: int = 3,
    thresholds: Mapping[str, float] | None = None,
    workers: int = 2,
    *,
    keyframes: int | None = None,
    exclude: Sequence[str | Path] = (),
) -> list[Sides]:
    """Pictures of `count` of the keyframes that `eval.evaluate.evaluate` measures with these options, by every network,
    with the truth where there is some.

    Raises:
        EvaluationError: networks of different grids and no truth whose grid they could be put on; nothing to draw.
    """
    predictors: dict[str, Predictor] = {}
    source: TruthSource | None = None
    for name, model in models.items():
        predictors[name], source = picture_sources(model, store, (thresholds or {}).get(name))
    grids = {predictor.grid for predictor in predictors.values()}
    if source is None or len(grids) != 1:
        raise EvaluationError(
            f"{store}: {len(predictors)} networks on {len(grids)} grids; without occupancy truth beside the store, "
            "whose grid they would take, only networks of one grid can be compared"
        )
    reader = next(iter(predictors.values())).reader
    # Of networks with queues of several lengths: what all of them were measured on.
    queue = min(predictor.queue_length for predictor in predictors.values())
    frames = evaluated_keyframes(reader, scenes, queue, keyframes, exclude)
    drawn: list[Sides] = []
    for scene, t in spread(with_images(reader, frames), count):
        sides: dict[str, Any] = {}
        for name, predictor in predictors.items():
            like = next(iter(sides.values()), None)
            sides[name] = draw_keyframe(predictor, source, scene, t, workers, like=like)
        drawn.append(sides)
    return drawn


def write_comparison(results: Mapping[str, dict[str, Any]], path: str | Path, keyframes: Sequence[Sides]) -> Path:
    """Write the page; everything is in it. Returns `path`.

    Raises:
        EvaluationError: results of different scenes, keyframes or protocols, which say nothing side by side.
    """
    measured = {(r["protocol"], r["keyframes"], tuple(r["scenes"])) for r in results.values()}
    if len(measured) > 1:
        raise EvaluationError(f"the results to compare are of different keyframes or protocols: {sorted(measured)}")
    first = next(iter(results.values()))
    names = list(results)
    lead = f"{first['keyframes']} keyframes of {len(first['scenes'])} scenes of {first['dataset']}, the same for all."
    parts = [
        section("Figures", table(("", *names, *(f"{name}: baseline" for name in names), ""), figure_rows(results))),
        picture_sections(keyframes),
        section("Where they come from", table(("", *names), origin_rows(results))),
    ]
    page = Template(PAGE).substitute(
        title=html.escape(" against ".join(names)), lead=html.escape(lead), body="\n".join(parts)
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def figure_rows(results: Mapping[str, dict[str, Any]]) -> list[Row]:
    """A row per chief figure: its value by each network, the baseline's beside each (zero flow is measured on what the
    network itself found, and differs), and which way is better."""
    by_name = [verdicts(result) for result in results.values()]
    rows: list[Row] = []
    for same in zip(*by_name, strict=True):
        first = same[0]
        way = "higher is better" if first["higher"] else "lower is better"
        label = f"{first['name']} {first['unit']}".strip()
        values, baselines = (tuple(v[key] for v in same) for key in ("value", "baseline"))
        rows.append((label, *values, *baselines, f"{way}; baseline: {first['against']}"))
    return rows


def origin_rows(results: Mapping[str, dict[str, Any]]) -> list[Row]:
    """Checkpoint, weights, configuration and threshold of each."""
    keys = {"checkpoint": "checkpoint", "weights": "weights_digest", "configuration": "config_digest"}
    rows: list[Row] = [(label, *(r[key] or "not named" for r in results.values())) for label, key in keys.items()]
    return [*rows, ("occupied, m", *(f"sdf <= {r['threshold_m']:g}" for r in results.values()))]


def telling_names(paths: Sequence[str | Path]) -> list[str]:
    """Short names of checkpoints: the part of each path in which it differs from the others.

    runs/a/stage2/ema and runs/b/stage2/ema are `a` and `b`. Paths that do not differ are numbered.
    """
    parts = [Path(path).resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        return [f"{p[-1]} {k + 1}" for k, p in enumerate(parts)]
    while all(p and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    while all(p and p[-1] == parts[0][-1] for p in parts):
        parts = [p[:-1] for p in parts]
    return ["/".join(p) or Path(path).resolve().name for p, path in zip(parts, paths, strict=True)]
