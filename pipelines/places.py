"""Where units are made: threads here, a local Dask cluster, or the one at an address; GPU units where a GPU is.

Prefect's tasks stay in the process of the flow and each hands its units to plain Dask, because a Prefect task that runs
on a worker costs it a quarter of a second of CPU (docs/cluster.md); so workers need no way to the Prefect server.

On Dask a GPU is a resource, as in `dask worker ADDRESS --resources GPU=1`. As soon as a run has units for GPUs, the
others ask for the resource CPU, because Dask would hand a unit that asks for nothing to a GPU's worker as well.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Protocol

from distributed import CancelledError, Client, KilledWorker, Nanny, Scheduler, SpecCluster

from pipelines.batches import Batch, ClusterLost, Outcome, WorkerLost
from pipelines.config import ConfigError, CuesConfig, RunnerConfig, absolute
from pipelines.extract import extract_units
from pipelines.plan import Plan

AHEAD = 2
"""Batches in the making per worker thread: one at work and one on the way, so that none waits for the flow."""
LOOK_AGAIN_S = 5.0
"""How old the list of a cluster's workers may be."""
FIRST_WORKER_S = 60.0
"""How long a cluster may take to show its first worker."""
OTHER_WORKERS_S = 15.0
"""How long, after the first, workers may take to offer all that the cues ask for."""

_INSTALLED = f"__import__('importlib.util').util.find_spec({__name__.partition('.')[0]!r}) is not None"
"""An expression, whether a worker has this package. As text: a function from here would end a worker that has not."""
_NAMED = 5
"""Workers that a message names."""


class Place(Protocol):
    """Makes batches; `threads` is how many the flow may have at work or waiting for an answer."""

    threads: int

    def width(self, gpu: bool) -> int:
        """How many batches may be in the making at once, of units for GPUs or of others."""
        ...

    def make(self, config: CuesConfig, batch: Batch, run: str) -> list[Outcome]:
        """As `extract_units`, wherever that is; returns when it is done.

        Raises:
            WorkerLost: one process after another died of it.
        ClusterLost: the cluster's scheduler is gone.
        """
        ...


@contextmanager
def place_for(config: RunnerConfig, work: Plan) -> Iterator[Place]:
    """The place that the configuration names, checked for what the open units of a plan ask for.

    Raises:
        ConfigError: no worker, one without this package, no GPU for a unit that needs one, or no worker for units that
            need none.
    """
    if config.kind == "threads":
        yield Threads(config.workers)
    elif config.scheduler is not None:
        with _client(config.scheduler) as client:
            yield Dask(client, work, config.scheduler)
    else:
        with _local_cluster(config.workers, _gpus(work)) as address, _client(address) as client:
            yield Dask(client, work, address)


@dataclass
class Threads:
    """The threads of the flow themselves; units for a GPU one at a time, since a process keeps one of each model."""

    threads: int

    def width(self, gpu: bool) -> int:
        """See Place."""
        return 1 if gpu else AHEAD * self.threads

    def make(self, config: CuesConfig, batch: Batch, run: str) -> list[Outcome]:
        """See Place."""
        return extract_units(config, batch, run)


class Dask:
    """Workers of a Dask cluster, by what they offer."""

    threads = sys.maxsize

    def __init__(self, client: Client, work: Plan, address: str) -> None:
        self._client, self._address = client, address
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError:
            raise ConfigError(
                f"the Dask scheduler at {address} has no worker; start some: dask worker {address} --nthreads 1"
            ) from None
        except OSError as error:
            raise _nobody_at(address, error) from error
        check_installed(client.run(eval, _INSTALLED, on_error="return"), address)
        self._by_resource = any(item.gpu for item in work.open)
        self._look()
        deadline = time.monotonic() + OTHER_WORKERS_S
        while self._by_resource:
            try:
                check_offers(self._workers, work, address)
                return
            except ConfigError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)
            self._look()

    def width(self, gpu: bool) -> int:
        """See Place."""
        if time.monotonic() - self._looked > LOOK_AGAIN_S:
            with contextlib.suppress(OSError):  # batches in the making will tell that the scheduler is lost
                self._look()
        return AHEAD * slots(self._workers, gpu, self._by_resource)

    def make(self, config: CuesConfig, batch: Batch, run: str) -> list[Outcome]:
        """See Place."""
        resources = ({"GPU": 1} if batch[0].gpu else {"CPU": 1}) if self._by_resource else None
        config = absolute(config)  # a worker has a working folder of its own
        try:
            return self._client.submit(extract_units, config, batch, run, resources=resources, pure=False).result()
        except KilledWorker as error:
            raise WorkerLost(
                f"{', '.join(item.name for item in batch)}: every worker that tried died, {error.last_worker} last. "
                "Mostly that is memory: give workers more (dask worker --memory-limit), or let fewer share a machine; "
                "the worker's own log says more"
            ) from error
        except (CancelledError, OSError) as error:
            # Dask's CancelledError is no Exception: Prefect would take it for the end of the process.
            said = " ".join(str(error).split())
            raise ClusterLost(
                f"the Dask scheduler at {self._address} is lost ({type(error).__name__}: {said}); what is committed "
                "stays. Start a scheduler and workers, then the same command again"
            ) from error

    def _look(self) -> None:
        self._workers: Mapping[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        self._looked = time.monotonic()


def slots(workers: Mapping[str, Any], gpu: bool, by_resource: bool) -> int:
    """Units that these workers make at once. Never 0: what is submitted waits for a worker that is on its way."""
    if not by_resource:
        return max(1, sum(worker["nthreads"] for worker in workers.values()))
    name = "GPU" if gpu else "CPU"
    return max(1, sum(min(worker["nthreads"], int(worker["resources"].get(name, 0))) for worker in workers.values()))


def check_installed(found: Mapping[str, Any], address: str) -> None:
    """Raise a ConfigError that names the workers of a scheduler which have not got this package.

    A unit that is sent there ends the worker and goes to the next one, until no worker is left.

    Args:
        found: by a worker's address what `_INSTALLED` is there; an exception of one that has gone meanwhile.
        address: of the scheduler.
    """
    without = sorted(worker for worker, installed in found.items() if installed is False)
    if without:
        raise ConfigError(
            f"{len(without)} of the {len(found)} workers at {address} have no occflow: {', '.join(without[:_NAMED])}"
            f"{', ...' if len(without) > _NAMED else ''}; install it where they run (pip install -c constraints.txt .) "
            "and start them again, from that environment"
        )


def check_offers(workers: Mapping[str, Any], work: Plan, address: str) -> None:
    """Raise a ConfigError unless workers offer GPU, and CPU for the open units that need none."""
    for gpu, name in ((True, "GPU"), (False, "CPU")):
        waiting = sorted({item.unit.cue for item in work.open if item.gpu is gpu})
        if not waiting or any(worker["resources"].get(name, 0) >= 1 for worker in workers.values()):
            continue
        why = "need a GPU" if gpu else "must not take the place of cues that need a GPU"
        visible = "CUDA_VISIBLE_DEVICES=0 " if gpu else ""
        raise ConfigError(
            f"cues {', '.join(waiting)} {why}, and none of the {len(workers)} workers at {address} offers the resource "
            f"{name}; start one: {visible}dask worker {address} --nthreads 1 --resources {name}=1"
        )


def _client(address: str) -> Client:
    try:
        return Client(address, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise _nobody_at(address, error) from error


def _nobody_at(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"runner.scheduler = {address!r}: no Dask scheduler answers there ({error}); start one with `dask scheduler` "
        "and give the address that it prints, such as tcp://HOST:8786"
    )


def _gpus(work: Plan) -> list[str]:
    """CUDA_VISIBLE_DEVICES of a worker for each GPU of this machine; empty where the plan needs none.

    Raises:
        ConfigError: units need a GPU and there is none.
    """
    waiting = sorted({item.unit.cue for item in work.open if item.gpu})
    if not waiting:
        return []
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            f"cues {', '.join(waiting)} need a GPU, and torch {torch.__version__} sees none here; run on a cluster "
            "(--scheduler ADDRESS), or set the cues' own device to cpu"
        )
    listed = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return listed[:count] or [str(n) for n in range(count)]


@contextmanager
def _local_cluster(workers: int, gpus: list[str]) -> Iterator[str]:
    """Processes of one thread: one per GPU, and `workers` others; the scheduler's address."""
    cpu = {"nthreads": 1, "resources": {"CPU": 1}}
    spec = {f"cpu-{n}": {"cls": Nanny, "options": dict(cpu)} for n in range(workers)}
    for gpu in gpus:
        options = {"nthreads": 1, "resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": gpu}}
        spec[f"gpu-{gpu}"] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0"}}
    # Signals of the terminal or the batch system reach a whole process group; workers must not die of them while
    # this process finishes what is in the making. A blocked signal stays blocked in what this thread starts.
    # (multiprocessing unblocks these two when it starts its resource tracker, so that comes first.)
    resource_tracker.ensure_running()
    ours = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        cluster = SpecCluster(scheduler=scheduler, workers=spec, silence_logs=50)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
    with cluster:
        yield cluster.scheduler_address
