"""The cards of the page: the worst images of every failing check in turn, and images drawn at random beside them."""

import base64
import io
import random
import shlex
from typing import Any

import numpy as np
from PIL import Image

from eval.inspection.layers import LAYERS, fitted, legend
from eval.inspection.measure import RIG, Measured
from eval.inspection.run import Inspection, Inspector
from eval.inspection.views import View
from storage.errors import StoreError
from storage.exclusions import fingerprints

THUMBNAILS = tuple(name for name in LAYERS if name != "confidence")
_TELLING = {
    "flow_valid": "flow",
    "flow_confidence": "flow",
    "flow_round_trip": "flow",
    "photometric": "after warping",
    "static_bias": "static residual",
    "static_scatter": "static residual",
    "truth_flow": "flow",
    "truth_depth": "LiDAR depth",
    "truth_masks": "masks",
}
_ORDER = {"fail": 0, "warn": 1, "pass": 2, "none": 3}


def telling_layer(check: str) -> str:
    """The layer in which a failure of this check shows best."""
    kind = {"mask": "masks", "lidar": "LiDAR depth"}.get(check.partition("_")[0], "image")
    return _TELLING.get(check, kind)


def cards(inspection: Inspection, pictures: bool = True) -> list[dict[str, Any]]:
    """Cards as plain types: where, why, values, the command that reopens it, and thumbnails as data URIs."""
    found = []
    for why, check, scene, t, camera in [*_worst(inspection), *_random(inspection)]:
        try:
            keyframe = inspection.inspector.keyframe(scene, t)
            values = inspection.inspector.all_values(keyframe)
            view = keyframe.camera(camera)
            found.append(_card(inspection, view, values, why, check, pictures))
        except StoreError as error:
            found.append({"why": why, "check": check, "scene": scene, "t": t, "error": str(error)})
    return found


def _worst(inspection: Inspection) -> list[tuple[str, str, str, int, int]]:
    """(why, check, scene, t, camera): the worst of each check in turn, failing checks first, none twice."""
    checks = sorted(inspection.result["checks"], key=lambda check: _ORDER[check["state"]])
    queues = {check["name"]: list(check["worst"]) for check in checks if check["state"] != "none"}
    found: list[tuple[str, str, str, int, int]] = []
    seen = set()
    while len(found) < inspection.inspector.settings.worst and any(queues.values()):
        for name, queue in queues.items():
            while queue:
                entry = queue.pop(0)
                place = standing_for(inspection.inspector, entry["scene"], entry["t"], entry["camera"])
                if place is not None and place not in seen:
                    seen.add(place)
                    found.append(("worst", name, *place))
                    break
            if len(found) >= inspection.inspector.settings.worst:
                break
    return found


def standing_for(inspector: Inspector, scene: str, t: int, camera: int) -> tuple[str, int, int] | None:
    """A camera image that stands for a value: of a keyframe the first camera, of a scene its middle keyframe. Of a
    scene whose table cannot be read the first camera, whose card then says so."""
    if not scene:
        return None
    try:
        table = inspector.reader.scene(scene).table
    except StoreError:
        return scene, max(t, 0), max(camera, 0)
    if t == RIG:
        t = table.length // 2
    valid = np.flatnonzero(table.camera_valid[t])
    if camera == RIG:
        camera = int(valid[0]) if len(valid) else RIG
    return (scene, t, camera) if camera != RIG else None


def _random(inspection: Inspection) -> list[tuple[str, str, str, int, int]]:
    draw = random.Random(inspection.inspector.settings.seed)
    frames = list(inspection.frames)
    found = []
    for scene, t in draw.sample(frames, min(len(frames), inspection.inspector.settings.random)):
        try:
            valid = np.flatnonzero(inspection.inspector.reader.scene(scene).table.camera_valid[t])
        except StoreError:
            continue
        if len(valid):
            found.append(("random", "", scene, t, int(draw.choice(list(valid)))))
    return found


def _card(
    inspection: Inspection, view: View, values: list[Measured], why: str, check: str, pictures: bool
) -> dict[str, Any]:
    camera = inspection.result["cameras"][view.c]
    own: dict[str, float] = {}
    for measured in values:
        if measured.camera in (RIG, view.c):
            own |= measured.values
    rows = view.scene.mask_table(view.t, view.c) if view.keyframe.has("masks") else np.zeros((0, 8))
    classes = view.keyframe.attributes.classes
    names = sorted({classes[int(c)] if c < len(classes) else "unknown" for c in rows[:, 1]})
    return {
        "why": why,
        "check": check,
        "layer": telling_layer(check),
        "scene": view.scene.name,
        "t": view.t,
        "token": view.scene.table.tokens[view.t],
        "camera": camera,
        "classes": names,
        "values": {name: round(value, 5) for name, value in own.items() if not np.isnan(value)},
        "fingerprints": fingerprints(view.scene, view.t),
        "command": reopen(inspection.result["store"], view.scene.name, view.t, camera),
        "pictures": thumbnails(view, inspection.inspector.settings.thumbnail) if pictures else {},
    }


def reopen(store: str, scene: str, t: int, camera: str) -> str:
    """The command that opens this image, safe to paste into a shell."""
    words = ["occflow", "inspect", store, "--scene", scene, "--frame", str(t), "--camera", camera]
    return shlex.join(words)


def thumbnails(view: View, width: int) -> dict[str, str]:
    """Pictures of some layers as data URIs."""
    found = {}
    for name in THUMBNAILS:
        picture = LAYERS[name](view)
        if picture is not None:
            found[name] = data_uri(fitted(picture, width))
    return found


def data_uri(picture: np.ndarray) -> str:
    """A JPEG inside a page."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=82, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def legend_uri() -> str:
    """The colour scales, for the page."""
    return data_uri(legend())
