"""The cues `images` and `sweeps`: camera images as JPEG bytes at network and at render size."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import UInt8, UInt32

from geometry.cameras import ImageTransform
from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.cues.resize import resize_image
from pipelines.datasets.records import CameraImage, DataError
from storage.profiles import GREATEST_JPEG_QUALITY, LEAST_JPEG_QUALITY


def encode_jpeg(image: UInt8[np.ndarray, "height width 3"], quality: int, limit: int | None = None) -> bytes:
    """RGB to JPEG bytes, at `quality` or, where that would exceed `limit` bytes, at the best lower one that fits.

    Raises:
        DataError: the image does not fit `limit` even at `LEAST_JPEG_QUALITY`.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    for attempt in range(quality, LEAST_JPEG_QUALITY - 1, -5):
        ok, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, attempt])
        if ok and (limit is None or encoded.size <= limit):
            return encoded.tobytes()
    height, width = image.shape[:2]
    raise DataError(
        f"a {height}x{width} image does not fit {limit} bytes even at JPEG quality {LEAST_JPEG_QUALITY}: make the "
        "store with larger max_image_bytes / max_sweep_bytes in the scene's init unit"
    )


def _check_quality(quality: int) -> None:
    """ValueError outside the range that a configuration's own `jpeg_quality` has."""
    if not LEAST_JPEG_QUALITY <= quality <= GREATEST_JPEG_QUALITY:
        raise ValueError(f"jpeg_quality = {quality}: expected {LEAST_JPEG_QUALITY} to {GREATEST_JPEG_QUALITY}")


def largest_jpeg(images: Iterable[UInt8[np.ndarray, "height width 3"]], transform: ImageTransform, quality: int) -> int:
    """Bytes of the largest of `images` (raw RGB) once resized by `transform` and encoded; 0 for none."""
    return max((len(encode_jpeg(resize_image(image, transform), quality)) for image in images), default=0)


def pack_bytes(
    rows: Sequence[Sequence[bytes | None]], limit: int | None = None
) -> tuple[UInt8[np.ndarray, "row slot length"], UInt32[np.ndarray, "row slot"]]:
    """Byte strings as one zero-padded array and their lengths; None becomes length 0.

    The last axis is as long as `limit`, or as the longest string where there is no limit.
    """
    longest = max((len(item) for row in rows for item in row if item is not None), default=0)
    length = longest if limit is None else limit
    slots = len(rows[0]) if rows else 0
    packed = np.zeros((len(rows), slots, length), np.uint8)
    lengths = np.zeros((len(rows), slots), np.uint32)
    for i, row in enumerate(rows):
        for j, item in enumerate(row):
            if item is not None:
                packed[i, j, : len(item)] = np.frombuffer(item, np.uint8)
                lengths[i, j] = len(item)
    return packed, lengths


@dataclass(frozen=True)
class ImagesCue:
    """Keyframe images at network resolution. `max_bytes` (the scene's L, when fixed) bounds every image."""

    jpeg_quality: int = 90
    max_bytes: int | None = None
    name: ClassVar[str] = "images"
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _check_quality(self.jpeg_quality)

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        """The images stay under the data set's own licence."""
        return "as the data set"

    def extract(self, context: BlockContext) -> CueBlock:
        """`images` (T, C, L) u8 and `images_length` (T, C) u32; a missing camera has length 0."""
        rows = []
        for frame in context.scene.keyframes[context.start : context.stop]:
            row: list[bytes | None] = []
            for channel in context.cameras:
                image = frame.images.get(channel)
                row.append(None if image is None else self._encode(context, image))
            rows.append(row)
        packed, lengths = pack_bytes(rows, self.max_bytes)
        quality = {"images": int((lengths > 0).sum()), "bytes": int(lengths.sum())}
        return CueBlock({"images": packed, "images_length": lengths}, quality, missing_images(context))

    def _encode(self, context: BlockContext, image: CameraImage) -> bytes:
        resized = resize_image(context.load_image(image), context.sizes.transform(image))
        return encode_jpeg(resized, self.jpeg_quality, self.max_bytes)


@dataclass(frozen=True)
class SweepsCue:
    """Images between keyframes at render resolution, slot p after keyframe t. `max_bytes` is the scene's S."""

    jpeg_quality: int = 90
    max_bytes: int | None = None
    name: ClassVar[str] = "sweeps"
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _check_quality(self.jpeg_quality)

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        """The images stay under the data set's own licence."""
        return "as the data set"

    def extract(self, context: BlockContext) -> CueBlock:
        """`sweeps/images` (T, P, C, S) u8 and `sweeps/images_length` (T, P, C) u32; an unused slot has length 0."""
        cameras, slots = len(context.cameras), context.sweep_slots
        rows: list[list[bytes | None]] = []
        dropped = 0
        for t in range(context.start, context.stop):
            sweeps = context.scene.sweeps_after(t)
            dropped += max(0, len(sweeps) - slots)
            row: list[bytes | None] = [None] * (slots * cameras)
            for p, frame in enumerate(sweeps[:slots]):
                for c, channel in enumerate(context.cameras):
                    image = frame.images.get(channel)
                    if image is not None:
                        row[p * cameras + c] = self._encode(context, image)
            rows.append(row)
        packed, lengths = pack_bytes(rows, self.max_bytes)
        count = context.stop - context.start
        arrays = {
            "sweeps/images": packed.reshape(count, slots, cameras, packed.shape[-1]),
            "sweeps/images_length": lengths.reshape(count, slots, cameras),
        }
        notes = [f"{dropped} sweeps lie beyond the {slots} slots of this scene and were left out"] if dropped else []
        return CueBlock(arrays, {"images": int((lengths > 0).sum()), "bytes": int(lengths.sum())}, notes)

    def _encode(self, context: BlockContext, image: CameraImage) -> bytes:
        resized = resize_image(context.load_image(image), context.sizes.render_transform(image))
        return encode_jpeg(resized, self.jpeg_quality, self.max_bytes)


def missing_images(context: BlockContext) -> list[str]:
    """One note per camera that some keyframes of the block lack."""
    frames = context.scene.keyframes[context.start : context.stop]
    notes = []
    for channel in context.cameras:
        absent = [t for t, frame in enumerate(frames, context.start) if channel not in frame.images]
        if absent:
            notes.append(f"{channel}: no image at {len(absent)} of {len(frames)} keyframes (first: {absent[0]})")
    return notes
