"""A run's own Prefect server is reached in whatever network this machine is."""

import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event

import httpx
import pytest

from pipelines import prefect_home
from pipelines.prefect_home import private_prefect


class Healthy(BaseHTTPRequestHandler):
    """Answers every question with nothing."""

    def do_GET(self) -> None:
        """200."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, *given: object) -> None:
        """Nothing."""


@contextmanager
def server(stop: Event) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/api"
        running.shutdown()


@pytest.mark.parametrize("but", ["", "cluster.example,10.0.0.0/8", "*"])
def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, but: str) -> None:
    for name in ("PREFECT_API_URL", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", but)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(prefect_home, "_server", server)
    with private_prefect():
        url = os.environ["PREFECT_API_URL"]
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            assert answer.status == 200
        assert httpx.get(f"{url}/health").status_code == 200
        assert not but or urllib.request.proxy_bypass_environment("node.cluster.example")
    assert os.environ["no_proxy"] == but
