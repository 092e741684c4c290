"""Writes predictions of one layout in another: the challenge's submission form, or UniOcc's files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.frames import TruthSource, evaluated_keyframes
from eval.label_files import LabelFolder
from eval.protocols import OPENOCC_CLASSES
from eval.rayiou import RayIoU
from eval.rules import EvaluationError
from eval.score import layout_of, named_truth, open_volumes, present
from eval.score_rays import truth_of_rays
from eval.submission import RayPrediction, write_submission
from eval.uniocc import write_uniocc
from storage.location import ObjectPath
from storage.reader import StoreReader


def export_predictions(
    predictions: Path,
    store: str | Path | ObjectPath,
    out: Path,
    scenes: Sequence[str] | None = None,
    *,
    truth: str | Path | None = None,
    layout: str | None = None,
    skip_missing: bool = False,
    keyframes: int | None = None,
    exclude: Sequence[str | Path] = (),
) -> tuple[str, int]:
    """Write predictions in another form: a submission where `out` ends in .gz or .pkl, else a folder of UniOcc's files.

    Args:
        truth: a folder of ground truth, whose numbering and grid the predictions have; default as the truth store has
            it, and OpenOcc's where there is none.
        scenes, layout, skip_missing, keyframes, exclude: as for `eval.score.score`.

    Returns:
        The form's name and the number of keyframes written.

    Raises:
        EvaluationError: predictions that are rays, or UniOcc's files already; a submission of predictions without
            classes or with others than OpenOcc's; or as for `score`.
    """
    reader = StoreReader(store)
    found = layout or layout_of(predictions)
    if found != "openocc":
        raise EvaluationError(
            f"{predictions}: this is {found} already, of which no other form can be made: export <scene>/<token>/"
            "labels.npz, which have a class and a velocity per voxel"
        )
    volumes = open_volumes(predictions, found, reader, named_truth(truth, reader))[1]
    assert isinstance(volumes, LabelFolder)
    frames, _ = present(volumes, evaluated_keyframes(reader, scenes, None, keyframes, exclude), skip_missing)
    if out.suffix in (".gz", ".pkl"):
        return "submission", write_submission(out, _submission_rows(volumes, frames))
    for scene, t in frames:
        table = reader.scene(scene).table
        write_uniocc(volumes.at(scene, t), volumes.classes, volumes.grid, table, t, out / scene)
    return "uniocc", len(frames)


def _submission_rows(volumes: LabelFolder, frames: Sequence[tuple[str, int]]) -> Iterator[tuple[str, RayPrediction]]:
    reader = volumes.reader
    if volumes.classes != OPENOCC_CLASSES:
        raise EvaluationError(
            f"{volumes.root}: the challenge's form has OpenOcc's 16 classes and these labels are numbered as "
            f"{list(volumes.classes)}; name OpenOcc's truth with --truth if they are not"
        )
    metric, source = RayIoU("openocc", volumes.grid, OPENOCC_CLASSES), TruthSource(reader, None)
    for scene, t in frames:
        prediction, origins = volumes.at(scene, t), source.origins(scene, t)
        if prediction.semantics is None:
            raise EvaluationError(
                f"{volumes.path(scene, t)}: the challenge's form needs a class per voxel, and this prediction has none"
            )
        if not len(origins):
            raise EvaluationError(
                f"{reader.path}: {scene}:{t} has no LiDAR within 39 m, from where its rays are cast; extract the cue "
                "'lidar', or name other keyframes with --scenes"
            )
        yield reader.scene(scene).table.tokens[t], truth_of_rays(metric, prediction.semantics, prediction.flow, origins)
