"""The picture part of a page: the voxel viewer, then every keyframe by each network, with its truth and its errors."""

import html
from collections.abc import Sequence

from eval.camera_tiles import Picture
from eval.page import FILE_PICTURES, PICTURES, image, number, section
from eval.pictures import ErrorPictures, VolumePictures
from eval.sheet import (
    Sides,
    camera_table,
    depth_legend,
    difference_legend,
    error_counts,
    error_legend,
    height_legend,
    motion_legend,
    novel_table,
)
from eval.viewer import viewer


def picture_sections(keyframes: Sequence[Sides]) -> str:
    """The viewer's box and the pictures' box as HTML; nothing without a keyframe."""
    if not keyframes:
        return ""
    first = next(iter(keyframes[0].values()))
    rendered = bool(first.depth)
    legends = [depth_legend()] if rendered or first.lidar else []
    legends += [height_legend(first.height_range), motion_legend()]
    legends += [*([difference_legend()] if rendered else []), error_legend()]
    strip = "".join(image(legend, "legend") for legend in legends)
    pictures = f'{PICTURES if rendered else FILE_PICTURES}<div class="legends">{strip}</div>' + "".join(
        map(keyframe, keyframes)
    )
    volumes = viewer(keyframes)
    return (section("Volumes", volumes) if volumes else "") + section("Pictures", pictures)


def keyframe(sides: Sides) -> str:
    """One keyframe: its cameras, each volume and the true one, the errors, and depth from moved cameras."""
    first = next(iter(sides.values()))
    parts = [f"<h3>{html.escape(f'Scene {first.scene}, keyframe {first.t}')}</h3>"]
    if first.cameras:
        parts.append(image(camera_table(sides), "cameras", photo=True))
    parts += [volume_row(name, found.predicted) for name, found in sides.items()]
    if first.truth is not None:
        parts.append(volume_row("truth", first.truth))
    parts += [error_row(name, found.errors) for name, found in sides.items() if found.errors is not None]
    novel = novel_table(sides)
    if novel is not None:
        parts += [
            image(novel, "depth from moved cameras", photo=True),
            "<figcaption>depth from moved cameras</figcaption>",
        ]
    return "".join(parts)


def volume_row(name: str, volume: VolumePictures) -> str:
    """Four pictures of a volume with captions."""
    shown = {
        f"{name}, colour: height": volume.height,
        f"{name}, colour: motion": volume.motion,
        "height, from above": volume.height_above,
        "motion, from above": volume.motion_above,
    }
    return f'<div class="volumes">{"".join(_figure(picture, text) for text, picture in shown.items())}</div>'


def error_row(name: str, found: ErrorPictures) -> str:
    """Both pictures of a prediction's errors, and its counts as a caption."""
    errors = found.errors
    counts = ", ".join(f"{count:,} {label}" for label, count in error_counts(found).items())
    text = (
        f"{name} against the truth: {counts} voxels; IoU {number(errors.iou)}, {number(errors.recall)} of the truth "
        f"found, {number(errors.precision)} of the prediction right"
    )
    above = _figure(found.above, "surfaces, from above")
    return f'<div class="volumes errors">{_figure(found.seen, text)}{above}</div>'


def _figure(picture: Picture, text: str) -> str:
    return f"<figure>{image(picture, text)}<figcaption>{html.escape(text)}</figcaption></figure>"
