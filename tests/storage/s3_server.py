"""An S3 server on loopback (moto, in a process of its own), and a proxy in front of it that makes trouble on request.

moto's conditional put looks first and then writes: what it decides between two writers of one moment proves nothing
about a real server. That each writer acts rightly on the answer it gets is what tests with it can show.
"""

import contextlib
import http.client
import importlib.util
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

_SERVE = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
FAULTS = ("500", "502", "503", "429", "slow", "before", "after", "middle")
"""An HTTP status instead of an answer; an answer that comes after SLOW_S; the connection cut before the request was
passed on, after it was (the answer is lost), and in the middle of the answer."""
SLOW_S = 0.2
Plan = Callable[[str, str, int], str | None]
"""From method, path and number of a request to the fault it meets, None for none."""


@contextlib.contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """The endpoint of a fresh server, which ends with the block (and with this process)."""
    with open(log, "wb") as errors:
        command = [sys.executable, "-c", _SERVE]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        port = server.stdout.readline().strip().decode()
        assert port, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stdin.close()
        server.stdout.close()
        server.terminate()
        server.wait()


def make_bucket(endpoint: str, name: str) -> None:
    """Make an empty bucket."""
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")) as answer:
        answer.read()


class FaultProxy:
    """Passes requests on to a server, and lets them meet the faults of a plan. A context manager.

    Attributes:
        seen: method, path and fault of every request so far.
        canned: body of an answer with an HTTP status as its fault, by status.
        drop: lower-case names of request headers that are not passed on.
    """

    def __init__(self, server: str, plan: Plan = lambda method, path, number: None) -> None:
        self.plan = plan
        self.seen: list[tuple[str, str, str | None]] = []
        self.canned: dict[str, bytes] = {}
        self.drop: set[str] = set()
        self._lock = threading.Lock()
        self._upstream = server.removeprefix("http://")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def faults(self) -> list[str]:
        """The faults that requests have met."""
        return [fault for _, _, fault in self.seen if fault is not None]

    def requests(self, method: str, part: str) -> int:
        """How many requests of a method had this in their path."""
        return sum(m == method and part in path for m, path, _ in self.seen)

    def _next(self, method: str, path: str) -> str | None:
        with self._lock:
            fault = self.plan(method, path, len(self.seen))
            self.seen.append((method, path, fault))
            return fault

    def _forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, list, bytes]:
        link = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            link.request(method, path, body=body, headers=headers)
            answer = link.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            link.close()

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet: two of them cost 40 ms of waiting for each other

            def log_message(self, *args: object) -> None:
                pass

            def any_method(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy._next(self.command, self.path)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.meet(fault, body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = any_method

            def meet(self, fault: str | None, body: bytes) -> None:
                if fault == "before":
                    self.close_connection = True
                    return
                if fault is not None and fault.isdigit():
                    default = b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"
                    self.answer(int(fault), [], proxy.canned.get(fault, default))
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() not in {"connection", *proxy.drop}}
                status, answered, content = proxy._forward(self.command, self.path, headers, body)
                if fault == "after":
                    self.close_connection = True
                    return
                if fault == "slow":
                    time.sleep(SLOW_S)
                self.answer(status, answered, content, cut=fault == "middle")

            def answer(self, status: int, headers: list, content: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                        self.send_header(name, value)
                length = {k.lower(): v for k, v in headers}.get("content-length", len(content))
                self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                self.wfile.flush()
                self.close_connection = self.close_connection or cut

        return Handler


def random_faults(seed: int, share: float) -> Plan:
    """A share of all requests, drawn from a seed, meets a fault, drawn too."""
    rng = random.Random(seed)

    def plan(method: str, path: str, number: int) -> str | None:
        return rng.choice(FAULTS) if rng.random() < share else None

    return plan


def aws_environment(endpoint: str) -> dict[str, str]:
    """What a process needs to know."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "OCCFLOW_S3_TIMEOUT_S": os.environ.get("OCCFLOW_S3_TIMEOUT_S", "60"),
    }


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an S3 server on loopback."""
    missing = [name for name in ("obstore", "moto", "flask", "flask_cors") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install 'occflow[dev,s3]'")
    with s3_server(tmp_path_factory.mktemp("s3") / "log.txt") as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """`s3://` and an empty bucket, reachable by what the environment says; waits between attempts are short."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    make_bucket(s3, name)
    for variable in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, value in aws_environment(s3).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("storage.objects.BACKOFF_S", 0.01)
    monkeypatch.setattr("storage.objects.BACKOFF_MAX_S", 0.05)
    return f"s3://{name}"


@pytest.fixture
def proxy(bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy between this process and the server; without a plan it makes no trouble."""
    with FaultProxy(s3) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made
