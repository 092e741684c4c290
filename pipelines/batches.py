"""Which units can be made now, and how many of them are handed out together."""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.datasets.records import DataError
from pipelines.plan import Work
from storage.commit import CommitRecord

Batch = tuple[Work, ...]
"""Units made one after another by one task; none needs another of them, and either all want a GPU or none."""

LARGEST = 64
"""Units in a batch at most: a stop, or a progress bar, waits for whole batches."""
_NEWEST = 0.2
"""Weight of the newest measurement in the mean time of a cue's units."""


class WorkerLost(RuntimeError):
    """Process after process that made a batch died: no error of a unit's code, but the end of its process."""


class ClusterLost(RuntimeError):
    """The processes that make units can be reached no more. The message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What came of one unit: its commit record, or why it could not be made; and the seconds it took."""

    seconds: float
    record: CommitRecord | None = None
    error: DataError | WorkerLost | None = None


class ReadyUnits:
    """The open units of a plan, handed out in its order once what they need is done.

    The cost per unit does not grow with the number of units: each waits for a count of others to go down to zero.
    """

    def __init__(self, work: Sequence[Work], batch_s: float) -> None:
        self._batch_s = batch_s
        self._order = {item.name: n for n, item in enumerate(work)}
        self._items = list(work)
        self._missing: dict[str, int] = {}
        self._waiters: dict[str, list[Work]] = {}
        self._ready: dict[bool, list[int]] = {False: [], True: []}
        self._suspects: deque[Work] = deque()
        self._mean_s: dict[tuple[bool, str], float] = {}
        for item in work:
            needs = [need for need in item.needs if need in self._order]
            for need in needs:
                self._waiters.setdefault(need, []).append(item)
            if needs:
                self._missing[item.name] = len(needs)
            else:
                self._push(item)

    def __bool__(self) -> bool:
        """Whether units are left that were not handed out."""
        return bool(self._missing or self._suspects or any(self._ready.values()))

    def clear(self) -> None:
        """Forget all that were not handed out."""
        self._missing.clear()
        self._waiters.clear()
        self._suspects.clear()
        for heap in self._ready.values():
            heap.clear()

    def take(self, gpu: bool, places: int) -> Batch:
        """The next units for one of `places` free places, as many as last `batch_s`; empty when there are none.

        A place never gets more than its share of what is ready: no other place is to stand idle for it.
        """
        heap = self._ready[gpu]
        if places < 1 or not heap:
            return ()
        share = min(LARGEST, -(-len(heap) // places))
        batch: list[Work] = []
        seconds = 0.0
        while heap and len(batch) < share and (not batch or seconds < self._batch_s):
            item = self._items[heapq.heappop(heap)]
            batch.append(item)
            seconds += self._mean_s.get(_kind(item), self._batch_s)
        return tuple(batch)

    def take_suspect(self) -> Batch:
        """One of the units that were put back, for when nothing else is in the making; empty when there is none."""
        return (self._suspects.popleft(),) if self._suspects else ()

    def learn(self, item: Work, seconds: float) -> None:
        """Remember how long a unit took, for the size of the next batches."""
        before = self._mean_s.get(_kind(item), seconds)
        self._mean_s[_kind(item)] = before + _NEWEST * (seconds - before)

    def done(self, item: Work) -> None:
        """Make ready what waited for nothing but this unit."""
        for waiter in self._waiters.pop(item.name, ()):
            if waiter.name in self._missing:
                self._missing[waiter.name] -= 1
                if self._missing[waiter.name] == 0:
                    del self._missing[waiter.name]
                    self._push(waiter)

    def put_back(self, batch: Batch) -> None:
        """Keep these units for `take_suspect`: one of them, or what was made beside them, ended its process."""
        self._suspects.extend(batch)

    def drop(self, item: Work) -> Iterator[tuple[Work, str]]:
        """Take out all that is made from a failed unit, directly or not: (unit, name of the one it lacks)."""
        for waiter in self._waiters.pop(item.name, ()):
            if self._missing.pop(waiter.name, None) is not None:
                yield waiter, item.name
                yield from self.drop(waiter)

    def _push(self, item: Work) -> None:
        heapq.heappush(self._ready[item.gpu], self._order[item.name])


def _kind(item: Work) -> tuple[bool, str]:
    return item.truth, item.unit.cue
