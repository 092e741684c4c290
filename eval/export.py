"""Writes predictions of one layout in another: the challenge's submission form, or UniOcc's files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.frames import TruthSource, chosen_keyframes, open_truth
from eval.protocols import OPENOCC_CLASSES
from eval.rayiou import RayIoU
from eval.rules import EvaluationError
from eval.score import Volumes, layout_of, open_volumes, present
from eval.score_rays import truth_of_rays
from eval.submission import RayPrediction, write_submission
from eval.uniocc import write_uniocc
from geometry.grid import VoxelGrid
from storage.location import ObjectPath
from storage.reader import StoreReader


def export_predictions(
    predictions: Path, store: str | Path | ObjectPath, out: Path, scenes: Sequence[str] | None = None
) -> tuple[str, int]:
    """Write predictions in another form: a submission where `out` ends in .gz or .pkl, else a folder of UniOcc's files.

    Returns:
        The form's name and the number of keyframes written.

    Raises:
        EvaluationError: a submission of predictions without classes, or as for `score`.
    """
    reader = StoreReader(store)
    truth = open_truth(reader.path)
    _, volumes = open_volumes(predictions, layout_of(predictions), reader, truth)
    frames, _ = present(volumes, chosen_keyframes(reader, scenes, None), skip_missing=True)
    if out.suffix in (".gz", ".pkl"):
        rows = _submission_rows(volumes, reader, volumes.grid, frames)
        return "submission", write_submission(out, rows)
    for scene, t in frames:
        write_uniocc(volumes.at(scene, t), volumes.grid, reader.scene(scene).table, t, out / scene)
    return "uniocc", len(frames)


def _submission_rows(
    volumes: Volumes, reader: StoreReader, grid: VoxelGrid, frames: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, RayPrediction]]:
    metric, source = RayIoU("openocc", grid, OPENOCC_CLASSES), TruthSource(reader, None)
    for scene, t in frames:
        prediction = volumes.at(scene, t)
        if prediction.semantics is None:
            raise EvaluationError(
                f"{volumes.path(scene, t)}: the challenge's form needs a class per voxel, and this prediction has none"
            )
        rows = truth_of_rays(metric, prediction.semantics, prediction.flow, source.origins(scene, t))
        yield reader.scene(scene).table.tokens[t], rows
