"""A scene as a film: its images, rendered depth and motion, and the volume, keyframe by keyframe."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from eval.camera_tiles import Picture
from eval.pictures import KeyframePictures, draw_keyframe, picture_sources
from eval.rules import EvaluationError
from eval.sheet import captioned, column, of_height, row
from eval.time_steps import mean_step
from model.network import OccFlow
from storage.location import ObjectPath
from storage.whole_file import whole_file

CODECS = {".mp4": ("vp09", "mp4v"), ".webm": ("VP90", "VP80")}
"""What OpenCV is asked for by a film's ending, the first that it has: VP9 and VP8, which players and browsers read;
MPEG-4 part 2, which browsers do not."""
FORMATS = (".gif", *CODECS)
WIDTH = 1200


def film(
    model: OccFlow,
    store: str | Path | ObjectPath,
    scene: str,
    path: str | Path,
    *,
    threshold: float | None = None,
    width: int = WIDTH,
    workers: int = 2,
) -> Path:
    """Draw every keyframe of a scene that has an image into `path`, in real time; its name's end says how.

    Raises:
        EvaluationError: no keyframe with an image, an ending that is none of FORMATS, or no encoder for it.
        CueMissing: no such scene, or its images are not committed.
    """
    check_format(path)
    predictor, source = picture_sources(model, store, threshold)
    table = predictor.reader.scene(scene).table
    valid = table.camera_valid
    there = [t for t in range(len(valid)) if valid[t].any()]
    if not there:
        raise EvaluationError(f"scene {scene!r} has no image: there is nothing to draw")
    drawn = (draw_keyframe(predictor, source, scene, t, workers, novel=False) for t in there)
    seconds = mean_step(table.timestamp_us[there], predictor.reader.attributes.keyframe_interval_s)
    return save_film((film_frame(found, width) for found in drawn), path, seconds)


def film_frame(found: KeyframePictures, width: int = WIDTH) -> Picture:
    """One keyframe: cameras above, then the volume and its motion from above, the truth's motion beside it."""
    above = {"prediction, motion from above": found.predicted.motion_above}
    if found.truth is not None:
        above["truth, motion from above"] = found.truth.motion_above
    size = found.predicted.height.shape[0]
    volumes = [captioned(found.predicted.height, f"{found.scene}, keyframe {found.t}")]
    volumes += [captioned(of_height(picture, size), text) for text, picture in above.items()]
    strips = [row(tiles) for tiles in (found.images, found.depth, found.motion) if tiles]
    page = Image.fromarray(column([*strips, row(volumes)]))
    # Encoders want even sizes.
    height = round(page.height * width / page.width / 2) * 2
    return np.asarray(page.resize((width // 2 * 2, height), Image.Resampling.LANCZOS))


def check_format(path: str | Path) -> str:
    """The ending of a film's name. Raises EvaluationError for one that is none of FORMATS."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise EvaluationError(f"{path}: a film's name ends in one of {', '.join(FORMATS)}, not in {ending!r}")
    return ending


def save_film(frames: Iterable[Picture], path: str | Path, seconds: float) -> Path:
    """Write RGB pictures, `seconds` each, whole or not at all; returns the path. Frames of another size than the first
    are fitted to it, white where they are smaller.

    Raises:
        EvaluationError: see `film`; also where there is no frame.
    """
    path, ending = Path(path), check_format(path)
    write = _write_gif if ending == ".gif" else _write_video
    with whole_file(path) as temporary:
        write(_of_one_size(frames), temporary, seconds)
    return path


def _of_one_size(frames: Iterable[Picture]) -> Iterator[Picture]:
    size = None
    for frame in frames:
        size = size or frame.shape[:2]
        page = np.full((*size, 3), 255, dtype=np.uint8)
        height, width = min(size[0], frame.shape[0]), min(size[1], frame.shape[1])
        page[:height, :width] = frame[:height, :width]
        yield page
    if size is None:
        raise EvaluationError("a film of no frames: there is nothing to draw")


def _write_gif(frames: Iterator[Picture], path: Path, seconds: float) -> None:
    pages = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    # Written by Pillow, in hundredths of a second, for ever.
    pages[0].save(path, "GIF", save_all=True, append_images=pages[1:], duration=round(1000 * seconds), loop=0)


def _write_video(frames: Iterator[Picture], path: Path, seconds: float) -> None:
    try:
        import cv2
    except ImportError:
        raise EvaluationError(f"{path.name}: OpenCV is not installed; a film that ends in .gif needs none") from None
    first = next(frames)
    size, writer = (first.shape[1], first.shape[0]), None
    try:
        for codec in CODECS[path.suffix.lower()]:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 1.0 / seconds, size)
            if writer.isOpened():
                break
        else:
            wanted = " or ".join(CODECS[path.suffix.lower()])
            raise EvaluationError(f"this OpenCV has no encoder for {wanted}: give the film a name that ends in .gif")
        for frame in itertools.chain([first], frames):
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
    finally:
        if writer is not None:
            writer.release()
