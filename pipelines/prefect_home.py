"""A quiet, private Prefect server for one run: its settings, its database, its process.

With PREFECT_API_URL in the environment that server is used instead, and nothing is started.
"""

import fcntl
import importlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from threading import Event

START_TIMEOUT_S = 120.0
"""Measured on two cores: 6 s, 15 s with a new database, several times that on a busy machine."""

ANSWER_S = 30.0
"""How long a server that is named may take to answer."""

_HOST = "127.0.0.1"
_API = "/api"
"""Where a Prefect server's API lies, below its address."""
_SAID = 300
"""Characters of a refusal that are shown."""

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "DASK_LOGGING__DISTRIBUTED": "critical",
    "DASK_LOGGING__TORNADO": "critical",
    "DASK_LOGGING__ASYNCIO": "critical",
}
_SERVER = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect itself sets for a server that lives as long as one run."""

# The server ends with this process even if that is killed (Linux: a signal on the parent's death).
_SERVE = """
import ctypes, sys, uvicorn
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
uvicorn.run("prefect.server.api.server:create_app", factory=True, host=sys.argv[1], port=int(sys.argv[2]),
            log_level="error", lifespan="on")
"""


class PrefectError(RuntimeError):
    """The Prefect server cannot be had: a temporary one, or the one that is named. The message says what to do."""


def prefect_home() -> Path:
    """Folder of the temporary server's database, so that neither profiles nor a broken ~/.prefect matter."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "occflow" / "prefect"


@contextmanager
def private_prefect(stop: Event | None = None) -> Iterator[None]:
    """Inside, `prefect` imports quietly and talks to a server of this run's own, or to the one of PREFECT_API_URL.

    The server is in a session of its own: Ctrl-C reaches this process alone, and units in the making can still report
    when they end. Settings that the environment makes are left as they are.

    Raises:
        PrefectError: the server did not start, or none answers at PREFECT_API_URL.
        KeyboardInterrupt: `stop` was set while it started.
    """
    with quiet_prefect(), ExitStack() as held:
        if "PREFECT_API_URL" not in os.environ:
            if "PREFECT_HOME" not in os.environ:
                os.environ["PREFECT_HOME"] = str(held.enter_context(_home()))
            _pass_by_proxies()
            url = held.enter_context(_server(stop or Event()))
            os.environ["PREFECT_API_URL"] = url
            settings = importlib.import_module("prefect.settings")
            # For a process that had imported Prefect before: it reads the environment only then.
            held.enter_context(settings.temporary_settings({settings.PREFECT_API_URL: url}))
        else:
            _require_answer(os.environ["PREFECT_API_URL"])
        yield


def _require_answer(url: str) -> None:
    """Raise PrefectError where nothing answers at `url`, or what does has its API elsewhere; whether it may be used is
    told by what it answers later."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ANSWER_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND and _API not in url:
            raise refused(url, error.code) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        if isinstance(why, ssl.SSLCertVerificationError):
            return  # Prefect may trust it: PREFECT_API_SSL_CERT_FILE, PREFECT_API_TLS_INSECURE_SKIP_VERIFY
        raise PrefectError(
            f"PREFECT_API_URL={url}: no Prefect server answers there ({why}). Start it (`prefect server start`), or "
            "unset PREFECT_API_URL: then a temporary one is started. --runner plain needs none."
        ) from None


def refused(url: str, status: int, said: str = "") -> PrefectError:
    """The error for a server that answers at PREFECT_API_URL, but with an HTTP status that says no."""
    if status == HTTPStatus.NOT_FOUND and _API not in url:
        why = f"the address of its API ends in {_API}: export PREFECT_API_URL={url.rstrip('/')}{_API}"
    elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        why = "set PREFECT_API_KEY, or PREFECT_API_AUTH_STRING, to what it accepts"
    else:
        why = f"{said[:_SAID]}; check that this is a Prefect server, of the version in constraints.txt"
    return PrefectError(f"PREFECT_API_URL={url}: the server answers {status}: {why}")


@contextmanager
def quiet_prefect() -> Iterator[None]:
    """Inside, `prefect` imports without a word and sends no telemetry; settings of the environment are left."""
    before = dict(os.environ)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _pass_by_proxies() -> None:
    """Have requests to this machine go to no proxy, which would ask its own: clusters name one, but seldom this."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    if given != "*":  # which means all, but not in a list
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (given, _HOST)))


@contextmanager
def _home() -> Iterator[Path]:
    """The kept home, because a new database costs 10 s; else a temporary one (in use, read-only)."""
    home = prefect_home()
    descriptor = None
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home / "in-use.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        temporary = Path(tempfile.mkdtemp(prefix="occflow-prefect-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    try:
        yield home
    finally:
        os.close(descriptor)


@contextmanager
def _server(stop: Event) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    url = f"http://{_HOST}:{port}/api"
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, _HOST, str(port)],
            env=os.environ | _SERVER,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            importlib.import_module("prefect")  # 1.3 s, while the server starts
            if not _healthy(url, process, stop):
                said.seek(0)
                raise PrefectError(
                    f"Prefect's temporary server did not answer within {START_TIMEOUT_S:.0f} s; its last words:\n"
                    f"{said.read()[-800:].decode(errors='replace')}\nRun with --runner plain (no Prefect), or start "
                    "`prefect server start` and set PREFECT_API_URL."
                )
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _healthy(url: str, process: "subprocess.Popen[bytes]", stop: Event) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if stop.is_set():
            raise KeyboardInterrupt
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            stop.wait(0.1)
    return False
