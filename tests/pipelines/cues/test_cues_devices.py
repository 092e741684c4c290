"""Networks that the slots of a flow share are loaded once, whoever asks first."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipelines.config import ConfigError
from pipelines.cues.devices import loaded_once, pick_device


def test_two_threads_that_ask_at_once_load_once() -> None:
    loads: list[str] = []
    both = threading.Barrier(2)

    @loaded_once
    def load(name: str) -> object:
        loads.append(name)
        time.sleep(0.05)  # long enough for the other thread to come by
        return object()

    def ask(name: str) -> object:
        both.wait(5)
        return load(name)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, ["a", "a"])
    assert first is second
    assert loads == ["a"]
    assert load("b") is not first
    load.cache_clear()
    assert load("a") is not first
    assert loads == ["a", "b", "a"]


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "", "GPU0"])
def test_a_device_of_no_known_name_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}': expected auto, cpu, cuda"):
        pick_device(name)


def test_a_device_that_is_not_here_is_told() -> None:
    assert pick_device("cpu").type == "cpu"
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match=r"device 'mps': torch \S+ cannot use it here"):
            pick_device("mps")
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=f"device '{beyond}': torch"):
        pick_device(beyond)
