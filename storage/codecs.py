"""Chunk codecs: bytes to arrays and back, their zarr v3 description, and the shard format around them.

A shard (zarr v3 `sharding_indexed`) is the encoded chunks one after another, then the index: offset and length of each
chunk as little-endian uint64, then a crc32c of the index. Every chunk ends in its own crc32c: zstd alone misses 8 of 20
flipped bits, raw bytes miss all.
"""

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from storage.checksum import checksum, intact
from storage.errors import StoreDamage

EMPTY = 0xFFFFFFFFFFFFFFFF
"""Offset and length of a chunk that a shard does not hold."""

_BLOSC_SIZE_AT = 4
"""Where a blosc buffer says how many bytes it holds; its decompressor leaves a larger target partly unwritten."""
_BLOSC: dict[str, dict[str, Any]] = {
    "blosc-lz4-shuffle": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle"},
    "blosc-lz4-bitshuffle": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"},
    "blosc-zstd-shuffle": {"cname": "zstd", "clevel": 5, "shuffle": "shuffle"},
    "blosc-zstd-bitshuffle": {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle"},
}
_SHUFFLE = {"shuffle": 1, "bitshuffle": 2}
CODECS = ("raw", "zstd1", *_BLOSC)
"""The codec names an ArraySpec may carry."""


def check_codec(codec: str) -> None:
    """Raise ValueError for a name that is not in CODECS."""
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}; expected one of {', '.join(CODECS)}")


def zarr_codecs(codec: str, dtype: np.dtype) -> list[dict[str, Any]]:
    """The zarr v3 codec chain of one chunk."""
    check_codec(codec)
    chain: list[dict[str, Any]] = [{"name": "bytes"}]
    if dtype.itemsize > 1:
        chain[0]["configuration"] = {"endian": "little"}
    if codec == "zstd1":
        chain.append({"name": "zstd", "configuration": {"level": 1, "checksum": False}})
    elif codec in _BLOSC:
        configuration = {"typesize": dtype.itemsize, **_BLOSC[codec], "blocksize": 0}
        chain.append({"name": "blosc", "configuration": configuration})
    chain.append({"name": "crc32c"})
    return chain


def encode_chunk(chunk: np.ndarray, codec: str) -> bytes:
    """Encode one chunk, its crc32c last."""
    check_codec(codec)
    chunk = np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<"))
    if codec == "raw":
        data = chunk.tobytes()
    elif codec == "zstd1":
        from numcodecs import zstd

        data = bytes(zstd.compress(chunk.tobytes(), 1))
    else:
        from numcodecs import blosc

        how = _BLOSC[codec]
        data = bytes(blosc.compress(chunk, how["cname"].encode(), how["clevel"], _SHUFFLE[how["shuffle"]], 0))
    return data + checksum(data)


def _fill(out: np.ndarray, plain: bytes | memoryview) -> int:
    """Copy bytes into an array that they fill; how many there are."""
    if len(plain) == out.nbytes:
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(plain, np.uint8)
    return len(plain)


def _unpack_zstd(body: memoryview, out: np.ndarray) -> int:
    """Decode a zstd frame into an array that its content fills, without a copy where it tells its size; that size."""
    from numcodecs import zstd

    size = _zstd_size(body)
    if size is None:
        return _fill(out, zstd.decompress(body))
    if size == out.nbytes:
        zstd.decompress(body, out)
    return size


_ZSTD_SIZE_BYTES = (0, 2, 4, 8)
_ZSTD_DICTIONARY_BYTES = (0, 1, 2, 4)


def _zstd_size(frame: memoryview) -> int | None:
    """Bytes that a zstd frame says it holds, None where it does not (RFC 8878, 3.1.1.1). Raises IndexError."""
    descriptor = frame[4]
    kind, single = descriptor >> 6, bool(descriptor & 32)
    if kind == 0 and not single:
        return None
    at = 5 + _ZSTD_DICTIONARY_BYTES[descriptor & 3] + (not single)
    length = _ZSTD_SIZE_BYTES[kind] or 1
    if len(frame) < at + length:
        raise IndexError("the frame ends within its header")
    size = int.from_bytes(frame[at : at + length], "little")
    return size + 256 if kind == 1 else size


def decode_chunk(
    data: bytes | memoryview, codec: str, dtype: np.dtype, shape: tuple[int, ...], *, borrow: bool = False
) -> np.ndarray:
    """Check and decode one chunk into a new, writable array.

    Args:
        data: the chunk and its crc32c.
        codec, dtype, shape: as it was encoded.
        borrow: a raw chunk may be given back as a view of `data`.

    Raises:
        StoreDamage: the checksum does not fit, or the content does not fill the shape. The caller adds where.
    """
    if not intact(data):
        raise StoreDamage("crc32c does not fit")
    body = memoryview(data)[:-4]
    dtype = dtype.newbyteorder("<")
    if borrow and codec == "raw" and len(body) == math.prod(shape) * dtype.itemsize:
        return np.frombuffer(body, dtype).reshape(shape)
    out = np.empty(shape, dtype)
    try:
        if codec.startswith("blosc"):
            from numcodecs import blosc

            size = struct.unpack_from("<I", body, _BLOSC_SIZE_AT)[0]
            if size == out.nbytes:
                blosc.decompress(body, out)
        elif codec == "zstd1":
            size = _unpack_zstd(body, out)
        else:
            size = _fill(out, body)
    except (RuntimeError, ValueError, IndexError, struct.error) as error:
        raise StoreDamage(f"cannot decode {codec} chunk: {error}") from error
    if size != out.nbytes:
        raise StoreDamage(f"cannot decode {codec} chunk: it holds {size} bytes, {out.nbytes} were expected")
    return out


def shard_pieces(chunks: Iterator[np.ndarray | None], codec: str) -> Iterator[bytes]:
    """Pieces of a shard file, chunk by chunk in C order of the shard's chunk grid; None = beyond the array's end."""
    entries: list[tuple[int, int]] = []
    offset = 0
    for chunk in chunks:
        if chunk is None:
            entries.append((EMPTY, EMPTY))
            continue
        piece = encode_chunk(chunk, codec)
        entries.append((offset, len(piece)))
        offset += len(piece)
        yield piece
    index = np.asarray(entries, dtype="<u8").tobytes()
    yield index + checksum(index)


def index_size(chunks: int) -> int:
    """Bytes at the end of a shard of so many chunks that hold its index."""
    return 16 * chunks + 4


def decode_index(data: bytes) -> np.ndarray:
    """Index of a shard, uint64 (chunks, 2) offset and length. Raises StoreDamage when its crc32c does not fit."""
    if not intact(data):
        raise StoreDamage("crc32c of the shard index does not fit")
    return np.frombuffer(data[:-4], "<u8").reshape(-1, 2)
