"""Scores predictions in files, of any system, by the same code as a network's: no network is needed."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.evaluate import excluded_counts, progress
from eval.frames import OccupancyTruth, TruthSource, chosen_keyframes, named_keyframes, open_truth
from eval.label_files import FolderTruth, LabelFolder
from eval.plain import plain
from eval.predict import evaluation_grid
from eval.protocols import OPENOCC_CLASSES
from eval.results import summary
from eval.rules import EvaluationError, Rules, rules_for
from eval.score_rays import left_out, score_rays
from eval.submission import read_submission
from eval.tally import Tally
from eval.time_steps import AS_GIVEN, PER_STEP, time_steps
from eval.uniocc import UniOccFolder
from geometry.grid import NUSCENES_GRID, VoxelGrid
from storage.exclusions import excluded_by
from storage.location import ObjectPath
from storage.reader import StoreReader

LAYOUTS = ("openocc", "uniocc", "submission")
EXPORTED = ("truth", "layout", "skip_missing", "keyframes", "exclude")
"""Options of `score` by which predictions are chosen and read, for another form of them too."""
Volumes = LabelFolder | UniOccFolder


def layout_of(predictions: Path) -> str:
    """`submission` for a file; for a folder `openocc` or `uniocc` by its first files.

    Raises:
        EvaluationError: there is neither.
    """
    if predictions.is_file():
        return "submission"
    if next(predictions.glob("*/*/labels.npz"), None) is not None:
        return "openocc"
    if next((p for p in predictions.glob("*/*.npz") if p.stem.isdigit()), None) is not None:
        return "uniocc"
    raise EvaluationError(
        f"{predictions}: neither a checkpoint (model.safetensors) nor predictions: expected <scene>/<token>/labels.npz "
        "(OpenOcc), <scene>/<number>.npz (UniOcc) or a submission file"
    )


def score(
    predictions: str | Path,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    *,
    truth: str | Path | None = None,
    layout: str | None = None,
    protocol: str | None = None,
    half: bool = False,
    skip_missing: bool = False,
    keyframes: int | None = None,
    exclude: Sequence[str | Path] = (),
    workers: int = 2,
    console: Console | None = None,
) -> dict[str, Any]:
    """All figures of predictions in files that can be had without the network, as `eval.evaluate.evaluate` names them.

    Args:
        predictions: a folder, or a submission file.
        store: the cue store of the log: scenes, tokens, poses and LiDAR positions.
        truth: a folder of OpenOcc's or Occ3D's ground truth; default the truth store beside the cue store.
        layout: of the predictions, one of `LAYOUTS`; default by what lies there.
        protocol: of RayIoU; a submission has only `openocc`.
        half: round distances and velocities to float16 first, as the challenge does. Always so for a submission.
        skip_missing: leave out keyframes without a prediction and count them; else they are an error.
        keyframes, scenes, exclude, workers, console: as for `evaluate`; no image is needed.

    Raises:
        EvaluationError: nothing to score or to score by, missing or wrong files.
        StoreError: no store, or a scene that it does not hold.
    """
    started = time.perf_counter()
    root, reader = Path(predictions), StoreReader(store)
    found = _known_layout(layout or layout_of(root))
    known = _truth_at(truth, reader)
    marked = excluded_by(reader, exclude)
    frames = chosen_keyframes(reader, scenes, None, keyframes, marked.frames)
    source = TruthSource(reader, known)
    if found == "submission":
        results = score_rays(read_submission(root), root, source, frames, protocol, skip_missing, console)
        results["time_step"] = time_steps(reader, frames, AS_GIVEN)
        grid = NUSCENES_GRID
    else:
        rules, volumes = open_volumes(root, found, reader, known, protocol)
        tally = Tally(rules, reader, workers=workers, rendered=False, half=half)
        frames, absent = present(volumes, frames, skip_missing)
        _count_volumes(tally, volumes, source, frames, console)
        results = summary(tally, time_steps(reader, frames, PER_STEP if found == "uniocc" else AS_GIVEN))
        results["notes"] += absent
        grid = rules.grid
    return {
        **results,
        **_provenance(root, found, reader, truth or getattr(known, "path", None), frames, grid),
        **excluded_counts(exclude, marked, named_keyframes(reader, scenes, None)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _known_layout(layout: str) -> str:
    if layout not in LAYOUTS:
        raise EvaluationError(f"unknown layout {layout!r}: choose from {', '.join(LAYOUTS)}")
    return layout


def named_truth(folder: str | Path | None, reader: StoreReader) -> OccupancyTruth | None:
    """A folder's ground truth; without one the truth store beside the cue store, None where there is none."""
    return open_truth(reader.path) if folder is None else FolderTruth(Path(folder), reader)


def _truth_at(folder: str | Path | None, reader: StoreReader) -> OccupancyTruth:
    """The same; EvaluationError where there is none."""
    found = named_truth(folder, reader)
    if found is None:
        raise EvaluationError(f"{reader.path}: no truth store beside it; name a folder of ground truth with --truth")
    return found


def _count_volumes(
    tally: Tally, volumes: Volumes, source: TruthSource, frames: Sequence[tuple[str, int]], console: Console | None
) -> None:
    """Count each keyframe's prediction, which has classes where the tally's protocol compares them."""
    protocol = tally.rules.protocol
    for scene, t in progress(frames, "score", console):
        prediction = volumes.at(scene, t)
        if protocol.class_aware and prediction.semantics is None:
            raise EvaluationError(
                f"{volumes.path(scene, t)}: this prediction has no class per voxel, which protocol "
                f"{protocol.name!r} compares; use 'geometry', which ignores the class"
            )
        tally.add_volume(prediction, source.at(scene, t), source.boxes(scene, t))


def score_shown(
    predictions: Path,
    store: str,
    scenes: Sequence[str] | None,
    folder: Path | None,
    export: Path | None,
    console: Console,
    pictures: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """`score` for the command line: writes `results.json`, and `report.html` with `pictures` keyframes drawn, into
    `folder` (default beside the predictions), and the predictions in another form to `export` first."""
    from eval.file_pictures import draw_files
    from eval.report import write_report

    if export is not None:
        from eval.export import export_predictions

        chosen = {name: options[name] for name in EXPORTED if name in options}
        form, count = export_predictions(predictions, store, export, scenes, **chosen)
        console.print(f"{count} keyframes as {form} -> {export}", markup=False, soft_wrap=True)
    results = score(predictions, store, scenes, console=console, **options)
    folder = folder or predictions.parent / f"{predictions.stem}_eval"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False))
    same: dict[str, Any] = {key: options[key] for key in ("truth", "keyframes", "exclude") if key in options}
    drawn = draw_files(predictions, results["layout"], store, scenes, pictures, **same) if pictures else []
    write_report(results, folder / "report.html", drawn)
    console.print(f"{folder / 'results.json'}, {folder / 'report.html'}", markup=False, soft_wrap=True)
    return results


def open_volumes(
    root: Path, layout: str, reader: StoreReader, truth: OccupancyTruth | None, protocol: str | None = None
) -> tuple[Rules, Volumes]:
    """The rules of a truth, and a folder's predictions on its grid. Raises EvaluationError as `rules_for`."""
    attributes = None if truth is None else truth.attributes
    box = evaluation_grid(NUSCENES_GRID, None if attributes is None else attributes.occupancy_grid)
    rules = rules_for(attributes, reader.attributes.dataset, box, protocol, classes=layout == "openocc")
    if layout == "uniocc":
        return rules, UniOccFolder(root, reader, rules.grid)
    return rules, LabelFolder(root, reader, rules.grid, rules.classes or OPENOCC_CLASSES)


def present(
    volumes: Volumes, frames: list[tuple[str, int]], skip_missing: bool
) -> tuple[list[tuple[str, int]], list[str]]:
    """Keyframes that have a file, and a note on those that have none.

    Raises:
        EvaluationError: one has none (unless that is allowed), or none has one.
    """
    there = [(scene, t) for scene, t in frames if volumes.path(scene, t).is_file()]
    return left_out(there, frames, skip_missing, volumes.root, lambda scene, t: str(volumes.path(scene, t)))


def _provenance(
    root: Path, layout: str, reader: StoreReader, truth: Any, frames: Sequence[tuple[str, int]], grid: VoxelGrid
) -> dict[str, Any]:
    return plain(
        {
            "dataset": reader.attributes.dataset,
            "store": str(reader.path),
            "truth": None if truth is None else str(truth),
            "predictions": str(root),
            "layout": layout,
            "scenes": list(dict.fromkeys(scene for scene, _ in frames)),
            "keyframes": len(frames),
            "grid": {"lower": list(grid.lower), "upper": list(grid.upper), "shape": list(grid.shape)},
        }
    )
