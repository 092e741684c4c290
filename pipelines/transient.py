"""Which errors may pass by themselves, and another try for what met them."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.config import RunnerConfig

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EAGAIN, errno.ENETUNREACH}
    | {errno.EHOSTUNREACH, errno.EINTR, errno.EBUSY}
)
"""I/O errors that may pass by themselves; a damaged file, a full disk or a refused permission does not."""

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is an I/O error that may pass."""
    while error is not None:
        if isinstance(error, TimeoutError | ConnectionError):
            return True
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return True
        error = error.__cause__
    return False


def retried(
    attempt: Callable[[], ResultT], name: str, runner: RunnerConfig, kind: type[Exception] = Exception
) -> ResultT:
    """What `attempt` returns, tried again after errors of a kind that may pass: `runner.retries` times, `retry_wait_s`
    apart. `name` is for the log. Raises what the last attempt does."""
    for left in range(runner.retries, 0, -1):
        try:
            return attempt()
        except kind as error:
            if not is_transient(error):
                raise
            log.warning("%s: %s; %d more attempts", name, error, left)
            time.sleep(runner.retry_wait_s)
    return attempt()
