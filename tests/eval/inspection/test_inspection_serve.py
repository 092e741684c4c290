"""The server answers to this machine, from the store, and to nobody and nothing else."""

import errno
import http.client
import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from eval.inspection import serve
from eval.inspection.page import Drawn
from eval.inspection.run import inspect_store
from eval.inspection.serve import make_server
from eval.inspection.settings import InspectionSettings
from eval.rules import EvaluationError
from storage.exclusions import ExcludedFrame, read_exclusions, write_exclusions

Ask = Callable[..., tuple[int, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[int]:
    """The port of a server that answers until the block ends."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def port(clean_store: Path, folder: Path) -> Iterator[int]:
    with running(make_server(inspect_store(clean_store, InspectionSettings(sample=2)), Drawn([]), folder)) as own:
        yield own


@pytest.fixture(scope="module")
def ask(port: int) -> Ask:
    """A function from path (and headers, body) to status and body."""

    def call(path: str, headers: dict[str, str] | None = None, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        given = {"Host": f"127.0.0.1:{port}", **(headers or {})}
        given = {key: value.replace("PORT", str(port)) for key, value in given.items()}
        connection.putrequest("POST" if body is not None else "GET", path, skip_host=True)
        for key, value in given.items():
            connection.putheader(key, value)
        if body is not None and "Content-Length" not in given:
            connection.putheader("Content-Length", str(len(body.encode())))
        connection.endheaders(body.encode() if body is not None else None)
        reply = connection.getresponse()
        found = reply.status, reply.read()
        connection.close()
        return found

    return call


WHERE = "scene=street-0&t=1&camera=CAM_FRONT"
JSON = {"Content-Type": "application/json"}


def test_pages_pictures_and_values(ask: Ask) -> None:
    assert ask("/")[0] == ask("/browse")[0] == 200
    status, body = ask(f"/api/picture?{WHERE}&layer=flow")
    assert status == 200
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.size == (160, 64)
    values = json.loads(ask(f"/api/values?{WHERE}")[1])
    assert values["token"] == "token0-1"
    assert {row["check"] for row in values["values"]} >= {"Flow present", "Pose jumps"}
    probe = json.loads(ask(f"/api/probe?{WHERE}&u=80&v=40")[1])
    assert set(probe) >= {"flow px", "confidence", "instance"}


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/zarr.json",
        "/api/picture?scene=../../x&t=0&camera=CAM_FRONT&layer=image",
        "/api/picture?scene=street-0&t=0&camera=../CAM_FRONT&layer=image",
        f"/api/picture?{WHERE}&layer=../image",
        "/api/picture?scene=street-0&t=99&camera=CAM_FRONT&layer=image",
        f"/api/probe?{WHERE}&u=160&v=0",
    ],
)
def test_what_the_store_does_not_hold_is_not_found(ask: Ask, path: str) -> None:
    assert ask(path)[0] == 404


@pytest.mark.parametrize("t", ["-1", "1e3", "", "x", "9" * 30])
def test_numbers_are_whole(ask: Ask, t: str) -> None:
    assert ask(f"/api/values?scene=street-0&t={t}&camera=CAM_FRONT")[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:PORT"},
        {"Host": "127.0.0.1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "https://127.0.0.1:PORT"},
        {"Origin": "null"},
    ],
)
def test_other_sites_are_refused(ask: Ask, headers: dict[str, str]) -> None:
    assert ask("/", headers)[0] == 403
    assert ask("/api/exclusions", JSON | headers, "{}")[0] == 403


def test_its_own_pages_are_answered(ask: Ask) -> None:
    assert ask("/", {"Host": "localhost:PORT"})[0] == 200
    assert ask("/", {"Origin": "http://127.0.0.1:PORT"})[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_browsers_leave_port_80_out_of_the_host(
    clean_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(serve, "HTTP_PORT", port)
    server = make_server(inspect_store(clean_store, InspectionSettings(sample=1)), Drawn([]), tmp_path, host, port)
    found = {}
    with running(server):
        for name in ("127.0.0.1", f"127.0.0.1:{port}", "evil.example", "127.0.0.1.evil.example", ""):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/api/exclusions", headers={"Host": name})
            found[name] = connection.getresponse().status
            connection.close()
    assert list(found.values()) == [200, 200, 403, 403, 403], found


def test_marks_are_checked_and_merged(ask: Ask, folder: Path) -> None:
    content = {"schema": "occflow.exclusions", "schema_version": 1, "store": "s", "frames": []}
    for t in (1, 2, 1):
        body = json.dumps(content | {"frames": [{"scene": "street-0", "t": t}]})
        assert ask("/api/exclusions", JSON, body)[0] == 200
    assert [(m.scene, m.t) for m in read_exclusions(folder / "exclusions.json")] == [("street-0", 1), ("street-0", 2)]
    assert ask("/api/exclusions", JSON, "{}")[0] == 400
    assert ask("/api/exclusions", {"Content-Type": "text/plain"}, json.dumps(content))[0] == 400
    assert ask("/elsewhere", JSON, json.dumps(content))[0] == 400
    assert ask("/api/exclusions", JSON | {"Content-Length": str(2**40)}, "{}")[0] == 413


def test_marks_are_taken_back(ask: Ask, folder: Path) -> None:
    path = folder / "exclusions.json"
    automatic = ExcludedFrame("street-0", 3, by="check:frozen")
    old = ExcludedFrame("street-1", 4, "token1-4", fingerprints={"images": "of earlier images"})
    write_exclusions(path, [automatic, old], "s")
    mark = {"scene": "street-0", "t": 3, "token": "token0-3"}
    content = {"schema": "occflow.exclusions", "schema_version": 1, "store": "s", "frames": [mark]}
    status, body = ask("/api/exclusions", JSON, json.dumps(content))
    assert status == 200
    assert {(m.t, m.by) for m in read_exclusions(path)} == {(3, "reviewer"), (3, "check:frozen"), (4, "reviewer")}
    assert json.loads(body) == json.loads(ask("/api/exclusions")[1])
    stale = {(m["t"], m["by"]): m["stale"] for m in json.loads(body)["frames"]}
    assert stale == {
        (3, "reviewer"): "",
        (3, "check:frozen"): "",
        (4, "reviewer"): "made or made anew since it was marked: images",
    }
    for _ in range(2):  # the second time it is gone already
        status, body = ask("/api/withdrawals", JSON, json.dumps(content))
        assert status == 200
        assert [(m["t"], m["by"]) for m in json.loads(body)["frames"]] == [(3, "check:frozen"), (4, "reviewer")]
        assert read_exclusions(path) == [automatic, old]
    gone = {"frames": [{"scene": "street-1", "t": 4}, {"scene": "street-0", "t": 3, "by": "check:frozen"}]}
    assert json.loads(ask("/api/withdrawals", JSON, json.dumps(content | gone))[1])["frames"] == []
    assert read_exclusions(path) == []


def test_withdrawals_are_as_guarded_as_marks(ask: Ask, folder: Path) -> None:
    write_exclusions(folder / "exclusions.json", [ExcludedFrame("street-0", 3)], "s")
    content = {"schema": "occflow.exclusions", "schema_version": 1, "frames": [{"scene": "street-0", "t": 3}]}
    assert ask("/api/withdrawals", JSON | {"Origin": "http://evil.example"}, json.dumps(content))[0] == 403
    assert ask("/api/withdrawals", {"Content-Type": "text/plain"}, json.dumps(content))[0] == 400
    assert ask("/api/withdrawals", JSON, json.dumps(content | {"schema_version": 7}))[0] == 400
    assert ask("/api/withdrawals")[0] == 404, "reading changes nothing"
    assert len(read_exclusions(folder / "exclusions.json")) == 1
    (folder / "exclusions.json").write_text("no marks")
    assert ask("/api/exclusions")[0] == 500
    assert ask("/api/withdrawals", JSON, json.dumps(content))[0] == 400
    assert (folder / "exclusions.json").read_text() == "no marks", "what it cannot read it does not overwrite"
    (folder / "exclusions.json").unlink()


def test_marks_that_cannot_be_written_are_answered_with_the_reason(
    ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("eval.inspection.marks.write_exclusions", full)
    content = {"schema": "occflow.exclusions", "schema_version": 1, "frames": [{"scene": "street-0", "t": 3}]}
    status, why = ask("/api/exclusions", JSON, json.dumps(content))
    assert status == 400
    assert b"No space left on device" in why
    assert b"exclusions.json" in why


@pytest.mark.parametrize(("kind", "length"), [("text/plain", 0), ("application/json", 2**40)])
def test_a_body_that_is_refused_is_no_next_request(port: int, kind: str, length: int) -> None:
    body = f"GET /api/exclusions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    head = f"POST /api/exclusions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n{body}".encode())
        replies = connection.makefile("rb").read()
    assert replies.count(b"HTTP/1.1 ") == 1
    assert replies.startswith(b"HTTP/1.1 4")


def test_an_address_that_is_not_this_machines(clean_store: Path, tmp_path: Path) -> None:
    found = inspect_store(clean_store, InspectionSettings(sample=1))
    with pytest.raises(EvaluationError, match="cannot listen there"):
        make_server(found, Drawn([]), tmp_path, host="203.0.113.7")
    with pytest.raises(EvaluationError, match="cannot listen there"):
        make_server(found, Drawn([]), tmp_path, host="example.org")
