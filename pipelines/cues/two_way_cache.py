"""Flows of a film both ways, kept for a while: flow to the next keyframe is, backwards, that to the previous one."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from pipelines.cues.protocols import FlowField

BothWays = tuple[FlowField, FlowField]


def film_key(film: Sequence[UInt8[np.ndarray, "height width 3"]], settings: str) -> tuple[str, bool]:
    """What a film and its reverse are kept under, and whether this one is the reverse. `settings` tells makers apart.

    A film is known by its content. Whoever makes the answer takes the film in the order that is not the reverse: then
    it has the same bytes whichever way was asked for first.
    """
    marks = [hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest() + str(image.shape) for image in film]
    turned = marks[::-1] < marks
    return " ".join([settings, *(marks[::-1] if turned else marks)]), turned


class TwoWayCache:
    """Answers to films, least recently used first out beyond `limit` bytes; safe for threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, BothWays] = OrderedDict()
        self._bytes = 0
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> BothWays | None:
        """The answer, if it is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, answer: BothWays) -> None:
        """Keep an answer, unless there is one."""
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = answer
            self._bytes += _size(answer)
            while self._bytes > self.limit:
                self._bytes -= _size(self._kept.popitem(last=False)[1])

    def once(self, key: str, make: Callable[[], BothWays]) -> BothWays:
        """The kept answer, or `make()`: two threads that ask for one film at once make it once."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        try:
            with making:
                found = self.get(key)
                if found is None:
                    found = make()
                    self.put(key, found)
        finally:
            with self._lock:
                self._making.pop(key, None)
        return found


def _size(answer: BothWays) -> int:
    return sum(way.flow.nbytes + way.confidence.nbytes for way in answer)
