"""SIGTERM as a request: noted at any moment of a run, heeded between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop; itself the signal's handler."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.made = True

    def listen(self) -> None:
        """Take SIGTERM over. Does nothing outside the main thread, where Python allows no handler."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self)


@contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """A request that SIGTERM makes, from here to the end of the block; then the handler of before is back."""
    before = signal.getsignal(signal.SIGTERM)
    request = StopRequest()
    request.listen()
    try:
        yield request
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
