"""A Prefect server, workers and clusters as processes of a test, and what their REST interface says."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
"""A server takes 6-15 s on two idle cores, and twenty times that on busy ones."""


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what: str, holds: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """The first true answer of `holds`; fails the test after `seconds`, or when `holds` raises AssertionError."""
    deadline = time.monotonic() + seconds
    while True:
        answer = holds()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.2)


def empty_cue() -> ModuleType:
    """The log of nothing and the cue that takes as long as asked, of tests/benchmarks."""
    path = ROOT / "tests" / "benchmarks" / "empty_cue.py"
    spec = importlib.util.spec_from_file_location("empty_cue", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Processes:
    """Children of a test, in sessions of their own with an environment of their own; `close` ends them all."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "OCCFLOW", "DASK"))}
        private = {
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PREFECT_HOME": str(folder / "prefect"),
        }
        quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": "false"}
        paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.environment = inherited | private | quiet | paths | environment
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: object, module: bool = True, **environment: str) -> "subprocess.Popen[bytes]":
        """`python -m COMMAND ...` (or COMMAND itself), its output in `<folder>/<n>.log`."""
        words = [str(word) for word in command]
        log = self.folder / f"{len(self.started)}-{words[0].split('/')[-1]}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", *words] if module else words,
                cwd=self.folder,
                env=self.environment | environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def said(self, process: "subprocess.Popen[bytes]") -> str:
        """What a process has written so far."""
        number = self.started.index(process)
        return next(self.folder.glob(f"{number}-*.log")).read_text(errors="replace")

    def close(self) -> None:
        """Kill every process group that is left."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class PrefectServer:
    """`prefect server start` on loopback, asked over REST. `command` replaces its arguments, PORT in them."""

    def __init__(
        self,
        processes: Processes,
        command: Sequence[str] = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", "PORT"),
        **environment: str,
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.processes = processes
        often = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1"}
        words = [word.replace("PORT", str(port)) for word in command]
        self.process = processes.start(*words, **(often | environment))
        wait_until("the Prefect server", self._healthy)

    def _healthy(self) -> bool:
        assert self.process.poll() is None, self.processes.said(self.process)
        try:
            return self.get("health") is True
        except (urllib.error.URLError, OSError):
            return False

    def get(self, path: str) -> Any:
        """GET /api/PATH."""
        return self._ask(urllib.request.Request(f"{self.url}/{path}"))

    def post(self, path: str, **body: Any) -> Any:
        """POST /api/PATH."""
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(f"{self.url}/{path}", data=data, headers=kind))

    def _ask(self, request: urllib.request.Request) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                # Its SQLite was locked for too long; Prefect's own client asks again as well.
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            except TimeoutError:
                if request.get_method() != "GET" or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def deployment(self, name: str) -> dict[str, Any]:
        """The deployment FLOW/NAME."""
        return self.get(f"deployments/name/{name}")

    def runs(self, deployment: str, *states: str) -> list[dict[str, Any]]:
        """Flow runs of a deployment id in these states, by expected start."""
        wanted: dict[str, Any] = {"deployment_id": {"any_": [deployment]}}
        if states:
            wanted["state"] = {"type": {"any_": list(states)}}
        return self.post("flow_runs/filter", flow_runs=wanted, sort="EXPECTED_START_TIME_ASC")

    def run(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run; its id."""
        return self.post(f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"]

    def state(self, run: str) -> str:
        """Type of a flow run's state."""
        return self.get(f"flow_runs/{run}")["state"]["type"]

    def artifact(self, key: str, run: str) -> Any:
        """Data of the newest artifact of a flow run under a key; JSON text decoded."""
        found = self.post("artifacts/filter", artifacts={"key": {"any_": [key]}, "flow_run_id": {"any_": [run]}})
        assert found, f"no artifact {key} of run {run}"
        data = found[-1]["data"]
        return json.loads(data) if isinstance(data, str) else data


class Cluster:
    """A Dask scheduler and workers, each a process of its own, as a user starts them."""

    def __init__(self, processes: Processes, **environment: str) -> None:
        self.processes = processes
        self.address = f"tcp://127.0.0.1:{free_port()}"
        port = self.address.rsplit(":", 1)[1]
        command = ("dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--dashboard-address", ":0")
        self.scheduler = processes.start(*command, **environment)

    def worker(self, *options: str) -> "subprocess.Popen[bytes]":
        """One thread in a process of its own, with a nanny that starts it again."""
        return self.processes.start(
            "dask", "worker", self.address, "--nthreads", "1", "--dashboard-address", ":0", "--death-timeout", "120",
            *options,
        )  # fmt: skip

    def pid(self, worker: "subprocess.Popen[bytes]") -> int:
        """The process that makes units for this nanny."""

        def children() -> list[int]:
            assert worker.poll() is None, self.processes.said(worker)
            return [
                child.pid
                for child in psutil.Process(worker.pid).children(recursive=True)
                if "resource_tracker" not in " ".join(child.cmdline())
            ]

        return wait_until("a worker", children)[0]
