"""Compact in-memory index of nuScenes' tables: numpy columns of the rows that the scenes wanted need, nothing else.

Table layout: the nuScenes schema document (scene, sample, sample_data, ego_pose, calibrated_sensor, sensor). Relations
`next` and `prev` are not needed; tables `log`, `instance`, `sample_annotation` are never opened.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.datasets.json_stream import stream_records
from pipelines.datasets.nuscenes_rows import count, matrix, numbers, text, whole
from pipelines.datasets.records import DataError

BATCH = 8192
LIDAR_CHANNEL = "LIDAR_TOP"


@dataclass(frozen=True)
class SceneRow:
    """A row of `scene`."""

    token: str
    name: str
    description: str
    listed_samples: int


@dataclass(frozen=True)
class Calibration:
    """A row of `calibrated_sensor` with its channel; `quaternion` is (w, x, y, z), `translation` in metres."""

    token: str
    channel: str
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    intrinsics: tuple[tuple[float, ...], ...]


@dataclass
class SampleTable:
    """Rows of `sample` of the scenes wanted."""

    token: list[str] = field(default_factory=list)
    scene: list[int] = field(default_factory=list)
    timestamp: list[int] = field(default_factory=list)
    next_token: list[str] = field(default_factory=list)


@dataclass
class NuScenesIndex:
    """Columns of `sample_data` (n rows, sorted by scene and time) joined with pose and calibration.

    token, filename: bytes. sample, calibration: index into `samples` / `calibrations`. pose: (n, 7) float64, quaternion
    (w, x, y, z) and translation in metres, NaN where `ego_pose` lacks the row. size: (n, 2) height, width.
    """

    scenes: list[SceneRow]
    samples: SampleTable
    calibrations: list[Calibration]
    token: np.ndarray
    filename: np.ndarray
    sample: npt.NDArray[np.int32]
    calibration: npt.NDArray[np.int32]
    timestamp: npt.NDArray[np.int64]
    is_keyframe: npt.NDArray[np.bool_]
    size: npt.NDArray[np.int32]
    pose: npt.NDArray[np.float64]
    scene_start: npt.NDArray[np.int64]
    has_sweeps: bool
    """False where camera sweeps were not asked for."""
    notes: list[str] = field(default_factory=list)

    def rows(self, scene: int) -> range:
        """Positions of the rows of scene number `scene`."""
        return range(int(self.scene_start[scene]), int(self.scene_start[scene + 1]))

    @property
    def nbytes(self) -> int:
        """Bytes held by the columns."""
        columns = (self.token, self.filename, self.sample, self.calibration, self.timestamp, self.is_keyframe)
        return sum(c.nbytes for c in (*columns, self.size, self.pose, self.scene_start))


def read_scenes(tables: Path) -> list[SceneRow]:
    """Rows of `scene`, in file order. Raises DataError."""
    path = tables / "scene.json"
    rows = [
        SceneRow(
            text(path, r, "token"), text(path, r, "name"), str(r.get("description", "")), count(path, r, "nbr_samples")
        )
        for r in stream_records(path)
    ]
    _check_once(path, "token", [row.token for row in rows])
    _check_once(path, "name", [row.name for row in rows])
    return rows


def build_index(tables: Path, scenes: list[SceneRow], sweeps: bool = True) -> NuScenesIndex:
    """Read the tables once and keep what `scenes` need: every camera's rows, and LiDAR keyframes.

    The columns take about 200 bytes per row kept, the peak two to three times that. Measured on tables of the size of
    v1.0-trainval's (tests/benchmarks/bench_nuscenes_tables.py; 2.6 million rows, 2 GB): all scenes 1.2 million rows
    kept, 253 MB, peak 698 MB; two scenes 2900 rows, peak 31 MB.

    Args:
        tables: folder of the JSON files, e.g. `<root>/v1.0-mini`.
        scenes: the scenes wanted, as read by `read_scenes`.
        sweeps: keep the camera images between keyframes.

    Raises:
        DataError: a table that is missing or damaged, or a row that lacks a field or has something else in it.
    """
    samples = _read_samples(tables, scenes)
    calibrations, ignored = _read_calibrations(tables)
    columns, pose_tokens, notes = _read_sample_data(tables, samples, calibrations, ignored, sweeps)
    pose = _read_poses(tables, pose_tokens)
    scene_of_row = np.asarray(samples.scene, dtype=np.int32)[columns["sample"]]
    order = np.lexsort((columns["timestamp"], scene_of_row))
    starts = np.searchsorted(scene_of_row[order], np.arange(len(scenes) + 1))
    return NuScenesIndex(
        scenes=scenes,
        samples=samples,
        calibrations=calibrations,
        pose=pose[order],
        scene_start=starts,
        has_sweeps=sweeps,
        notes=notes,
        # popped one by one, so that only one column lives twice
        **{name: columns.pop(name)[order] for name in list(columns)},
    )


def _read_samples(tables: Path, scenes: list[SceneRow]) -> SampleTable:
    path = tables / "sample.json"
    scene_number = {scene.token: i for i, scene in enumerate(scenes)}
    out = SampleTable()
    for record in stream_records(path):
        number = scene_number.get(text(path, record, "scene_token"))
        if number is None:
            continue
        out.token.append(text(path, record, "token"))
        out.scene.append(number)
        out.timestamp.append(whole(path, record, "timestamp"))
        out.next_token.append(str(record.get("next") or ""))
    _check_once(path, "token", out.token)
    return out


def _check_once(path: Path, name: str, values: Sequence[str] | np.ndarray) -> None:
    """Raises DataError where two rows have the same value: frames would count twice, or a scene hide another."""
    unique, counts = np.unique(np.asarray(values), return_counts=True)
    if (counts > 1).any():
        value = unique[counts > 1][0].item()
        raise DataError(
            f"{path}: {int((counts > 1).sum())} of its rows occur more than once, the first of them with {name} "
            f"{value.decode() if isinstance(value, bytes) else value!r}; were the tables of two versions put "
            "together? Use those of one (v1.0-mini's scenes are in v1.0-trainval)"
        )


def _read_calibrations(tables: Path) -> tuple[list[Calibration], set[str]]:
    """Calibrations of the cameras and the LiDAR, and the tokens of those of other sensors (radar)."""
    sensor_path, path = tables / "sensor.json", tables / "calibrated_sensor.json"
    channels = {text(sensor_path, r, "token"): text(sensor_path, r, "channel") for r in stream_records(sensor_path)}
    kept: list[Calibration] = []
    ignored: set[str] = set()
    for record in stream_records(path):
        token = text(path, record, "token")
        channel = channels.get(text(path, record, "sensor_token"), "")
        if not channel:
            raise DataError(f"{path}: row {token} names a sensor that sensor.json lacks; unpack the tables again")
        if not (channel.startswith("CAM") or channel == LIDAR_CHANNEL):
            ignored.add(token)
            continue
        kept.append(
            Calibration(
                token,
                channel,
                numbers(path, record, "rotation"),
                numbers(path, record, "translation"),
                matrix(path, record, "camera_intrinsic"),
            )
        )
    _check_once(path, "token", [calibration.token for calibration in kept])
    return kept, ignored


def _read_sample_data(
    tables: Path, samples: SampleTable, calibrations: list[Calibration], ignored: set[str], sweeps: bool
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Columns in file order, each row's ego pose token, and notes."""
    path = tables / "sample_data.json"
    sample_number = {token: i for i, token in enumerate(samples.token)}
    calibration_number = {c.token: i for i, c in enumerate(calibrations)}
    is_camera = [c.channel != LIDAR_CHANNEL for c in calibrations]
    uncalibrated = 0

    def kept() -> Iterator[tuple[Any, ...]]:
        nonlocal uncalibrated
        for record in stream_records(path):
            sample = sample_number.get(text(path, record, "sample_token"))
            calibration_token = text(path, record, "calibrated_sensor_token")
            if sample is None or calibration_token in ignored:
                continue
            calibration = calibration_number.get(calibration_token)
            if calibration is None:
                uncalibrated += 1
                continue
            filename = text(path, record, "filename")
            keyframe = bool(record.get("is_key_frame", filename.startswith("samples/")))
            if not keyframe and not (sweeps and is_camera[calibration]):
                continue
            yield (
                text(path, record, "token").encode(),
                filename.encode(),
                sample,
                calibration,
                whole(path, record, "timestamp"),
                keyframe,
                (count(path, record, "height"), count(path, record, "width")),
                text(path, record, "ego_pose_token").encode(),
            )

    dtypes = ("S", "S", np.int32, np.int32, np.int64, np.bool_, np.int32, "S")
    names = ("token", "filename", "sample", "calibration", "timestamp", "is_keyframe", "size")
    columns = _columns(kept(), dtypes)
    _check_once(path, "token", columns[0])
    columns[6] = columns[6].reshape(-1, 2)
    notes = []
    if uncalibrated:
        notes.append(f"{uncalibrated} sample_data rows have no row in calibrated_sensor.json: skipped")
    return dict(zip(names, columns[:7], strict=True)), columns[7], notes


def _read_poses(tables: Path, wanted: np.ndarray) -> npt.NDArray[np.float64]:
    """(n, 7) quaternion and translation for each token of `wanted` (n,), NaN where the table has no such row."""
    path = tables / "ego_pose.json"
    unique, inverse = np.unique(wanted, return_inverse=True)
    poses = np.full((len(unique), 7), np.nan)
    if not len(unique):
        return poses
    records = stream_records(path)
    while batch := list(islice(records, BATCH)):
        tokens = np.array([text(path, r, "token").encode() for r in batch])
        position = np.searchsorted(unique, tokens).clip(max=len(unique) - 1)
        for i in np.flatnonzero(unique[position] == tokens):
            record = batch[i]
            values = (*numbers(path, record, "rotation"), *numbers(path, record, "translation"))
            if len(values) != 7:
                raise DataError(f"{path}: row {record['token']} needs 4 + 3 numbers, found {values}; repair it")
            poses[position[i]] = values
    return poses[inverse.reshape(-1)]


def _columns(rows: Iterable[tuple[Any, ...]], dtypes: tuple[Any, ...]) -> list[np.ndarray]:
    """Rows of tuples to one array per column, a batch at a time so that few Python objects live at once."""
    iterator = iter(rows)
    chunks: list[list[np.ndarray]] = [[np.empty(0, dtype=dtype)] for dtype in dtypes]
    while batch := list(islice(iterator, BATCH)):
        for chunk, values, dtype in zip(chunks, zip(*batch, strict=True), dtypes, strict=True):
            chunk.append(np.array(values, dtype=dtype).reshape(-1))
    return [np.concatenate(chunk) for chunk in chunks]
