"""A run's own Prefect server is reached in whatever network this machine is; one that is named is told where it is no
use."""

import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event

import httpx
import pytest

from pipelines import prefect_home
from pipelines.prefect_home import PrefectError, private_prefect


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The address of a server on this machine that answers everything with this status alone."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def own_server(stop: Event) -> Iterator[str]:
    with answering(200) as address:
        yield f"{address}/api"


@pytest.mark.parametrize("but", ["", "cluster.example,10.0.0.0/8", "*"])
def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, but: str) -> None:
    for name in ("PREFECT_API_URL", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", but)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # urlopen keeps the proxies of its first call, for all tests that come after.
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setattr(prefect_home, "_server", own_server)
    with private_prefect():
        url = os.environ["PREFECT_API_URL"]
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            assert answer.status == 200
        assert httpx.get(f"{url}/health").status_code == 200
        assert not but or urllib.request.proxy_bypass_environment("node.cluster.example")
    assert os.environ["no_proxy"] == but


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    told = r"PREFECT_API_URL=http://127\.0\.0\.1:9/api: no Prefect server.*unset"
    with pytest.raises(PrefectError, match=told), private_prefect():
        pass


def test_an_address_without_its_api(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(404) as address:
        monkeypatch.setenv("PREFECT_API_URL", address)
        told = f"answers 404: the address of its API ends in /api: export PREFECT_API_URL={address}/api"
        with pytest.raises(PrefectError, match=told), private_prefect():
            pass


def test_a_server_with_a_certificate_of_its_own_is_left_to_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect has settings that make it trust one; something answers there in any case."""

    def distrust(url: str, timeout: float) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "self-signed certificate"))

    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    monkeypatch.setattr("urllib.request.urlopen", distrust)
    with private_prefect():
        pass
