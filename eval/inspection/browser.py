"""What the served page asks for by name: values, pictures and cues of any keyframe of the store, and marks."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.inspection.catalogue import BY_NAME
from eval.inspection.gallery import legend_uri
from eval.inspection.layers import LAYERS
from eval.inspection.marks import MarkFile, listed
from eval.inspection.page import Drawn, report_page
from eval.inspection.run import Inspection
from eval.inspection.views import Keyframe, View
from storage.errors import StoreError
from storage.exclusions import ExcludedFrame, fingerprints, parse_exclusions

KEPT_KEYFRAMES = 4


class Refused(Exception):
    """A request that is not answered, and the status that says why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Browser:
    """What the server knows: the inspection, its page, and the last keyframes that were asked for."""

    def __init__(self, inspection: Inspection, drawn: Drawn, folder: Path) -> None:
        self.inspection = inspection
        self.marks = MarkFile(folder / "exclusions.json", inspection.result["store"])
        self.report = report_page(inspection.result, drawn, served=True)
        self._kept: OrderedDict[tuple[str, int], Keyframe] = OrderedDict()
        self._lock = threading.Lock()

    def keyframe(self, query: dict[str, str]) -> Keyframe:
        """The keyframe that a query names. Raises Refused for one that the store does not hold."""
        scene, t = query.get("scene", ""), _whole(query, "t")
        lengths = self.inspection.inspector.lengths
        if scene not in lengths or not 0 <= t < lengths[scene]:
            raise Refused(HTTPStatus.NOT_FOUND, "no such scene or keyframe in the store")
        with self._lock:
            if (scene, t) not in self._kept:
                self._kept[scene, t] = self.inspection.inspector.keyframe(scene, t)
                while len(self._kept) > KEPT_KEYFRAMES:
                    self._kept.popitem(last=False)
            return self._kept[scene, t]

    def view(self, query: dict[str, str]) -> View:
        """The camera image that a query names. Raises Refused."""
        keyframe, cameras = self.keyframe(query), self.inspection.result["cameras"]
        name = query.get("camera", "")
        if name not in cameras or not keyframe.table.camera_valid[keyframe.t][cameras.index(name)]:
            raise Refused(HTTPStatus.NOT_FOUND, "no such camera at this keyframe")
        return keyframe.camera(cameras.index(name))

    def index(self) -> dict[str, Any]:
        """Scenes with their lengths, cameras, layers and their colour scales."""
        inspector = self.inspection.inspector
        return {
            "store": self.inspection.result["store"],
            "served": True,
            "scenes": [[name, length] for name, length in inspector.lengths.items()],
            "cameras": self.inspection.result["cameras"],
            "layers": list(LAYERS),
            "size": list(inspector.reader.attributes.render_size),
            "legend": legend_uri(),
        }

    def values(self, query: dict[str, str]) -> dict[str, Any]:
        """All values of a keyframe by camera ("" for the keyframe), and whether each is beyond its limit; `error` says
        why one cannot be read, and is "" where it can."""
        keyframe, settings = self.keyframe(query), self.inspection.inspector.settings
        cameras, found = self.inspection.result["cameras"], []
        measured, error = [], ""
        try:
            with self._lock:
                measured = self.inspection.inspector.all_values(keyframe)
        except StoreError as damage:  # what is known of it is enough to reject it
            error = str(damage)
        for one in measured:
            for name, value in one.values.items():
                if not np.isnan(value):
                    check, camera = BY_NAME[name], "" if one.camera < 0 else cameras[one.camera]
                    bad = settings.bad(check, value)
                    limit = f"{'≥' if check.bad.low else '≤'} {settings.limit(check):g}"
                    row = {"camera": camera, "check": check.title, "value": value, "bad": bad}
                    found.append({**row, "unit": check.values.unit, "limit": limit})
        scene, t = keyframe.scene, keyframe.t
        named = {"scene": scene.name, "t": t, "token": keyframe.table.tokens[t]}
        return {**named, "values": found, "fingerprints": fingerprints(scene, t), "error": error}

    def picture(self, query: dict[str, str]) -> bytes:
        """One layer of one image as PNG. Raises Refused where there is none."""
        name = query.get("layer", "")
        if name not in LAYERS:
            raise Refused(HTTPStatus.NOT_FOUND, "no such layer")
        view = self.view(query)
        with self._lock:
            picture = LAYERS[name](view)
        if picture is None:
            raise Refused(HTTPStatus.NOT_FOUND, "the store has nothing for this layer here")
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
        return buffer.getvalue()

    def probe(self, query: dict[str, str]) -> dict[str, Any]:
        """What the cues say at one render pixel."""
        view, u, v = self.view(query), _whole(query, "u"), _whole(query, "v")
        if not (0 <= u < view.size[1] and 0 <= v < view.size[0]):
            raise Refused(HTTPStatus.NOT_FOUND, "outside the image")
        with self._lock:
            return probe(view, u, v)

    def rejected(self, query: dict[str, str]) -> dict[str, Any]:
        """The marks that are in the file beside the page."""
        return self._listed(self.marks.read())

    def reject(self, body: bytes) -> dict[str, Any]:
        """Add a reviewer's marks to the file beside the page. Raises Refused for what is no list of marks."""
        return self._changed(self.marks.add, body)

    def withdraw(self, body: bytes) -> dict[str, Any]:
        """Take a reviewer's marks out of that file. Raises Refused."""
        return self._changed(self.marks.withdraw, body)

    def _changed(self, change: Callable[[list[ExcludedFrame]], list[ExcludedFrame]], body: bytes) -> dict[str, Any]:
        try:
            return self._listed(change(parse_exclusions(body, "request")))
        except StoreError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None

    def _listed(self, marks: list[ExcludedFrame]) -> dict[str, Any]:
        with self._lock:
            return {"file": str(self.marks.path), "frames": listed(self.inspection.inspector.reader, marks)}


def probe(view: View, u: int, v: int) -> dict[str, Any]:
    """Flow, confidence, instance, nearest LiDAR point and its residual at a render pixel."""
    found: dict[str, Any] = {"u": u, "v": v}
    if view.flow is not None and view.cue is not None:
        flow = view.flow[:, v, u]
        found["flow px"] = None if np.isnan(flow).any() else [round(float(x), 2) for x in flow]
        found["confidence"] = int(view.cue.confidence[v, u])
    if view.masks is not None:
        found["instance"] = int(view.masks[v, u])
    if view.keyframe.points is not None:
        uv, depth = view.seen
        apart = np.hypot(uv[:, 0] - u - 0.5, uv[:, 1] - v - 0.5)
        if len(apart) and apart.min() < 3:
            found["LiDAR depth m"] = round(float(depth[apart.argmin()]), 2)
    if view.static is not None and view.residual is not None and len(view.static.uv):
        apart = np.hypot(view.static.uv[:, 0] - u - 0.5, view.static.uv[:, 1] - v - 0.5)
        if apart.min() < 3:
            residual = view.residual[0][apart.argmin()]
            found["residual px"] = None if np.isnan(residual).any() else [round(float(x), 2) for x in residual]
    return found


def _whole(query: dict[str, str], key: str) -> int:
    text = query.get(key, "")
    if not text.isdecimal() or len(text) > 9:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{key} must be a whole number")
    return int(text)
