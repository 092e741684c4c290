"""`occflow cues` on an external Dask scheduler: GPU workers, models, killed workers, refusals."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.store import CueStore
from storage.verify import verify
from tests.integration import traced_cue
from tests.integration.servers import Cluster, Processes, empty_cue, wait_until

pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SCENES, KEYFRAMES = 2, 6


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    cue = empty_cue()
    cue.register(tmp_path)
    path = os.pathsep.join([traced_cue.register(tmp_path), cue.environment(tmp_path)["PYTHONPATH"]])
    running = Processes(tmp_path, PYTHONPATH=path)
    yield running
    running.close()


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """A function from parameters of the cues masks and flow_aux (None to leave out) to a configuration file."""

    def write(masks: dict[str, Any] | None, flow: dict[str, Any] | None, **changes: Any) -> Path:
        values = empty_cue().config_values(tmp_path, SCENES, KEYFRAMES, {"workers": 2})
        common = {"backend": "traced", "trace": str(tmp_path / "trace")}
        given = {"masks": masks, "flow_aux": flow}
        values["cues"] = {name: common | own for name, own in given.items() if own is not None}
        path = tmp_path / "cues.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


@pytest.fixture
def cues(occflow: Run, processes: Processes) -> Run:
    """A function that runs `occflow cues` knowing the log and the cues."""

    def run(config: Path, *options: str) -> "subprocess.CompletedProcess[str]":
        return occflow("cues", config, *options, PYTHONPATH=processes.environment["PYTHONPATH"])

    return run


def test_units_go_where_they_belong_and_models_are_loaded_once(
    cues: Run, processes: Processes, config: Callable[..., Path], tmp_path: Path
) -> None:
    cluster = Cluster(processes)
    gpu = cluster.worker("--resources", "GPU=1")
    others = [cluster.worker("--resources", "CPU=1") for _ in range(2)]
    path = config({}, {"seconds": 0.1})
    pids = {"masks": {cluster.pid(gpu)}, "flow_aux": {cluster.pid(worker) for worker in others}}
    for scene in ("0000", "0001"):  # two runs: workers, and the models in them, outlive both
        done = cues(path, "--scheduler", cluster.address, "--scenes", scene)
        assert done.returncode == 0, done.stderr
    lines = traced_cue.read(tmp_path / "trace")
    for cue, allowed in pids.items():
        assert {line.process for line in lines if line.cue == cue} <= allowed
    assert [line.process for line in lines if line.cue == "masks" and line.what == "load"] == list(pids["masks"])
    assert set(traced_cue.began(tmp_path / "trace").values()) == {1}
    store = tmp_path / "store.zarr"
    assert len(list(CueStore.open(store).records())) == SCENES * (1 + 2 * KEYFRAMES)
    assert verify(store) == []


def test_raw_files_that_changed_between_runs_are_read_anew(
    occflow: Run, processes: Processes, config_file: Path
) -> None:
    cluster = Cluster(processes)
    cluster.worker()
    store = config_file.with_name("store.zarr")
    command = ("cues", config_file, "--scheduler", cluster.address, "--scenes", "00")
    assert occflow(*command).returncode == 0
    image = config_file.parent / "log" / "sequences" / "00" / "image_2" / "000000.png"
    other = image.with_name("000006.png").read_bytes()
    image.write_bytes(other)
    again = occflow(*command)
    assert again.returncode == 0, again.stderr
    assert "17 units committed" in again.stdout
    assert "0 units committed (0.0 MB), 17 were current" in occflow(*command).stdout
    assert verify(store) == []


def test_a_killed_worker_costs_the_unit_it_was_at(
    cues: Run, processes: Processes, config: Callable[..., Path], tmp_path: Path
) -> None:
    cluster = Cluster(processes)
    for _ in range(2):
        cluster.worker()
    path = config(None, {"seconds": 0.2, "deadly": "0001-3"})
    done = cues(path, "--scheduler", cluster.address)
    assert done.returncode == 0, done.stderr
    times = traced_cue.began(tmp_path / "trace")
    assert times.pop("flow_aux 0001-3") == 2
    assert len(times) == SCENES * KEYFRAMES - 1
    assert set(times.values()) == {1}
    assert len(list(CueStore.open(tmp_path / "store.zarr").records())) == SCENES * (1 + KEYFRAMES)
    assert verify(tmp_path / "store.zarr") == []


def test_a_unit_that_kills_every_worker_is_named_and_costs_no_other(
    cues: Run, processes: Processes, config: Callable[..., Path], tmp_path: Path
) -> None:
    cluster = Cluster(processes, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")
    for _ in range(2):
        cluster.worker()
    path = config(None, {"seconds": 0.1, "deadly": "0001-3", "deaths": 99}, on_error="skip")
    done = cues(path, "--scheduler", cluster.address)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 failed" in done.stdout
    assert "flow_aux--0001--00003: every worker that tried died" in done.stdout
    assert "--memory-limit" in done.stdout
    assert len(list(CueStore.open(tmp_path / "store.zarr").records())) == SCENES * (1 + KEYFRAMES) - 1
    assert verify(tmp_path / "store.zarr") == []


def test_a_lost_scheduler_is_told_and_the_next_run_goes_on(
    cues: Run, occflow_process: Callable[..., "subprocess.Popen[str]"], processes: Processes,
    config: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    cluster = Cluster(processes)
    cluster.worker()
    path, store = config(None, {"seconds": 1.0}), tmp_path / "store.zarr"
    known = {"PYTHONPATH": processes.environment["PYTHONPATH"], "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
    process = occflow_process("cues", path, "--scheduler", cluster.address, **known)
    wait_until("two commits", lambda: len(list((store / "commits").glob("flow_aux*"))) >= 2)
    cluster.scheduler.kill()
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1, out
    assert f"the Dask scheduler at {cluster.address} is lost" in err.splitlines()[-1]
    done = len(list((store / "commits").glob("*--*.json")))
    assert done < SCENES * (1 + KEYFRAMES)
    rest = cues(path, "--runner", "plain")
    assert rest.returncode == 0, rest.stderr
    assert verify(store) == []


def test_what_no_worker_offers_is_refused(cues: Run, processes: Processes, config: Callable[..., Path]) -> None:
    cluster = Cluster(processes)
    cluster.worker()
    path = config({}, {})
    refused = cues(path, "--scheduler", cluster.address)
    assert refused.returncode == 2
    assert f"CUDA_VISIBLE_DEVICES=0 dask worker {cluster.address} --nthreads 1 --resources GPU=1" in refused.stderr
    cluster.worker("--resources", "GPU=1")
    wait_until("the second worker", lambda: cues_refused_for_cpu(cues(path, "--scheduler", cluster.address)))
    nobody = cues(path, "--scheduler", "tcp://127.0.0.1:9")
    assert nobody.returncode == 2
    assert "no Dask scheduler answers" in nobody.stderr


def cues_refused_for_cpu(done: "subprocess.CompletedProcess[str]") -> bool:
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    return "offers the resource CPU" in done.stderr
