"""Which keyframes hold real motion (Let Occ Flow, supplement A), told from LiDAR depth and the flow cue alone.

A LiDAR point has a depth, so the flow that it would have standing still is known; where the cue says something else by
more than eq. 10's threshold, and a mask says that it could move, it moves. No network is asked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int16

from geometry.cameras import in_image, project
from geometry.transforms import transform_points
from storage.dynamics import FrameMotion
from storage.errors import CueMissing
from storage.exclusions import fingerprints
from storage.reader import StoreReader
from storage.schema import FLOW_SCALE
from train.frames import ByteCache, CachedScene, render_factor
from train.neighbours import Neighbour, view_geometry

CUES = ("lidar", "flow_next")
"""What a score needs; masks are used where they are committed."""


@dataclass(frozen=True)
class MotionRule:
    """pixels: a point whose flow differs by more than this from what it would be at rest moves; at `reference_width`,
    as `loss.dynamic_pixels`. Less sure flow and masks do not count."""

    pixels: float = 8.0
    reference_width: int = 704
    min_flow_confidence: int = 0
    min_mask_score: float = 0.0


def score_store(
    reader: StoreReader,
    scenes: Sequence[str] | None = None,
    rule: MotionRule | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Iterator[FrameMotion]:
    """The score of every keyframe that has the cues, scene by scene (default all).

    Args:
        tick: told how many keyframes are done, of how many.

    Raises:
        CueMissing: a scene that the store does not hold, or no keyframe with the cues.
    """
    rule, factor = rule or MotionRule(), render_factor(reader)
    names = list(scenes or reader.scenes())
    wanted = [(name, t) for name in names for t in range(reader.scene(name).length)]
    found = 0
    for done, (name, t) in enumerate(wanted):
        scene = reader.scene(name)
        if all(scene.has(cue, t) for cue in CUES):
            found += 1
            points, moving = frame_motion(reader, name, t, rule, factor)
            # Masks that are not there yet leave their mark too: once they come, the score is another.
            marks = fingerprints(scene, t, (*CUES, "masks", "init"))
            yield FrameMotion(name, t, scene.table.tokens[t], points, moving, marks)
        if tick is not None:
            tick(done + 1, len(wanted))
    if not found:
        raise CueMissing(
            f"{reader.path}: no keyframe of {len(names)} scene(s) has {' and '.join(CUES)}; run "
            f"`occflow cues <config> --cues {','.join(CUES)}`"
        )


def frame_motion(reader: StoreReader, name: str, t: int, rule: MotionRule, factor: int) -> tuple[int, int]:
    """(points in camera images, those of them that move) of a keyframe; a point in two images counts twice.

    Points in images without a flow cue, and where the cue knows nothing, count as still: nothing shows that they move.
    """
    scene = CachedScene(reader.scene(name), ByteCache(0), factor, reader.attributes.render_size)
    table, lidar = scene.table, reader.scene(name).lidar(t)
    size, interval = reader.attributes.render_size, reader.attributes.keyframe_interval_s
    threshold = rule.pixels * size[1] / rule.reference_width
    here = view_geometry(table, t, Neighbour(t), 1 / factor, interval)
    finite, masks = np.isfinite(lidar.points[:, :3]).all(axis=1), scene.has("masks", t)
    points = moving = 0
    for c in np.flatnonzero(here.valid):
        seen = finite & ((lidar.cameras >> c) & 1 == 1)
        own = lidar.points[seen, :3].astype(np.float64)
        K, cam_from_ego = (array[c].astype(np.float64) for array in (here.K, here.cam_from_ref))
        uv, _, front = project(K, transform_points(cam_from_ego, own))
        inside = front & in_image(uv, *size)
        own, uv = own[inside], uv[inside]
        points += len(own)
        cue = scene.flow("next", t, int(c), rule.min_flow_confidence)
        if cue.target_frame < 0:
            continue
        there = view_geometry(table, t, Neighbour(cue.target_frame, cue.target_sweep), 1 / factor, interval)
        if not there.valid[c]:
            continue
        movable = scene.movable(t, int(c), rule.min_mask_score) if masks else np.ones(size, dtype=bool)
        K, cam_from_ego = (array[c].astype(np.float64) for array in (there.K, there.cam_from_ref))
        moving += int(moves(own, uv, cam_from_ego, K, cue.flow, cue.known & movable, threshold).sum())
    return points, moving


def moves(
    points: Float[np.ndarray, "n 3"],
    uv: Float[np.ndarray, "n 2"],
    cam_from_ego: Float[np.ndarray, "4 4"],
    K: Float[np.ndarray, "3 3"],
    flow: Int16[np.ndarray, "2 h w"],
    known: Bool[np.ndarray, "h w"],
    threshold: float,
) -> Bool[np.ndarray, " n"]:
    """Whether each point moves, by eq. 10 with its measured depth.

    Args:
        points: ego frame, metres.
        uv: where they are in the first image, render pixels, inside it.
        cam_from_ego, K: of the image that the flow ends in.
        flow: the cue, 1/64 render pixel; known: where it counts.
        threshold: render pixels.
    """
    landed, _, front = project(K, transform_points(cam_from_ego, points))
    column, row = np.floor(uv).astype(np.int64).T
    cue = flow[:, row, column].T.astype(np.float64) / FLOW_SCALE
    return known[row, column] & front & (np.linalg.norm(cue - (landed - uv), axis=-1) > threshold)
