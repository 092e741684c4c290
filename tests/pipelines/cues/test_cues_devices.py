"""Networks that the slots of a flow share are loaded once, whoever asks first."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pipelines.cues.devices import loaded_once


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
