"""The page and the whole store in a browser on this machine: keyframes are read and drawn when they are asked for.

The server answers to this machine alone: it listens on 127.0.0.1 unless told otherwise, and refuses requests whose Host
(a rebound name of another site) or Origin (another site's script) is not its own. It serves no files: scenes, keyframes
and cameras are looked up in the store by name, so there is no path that could leave it.
"""

import io
import ipaddress
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from eval.inspection.catalogue import BY_NAME
from eval.inspection.gallery import legend_uri
from eval.inspection.layers import LAYERS
from eval.inspection.marks import MarkFile, listed
from eval.inspection.page import Drawn, browse_page, report_page
from eval.inspection.run import Inspection
from eval.inspection.views import Keyframe, View
from eval.rules import EvaluationError
from storage.errors import StoreError
from storage.exclusions import ExcludedFrame, fingerprints, parse_exclusions

KEPT_KEYFRAMES = 4
LARGEST_POST = 8 * 2**20
LOCAL = "127.0.0.1"
HTTP_PORT = 80
"""Browsers leave it out of the address and of the Host header."""


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
        """All values of a keyframe by camera ("" for the keyframe), and whether each is beyond its limit; of one that
        cannot be read `error` says why."""
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
        return {**named, "values": found, "fingerprints": fingerprints(scene, t), **({"error": error} if error else {})}

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


class Handler(BaseHTTPRequestHandler):
    """Answers from a Browser."""

    browser: Browser
    hosts: frozenset[str]
    """Names that this server goes by; empty: every address, but no name (which another site could point here)."""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Pages and data."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Marks."""
        self._answer(self._post)

    def _get(self) -> tuple[str, bytes]:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        pages = {"/": lambda: self.browser.report, "/browse": lambda: browse_page(self.browser.index())}
        if parts.path in pages:
            return "text/html; charset=utf-8", pages[parts.path]().encode()
        if parts.path == "/api/picture":
            return "image/png", self.browser.picture(query)
        answers = {
            "/api/values": self.browser.values,
            "/api/probe": self.browser.probe,
            "/api/exclusions": self.browser.rejected,
        }
        if parts.path not in answers:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        return "application/json", json.dumps(answers[parts.path](query)).encode()

    def _post(self) -> tuple[str, bytes]:
        # A body that is refused unread would be taken for the next request on this connection.
        kept, self.close_connection = self.close_connection, True
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_POST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "marks come with a length, and not more than 8 MiB")
        # A script of another site can send a form or plain text without being asked, JSON only after a refusal here.
        changes = {"/api/exclusions": self.browser.reject, "/api/withdrawals": self.browser.withdraw}
        if self.headers.get_content_type() != "application/json" or self.path not in changes:
            raise Refused(HTTPStatus.BAD_REQUEST, "only JSON to api/exclusions and api/withdrawals")
        body = self.rfile.read(int(length))
        self.close_connection = kept
        return "application/json", json.dumps(changes[self.path](body)).encode()

    def _answer(self, make: Any) -> None:
        try:
            self._check_caller()
            kind, body = make()
            self._send(HTTPStatus.OK, kind, body)
        except ConnectionError:  # the browser went to another keyframe before this picture was sent
            self.close_connection = True
        except Refused as error:
            self._send(error.status, "text/plain; charset=utf-8", str(error).encode())
        except (StoreError, EvaluationError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", str(error).encode())

    def _check_caller(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        known = host in self.hosts or (not self.hosts and _is_address(host))
        if not known or origin not in (None, f"http://{host}"):
            self.close_connection = True
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers to its own address only")

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the reviewer's."""


def _is_address(host: str) -> bool:
    """Whether a Host header names an address, with its port or, of port 80, without."""
    try:
        ipaddress.ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
    return True


def require_port(host: str, port: int) -> None:
    """Raise EvaluationError unless this machine can listen there now; `port` 0 is any."""
    _listen(host, port, Handler).server_close()


def _listen(host: str, port: int, handler: type[Handler]) -> ThreadingHTTPServer:
    try:
        ipaddress.ip_address(host)
        return ThreadingHTTPServer((host, port), handler)
    except (ValueError, OSError) as error:
        raise EvaluationError(f"--host {host} --port {port}: cannot listen there ({error})") from None


def make_server(
    inspection: Inspection, drawn: Drawn, folder: Path, host: str = LOCAL, port: int = 0
) -> ThreadingHTTPServer:
    """A server that is bound and not yet running; `server_address[1]` is its port.

    Raises:
        EvaluationError: `host` is no address of this machine, or the port is taken.
    """
    handler: Any = type(
        "BoundHandler", (Handler,), {"browser": Browser(inspection, drawn, folder), "hosts": frozenset()}
    )
    server = _listen(host, port, handler)
    server.daemon_threads = True
    own = server.server_address[1]
    if host == LOCAL:
        ends = (f":{own}", "") if own == HTTP_PORT else (f":{own}",)
        handler.hosts = frozenset(f"{name}{end}" for name in (LOCAL, "localhost") for end in ends)
    return server
