"""Dask workers of a cluster that are killed at random moments of real extractions, again and again."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from storage.verify import verify
from tests.integration import traced_cue
from tests.integration.contents import chunks, visible
from tests.integration.servers import Cluster, PrefectServer, Processes

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("OCCFLOW_WORKER_KILLS", "10"))
WORKERS = 3
A_RUN = 3
"""Kills in a run at most: Dask gives a unit up that was beside four of them."""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path)
    path = os.pathsep.join([traced_cue.register(tmp_path), str(tmp_path), running.environment["PYTHONPATH"]])
    running.environment["PYTHONPATH"] = path
    yield running
    running.close()


def slowed(config: Path) -> Path:
    """The configuration with a third of a second more for each unit of flow."""
    values = yaml.safe_load(config.read_text())
    values["cues"]["flow_next"] |= {"backend": "slow", "seconds": 0.3}
    config.write_text(yaml.safe_dump(values))
    return config


def test_killed_at_random_moments(
    occflow_process: Callable[..., "subprocess.Popen[str]"], processes: Processes, long_config_file: Path
) -> None:
    """The run whose workers die ends well by itself; nothing committed is lost at any kill; the store is the same."""
    config, draw = slowed(long_config_file), random.Random(3)
    whole, store = config.with_name("whole.zarr"), config.with_name("killed.zarr")
    server, cluster = PrefectServer(processes), Cluster(processes)
    nannies = [cluster.worker() for _ in range(WORKERS)]
    known = {"PYTHONPATH": processes.environment["PYTHONPATH"], "PREFECT_API_URL": server.url}

    plain = occflow_process("cues", config, "--runner", "plain", "--workers", 4, "--store", whole, **known)
    out, err = plain.communicate(timeout=300)
    assert plain.returncode == 0, out + err
    expected, content = visible(whole), chunks(whole)

    kills = partial = runs = 0
    while kills < KILLS:
        for nanny in nannies:
            cluster.pid(nanny)
        run = occflow_process("cues", config, "--scheduler", cluster.address, "--store", store, **known)
        here = 0
        while run.poll() is None and here < A_RUN:
            time.sleep(draw.uniform(0, 1.5))
            before = visible(store)
            if not before or len(before) == len(expected):
                continue
            victim = psutil.Process(cluster.pid(draw.choice(nannies)))
            victim.send_signal(signal.SIGKILL)
            psutil.wait_procs([victim], timeout=30)
            after = visible(store)
            assert before.items() <= after.items(), "a unit that was committed is lost, or another one"
            assert after.items() <= expected.items(), "a unit that is visible is not what it should be"
            here += 1
            partial += len(after) < len(expected)
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, out + err
        assert visible(store) == expected
        assert chunks(store) == content
        assert verify(store) == []
        shutil.rmtree(store)
        kills, runs = kills + here, runs + 1
        print(f"{kills} workers killed in {runs} runs, {partial} while units were left to make", flush=True)
    assert partial > KILLS // 2, "too few kills came before all was made: the moments are wrong"
