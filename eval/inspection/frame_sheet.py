"""One camera image with all its layers and values on one page: what a card's command opens."""

from pathlib import Path

import numpy as np

from eval.inspection.catalogue import BY_NAME
from eval.inspection.layers import DEPTH_RANGE_M, FULL_ERROR_PX, FULL_LEVELS, LAYERS, fitted
from eval.inspection.measure import Measured
from eval.inspection.settings import InspectionSettings
from eval.inspection.views import View
from eval.sheet import captioned, column, row

SCALES = (
    f"scales: errors in px 0 to {FULL_ERROR_PX:g}, colour differences 0 to {FULL_LEVELS:g} levels (blue to red); "
    f"depth {DEPTH_RANGE_M[0]:g} to {DEPTH_RANGE_M[1]:g} m"
)


def frame_sheet(view: View, values: list[Measured], settings: InspectionSettings, width: int = 760) -> np.ndarray:
    """All layers in two columns at `width` pixels each, RGB; values that are beyond their limit are marked."""
    tiles = []
    for name, draw in LAYERS.items():
        picture = draw(view)
        if picture is not None:
            tiles.append(captioned(fitted(picture, width), name))
    rows = [row(tiles[k : k + 2]) for k in range(0, len(tiles), 2)]
    camera = view.keyframe.attributes.cameras[view.c]
    token = view.scene.table.tokens[view.t]
    title = f"{view.scene.name}, keyframe {view.t} ({token}), {camera}"
    head = [np.full((4, 2 * width, 3), 255, np.uint8)]
    for text, size in ((title, 20), *((line, 13) for line in value_lines(values, view.c, settings)), (SCALES, 12)):
        head.append(captioned(np.full((2, 2 * width, 3), 255, np.uint8), text, size))
    return np.pad(column([*head, *rows]), ((12, 12), (12, 12), (0, 0)), constant_values=255)


def value_lines(values: list[Measured], camera: int, settings: InspectionSettings) -> list[str]:
    """The keyframe's and the camera's values as text, three to a line."""
    words = []
    for measured in values:
        if measured.camera in (-1, camera):
            for name, value in measured.values.items():
                if not np.isnan(value):
                    check = BY_NAME[name]
                    mark = " (BAD)" if settings.bad(check, value) else ""
                    words.append(f"{check.title}: {value:.3g} {check.values.unit}{mark}")
    return ["      ".join(words[k : k + 3]) for k in range(0, len(words), 3)]


def save_sheet(picture: np.ndarray, path: Path) -> Path:
    """Write it as PNG. Returns `path`."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, "PNG")
    return path
