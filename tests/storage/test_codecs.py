"""The shard format: equal to zarr-python's in both directions, and no flipped bit goes unnoticed."""

import itertools
import json
import tempfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import checksum, files
from storage.chunks import ChunkReader
from storage.codecs import CODECS, decode_chunk, decode_index, encode_chunk
from storage.commit import CommitRecord, Provenance, ShardEntry
from storage.errors import StoreDamage
from storage.layout import ArrayLayout, UnitId
from storage.writer import write_shard

DTYPES = ("bool", "uint8", "uint16", "uint32", "int16", "int32", "int64", "float32", "float64")


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ArrayLayout, int]:
    """Any array the schema could describe, and a seed for its content."""
    length = draw(st.integers(1, 7))
    rest = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    cut = draw(st.integers(0, len(rest)))
    chunk = (1, *[1] * cut, *rest[cut:])
    shard = (min(draw(st.integers(1, 8)), length), *rest)
    dtype = draw(st.sampled_from(DTYPES))
    codec = draw(st.sampled_from(CODECS))
    return ArrayLayout("x", "x", dtype, (length, *rest), chunk, shard, codec), draw(st.integers(0, 2**32 - 1))


def random_array(layout: ArrayLayout, seed: int) -> np.ndarray:
    """Noise or runs of equal values, NaN and infinity included for floats."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256 if seed % 2 else 2, (*layout.shape, np.dtype(layout.dtype).itemsize), dtype=np.uint8)
    if layout.dtype == "bool":
        return raw[..., 0] > 0
    return raw.reshape(-1).view(layout.dtype).reshape(layout.shape)


def bits(array: np.ndarray) -> np.ndarray:
    """Content as bytes, so that NaN equals NaN."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def record_of(layout: ArrayLayout, block: int, entry: ShardEntry) -> CommitRecord:
    step = layout.shard[0]
    span = (block * step, min((block + 1) * step, layout.shape[0]))
    return CommitRecord(UnitId("x", "s", block), 0, span, "", (entry,), {}, Provenance("fp"))


def blocks_of(layout: ArrayLayout) -> range:
    return range(-(-layout.shape[0] // layout.shard[0]))


@settings(deadline=None, max_examples=80)
@given(layouts())
def test_zarr_python_reads_what_we_write(case: tuple[ArrayLayout, int]) -> None:
    layout, seed = case
    array = random_array(layout, seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with files.scratch_folder(root / "scratch") as scratch:
            batch = files.Batch(root, scratch)
            step = layout.shard[0]
            entries = [write_shard(array[b * step :][:step], layout, b, batch) for b in blocks_of(layout)]
            batch.add_fixed("x/zarr.json", layout.metadata())
            batch.land()
        theirs = zarr.open_array(root / "x", mode="r")
        assert theirs.dtype == array.dtype
        np.testing.assert_array_equal(bits(np.asarray(theirs[...])), bits(array))
        reader = ChunkReader(root)
        ours = [reader.block(record_of(layout, b, entry), "x") for b, entry in enumerate(entries)]
        np.testing.assert_array_equal(bits(np.concatenate(ours)), bits(array))


@settings(deadline=None, max_examples=80)
@given(layouts())
def test_we_read_what_zarr_python_writes(case: tuple[ArrayLayout, int]) -> None:
    layout, seed = case
    array = random_array(layout, seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "x").mkdir()
        (root / "x" / "zarr.json").write_bytes(layout.metadata())
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(root / "x", mode="r+")[...] = array
        reader = ChunkReader(root)
        for block in blocks_of(layout):
            path = root / layout.shard_key(block)
            record = record_of(layout, block, ShardEntry(layout, layout.shard_key(block), path.stat().st_size, ""))
            for t in range(*record.frames):
                pairs = zip(layout.shape[1:], layout.chunk[1:], strict=True)
                leading = list(itertools.takewhile(lambda pair: pair[1] == 1, pairs))
                for where in itertools.product(*(range(n) for n, _ in leading)):
                    got = reader.chunk(record, "x", t, *where)
                    np.testing.assert_array_equal(bits(got), bits(array[(t, *where)]))


def test_metadata_is_what_zarr_python_would_write(tmp_path: Path) -> None:
    layout = ArrayLayout("x", "x", "int16", (5, 3, 4), (1, 1, 4), (2, 3, 4), "blosc-lz4-bitshuffle", -32768)
    zarr.create_array(
        tmp_path / "theirs",
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=layout.chunk,
        shards=layout.shard,
        compressors=[
            zarr.codecs.BloscCodec(typesize=2, cname="lz4", clevel=5, shuffle="bitshuffle", blocksize=0),
            zarr.codecs.Crc32cCodec(),
        ],
        fill_value=-32768,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    theirs = json.loads((tmp_path / "theirs" / "zarr.json").read_bytes())
    ours = json.loads(layout.metadata())
    assert {key: ours[key] for key in ours} == {key: theirs.get(key) for key in ours}


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_bit_of_a_chunk_is_noticed(codec: str) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 20)
    data = encode_chunk(array, codec)
    np.testing.assert_array_equal(decode_chunk(data, codec, array.dtype, array.shape), array)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(StoreDamage, match="crc32c"):
            decode_chunk(bytes(changed), codec, array.dtype, array.shape)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("length", [0, 3, 4, 11])
def test_a_short_chunk_is_noticed(codec: str, length: int) -> None:
    # Four zero bytes are an empty body with its own, right checksum: caught by its size.
    with pytest.raises(StoreDamage, match=r"crc32c|it holds 0 bytes"):
        decode_chunk(encode_chunk(np.arange(60), codec)[:length], codec, np.dtype(np.int64), (60,))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(59,), (61,), (1,), (0,)])
def test_a_sound_chunk_of_another_size_is_noticed(codec: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(StoreDamage, match="cannot decode"):
        decode_chunk(encode_chunk(np.arange(60), codec), codec, np.dtype(np.int64), shape)


def test_decoded_arrays_can_be_written_to() -> None:
    for codec in CODECS:
        array = np.arange(6, dtype=np.float32)
        decode_chunk(encode_chunk(array, codec), codec, array.dtype, array.shape)[0] = 5


def test_checksum_is_crc32c_of_the_body() -> None:
    data = encode_chunk(np.frombuffer(b"123456789", np.uint8), "raw")
    # The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
    assert data == b"123456789" + (0xE3069283).to_bytes(4, "little")
    assert google_crc32c.value(data) == 0x48674BC7


def test_index_checks_itself() -> None:
    index = np.array([[0, 7], [7, 9]], "<u8").tobytes()
    whole = index + google_crc32c.value(index).to_bytes(4, "little")
    np.testing.assert_array_equal(decode_index(whole), [[0, 7], [7, 9]])
    with pytest.raises(StoreDamage, match="shard index"):
        decode_index(whole[:-5] + b"\x01" + whole[-4:])


def test_big_endian_input_is_stored_little_endian() -> None:
    array = np.arange(5, dtype=">i4")
    for codec in CODECS:
        np.testing.assert_array_equal(decode_chunk(encode_chunk(array, codec), codec, np.dtype("<i4"), (5,)), array)


def test_unknown_codec_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown codec 'lzma'; expected one of raw, zstd1"):
        encode_chunk(np.zeros(3), "lzma")


def zstd_frame(content: bytes, descriptor: int, header: bytes) -> bytes:
    """A zstd frame by hand (RFC 8878): magic, descriptor, the rest of the header, one raw block."""
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + header + block + content


@pytest.mark.parametrize(
    ("descriptor", "header", "length"),
    [
        (0b0010_0000, bytes([60]), 60),  # one segment, size in a byte
        (0b0110_0000, (300 - 256).to_bytes(2, "little"), 300),  # in two bytes, less 256
        (0b1010_0000, (300).to_bytes(4, "little"), 300),
        (0b1110_0000, (300).to_bytes(8, "little"), 300),
        (0b1000_0000, b"\x50" + (300).to_bytes(4, "little"), 300),  # a window before it
        (0b0000_0000, b"\x50", 300),  # a window, and no size
    ],
)
def test_zstd_frames_however_they_tell_their_size(descriptor: int, header: bytes, length: int) -> None:
    content = np.arange(length, dtype=np.uint64).astype(np.uint8)
    frame = zstd_frame(content.tobytes(), descriptor, header)
    data = frame + google_crc32c.value(frame).to_bytes(4, "little")
    np.testing.assert_array_equal(decode_chunk(data, "zstd1", content.dtype, (length,)), content)
    with pytest.raises(StoreDamage, match=f"it holds {length} bytes, {length - 1} were expected"):
        decode_chunk(data, "zstd1", content.dtype, (length - 1,))


def test_a_frame_that_lies_about_its_size_is_noticed() -> None:
    frame = zstd_frame(bytes(59), 0b0010_0000, bytes([60]))
    data = frame + google_crc32c.value(frame).to_bytes(4, "little")
    with pytest.raises(StoreDamage, match="cannot decode zstd1 chunk"):
        decode_chunk(data, "zstd1", np.dtype(np.uint8), (60,))


@pytest.mark.parametrize("codec", CODECS)
def test_only_raw_chunks_are_borrowed(codec: str) -> None:
    array = np.arange(60, dtype=np.int32).reshape(6, 10)
    data = bytearray(encode_chunk(array, codec))
    found = decode_chunk(memoryview(data), codec, array.dtype, array.shape, borrow=True)
    np.testing.assert_array_equal(found, array)
    data[:-4] = bytes(len(data) - 4)
    np.testing.assert_array_equal(found, array * (codec != "raw"))


@pytest.mark.parametrize("library", checksum.LIBRARIES)
def test_every_checksum_library_says_the_same(library: str) -> None:
    """RFC 3720, B.4: 32 zeros, 32 ones, 0 to 31; and a message with its own checksum behind it."""
    try:
        crc32c = checksum.LIBRARIES[library]()
    except ImportError as error:
        pytest.skip(f"not installed: {error}")
    for data, expected in (
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ):
        for form in (data, memoryview(bytearray(data)), np.frombuffer(data, np.uint8)):
            assert crc32c(form) == expected
        assert crc32c(data + expected.to_bytes(4, "little")) == checksum.RESIDUE
