"""Which keyframes of a store a stage trains on, and the clear refusal where a cue is missing."""

import fnmatch
import logging
import math
from collections import Counter

import numpy as np

from geometry.grid import KITTI_GROUND_Z
from storage.dynamics import current_motion, dynamics_path, read_dynamics
from storage.errors import CueMissing, StoreError
from storage.exclusions import Excluded, excluded_by
from storage.reader import StoreReader
from storage.spans import parse_span
from train.config import ConfigError, TrainConfig
from train.frames import require_no_lidar

log = logging.getLogger(__name__)


class Exclusion:
    """The configuration's `data.exclude`: `scene`, `scene:t` or `scene:first-last`; scene names may be patterns. And
    `frames`: (scene, t) that files of marks exclude."""

    def __init__(self, entries: tuple[str, ...], frames: frozenset[tuple[str, int]] = frozenset()) -> None:
        self._frames = frames
        try:
            self._spans = [parse_span(entry) for entry in entries]
        except StoreError as error:
            raise ConfigError(f"data.exclude: {error}") from None

    def __call__(self, scene: str, t: int) -> bool:
        """Whether this keyframe (and the sweeps after it) is excluded."""
        return (scene, t) in self._frames or any((scene, t) in span for span in self._spans)


def marked_frames(config: TrainConfig, reader: StoreReader | None = None) -> Excluded:
    """What the files of `data.exclude_files` exclude in the store as it is now. Raises StoreError for a file that
    cannot be used."""
    if not config.data.exclude_files:
        return Excluded(frozenset(), ())
    return excluded_by(reader or StoreReader(config.store), config.data.exclude_files)


def needed_cues(config: TrainConfig, stage: int) -> tuple[str, ...]:
    """Cues without which a keyframe cannot be trained on in this stage."""
    switches, cues = config.ablation, ["images"]
    if config.data.neighbour.sweeps:
        cues.append("sweeps")
    cues += _return_cues(config, beside=config.rays.lidar_reach > 0)
    if stage == 2 and config.loss.instance_flow:
        cues.append("masks")
    if stage == 2 and config.loss.splat:
        cues.append("masks")
    if stage == 2 and config.loss.lifted_flow:
        cues += ["flow_next", "masks"]
    if stage == 2 and config.loss.lifted_still:
        cues.append("masks")
    if stage == 2 and (switches.flow_supervision or switches.dynamic_disentanglement):
        cues.append("flow_next")
        if switches.dynamic_disentanglement:
            cues.append("masks")
        if reads_backward_flow(config, stage):
            cues.append(f"flow_{config.data.backward_cue}")
    return tuple(dict.fromkeys(cues))


def image_step_cues(config: TrainConfig, stage: int) -> tuple[str, ...]:
    """Those of them that a step on images alone learns from: in the first stage whatever returns are made of."""
    if stage == 2:
        return tuple(cue for cue in needed_cues(config, stage) if cue != "sweeps")
    return tuple(dict.fromkeys(["images", *_return_cues(config, beside=False)]))


def _return_cues(config: TrainConfig, *, beside: bool) -> list[str]:
    """What a keyframe's returns are made of; `beside`: and other keyframes', of which those on movable things are left
    out."""
    cues = ["lidar", *(["masks"] if beside else [])] if config.ablation.lidar else []
    if config.rays.triangulated:
        cues += triangulation_cues(config)
    if config.rays.standing:
        cues.append("masks")
    return cues


def reads_backward_flow(config: TrainConfig, stage: int) -> bool:
    """Whether a loss of the stage compares with the backward flow cue. Triangulation may read that cue all the same."""
    wanted = config.ablation.backward_static_flow or config.loss.pixel_match > 0
    return stage == 2 and config.ablation.flow_supervision and wanted


def triangulation_cues(config: TrainConfig) -> tuple[str, ...]:
    """Cues that points are triangulated from (`rays.triangulated`)."""
    return ("flow_next", f"flow_{config.data.backward_cue}", "masks")


def require_frames(config: TrainConfig, stage: int, reader: StoreReader) -> None:
    """Refuse now what this stage would refuse when it begins, which the second one does days after the first.

    Raises:
        ConfigError, CueMissing, StoreError: as `training_frames` and `with_repeats`.
    """
    with_repeats(config, stage, reader, training_frames(config, stage, reader, tell=False), tell=False)


def training_frames(
    config: TrainConfig, stage: int, reader: StoreReader, *, tell: bool = True
) -> list[tuple[str, int]]:
    """(scene, keyframe) pairs this stage trains on: chosen, not excluded, every cue that is needed committed.

    What is left out is logged, unless `tell` is false.

    Raises:
        ConfigError: data.scenes matches no scene of the store, none with poses, or everything is excluded; or things
            are to stand on a ground that is not below the cameras.
        CueMissing: a needed cue is committed nowhere (it names the command that makes it), or comes from LiDAR in a
            camera-only run.
    """
    marked = marked_frames(config, reader)
    excluded = Exclusion(config.data.held_out, marked.frames)
    if config.data.exclude_files and tell:
        _report_marks(config, marked)
    names = _with_poses(_chosen_scenes(config, reader), reader, tell)
    cues = needed_cues(config, stage)
    missing: Counter[str] = Counter()
    frames, considered = [], 0
    for name in names:
        scene = reader.scene(name)
        for t in range(scene.length):
            if excluded(name, t) or not scene.table.camera_valid[t].any():
                continue
            considered += 1
            absent = [cue for cue in cues if not scene.has(cue, t)]
            missing.update(absent)
            if not absent:
                frames.append((name, t))
    if not considered:
        left_out = f"data.exclude, data.exclude_files with data.validate_on = {list(config.data.held_out)}"
        raise ConfigError(f"{left_out} leaves no keyframe of {len(names)} scene(s)")
    if not frames:
        worst = ",".join(cue for cue in cues if missing[cue])
        raise CueMissing(
            f"{reader.path}: stage {stage} needs {', '.join(cues)}, and no keyframe has all of them; missing: "
            f"{dict(missing)}. Run `occflow cues <config> --cues {worst}`, or switch off what needs them."
        )
    if missing and tell:
        log.warning(
            "%d of %d keyframes left out: %s not committed", considered - len(frames), considered, dict(missing)
        )
    if not config.ablation.lidar:
        passed = ("images", "sweeps", *(["masks"] if config.data.lidar_masks else []))
        derived = tuple(cue for cue in cues if cue not in passed)
        for name, t in frames:
            require_no_lidar(reader.scene(name), derived, t)
    _require_ground_below(config, stage, reader, frames)
    return frames


def _require_ground_below(config: TrainConfig, stage: int, reader: StoreReader, frames: list[tuple[str, int]]) -> None:
    """Raise ConfigError where things are to be placed by the ground and a camera is not above it: none of them would be
    placed, and nothing would tell. A scene's first keyframe answers for all of them."""
    by_ground = stage == 2 and config.loss.lifted_flow > 0 and not config.ablation.lidar
    if not (config.rays.standing or by_ground):
        return
    ground = config.model.depth_lift.ground_z
    first: dict[str, int] = {}
    for name, t in frames:
        first.setdefault(name, t)
    for name, t in first.items():
        table = reader.scene(name).table
        for c in np.flatnonzero(table.camera_valid[t]):
            height = float(table.ego_from_cam[t][c][2, 3])
            if height <= ground:
                camera = reader.attributes.cameras[c]
                raise ConfigError(
                    f"model.depth_lift.ground_z = {ground:g}: camera {camera} of scene {name!r} is at z = {height:g} m "
                    "of the ego frame, and the ground has to lie below it for things to stand on it; "
                    f"set the ground's height (about {KITTI_GROUND_Z:g} where the ego frame is the LiDAR's on the roof)"
                )


def with_repeats(
    config: TrainConfig, stage: int, reader: StoreReader, frames: list[tuple[str, int]], *, tell: bool = True
) -> list[tuple[str, int]]:
    """What an epoch holds: each dynamic keyframe `data.dynamic.repeat` times in a row, the others once; `frames` as
    they are where that is off. Keyframes without a score that holds come once, with a warning unless `tell` is false.

    Raises:
        ConfigError: a camera-only run, whose selection may not come from LiDAR either.
        CueMissing: no score of these keyframes holds.
        StoreError: scores that cannot be read.
    """
    dynamic = config.data.dynamic
    if dynamic.repeat == 1 or stage not in dynamic.stages:
        return frames
    if not config.ablation.lidar:
        raise ConfigError(
            f"data.dynamic.repeat = {dynamic.repeat}: scores of motion come from LiDAR, and this run is camera only "
            "(ablation.lidar is false); set data.dynamic.repeat=1"
        )
    path = dynamic.scores or dynamics_path(config.store)
    motion = current_motion(reader, read_dynamics(path))
    scored = [frame for frame in frames if frame in motion.frames]
    if not scored:
        told = f", {len(motion.stale)} no longer hold, first: {motion.stale[0]}" if motion.stale else ""
        raise CueMissing(f"{path}: no score of any of {len(frames)} keyframes holds{told}; run `occflow dynamics`")
    if len(scored) < len(frames) and tell:
        log.warning(
            "%d of %d keyframes have no score in %s and come once", len(frames) - len(scored), len(frames), path
        )
    ranked = sorted(scored, key=lambda frame: (-motion.frames[frame].share, frame))[
        : math.ceil(dynamic.top * len(scored))
    ]
    chosen = {frame for frame in ranked if motion.frames[frame].share >= dynamic.least_share}
    if tell:
        log.info("%d of %d keyframes are dynamic and come %d times", len(chosen), len(frames), dynamic.repeat)
    return [frame for frame in frames for _ in range(dynamic.repeat if frame in chosen else 1)]


def _chosen_scenes(config: TrainConfig, reader: StoreReader) -> list[str]:
    """The store's scenes that match `data.scenes`."""
    patterns = config.data.scenes or ("*",)
    names = [name for name in reader.scenes() if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    if not names:
        found = ", ".join(reader.scenes()[:5]) or "none"
        raise ConfigError(f"data.scenes = {list(patterns)}: matches no scene of {reader.path}; it has: {found}")
    return names


def _with_poses(names: list[str], reader: StoreReader, tell: bool) -> list[str]:
    """The scenes whose poses are known: with the identity in their place everything would seem to stand still."""
    without = [name for name in names if "no_poses" in reader.scene(name).table.tags]
    if without and len(without) == len(names):
        raise ConfigError(f"{reader.path}: none of the {len(names)} chosen scenes has poses; set data.scenes")
    if without and tell:
        log.warning("%d of %d scenes left out: no poses, first: %s", len(without), len(names), without[0])
    return [name for name in names if name not in without]


def _report_marks(config: TrainConfig, marked: Excluded) -> None:
    files = ", ".join(map(str, config.data.exclude_files))
    log.warning("%d keyframes excluded by %s", len(marked.frames), files)
    if marked.stale:
        log.warning("%d marks no longer hold (look again), first: %s", len(marked.stale), marked.stale[0])


def frames_again(
    kept: dict[str, list[int]], found: list[tuple[str, int]], config: TrainConfig, reader: StoreReader
) -> list[tuple[str, int]]:
    """The keyframes that a stage began with (`kept`, by scene, a repeated one as often as then), for it to go on with;
    all of `found` where it begins.

    What was committed since then, and other scores of motion, have to wait for the next stage: another list would be
    another order.

    Raises:
        ConfigError: some have been excluded since then.
        CueMissing: some lack a cue now.
    """
    if not kept:
        return found
    frames = [(name, t) for name, numbers in kept.items() for t in numbers]
    lost = sorted(set(frames) - set(found))
    excluded = Exclusion(config.data.held_out, marked_frames(config, reader).frames)
    marked = [frame for frame in lost if excluded(*frame)]
    if marked:
        name, t = marked[0]
        files = ", ".join(map(str, config.data.exclude_files)) or "data.exclude"
        raise ConfigError(
            f"{files}: excludes {len(marked)} keyframes (first: {name}:{t}) that the stage to go on with began with. "
            "Take these marks out until the stage is over, or train anew into another `out`."
        )
    if lost:
        name, t = lost[0]
        raise CueMissing(
            f"{reader.path}: the stage to go on with began with {len(frames)} keyframes, and {len(lost)} of them "
            f"(first: {name}:{t}) no longer have every cue it needs. Extract them again (`occflow cues`), or train "
            "anew into another `out`."
        )
    came = set(found) - set(frames)
    if came:
        log.warning("%d keyframes came since this stage began; it goes on with its own", len(came))
    return frames
