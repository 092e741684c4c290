"""crc32c by the quickest library that is installed; they differ in nothing else.

Measured on one core with 400 kB: awscrt 48 GB/s, crc32c 19 GB/s, google-crc32c 5.5 GB/s, where decoding a chunk takes
1 to 3 GB/s. google-crc32c is what zarr itself needs, so it is always there.
"""

import struct
from collections.abc import Callable

import numpy as np

RESIDUE = 0x48674BC7
"""crc32c of any message followed by its own little-endian crc32c; checking so spares a copy of the message."""
Buffer = bytes | memoryview | np.ndarray


def _awscrt() -> Callable[[Buffer], int]:
    from awscrt.checksums import crc32c

    return crc32c


def _crc32c() -> Callable[[Buffer], int]:
    from crc32c import crc32c

    return crc32c


def _google() -> Callable[[Buffer], int]:
    import google_crc32c

    # As an array: this library takes no memoryview.
    return lambda data: google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8))


LIBRARIES = {"awscrt": _awscrt, "crc32c": _crc32c, "google-crc32c": _google}
"""Loaders by name of the package, quickest first."""


def _quickest() -> tuple[str, Callable[[Buffer], int]]:
    for name, load in LIBRARIES.items():
        try:
            return name, load()
        except ImportError:
            continue
    raise ImportError("no library for crc32c: pip install google-crc32c")


LIBRARY, crc32c = _quickest()
"""Name of the package in use, and the checksum of bytes, unsigned."""


def checksum(data: Buffer) -> bytes:
    """crc32c as the four bytes that follow a chunk."""
    return struct.pack("<I", crc32c(data))


def intact(data: Buffer) -> bool:
    """Whether data ends in its own crc32c."""
    return len(data) >= 4 and crc32c(data) == RESIDUE
