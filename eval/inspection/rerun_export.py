"""Sampled keyframes as recordings for the Rerun viewer (https://rerun.io): one `<scene>.rrd` per scene.

Needs the extra `rerun`. Written against rerun-sdk 0.23, the last that runs with numpy 1, and 0.41.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from eval.colours import depth_colours
from eval.inspection.layers import DEPTH_RANGE_M, FULL_ERROR_PX, LAYERS, heat_colours
from eval.inspection.measure import RIG, Measured
from eval.inspection.run import Inspector, Progress
from eval.inspection.views import Keyframe, View
from eval.rules import EvaluationError
from geometry.transforms import invert
from storage.errors import StoreError
from storage.schema import SceneTable

PICTURES = ("flow", "confidence", "after warping")
"""Layers that hide the image below them; they are logged apart from it."""
JPEG_QUALITY = 85


def rerun_sdk() -> Any:
    """The package. Raises EvaluationError that says how to install it."""
    try:
        import rerun
    except ImportError as error:
        raise EvaluationError(
            f"a Rerun recording needs rerun-sdk ({error}): pip install 'occflow[rerun]', or pip install rerun-sdk; "
            "with numpy 1 also 'pyarrow<20'"
        ) from None
    if not hasattr(rerun, "RecordingStream") or not hasattr(rerun.RecordingStream, "set_time"):
        raise EvaluationError("the installed rerun is too old, or another package of that name: need rerun-sdk>=0.23")
    return rerun


def export_recordings(
    inspector: Inspector, frames: list[tuple[str, int]], folder: Path, progress: Progress | None = None
) -> list[Path]:
    """Write the keyframes (scene and index, scene by scene) as recordings; data goes to disk as it is made.

    Coordinates are metres from the ego pose of the scene's first keyframe, for Rerun keeps them in single precision.
    Timelines: `keyframe` (index) and `time` (seconds from the first keyframe).

    Args:
        progress: called with keyframes done and to do.

    Raises:
        EvaluationError: rerun-sdk is missing or too old.
        OSError: the folder cannot be written.
    """
    sdk = rerun_sdk()
    folder.mkdir(parents=True, exist_ok=True)
    paths, done = [], 0
    for scene, group in groupby(frames, key=lambda frame: frame[0]):
        inspector.forget(scene)
        path = folder / f"{scene}.rrd"
        recording = sdk.RecordingStream("occflow", recording_id=f"{inspector.reader.path}:{scene}")
        recording.save(path)
        _log_axes(sdk, recording)
        for _, t in group:
            _log_keyframe(sdk, recording, inspector, scene, t)
            done += 1
            if progress is not None:
                progress(done, len(frames))
        recording.flush()
        recording.disconnect()
        paths.append(path)
    return paths


def first_from_ego(table: SceneTable, t: int) -> Float[np.ndarray, "4 4"]:
    """The ego frame of keyframe `t` in that of the scene's first keyframe, metres."""
    return invert(table.global_from_ego[0]) @ table.global_from_ego[t]


def _log_axes(sdk: Any, recording: Any) -> None:
    recording.log("world", sdk.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)


def _log_keyframe(sdk: Any, recording: Any, inspector: Inspector, scene: str, t: int) -> None:
    recording.set_time("keyframe", sequence=t)
    try:
        keyframe = inspector.keyframe(scene, t)
        table = keyframe.table
        recording.set_time("time", duration=float(table.timestamp_us[t] - table.timestamp_us[0]) * 1e-6)
        _log_pose(sdk, recording, ["world", "ego"], first_from_ego(table, t))
        if keyframe.points is not None:
            distance = np.linalg.norm(keyframe.points - keyframe.origin, axis=1)
            colours = depth_colours(distance, *DEPTH_RANGE_M)
            recording.log("world/ego/lidar", sdk.Points3D(keyframe.points, colors=colours, radii=0.04))
        for view in keyframe.cameras():
            _log_camera(sdk, recording, view)
        for path, value in _named_values(inspector, keyframe):
            recording.log(path, sdk.Scalars([value]))
        keyframe.close()
    except StoreError as error:
        recording.log("unreadable", sdk.TextLog(f"{scene}:{t}: {error}", level="ERROR"))


def _log_pose(sdk: Any, recording: Any, path: list[str], pose: Float[np.ndarray, "4 4"]) -> None:
    recording.log(path, sdk.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))


def _log_camera(sdk: Any, recording: Any, view: View) -> None:
    """Pose at the camera's own time, intrinsics of the render grid, the image with what lies on it, and pictures."""
    name = view.keyframe.attributes.cameras[view.c]
    path = ["world", "ego", name]
    _log_pose(sdk, recording, path, invert(view.camera.cam_from_ego))
    height, width = view.size
    axes = sdk.ViewCoordinates.RDF
    recording.log(path, sdk.Pinhole(image_from_camera=view.camera.K, resolution=[width, height], camera_xyz=axes))
    if view.image is not None:
        recording.log([*path, "image"], sdk.Image(view.image).compress(jpeg_quality=JPEG_QUALITY))
    if view.masks is not None:
        recording.log([*path, "masks"], sdk.SegmentationImage(view.masks.astype(np.uint16), opacity=0.5))
    if view.static is not None and view.residual is not None:
        residual, judged = view.residual
        colours = heat_colours(np.linalg.norm(residual[judged], axis=1), FULL_ERROR_PX)
        recording.log([*path, "static residual"], sdk.Points2D(view.static.uv[judged], colors=colours, radii=1.0))
    for layer in PICTURES:
        picture = LAYERS[layer](view)
        if picture is not None:
            recording.log(["layers", name, layer], sdk.Image(picture).compress(jpeg_quality=JPEG_QUALITY))


def _named_values(inspector: Inspector, keyframe: Keyframe) -> Iterator[tuple[list[str], float]]:
    """Every check's value with its place among the recording's entities: `checks/<check>/<camera>`."""
    measured: list[Measured] = inspector.all_values(keyframe)
    cameras = inspector.reader.attributes.cameras
    for one in measured:
        for name, value in one.values.items():
            if not np.isnan(value):
                yield ["checks", name, "keyframe" if one.camera == RIG else cameras[one.camera]], value
