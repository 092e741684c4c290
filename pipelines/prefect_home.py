"""Quiet, private settings for Prefect's temporary server; to be made before `prefect` is first imported.

Only defaults: what the user's environment says wins, and with PREFECT_API_URL set a run goes to that server.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    # The server dies with the run, and its recorder then reports unflushed events with pages of traceback.
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # Measured 7-17 s on two idle cores; the default limit of 20 s fails on busy ones.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "DASK_LOGGING__DISTRIBUTED": "critical",
}


def prefect_home() -> Path:
    """Folder of the temporary server's database, so that neither profiles nor a broken ~/.prefect matter."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "occflow" / "prefect"


@contextmanager
def private_prefect() -> Iterator[None]:
    """Environment in which importing and running Prefect is quiet and touches nothing of the user's.

    The database is kept, because making a new one costs 8-10 s. One run at a time may use it; another that runs
    meanwhile, or a home that cannot be written, gets a fresh temporary one.
    """
    before = dict(os.environ)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    temporary = None
    lock = None
    if "PREFECT_HOME" not in os.environ and "PREFECT_API_URL" not in os.environ:
        home = prefect_home()
        lock = _lock(home)
        if lock is None:
            temporary = home = Path(tempfile.mkdtemp(prefix="occflow-prefect-"))
        os.environ["PREFECT_HOME"] = str(home)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def _lock(home: Path) -> int | None:
    """A lock that ends with the process, or None when another run holds it or the folder cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home / "in-use.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
