"""Arranges the pictures of a keyframe on one page, with labels and colour legends."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from eval.colours import depth_colours, flow_wheel, height_colours
from eval.frames import TruthSource, open_truth
from eval.pictures import DEPTH_RANGE, FULL_SPEED, KeyframePictures, Picture, VolumePictures, draw_keyframe
from eval.predict import Predictor

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


def camera_table(pictures: KeyframePictures) -> Picture:
    """One column per camera, rows: the image, rendered depth, LiDAR depth, rendered motion."""
    rows = {
        "image": pictures.images,
        "rendered depth": pictures.depth,
        "LiDAR depth": pictures.lidar,
        "rendered motion": pictures.motion,
    }
    heads = [captioned(image, camera) for image, camera in zip(pictures.images, pictures.cameras, strict=True)]
    strips = []
    for name, tiles in rows.items():
        if tiles:
            strip = row(heads if tiles is pictures.images else tiles)
            strips.append(row([_side_label(name, tiles[0].shape[0], strip.shape[0]), strip]))
    return column(strips)


def _side_label(text: str, tile: int, height: int) -> Picture:
    """Text in two lines at the left of a strip whose tiles are `tile` high and at its bottom."""
    label = np.full((height, 72, 3), PAPER, dtype=np.uint8)
    middle = height - tile // 2
    lines = text.split(" ")
    top = middle - 9 * len(lines)
    return _written(label, [(0, top + 18 * i, line, INK, 13) for i, line in enumerate(lines)])


def volume_row(volume: VolumePictures, name: str, height: int = 300) -> Picture:
    """The four pictures of a volume side by side."""
    shown = {
        f"{name}: height": volume.height,
        f"{name}: motion": volume.motion,
        "height, from above": volume.height_above,
        "motion, from above": volume.motion_above,
    }
    return row([captioned(_high(picture, height), text) for text, picture in shown.items()])


def _high(picture: Picture, height: int) -> Picture:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def sheet(pictures: KeyframePictures) -> Picture:
    """Everything about one keyframe on one page, RGB, about 1600 pixels wide."""
    title = f"scene {pictures.scene}, keyframe {pictures.t} ({pictures.token})"
    detail = f"occupied where the signed distance is at most {pictures.threshold:g} m"
    head = np.full((46, 1500, 3), PAPER, dtype=np.uint8)
    parts = [_written(head, [(0, 2, title, INK, 19), (0, 27, detail, FAINT, 13)])]
    if pictures.cameras:
        parts.append(camera_table(pictures))
    parts.append(volume_row(pictures.predicted, "prediction"))
    if pictures.truth is not None:
        parts.append(volume_row(pictures.truth, "truth"))
    parts.append(row([depth_legend(), height_legend(pictures.height_range), motion_legend()]))
    return np.pad(column(parts), ((16, 16), (16, 16), (0, 0)), constant_values=255)


def save_sheet(pictures: KeyframePictures, path: Path) -> Path:
    """Write the page of a keyframe as PNG, whole or not at all; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(sheet(pictures)).save(temporary, "PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def draw_prediction(predictor: Predictor, scene: str, folder: Path) -> Path:
    """Draw the keyframe whose token is the name of `folder` into `pictures.png` there, with truth where there is some.

    Raises:
        ValueError: the scene has no such keyframe.
    """
    t = predictor.reader.scene(scene).table.tokens.index(folder.name)
    source = TruthSource(predictor.reader, open_truth(predictor.reader.path))
    return save_sheet(draw_keyframe(predictor, source, scene, t), folder / "pictures.png")


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
