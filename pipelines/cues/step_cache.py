"""Step flows along a film, kept for a while: the film to the next keyframe is, backwards, that to the previous one."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

Film = Sequence[UInt8[np.ndarray, "height width 3"]]
Steps = list[Float[np.ndarray, "2 height width"]]
"""Flow of each image of a film to the next."""


class StepCache:
    """Least recently used films up to a number of bytes, known by their content; safe for threads.

    Two threads that ask for one film at once make it once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, tuple[Steps, Steps]] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def both_ways(self, film: Film, settings: str, make: Callable[[Film], Steps]) -> tuple[Steps, Steps]:
        """`make(film)` and `make(film[::-1])`, made now or kept. `settings` tells makers apart."""
        marks = [hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest() for image in film]
        turned = marks[::-1] < marks
        key = " ".join([settings, *(marks[::-1] if turned else marks)])
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                found = self._kept.get(key)
            if found is None:
                there, back = make(film), make(film[::-1])
                found = (back, there) if turned else (there, back)
                self._keep(key, found)
        return found[::-1] if turned else found

    def _keep(self, key: str, steps: tuple[Steps, Steps]) -> None:
        with self._lock:
            self._kept[key] = steps
            self._making.pop(key, None)
            sizes = {name: sum(flow.nbytes for way in kept for flow in way) for name, kept in self._kept.items()}
            total = sum(sizes.values())
            while total > self.limit:
                name, _ = self._kept.popitem(last=False)
                total -= sizes[name]
