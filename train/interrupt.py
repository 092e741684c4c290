"""SIGTERM, or the end of a time budget, as a request: noted at any moment of a run, heeded between two steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop; itself the signal's handler.

    Args:
        deadline: moment of `time.monotonic` from which on it counts as asked.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._signalled = False

    @property
    def made(self) -> bool:
        """Whether to stop."""
        return self._signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def listen(self) -> None:
        """Take SIGTERM over. Does nothing outside the main thread, where Python allows no handler."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self)


@contextmanager
def stop_on_sigterm(deadline: float | None = None) -> Iterator[StopRequest]:
    """A request that SIGTERM makes, from here to the end of the block; then the handler of before is back."""
    before = signal.getsignal(signal.SIGTERM)
    request = StopRequest(deadline)
    request.listen()
    try:
        yield request
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
