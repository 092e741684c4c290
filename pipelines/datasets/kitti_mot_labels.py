"""KITTI tracking labels as boxes in the ego frame, with velocities from each object's next labelled frame.

Labels are truth: they measure cues and predictions, and no cue is made from them.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from geometry.transforms import from_rotation_translation, invert
from pipelines.datasets.records import DataError, Frame, LabelledBox

COLUMNS = 17
"""frame, track, type, truncated, occluded, alpha, box (left top right bottom), height width length, x y z, rotation."""
IGNORED = "DontCare"
KIND_CLASSES = {
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
    "Cyclist": "bicycle",
    "Pedestrian": "pedestrian",
    "Person_sitting": "pedestrian",
}
"""Movable class of a kind; trams and what KITTI calls Misc have none of the eight."""


@dataclass(frozen=True)
class TrackedBox:
    """One labelled object at one frame.

    kind: the type as labelled (Car, Van, Truck, Pedestrian, Person_sitting, Cyclist, Tram, Misc). truncated: 0 no, 1
    partly, 2 mostly outside the image. occluded: 0 no, 1 partly, 2 largely, 3 unknown. box: left, top, right, bottom in
    raw pixels of the left colour image, pixel centres at +0.5. size: length, width, height (m). ego_from_box: box
    frame x forward, y left, z up, origin in the middle of the box's floor; the ego frame is the velodyne's.
    """

    frame: int
    track: int
    kind: str
    truncated: int
    occluded: int
    box: tuple[float, float, float, float]
    size: tuple[float, float, float]
    ego_from_box: Float[np.ndarray, "4 4"]


def read_tracks(path: Path, cam0_from_ego: Float[np.ndarray, "4 4"]) -> list[TrackedBox]:
    """Objects of `label_02/NNNN.txt` in file order, without the regions marked DontCare.

    Args:
        path: the file; an empty one is a sequence without objects.
        cam0_from_ego: rectified camera 0, whose frame the labels use, from the velodyne.

    Raises:
        DataError: a missing file, or a line that is not a label.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read these labels ({error.strerror}); unpack the tracking labels") from error
    boxes = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[2:3] == [IGNORED]:
            continue
        try:
            boxes.append(_box(fields, cam0_from_ego))
        except ValueError as error:
            raise DataError(f"{path}: line {number} is {line!r:.60}: {error}; restore this file") from error
    return boxes


def _box(fields: list[str], cam0_from_ego: np.ndarray) -> TrackedBox:
    if len(fields) not in (COLUMNS, COLUMNS + 1):  # results carry a score besides
        raise ValueError(f"{len(fields)} columns, expected {COLUMNS}")
    values = np.array([float(v) for v in fields[5:COLUMNS]])
    if not np.isfinite(values).all():
        raise ValueError("a number is not finite")
    left, top, right, bottom = (float(v) + 0.5 for v in values[1:5])
    height, width, length = (float(v) for v in values[5:8])
    if min(height, width, length) <= 0:
        raise ValueError(f"height, width, length are {height:g}, {width:g}, {length:g}, expected positive metres")
    cam0_from_box = from_rotation_translation(box_rotation(values[11]), values[8:11])
    return TrackedBox(
        frame=int(fields[0]),
        track=int(fields[1]),
        kind=fields[2],
        truncated=int(float(fields[3])),
        occluded=int(float(fields[4])),
        box=(left, top, right, bottom),
        size=(length, width, height),
        ego_from_box=invert(cam0_from_ego) @ cam0_from_box,
    )


def box_rotation(rotation_y: float) -> Float[np.ndarray, "3 3"]:
    """cam0_from_box: at 0 the object faces along camera x, and `rotation_y` (rad) turns it about camera y (down)."""
    c, s = np.cos(rotation_y), np.sin(rotation_y)
    return np.array([[c, s, 0.0], [0.0, 0.0, -1.0], [-s, c, 0.0]])


def velocities(
    boxes: list[TrackedBox], frames: Mapping[int, Frame]
) -> list[tuple[Float[np.ndarray, " 2"], float] | None]:
    """Horizontal velocity (m/s) of each box in its own frame's ego frame, own motion taken out, and its time step (s).

    From a box to the same track's next labelled frame, over the time between the two; None for the last box of a track,
    and where a frame is not among `frames` (by number).
    """
    after: dict[tuple[int, int], TrackedBox] = {}
    by_track: dict[int, list[TrackedBox]] = {}
    for box in boxes:
        by_track.setdefault(box.track, []).append(box)
    for track in by_track.values():
        track.sort(key=lambda b: b.frame)
        after |= {(b.track, b.frame): later for b, later in itertools.pairwise(track)}
    out: list[tuple[np.ndarray, float] | None] = []
    for box in boxes:
        later = after.get((box.track, box.frame))
        if later is None or box.frame not in frames or later.frame not in frames:
            out.append(None)
            continue
        here, there = frames[box.frame], frames[later.frame]
        ego_from_later = invert(here.global_from_ego) @ there.global_from_ego
        moved = (ego_from_later @ later.ego_from_box)[:2, 3] - box.ego_from_box[:2, 3]
        seconds = (there.timestamp_us - here.timestamp_us) * 1e-6
        out.append((moved / seconds, seconds))
    return out


def labelled_boxes(boxes: list[TrackedBox], frames: Mapping[int, Frame]) -> dict[int, list[LabelledBox]]:
    """The boxes of each frame number in `frames`, with their velocities and the movable class of their kind."""
    found: dict[int, list[LabelledBox]] = {number: [] for number in frames}
    for box, motion in zip(boxes, velocities(boxes, frames), strict=True):
        if box.frame in found:
            velocity, seconds = motion or (None, None)
            category = KIND_CLASSES.get(box.kind)
            found[box.frame].append(LabelledBox(box.track, category, box.size, box.ego_from_box, velocity, seconds))
    return found
