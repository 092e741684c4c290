"""Blocks of zero bytes inside raw files: what a disk or a broken copy leaves where data was to be, and decoders take.

Longest runs of zero bytes in sound files: 7 in a real nuScenes scan, 5 in ten of KITTI; 2 in six real nuScenes JPEGs,
6 in 660 synthetic ones. PNG files carry checksums and need none of this (their sound runs reach 66).
"""

from collections.abc import Iterator

JPEG_RUN = 64
LIDAR_RUN = 512
"""Bytes, a sector of a disk: 32 of KITTI's points or 25 of nuScenes', whose ring numbers alone are never all zero."""

_START_OF_SCAN, _PROGRESSIVE, _HUFFMAN = 0xDA, 0xC2, 0xC4


def zeros_in_lidar(data: bytes) -> int | None:
    """Where the first run of zero bytes starts that no scan of returns has, None where there is none."""
    return _first(data, LIDAR_RUN, 0, len(data))


def zeros_in_jpeg(data: bytes) -> int | None:
    """The same for the coded pixels of a JPEG file.

    A decoder makes texture of zeros: in the usual table for brightness an all-zero code is a coefficient of 1. Where
    it is "no more coefficients" in all tables, as it may be in those made for one image, zeros are a plain area;
    nothing is said of such a file, nor of a progressive one.
    """
    plain: list[bool] = []
    for marker, start, end in _segments(data):
        if marker == _PROGRESSIVE:
            return None
        if marker == _HUFFMAN:
            plain += _ends_blocks_by_zeros(data[start:end])
        if marker == _START_OF_SCAN:
            return None if plain and all(plain) else _first(data, JPEG_RUN, end, data.rfind(b"\xff\xd9"))
    return None


def _first(data: bytes, length: int, start: int, end: int) -> int | None:
    found = data.find(bytes(length), start, end)
    return None if found < 0 else found


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, first byte and end of the content of every segment of a header, the start of the scan being the last."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, end
        if marker == _START_OF_SCAN:
            return
        at = end


def _ends_blocks_by_zeros(tables: bytes) -> Iterator[bool]:
    """Of every table for AC coefficients, whether its first symbol, whose code is all zeros, is the end of a block."""
    at = 0
    while at + 17 < len(tables):
        if tables[at] >> 4 == 1:
            yield tables[at + 17] == 0
        at += 17 + sum(tables[at + 1 : at + 17])
