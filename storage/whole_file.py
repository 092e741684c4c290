"""A file that appears whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path`, of the same ending, to write to; the file takes its place at the end, or is gone after an
    error. Makes the folder. Not synced: a kill leaves the old file or the new one, a power cut may not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Writers that add an ending of their own (NumPy), or choose a format by it (OpenCV, Pillow), look at this name.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
