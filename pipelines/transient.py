"""Which errors may pass by themselves, so that what met them is worth another try."""

import errno

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EAGAIN, errno.ENETUNREACH}
    | {errno.EHOSTUNREACH, errno.EINTR, errno.EBUSY}
)
"""I/O errors that may pass by themselves; a damaged file, a full disk or a refused permission does not."""


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is an I/O error that may pass."""
    while error is not None:
        if isinstance(error, TimeoutError | ConnectionError):
            return True
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return True
        error = error.__cause__
    return False
