"""What a cluster offers and what a plan asks for; a process's models and workbench."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipelines import models
from pipelines.batches import Batch, Outcome, WorkerLost
from pipelines.config import ConfigError, CuesConfig, load_config
from pipelines.places import _INSTALLED, Dask, check_installed, check_offers, slots
from pipelines.plan import Plan, Work
from pipelines.workbench import workbench
from storage.layout import UnitId

ConfigMaker = Callable[..., CuesConfig]
CPU, GPU = Work(UnitId("images", "s")), Work(UnitId("masks", "s"), gpu=True)
WORKERS = {
    "a": {"nthreads": 1, "resources": {"GPU": 1.0}},
    "b": {"nthreads": 4, "resources": {"CPU": 2.0}},
    "c": {"nthreads": 2, "resources": {}},
}


def test_slots_by_threads_and_by_resource() -> None:
    assert slots(WORKERS, False, by_resource=False) == 7
    assert slots(WORKERS, True, by_resource=True) == 1
    assert slots(WORKERS, False, by_resource=True) == 2, "two of b's threads; a is a GPU's, c says nothing"
    assert slots({}, False, by_resource=False) == 1, "what is submitted waits for a worker"


def test_what_is_asked_for_has_to_be_offered() -> None:
    both = Plan((CPU, GPU), {})
    check_offers(WORKERS, both, "tcp://h:1")
    with pytest.raises(ConfigError, match=r"masks need a GPU.*2 workers.*--resources GPU=1"):
        check_offers({"b": WORKERS["b"], "c": WORKERS["c"]}, both, "tcp://h:1")
    with pytest.raises(ConfigError, match=r"images must not take the place.*--resources CPU=1"):
        check_offers({"a": WORKERS["a"], "c": WORKERS["c"]}, both, "tcp://h:1")
    check_offers({"a": WORKERS["a"]}, Plan((GPU,), {}), "tcp://h:1")


class Client:
    """As much of Dask's client as a place uses."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[Any] = []
        self.configs: list[CuesConfig] = []

    def wait_for_workers(self, count: int, timeout: float) -> None:
        """There are some."""

    def run(self, function: Any, expression: str, *, on_error: str) -> dict[str, Any]:
        """What each of WORKERS answers, all being like this process; one has gone meanwhile."""
        return {name: function(expression) for name in WORKERS} | {"d": OSError("gone")}

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        """WORKERS."""
        return {"workers": WORKERS}

    def submit(self, function: Any, config: Any, batch: Batch, run: str, *, resources: Any, pure: bool) -> "Client":
        """Note what was asked for."""
        assert not pure, "the same unit may have to be made twice"
        self.asked.append(resources)
        self.configs.append(config)
        return self

    def result(self) -> list[Outcome]:
        """Nothing, or the error."""
        if self.error is not None:
            raise self.error
        return []


def test_a_worker_without_this_package_is_named() -> None:
    check_installed({"tcp://h:2": True, "tcp://h:3": OSError("gone")}, "tcp://h:1")
    with pytest.raises(ConfigError, match=r"1 of the 2 workers at tcp://h:1 have no occflow: tcp://h:3; install it"):
        check_installed(
            {"tcp://h:2": True, "tcp://h:3": eval(_INSTALLED.replace("pipelines", "pipelinez"))}, "tcp://h:1"
        )


def test_resources_are_asked_for_when_there_is_work_for_gpus(cues_config: ConfigMaker) -> None:
    client: Any = Client()
    with_gpu, without = Dask(client, Plan((CPU, GPU), {}), "a"), Dask(client, Plan((CPU,), {}), "a")
    for place, item in ((with_gpu, CPU), (with_gpu, GPU), (without, CPU)):
        place.make(cues_config(), (item,), "run")
    assert client.asked == [{"CPU": 1}, {"GPU": 1}, None]
    assert (with_gpu.width(True), with_gpu.width(False), without.width(False)) == (2, 4, 14)


def test_a_relative_path_is_the_callers_on_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's working folder is its own: a store made there would be nowhere to be found here."""
    monkeypatch.chdir(tmp_path)
    client: Any = Client()
    config = load_config("demo", {"dataset.root": "log", "store": "store.zarr"})
    Dask(client, Plan((CPU,), {}), "a").make(config, (CPU,), "run")
    (sent,) = client.configs
    assert (sent.dataset.root, sent.store) == (tmp_path / "log", tmp_path / "store.zarr")


def test_dead_workers_are_told_in_words(cues_config: ConfigMaker) -> None:
    from distributed import KilledWorker

    client: Any = Client(KilledWorker("key", "tcp://h:2", 3))
    with pytest.raises(WorkerLost, match=r"images--s--00000: every worker that tried died.*memory"):
        Dask(client, Plan((CPU,), {}), "a").make(cues_config(), (CPU,), "run")


@dataclass(frozen=True)
class Modelled:
    """An extractor as far as keeping goes."""

    threshold: float = 0.5
    loads_model: ClassVar[bool] = True
    name: ClassVar[str] = "masks"
    weights: ClassVar[str] = "first"

    def config_digest(self) -> str:
        """Of the content of the weights, which no parameter tells."""
        return self.weights


def test_a_process_keeps_one_instance_per_parameters() -> None:
    models._kept.clear()
    seen: Any = []
    for threshold in (0.5, 0.5, 0.7, 0.5):
        with models.in_turn(Modelled(threshold)) as kept:  # type: ignore[arg-type]
            seen.append(kept)
    assert seen[0] is seen[1] is seen[3]
    assert seen[2].threshold == 0.7
    for threshold in range(models.KEPT):
        with models.in_turn(Modelled(threshold)):  # type: ignore[arg-type]
            pass
    with models.in_turn(Modelled(0.5)) as renewed:  # type: ignore[arg-type]
        assert renewed is not seen[0], "the least recently used was let go"


def test_weights_replaced_between_two_runs_are_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    models._kept.clear()
    with models.in_turn(Modelled()) as first:  # type: ignore[arg-type]
        pass
    monkeypatch.setattr(Modelled, "weights", "second")
    second = Modelled()
    with models.in_turn(second) as kept:  # type: ignore[arg-type]
        assert kept is second is not first


def test_threads_take_turns_at_a_model_and_at_nothing_else() -> None:
    @dataclass(frozen=True)
    class Plain:
        threshold: float = 0.5

    def together(extractor: Any) -> int:
        inside, most = 0, 0
        guard = threading.Lock()

        def use() -> None:
            nonlocal inside, most
            with models.in_turn(extractor):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.05)
                with guard:
                    inside -= 1

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return most

    models._kept.clear()
    assert together(Modelled()) == 1
    assert together(Plain()) > 1


def test_another_run_looks_at_the_disk_anew(cues_config: ConfigMaker) -> None:
    planned = workbench(cues_config(), fresh=True)
    assert workbench(cues_config(), run="a") is planned, "the run that was planned here goes on with what is known"
    assert workbench(cues_config()) is planned
    assert workbench(cues_config(), run="a") is planned
    assert workbench(cues_config(), run="b") is not planned
