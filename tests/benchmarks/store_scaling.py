"""Whether reading scales to the cores: the same samples read by one process, and by several at the same time."""

import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store_peers import Body, decode, one_thread
from store_samples import Sample, ours


def _work(store: Path | None, samples: Sequence[Any], passes: int, start: Any, told: Any) -> None:
    """Read samples of a store, or decode them where there is none; tells (seconds by the clock, of CPU)."""
    one_thread()
    if store is None:

        def read(number: int) -> object:
            return [decode(body) for body in samples[number]]
    else:
        read = ours(store, samples)
    for number in range(len(samples)):
        read(number)
    start.wait()
    begun = time.perf_counter(), time.process_time()
    for _ in range(passes):
        for number in range(len(samples)):
            read(number)
    told.put((time.perf_counter() - begun[0], time.process_time() - begun[1]))


def together(store: Path | None, samples: Sequence[Any], processes: int, passes: int) -> tuple[float, float]:
    """Samples per second of all, and CPU milliseconds per sample, of spawned processes that start together."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(processes), context.Queue()
    work = (store, samples, passes, start, told)
    started = [context.Process(target=_work, args=work) for _ in range(processes)]
    for process in started:
        process.start()
    found = [told.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    count = passes * len(samples)
    return sum(count / wall for wall, _ in found), 1e3 * sum(cpu for _, cpu in found) / (count * processes)


def scaling_rows(store: Path, samples: Sequence[Sample], coded: list[list[Body]], processes: int, passes: int) -> None:
    """The store and the floor by number of processes; the ratio is to the floor of as many."""
    print(f"\n{'scaling':30} {'CPU ms':>9} {'ratio':>7} {'per s':>9}")
    for count in range(1, processes + 1):
        floor = together(None, coded, count, passes)
        found = together(store, samples, count, passes)
        for name, (rate, ms) in (("floor", floor), ("this store's reader", found)):
            print(f"{f'{name}, {count} processes':30} {ms:9.2f} {ms / floor[1]:7.2f} {rate:9.1f}", flush=True)
