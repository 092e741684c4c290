"""Batches from worker processes: equal to those made in place, in one piece of memory; and exact averages of pixels."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storage.queue import put_planes
from storage.reader import StoreReader
from train.batch import Batch, collate, pack, unpack
from train.config import TrainConfig
from train.data import KeyframeDataset, build_loader
from train.frames import average_blocks
from train.handover import ALIGNMENT, Parcel, Shelf, Slot

Make = Callable[..., TrainConfig]


def leaves(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(keep)
    return found


def samples(config: TrainConfig, count: int = 2) -> list[Batch]:
    dataset = KeyframeDataset(config, 2, [("a", t) for t in range(1, 4)], 2**24)
    return [dataset[draw, draw] for draw in range(count)]


@pytest.mark.parametrize("lidar", [True, False])
def test_a_parcel_holds_the_batch_that_collate_makes(tiny_config: Make, lidar: bool) -> None:
    config = tiny_config(ablation={"lidar": lidar})
    given_ = samples(config)
    parcel, expected = pack(given_), collate(given_)
    found = unpack(parcel.memory, parcel.form)
    assert type(found) is Batch
    assert (found.return_points is None) is not lidar
    assert len(leaves(found)) == len(leaves(expected)) > 20
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_what_arrives_lies_in_one_piece_of_memory(tiny_config: Make) -> None:
    one = tiny_config(data={"workers": 1}, run={"batch": 2})
    batch = next(iter(build_loader(one, 2, [("a", 1), ("a", 2), ("b", 3)], steps=1)))
    assert type(batch) is Batch
    places = {tensor.untyped_storage().data_ptr() for tensor in leaves(batch)}
    assert len(places) == 1
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in leaves(batch))
    assert all(tensor.is_contiguous() for tensor in leaves(batch))


def test_no_two_tensors_overlap(tiny_config: Make) -> None:
    parcel = pack(samples(tiny_config(), 1))
    batch = unpack(parcel.memory, parcel.form)
    spans = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in leaves(batch))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    first = leaves(batch)[0]
    before = [tensor.clone() for tensor in leaves(batch)[1:]]
    first.fill_(0)
    assert all(torch.equal(a, b) for a, b in zip(leaves(batch)[1:], before, strict=True))


def test_samples_of_different_shapes_are_refused(tiny_config: Make) -> None:
    one, other = samples(tiny_config())
    other.images = other.images[..., :-1]
    with pytest.raises(RuntimeError, match="equal size"):
        pack([one, other])


def test_places_by_hand() -> None:
    shelf = Shelf()
    assert shelf.place(torch.float32, (2, 3)).offset == 0
    assert shelf.place(torch.bool, (65,)).offset == 64
    assert shelf.place(torch.int16, ()).offset == 192
    assert shelf.size == 256


def test_a_parcel_travels_as_its_batch() -> None:
    made = Parcel(torch.arange(8, dtype=torch.uint8), Slot(4, torch.int16, (1, 2)), unpack)
    opened, parts = made.__reduce__()
    assert opened(*parts).tolist() == [[0x0504, 0x0706]]


@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.booleans())
def test_averages_are_the_rounded_mean(factor: int, seed: int, even: bool) -> None:
    rng = np.random.default_rng(seed)
    # Few values: many sums then end in a half.
    image = rng.choice([0, 1, 2, 255] if even else 256, (3, 2 * factor, 3 * factor)).astype(np.uint8)
    mean = image.reshape(3, 2, factor, 3, factor).astype(np.float64).mean(axis=(2, 4))
    found = average_blocks(image, factor)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.round(mean).astype(np.uint8))


def test_halves_go_to_the_even_number() -> None:
    image = np.array([[[0, 1, 1, 2], [0, 1, 1, 2]]], np.uint8)  # means 1/2 and 3/2
    np.testing.assert_array_equal(average_blocks(image, 2), [[[0, 2]]])
    assert average_blocks(np.full((1, 32, 32), 255, np.uint8), 32).tolist() == [[[255]]]


def test_planes_of_a_read_only_image() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image.setflags(write=False)
    out = np.zeros((3, 2, 3), np.uint8)
    put_planes(image, out)
    np.testing.assert_array_equal(out, image.transpose(2, 0, 1))


def test_current_images_are_averages_of_what_the_network_sees(tiny_config: Make, tiny_store: Path) -> None:
    (sample,) = samples(tiny_config(), 1)
    seen = StoreReader(tiny_store).scene("a").image(1, 0)
    height, width, _ = seen.shape
    mean = np.round(seen.reshape(height // 2, 2, width // 2, 2, 3).astype(np.float64).mean(axis=(1, 3)))
    np.testing.assert_array_equal(sample.images[0].numpy(), mean.transpose(2, 0, 1))
    np.testing.assert_array_equal(sample.frames.images[-1, 0].numpy(), seen.transpose(2, 0, 1))
