"""`occflow deploy` against a real Prefect server and its workers: schedules, runs, cancelling, kills."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from storage.journal import RunJournal
from storage.store import CueStore
from storage.verify import verify
from tests.integration.servers import PrefectServer, Processes, empty_cue, wait_until

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SCENES, KEYFRAMES = 2, 12
UNITS = SCENES * (1 + KEYFRAMES)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("prefect")
    cue = empty_cue()
    cue.register(folder)
    running = Processes(folder, PREFECT_WORKER_QUERY_SECONDS="1", **cue.environment(folder))
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(processes: Processes) -> PrefectServer:
    return PrefectServer(processes)


@pytest.fixture
def slow_config(tmp_path: Path) -> Callable[[float], Path]:
    """A function from seconds per unit to a configuration file of the empty log."""

    def write(seconds: float) -> Path:
        values = empty_cue().config_values(tmp_path, SCENES, KEYFRAMES, {"workers": 2})
        values["cues"]["masks"]["seconds"] = seconds
        path = tmp_path / "cues.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def deploy(occflow: Run, processes: Processes, server: PrefectServer) -> Callable[..., dict[str, Any]]:
    """A function that runs `occflow deploy` and gives the deployment that the server then has."""

    def run(config: Path, *options: str) -> dict[str, Any]:
        name = config.parent.name
        known = {"PYTHONPATH": processes.environment["PYTHONPATH"], "PREFECT_API_URL": server.url}
        done = occflow("deploy", config, "--name", name, *options, **known)
        assert done.returncode == 0, done.stderr
        assert f"prefect deployment run cues/{name}" in done.stdout
        return server.deployment(f"cues/{name}")

    return run


@pytest.fixture
def worker(processes: Processes, server: PrefectServer) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """A function that starts a worker of the pool `occflow`; each is told to end after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        command = ("prefect", "worker", "start", "--pool", "occflow")
        started.append(processes.start(*command, PREFECT_API_URL=server.url))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                # Prefect's worker can wait for ever for a run that ended just then; no test is about its own end.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=60)


def finished(server: PrefectServer, run: str) -> str:
    """The state in which a flow run ends."""
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return wait_until(f"the end of run {run}", lambda: (state := server.state(run)) in final and state)


def commits(store: Path) -> int:
    return len(list((store / "commits").glob("*--*.json")))


def test_a_cron_deployment_is_given_runs(
    deploy: Callable[..., dict[str, Any]], server: PrefectServer, slow_config: Callable[[float], Path]
) -> None:
    config = slow_config(0.0)
    deployed = deploy(config, "--cron", "*/5 * * * *", "--timezone", "Europe/Berlin")
    runs = wait_until("scheduled runs", lambda: server.runs(deployed["id"], "SCHEDULED"))
    assert len(runs) >= 3
    starts = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
    assert {(b - a).total_seconds() for a, b in pairwise(starts)} == {300}
    assert all(start.minute % 5 == 0 and start.second == 0 for start in starts)
    assert all(run["auto_scheduled"] and run["work_pool_name"] == "occflow" for run in runs)
    assert deployed["parameters"]["config"]["store"] == str(config.parent / "store.zarr")
    assert deployed["job_variables"]["env"] == {"PYTHONSAFEPATH": "1"}
    assert deploy(config)["schedules"] == [], "deployed again without --cron, nothing is scheduled any more"


def test_deploying_without_a_server(occflow: Run, processes: Processes, slow_config: Callable[[float], Path]) -> None:
    done = occflow("deploy", slow_config(0.0), PYTHONPATH=processes.environment["PYTHONPATH"])
    assert done.returncode == 1
    assert "export PREFECT_API_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_cannot_be_deployed(
    occflow: Run, processes: Processes, server: PrefectServer, slow_config: Callable[[float], Path]
) -> None:
    server.post("work_pools/", name="elsewhere", type="kubernetes")
    for url, options, code, words in (
        ("http://127.0.0.1:9/api", [], 1, "no Prefect server answers"),
        ("http://127.0.0.1:9/api", ["--cron", "every night"], 2, "every night"),
        (server.url, ["--cron", "every night"], 2, "every night"),
        (server.url, ["--cron", "0 3 * * *", "--timezone", "Mars/Olympus"], 2, "Mars/Olympus"),
        (server.url, ["--pool", "elsewhere"], 2, "--image"),
        (server.url, ["--image", "occflow:cpu", "--pool", "nowhere"], 2, "there is no such work pool"),
        (server.url.removesuffix("/api"), [], 1, f"ends in /api: export PREFECT_API_URL={server.url}"),
        (server.url, ["--cues", "maskes"], 2, "'maskes' is not in this configuration"),
        (server.url, ["--scenes", "scene-9999"], 2, "'scene-9999' is not among the"),
    ):
        known = {"PYTHONPATH": processes.environment["PYTHONPATH"], "PREFECT_API_URL": url}
        done = occflow("deploy", slow_config(0.0), *options, **known)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_log_that_is_not_on_this_machine(
    occflow: Run, processes: Processes, server: PrefectServer, slow_config: Callable[[float], Path], tmp_path: Path
) -> None:
    """Workers may see what the machine that deploys does not; what is known without the log is refused all the same."""
    known = {"PYTHONPATH": processes.environment["PYTHONPATH"], "PREFECT_API_URL": server.url}
    away = ["--root", tmp_path / "elsewhere"]
    done = occflow("deploy", slow_config(0.0), *away, "--scenes", "scene-9999", **known)
    assert done.returncode == 0, done.stderr
    assert f"note: {tmp_path / 'elsewhere'} is not on this machine" in done.stdout
    refused = occflow("deploy", slow_config(0.0), *away, "--cues", "maskes", **known)
    assert refused.returncode == 2
    assert "'maskes' is not in this configuration" in refused.stderr


@pytest.mark.slow
def test_a_run_with_parameters_and_its_artifacts(
    deploy: Callable[..., dict[str, Any]],
    worker: Callable[[], "subprocess.Popen[bytes]"],
    server: PrefectServer,
    slow_config: Callable[[float], Path],
) -> None:
    config = slow_config(0.0)
    deployed = deploy(config)
    worker()
    first = server.run(deployed["id"], scenes=["0001"])
    assert finished(server, first) == "COMPLETED"
    store = config.parent / "store.zarr"
    assert {record.unit.scene for record in CueStore.open(store).records()} == {"0001"}
    assert server.artifact("cues-progress", first) == 100.0
    table = server.artifact("cues", first)
    assert table[-1] == {"cue": "all", "committed": 1 + KEYFRAMES, "failed": 0, "current": 0}
    rest = server.run(deployed["id"])
    assert finished(server, rest) == "COMPLETED"
    assert server.artifact("cues", rest)[-1]["current"] == 1 + KEYFRAMES
    assert commits(store) == UNITS


@pytest.mark.slow
def test_a_run_is_cancelled_in_order(
    processes: Processes,
    deploy: Callable[..., dict[str, Any]],
    worker: Callable[[], "subprocess.Popen[bytes]"],
    server: PrefectServer,
    slow_config: Callable[[float], Path],
) -> None:
    config = slow_config(1.0)
    store = config.parent / "store.zarr"
    deployed = deploy(config)
    working = worker()
    run = server.run(deployed["id"])
    wait_until("four commits", lambda: commits(store) >= 4)
    server.post(f"flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    assert finished(server, run) == "CANCELLED"
    wait_until("the flow's process to end", lambda: not flow_processes(working))
    done = commits(store)
    assert done < UNITS
    assert verify(store) == [], "units in the making were finished, nothing is left half-written"
    assert "Traceback" not in processes.said(working), "the worker finds the flow when it looks for hooks"
    again = server.run(deployed["id"], config=deployed["parameters"]["config"])
    assert finished(server, again) == "COMPLETED"
    assert server.artifact("cues", again)[-1]["current"] == done
    assert commits(store) == UNITS


def flow_processes(worker: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return [child for child in psutil.Process(worker.pid).children(recursive=True) if child.is_running()]


@pytest.mark.slow
def test_after_the_flow_and_its_worker_were_killed(
    deploy: Callable[..., dict[str, Any]],
    worker: Callable[[], "subprocess.Popen[bytes]"],
    server: PrefectServer,
    slow_config: Callable[[float], Path],
) -> None:
    config = slow_config(1.0)
    store = config.parent / "store.zarr"
    deployed = deploy(config)
    killed = worker()
    server.run(deployed["id"])
    wait_until("four commits", lambda: commits(store) >= 4)
    for process in [*flow_processes(killed), psutil.Process(killed.pid)]:
        process.kill()
    killed.wait()
    done = commits(store)
    assert done < UNITS
    worker()
    again = server.run(deployed["id"])
    assert finished(server, again) == "COMPLETED"
    assert server.artifact("cues", again)[-1]["current"] == done
    assert commits(store) == UNITS
    assert verify(store) == []


@pytest.mark.slow
def test_a_scheduled_run_is_made_by_a_worker(
    deploy: Callable[..., dict[str, Any]],
    worker: Callable[[], "subprocess.Popen[bytes]"],
    server: PrefectServer,
    slow_config: Callable[[float], Path],
) -> None:
    config = slow_config(0.0)
    store = config.parent / "store.zarr"
    deployed = deploy(config, "--cron", "* * * * *")
    worker()
    runs = wait_until("a run at the full minute", lambda: server.runs(deployed["id"], "COMPLETED"))
    assert runs[0]["auto_scheduled"]
    assert commits(store) == UNITS
    (store / "commits" / "masks--0001--00003.json").unlink()
    with RunJournal(store, ["masks--0001--00003"]):  # as another run does that is at this unit
        done = len(server.runs(deployed["id"], "COMPLETED"))
        runs = wait_until("another", lambda: (r := server.runs(deployed["id"], "COMPLETED"))[done:] and r)
        assert runs[-1]["state"]["name"] == "Skipped"
        assert f"process {os.getpid()}" in runs[-1]["state"]["message"]
        assert commits(store) == UNITS - 1
    wait_until("the unit in a later run", lambda: commits(store) == UNITS)
    deploy(config)
