"""The page and the whole store in a browser on this machine: keyframes are read and drawn when they are asked for.

The server answers to this machine alone: it listens on 127.0.0.1 unless told otherwise, and refuses requests whose Host
(a rebound name of another site) or Origin (another site's script) is not its own. It serves no files: scenes, keyframes
and cameras are looked up in the store by name, so there is no path that could leave it.
"""

import ipaddress
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from eval.inspection.browser import Browser, Refused
from eval.inspection.page import Drawn, browse_page
from eval.inspection.run import Inspection
from eval.rules import EvaluationError
from storage.errors import StoreError

LARGEST_POST = 8 * 2**20
LOCAL = "127.0.0.1"
HTTP_PORT = 80
"""Browsers leave it out of the address and of the Host header."""


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
