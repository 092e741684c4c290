"""Arranges the pictures of a keyframe by one network or several on one page, with labels and colour legends."""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from eval.camera_tiles import DEPTH_RANGE, FULL_SPEED, Picture
from eval.colours import VERDICTS, depth_colours, difference_colours, flow_wheel, height_colours
from eval.frames import TruthSource, open_truth
from eval.pictures import ErrorPictures, KeyframePictures, VolumePictures, draw_keyframe
from eval.predict import Predictor
from storage.whole_file import whole_file

Sides = Mapping[str, KeyframePictures]
"""One keyframe by each of several networks, by the name it is shown under."""

PAPER, INK, FAINT = (255, 255, 255), (31, 41, 55), (107, 114, 128)
GAP = 6


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def captioned(picture: Picture, text: str, size: int = 13) -> Picture:
    """A picture with a line of text above it."""
    band = np.full((size + 8, picture.shape[1], 3), PAPER, dtype=np.uint8)
    return np.concatenate([_written(band, [(1, 2, text, INK, size)]), picture])


def row(pictures: Sequence[Picture]) -> Picture:
    """Pictures side by side, aligned at the top."""
    height = max(picture.shape[0] for picture in pictures)
    parts: list[Picture] = []
    for picture in pictures:
        below = height - picture.shape[0]
        parts += [np.pad(picture, ((0, below), (0, GAP), (0, 0)), constant_values=255)]
    return np.concatenate(parts, axis=1)[:, :-GAP]


def column(pictures: Sequence[Picture]) -> Picture:
    """Pictures below each other, aligned at the left."""
    width = max(picture.shape[1] for picture in pictures)
    parts = [
        np.pad(picture, ((0, GAP), (0, width - picture.shape[1]), (0, 0)), constant_values=255) for picture in pictures
    ]
    return np.concatenate(parts)[:-GAP]


def camera_table(sides: Sides) -> Picture:
    """One column per camera, rows: the image, rendered depth, LiDAR depth, depth error, rendered motion; what the
    networks render once for each."""
    first = next(iter(sides.values()))

    def of_each(what: str, attribute: str) -> dict[str, list[Picture]]:
        return {side_name(what, name, sides): getattr(found, attribute) for name, found in sides.items()}

    rows = {
        "image": first.images,
        **of_each("rendered depth", "depth"),
        "LiDAR depth": first.lidar,
        **of_each("depth error", "depth_error"),
        **of_each("rendered motion", "motion"),
    }
    heads = [captioned(image, camera) for image, camera in zip(first.images, first.cameras, strict=True)]
    strips = []
    for name, tiles in rows.items():
        if tiles:
            strip = row(heads if tiles is first.images else tiles)
            strips.append(row([_side_label(name, tiles[0].shape[0], strip.shape[0]), strip]))
    return column(strips)


def side_name(what: str, name: str, sides: Sides) -> str:
    """What a row is called: with the network's name where there are several."""
    return what if len(sides) == 1 else f"{what} {name}"


def _side_label(text: str, tile: int, height: int) -> Picture:
    """Text in two lines at the left of a strip whose tiles are `tile` high and at its bottom."""
    label = np.full((height, 84, 3), PAPER, dtype=np.uint8)
    middle = height - tile // 2
    lines = [_short(line) for line in text.split(" ", 2)]
    top = middle - 9 * len(lines)
    return _written(label, [(0, top + 18 * i, line, INK, 13) for i, line in enumerate(lines)])


def _short(text: str, longest: int = 12) -> str:
    """Text of at most so many letters: its end, which tells checkpoints of one run apart."""
    return text if len(text) <= longest else "…" + text[1 - longest :]


def volume_row(volume: VolumePictures, name: str, height: int = 300) -> Picture:
    """The four pictures of a volume side by side."""
    shown = {
        f"{name}: height": volume.height,
        f"{name}: motion": volume.motion,
        "height, from above": volume.height_above,
        "motion, from above": volume.motion_above,
    }
    return row([captioned(of_height(picture, height), text) for text, picture in shown.items()])


def error_row(found: ErrorPictures, name: str, height: int = 300) -> Picture:
    """Both views of a prediction's errors, and what they come to in numbers."""
    pictures = [
        captioned(of_height(found.seen, height), f"{name} against the truth"),
        captioned(of_height(found.above, height), "from above"),
    ]
    errors, text = found.errors, np.full((height, 330, 3), PAPER, dtype=np.uint8)
    lines = [f"{label}: {count:,} voxels" for label, count in error_counts(found).items()]
    lines += [
        f"IoU {errors.iou:.3f}",
        f"of the truth found {errors.recall:.3f}",
        f"of the prediction right {errors.precision:.3f}",
    ]
    written = _written(text, [(8, 30 + 22 * i, line, INK, 14) for i, line in enumerate(lines)])
    return row([*pictures, written])


def error_counts(found: ErrorPictures) -> dict[str, int]:
    """Voxels by verdict; "not judged" only where there are some."""
    errors = found.errors
    counts = {"hit": errors.hit, "missed": errors.missed, "invented": errors.invented}
    return counts | ({"not judged": errors.not_judged} if errors.not_judged else {})


def novel_table(sides: Sides) -> Picture | None:
    """Depth from moved cameras: a column per move, a row per network and one for the truth; None where not drawn."""
    first = next(iter(sides.values()))
    if not first.novel:
        return None
    rows = [
        (side_name("novel depth", name, sides), [n.predicted for n in found.novel]) for name, found in sides.items()
    ]
    true = [n.truth for n in first.novel if n.truth is not None]
    if true:
        rows.append(("true voxels", true))
    strips = []
    for i, (name, tiles) in enumerate(rows):
        heads = [captioned(tile, n.name) for tile, n in zip(tiles, first.novel, strict=True)] if i == 0 else tiles
        strip = row(heads)
        strips.append(row([_side_label(name, tiles[0].shape[0], strip.shape[0]), strip]))
    return column(strips)


def of_height(picture: Picture, height: int) -> Picture:
    """The picture at that many rows, in its own proportions."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def sheet(sides: KeyframePictures | Sides) -> Picture:
    """Everything about one keyframe on one page, RGB, about 1600 pixels wide; by one network, or by several."""
    shown: Sides = {"prediction": sides} if isinstance(sides, KeyframePictures) else sides
    first = next(iter(shown.values()))
    title = f"scene {first.scene}, keyframe {first.t} ({first.token})"
    detail = ", ".join(f"{name}: occupied where sdf <= {found.threshold:g} m" for name, found in shown.items())
    head = np.full((46, 1500, 3), PAPER, dtype=np.uint8)
    parts = [_written(head, [(0, 2, title, INK, 19), (0, 27, detail, FAINT, 13)])]
    if first.cameras:
        parts.append(camera_table(shown))
    parts += [volume_row(found.predicted, name) for name, found in shown.items()]
    if first.truth is not None:
        parts.append(volume_row(first.truth, "truth"))
    parts += [error_row(found.errors, name) for name, found in shown.items() if found.errors is not None]
    novel = novel_table(shown)
    if novel is not None:
        parts.append(novel)
    legends = [depth_legend(), height_legend(first.height_range), motion_legend(), error_legend(), difference_legend()]
    parts += [row(legends[:3]), row(legends[3:])]
    return np.pad(column(parts), ((16, 16), (16, 16), (0, 0)), constant_values=255)


def save_sheet(pictures: KeyframePictures | Sides, path: Path) -> Path:
    """Write the page of a keyframe as PNG, whole or not at all; returns `path`."""
    with whole_file(path) as temporary:
        Image.fromarray(sheet(pictures)).save(temporary, "PNG")
    return path


def draw_prediction(predictor: Predictor, scene: str, folder: Path) -> Path:
    """Draw the keyframe whose token is the name of `folder` into `pictures.png` there, with truth where there is some.

    Raises:
        ValueError: the scene has no such keyframe.
    """
    t = predictor.reader.scene(scene).table.tokens.index(folder.name)
    # A copy counts for itself: the predictor's rate is that of what was asked of it.
    predictor = copy(predictor)
    source = TruthSource(predictor.reader, open_truth(predictor.reader.path))
    return save_sheet(draw_keyframe(predictor, source, scene, t, novel=False), folder / "pictures.png")


def depth_legend(width: int = 300) -> Picture:
    """The colour bar of depth, with ticks in metres."""
    near, far = DEPTH_RANGE
    values = near * (far / near) ** ((np.arange(width) + 0.5) / width)
    ticks = {np.log(d / near) / np.log(far / near): f"{d:g}" for d in (2, 5, 10, 20, 40)}
    return _bar("depth, metres (grey: nothing there)", depth_colours(values, near, far), ticks)


def height_legend(heights: tuple[float, float], width: int = 300) -> Picture:
    """The colour bar of height above the ego frame's origin, with ticks in metres."""
    low, high = heights
    values = low + (high - low) * (np.arange(width) + 0.5) / width
    whole = np.arange(np.ceil(low), np.floor(high) + 1)
    ticks = {float((z - low) / (high - low)): f"{z:g}" for z in whole}
    return _bar("height in the ego frame, metres", height_colours(values, low, high), ticks)


def motion_legend(size: int = 76) -> Picture:
    """The colour wheel of motion: up is forward, left is left."""
    wheel = flow_wheel(size).astype(np.float64)
    alpha = wheel[..., 3:] / 255
    disc = (wheel[..., :3] * alpha + np.array(PAPER) * (1 - alpha)).round().astype(np.uint8)
    text = np.full((size, 330, 3), PAPER, dtype=np.uint8)
    lines = [
        (4, 4, "motion of things, own motion removed", INK, 13),
        (4, 24, "up: forward, left: to the left; grey: still", FAINT, 13),
        (4, 44, f"full colour from {FULL_SPEED:g} m/s", FAINT, 13),
    ]
    return row([disc, _written(text, lines)])


def error_legend() -> Picture:
    """What the colours of compared voxels mean."""
    lines = {
        "hit": "in both",
        "missed": "only in the truth",
        "invented": "only in the prediction",
        "not judged": "truth unknown",
    }
    canvas = np.full((76, 400, 3), PAPER, dtype=np.uint8)
    marks = [(8, 3, "voxels of the prediction against the truth", INK, 13)]
    for i, (name, meaning) in enumerate(lines.items()):
        x, y = 8 + 200 * (i % 2), 26 + 24 * (i // 2)
        canvas[y : y + 14, x : x + 14] = VERDICTS[name]
        marks.append((x + 20, y - 2, f"{name}: {meaning}", FAINT, 12))
    return _written(canvas, marks)


def difference_legend(width: int = 300, full: float = 1.5) -> Picture:
    """The colour bar of rendered over measured depth."""
    low, high = -1.15, 1.15
    share = low + (high - low) * (np.arange(width) + 0.5) / width
    colours = difference_colours(full**share, full)
    ratios = (1 / full, 0.8, 1.0, 1.25, full)
    ticks = {float((np.log(r) / np.log(full) - low) / (high - low)): f"{round(r, 2):g}" for r in ratios}
    return _bar("rendered / measured depth (blue: too near)", colours, ticks)


def _bar(title: str, colours: UInt8[np.ndarray, "width 3"], ticks: dict[float, str]) -> Picture:
    """A colour bar with a title above and labels at fractions of its width below."""
    left, width = 8, len(colours)
    canvas = np.full((76, left + width + 30, 3), PAPER, dtype=np.uint8)
    canvas[24:44, left : left + width] = colours
    marks = [(left, 3, title, INK, 13)]
    for fraction, text in ticks.items():
        x = left + min(width - 1, round(fraction * width))
        canvas[44:49, x] = INK
        marks.append((x - 4 * len(text), 51, text, FAINT, 12))
    return _written(canvas, marks)


def _written(picture: Picture, lines: Sequence[tuple[int, int, str, tuple[int, int, int], int]]) -> Picture:
    """A copy with texts at (x, y, text, colour, size)."""
    page = Image.fromarray(picture)
    draw = ImageDraw.Draw(page)
    for x, y, text, colour, size in lines:
        draw.text((x, y), text, fill=colour, font=_font(size))
    return np.asarray(page)
