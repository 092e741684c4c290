"""Resizing and the image cues: geometry of the resize, anti-aliasing, lengths, missing images."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from geometry.cameras import ImageTransform, pixel_centres
from pipelines.cues.images import ImagesCue, SweepsCue, encode_jpeg, pack_bytes
from pipelines.cues.resize import resize_image, working_size
from pipelines.datasets.records import DataError


@pytest.mark.parametrize(
    ("raw", "out"), [((90, 160), (36, 100)), ((198, 352), (64, 176)), ((37, 122), (35, 121)), ((100, 100), (20, 20))]
)
def test_a_linear_ramp_lands_where_the_transform_says(raw: tuple[int, int], out: tuple[int, int]) -> None:
    # Colour linear in position is unchanged by any unbiased filter, so the resized image must read
    # colour(image_from_raw^-1 (u, v)) at its own pixel centres.
    centres = pixel_centres(*raw)
    image = np.stack([centres[..., 0] * 200 / raw[1], centres[..., 1] * 200 / raw[0], np.full(raw, 77.0)], axis=-1)
    transform = ImageTransform.fit(raw, out)
    resized = resize_image(np.round(image).astype(np.uint8), transform).astype(np.float64)
    back = (pixel_centres(*out) + [transform.left, transform.top]) / transform.scale
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(resized[..., 0] - back[..., 0] * 200 / raw[1])[inner].max() < 1.2
    assert np.abs(resized[..., 1] - back[..., 1] * 200 / raw[0])[inner].max() < 1.2
    assert abs((resized[..., 0] - back[..., 0] * 200 / raw[1])[inner].mean()) < 0.35, (
        "no shift of half an output pixel (0.57 at the least slope here)"
    )
    assert (resized[..., 2] == 77).all()


@pytest.mark.parametrize("scale", [0.51, 0.4, 0.25, 0.13])
def test_a_texture_too_fine_for_the_output_becomes_grey(scale: float) -> None:
    # Stripes of one pixel alternate 0 and 255: sampled without a filter they would alias into wide stripes.
    image = np.zeros((120, 160, 3), np.uint8)
    image[:, ::2] = 255
    transform = ImageTransform(scale=scale, left=0.0, top=0.0, height=int(120 * scale), width=int(160 * scale))
    assert resize_image(image, transform)[:, 2:-2].astype(float).std() < 25


def test_working_size_keeps_the_aspect_and_never_enlarges() -> None:
    assert working_size(900, 1600, 800) == (450, 800)
    assert working_size(198, 352, 1280) == (198, 352)


def test_jpeg_bytes_decode_to_the_resized_image(flat_world) -> None:
    world = flat_world(keyframes=2, sweeps=0)
    context = world.context()
    block = ImagesCue(jpeg_quality=95).extract(context)
    length = block.arrays["images_length"]
    assert length.shape == (2, 1)
    assert length.dtype == np.uint32
    decoded = np.asarray(Image.open(BytesIO(block.arrays["images"][1, 0, : length[1, 0]].tobytes())))
    expected = world.image(1).reshape(48, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(decoded - expected).mean() < 2.0
    assert (block.arrays["images"][1, 0, length[1, 0] :] == 0).all()


def test_a_missing_image_has_length_zero_and_a_note(flat_world) -> None:
    block = ImagesCue().extract(flat_world(keyframes=3, sweeps=0, missing={1}).context())
    assert (block.arrays["images_length"][:, 0] > 0).tolist() == [True, False, True]
    assert (block.arrays["images"][1] == 0).all()
    assert block.notes == ["CAM: no image at 1 of 3 keyframes (first: 1)"]


def test_a_block_covers_its_own_keyframes_only(flat_world) -> None:
    whole = ImagesCue().extract(flat_world(keyframes=4, sweeps=0).context())
    part = ImagesCue().extract(flat_world(keyframes=4, sweeps=0).context(start=2, stop=4))
    assert part.arrays["images_length"].tolist() == whole.arrays["images_length"][2:].tolist()


def test_sweeps_fill_their_slots_and_no_more(flat_world) -> None:
    context = flat_world(keyframes=3, sweeps=3, missing={2}).context(sweep_slots=2)
    block = SweepsCue().extract(context)
    length = block.arrays["sweeps/images_length"]
    # Frames 0 k, 1 2 3 sweeps, 4 k, 5 6 7 sweeps, 8 k: slot 1 after keyframe 0 (frame 2) is missing.
    assert (length[..., 0] > 0).tolist() == [[True, False], [True, True], [False, False]]
    assert block.arrays["sweeps/images"].shape[:3] == (3, 2, 1)
    assert block.notes == ["2 sweeps lie beyond the 2 slots of this scene and were left out"]


def test_no_sweep_slots_gives_empty_arrays(flat_world) -> None:
    block = SweepsCue().extract(flat_world(keyframes=2, sweeps=0).context(sweep_slots=0))
    assert block.arrays["sweeps/images_length"].shape == (2, 0, 1)


def test_quality_is_lowered_until_the_bytes_fit(flat_world) -> None:
    image = flat_world().image(0)
    free = len(encode_jpeg(image, 90))
    assert len(encode_jpeg(image, 90, limit=free // 2)) <= free // 2
    with pytest.raises(DataError, match="does not fit 100 bytes"):
        encode_jpeg(image, 90, limit=100)


def test_packing_pads_with_zeros_to_the_limit() -> None:
    packed, lengths = pack_bytes([[b"ab", None], [b"", b"wxyz"]], limit=6)
    assert packed.tolist() == [[[97, 98, 0, 0, 0, 0], [0] * 6], [[0] * 6, [119, 120, 121, 122, 0, 0]]]
    assert lengths.tolist() == [[2, 0], [0, 4]]
