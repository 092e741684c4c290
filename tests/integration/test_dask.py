"""The Prefect flow on a local Dask cluster: the same store as threads make, and an orderly end on Ctrl-C."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.store import CueStore
from storage.verify import verify

pytestmark = pytest.mark.slow


def test_dask_makes_the_store_that_threads_make(
    occflow: Callable[..., "subprocess.CompletedProcess[str]"], config_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.zarr"
    by_dask = occflow("cues", config_file, "--runner", "dask")
    assert by_dask.returncode == 0, by_dask.stderr
    assert occflow("cues", config_file, "--runner", "plain", "--store", other).returncode == 0
    digests = [
        {(str(r.unit), shard.key): shard.sha256 for r in CueStore.open(path).records() for shard in r.shards}
        for path in (config_file.with_name("store.zarr"), other)
    ]
    assert digests[0] == digests[1]


def test_ctrl_c_reaches_the_command_but_not_its_workers(
    occflow_process: Callable[..., "subprocess.Popen[str]"], config_file: Path
) -> None:
    store = config_file.with_name("store.zarr")
    process = occflow_process("cues", config_file, "--runner", "dask")
    deadline = time.monotonic() + 100
    while not (store / "commits" / "init--00--00000.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode in (0, 130), err
    assert "Traceback" not in err
    assert "units committed" in out
    assert verify(store) == []
