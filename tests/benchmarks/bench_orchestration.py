"""What a unit of work costs beside its own work: `python tests/benchmarks/bench_orchestration.py`.

A cue that labels nothing is extracted in 100, 1,000 and 10,000 units of one keyframe (and one init unit per hundred),
on plain threads, on Prefect's threads and on Prefect over two Dask processes; with Prefect one task per unit and, as
`occflow cues` does it, units batched into tasks of half a second. The commit of a unit is part of every row: put the
stores where there is no disk to wait for (`--folder /dev/shm`) to see the orchestrator.

Columns: units (with the init units), seconds of the whole run, of these until the first unit was committed (processes,
Prefect's run), milliseconds per unit after that, CPU milliseconds per unit of all processes together, the peak memory
of the process that runs the flow, and of all its children.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import empty_cue
import psutil

MODES = ("plain", "threads", "threads, one by one", "dask", "dask, one by one")
MB = 1 << 20


class Tree(threading.Thread):
    """Watches this process and its children: peak memory, and CPU seconds of all that were seen."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own_peak = self.children_peak = 0
        self._cpu: dict[int, float] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        """Look five times a second."""
        while not self.ended.wait(0.2):
            self.look()

    def look(self) -> None:
        """Take one look."""
        own, children = psutil.Process(), 0
        for process in [own, *own.children(recursive=True)]:
            try:
                times, memory = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue
            self._cpu[process.pid] = times.user + times.system
            if process.pid == own.pid:
                self.own_peak = max(self.own_peak, memory)
            else:
                children += memory
        self.children_peak = max(self.children_peak, children)

    @property
    def cpu(self) -> float:
        """Seconds."""
        return sum(self._cpu.values())


def measure(mode: str, units: int, folder: Path) -> dict[str, float]:
    """One extraction, in this process."""
    from pipelines.config import CuesConfig
    from pipelines.extract import extract_log
    from pipelines.prefect_home import private_prefect

    runner: dict[str, Any] = {"workers": 2, "kind": "dask" if mode.startswith("dask") else "threads"}
    config = CuesConfig.model_validate(empty_cue.config_values(folder, max(1, units // 100), min(units, 100), runner))
    first: list[float] = []
    tree = Tree()

    def told(item: object, state: str) -> None:
        if state == "committed" and not first:
            first.append(time.perf_counter())

    def timed(extract: Any) -> dict[str, float]:
        tree.look()
        before, started = tree.cpu, time.perf_counter()
        tree.start()
        report = extract(config, progress=told)
        ended = time.perf_counter()
        tree.ended.set()
        tree.join()
        return {
            "units": report.committed,
            "seconds": ended - started,
            "first": first[0] - started,
            "ms": 1e3 * (ended - first[0]) / report.committed,
            "cpu_ms": 1e3 * (tree.cpu - before) / report.committed,
            "own_mb": tree.own_peak / MB,
            "children_mb": tree.children_peak / MB,
        }

    if mode == "plain":
        return timed(extract_log)
    with private_prefect():
        from pipelines import flows

        if mode.endswith("one by one"):
            flows.SHORTEST_TASK_S = 0.0
        return timed(flows.run_flow)


def main() -> None:
    """Each row in a process of its own, because peaks of memory stay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="*", default=[100, 1_000])
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES)
    parser.add_argument("--folder", type=Path, help="where stores are written; default the temporary folder")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measure(options.row[0], int(options.row[1]), options.folder)))
        return
    print(f"{'mode':22} {'units':>6} {'s':>7} {'first':>6} {'ms/unit':>8} {'CPU ms':>7} {'MB':>5} {'children':>8}")
    for mode in options.modes:
        for units in options.units:
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                empty_cue.register(Path(name))
                child = [sys.executable, __file__, "--folder", name, "--row", mode, str(units)]
                environment = os.environ | empty_cue.environment(Path(name))
                done = subprocess.run(child, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{mode:22} {row['units']:6.0f} {row['seconds']:7.1f} {row['first']:6.1f} {row['ms']:8.2f} "
                f"{row['cpu_ms']:7.2f} {row['own_mb']:5.0f} {row['children_mb']:8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
