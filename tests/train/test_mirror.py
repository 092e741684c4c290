"""Samples seen in a mirror: geometry, cues and images still agree, and nothing is forgotten."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from geometry.cameras import pixel_centres, project, unproject
from geometry.transforms import invert, transform_points
from model.fields import FrameInput
from storage.reader import StoreReader
from train.batch import Batch, collate
from train.config import TrainConfig
from train.data import KeyframeDataset, build_loader
from train.mirror import mirrored
from train.validate import validation_batches

Make = Callable[..., TrainConfig]

EVERYTHING = {
    "data": {"future_frames": 1, "weigh_by_confidence": True},
    "loss": {"lifted_flow": 1.0, "lifted_still": 1.0, "instance_flow": 1.0, "splat": 1.0},
}
SAME = {
    "frames.camera_valid", "camera_valid", "return_valid", "return_own", "moving_valid", "still_valid", "mask_score",
    "adjacent.masked", "adjacent.valid",
    *(f"{view}.{name}" for view in ("earlier", "later", "further", "flow_next.view", "flow_back.view")
      for name in ("interval", "valid")),
}  # fmt: skip
"""What has no left and right."""


def leaves(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, FrameInput):
        for field, part in value._asdict().items():
            yield from leaves(part, f"{name}.{field}")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)


@pytest.fixture
def sample(tiny_config: Make) -> Batch:
    return KeyframeDataset(tiny_config(**EVERYTHING), 2, [("a", 1)], 2**24)[3, 0]


def test_twice_mirrored_is_what_it_was_and_nothing_is_forgotten(sample: Batch) -> None:
    assert all(value is not None for value in vars(sample).values())
    for name, K in leaves(sample):
        if name.endswith("K"):
            K[..., 0, 2] += 1.5  # this world's cameras and LiDAR are as their mirror images
    assert sample.return_origins is not None
    sample.return_origins[..., 1] += 0.3
    for batch in (sample, collate([sample, sample])):
        before = {name: tensor.clone() for name, tensor in leaves(batch)}
        once, twice = (dict(leaves(made)) for made in (mirrored(batch), mirrored(mirrored(batch))))
        assert before.keys() == once.keys() == twice.keys()
        for name, tensor in before.items():
            assert once[name].dtype == tensor.dtype
            torch.testing.assert_close(twice[name], tensor, rtol=0, atol=1e-4)
            torch.testing.assert_close(dict(leaves(batch))[name], tensor, rtol=0, atol=0)
        assert {name for name, tensor in before.items() if torch.equal(once[name], tensor)} == SAME


def test_returns_fall_into_mirrored_pixels(sample: Batch) -> None:
    seen = mirrored(sample)
    width, pixels = sample.images.shape[-1], []
    for batch in (sample, seen):
        assert batch.return_points is not None
        cameras = zip(batch.K.double(), batch.ref_from_cam.double(), strict=True)
        pixels.append([project(K, transform_points(invert(pose), batch.return_points.double())) for K, pose in cameras])
    for (uv, depth, front), (uv_mirrored, depth_mirrored, front_mirrored) in zip(*pixels, strict=True):
        assert torch.equal(front, front_mirrored)
        assert front.sum() > 20
        torch.testing.assert_close(depth_mirrored, depth, rtol=0, atol=1e-4)
        torch.testing.assert_close(uv_mirrored[front, 0], width - uv[front, 0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(uv_mirrored[front, 1], uv[front, 1], rtol=1e-3, atol=1e-3)


def test_what_stands_still_lands_where_the_mirrored_flow_says(sample: Batch, world) -> None:
    seen = mirrored(sample)
    assert sample.flow_next is not None
    assert seen.flow_next is not None
    uv = torch.from_numpy(pixel_centres(*world.render_size).reshape(-1, 2)).double()
    for c in range(2):
        looked = world.look(world.camera_time(1, c), c, world.render_size)
        depth, kind = (torch.from_numpy(looked[name]).flip(1).reshape(-1) for name in ("depth", "kind"))
        view, depth = seen.flow_next.view, depth.clamp(max=1e3).double()
        points = transform_points(seen.ref_from_cam[c].double(), unproject(seen.K[c].double(), uv, depth))
        landed, _, _ = project(view.K[c].double(), transform_points(view.cam_from_ref[c].double(), points))
        known = seen.flow_next.known[c].reshape(-1) & (kind == 0)
        cue = seen.flow_next.flow[c].reshape(2, -1).T.double() / 64
        assert known.sum() > 100
        assert (landed - uv - cue).abs()[known].max() < 0.03
        assert not torch.equal(seen.flow_next.flow[c], sample.flow_next.flow[c])


def test_motion_and_how_well_it_is_known_turn_together(sample: Batch) -> None:
    """The weighted miss of a motion is the mirrored one's of the mirrored motion."""
    seen = mirrored(sample)
    guess = torch.tensor([0.7, -0.4])
    misses = []
    for batch, motion in ((sample, guess), (seen, guess * torch.tensor([1.0, -1.0]))):
        assert batch.moving_motion is not None
        assert batch.moving_weight is not None
        miss = (motion - batch.moving_motion)[..., None]
        misses.append((miss.mT @ batch.moving_weight @ miss)[:, 0, 0])
    assert misses[0].abs().max() > 0
    torch.testing.assert_close(misses[1], misses[0])


def test_poses_stay_rigid(sample: Batch) -> None:
    seen = mirrored(sample)
    for pose in (seen.frames.ref_from_cam, seen.frames.current_from_ref, seen.ref_from_cam, seen.later.cam_from_ref):
        torch.testing.assert_close(torch.linalg.det(pose[..., :3, :3]), torch.ones(pose.shape[:-2]))


def test_the_share_is_drawn_and_leaves_everything_else_as_it_is(tiny_config: Make, tiny_store) -> None:
    plain = KeyframeDataset(tiny_config(), 1, [("a", 1)], 2**24)
    half = build_loader(tiny_config(stage1={"mirrored": 0.5}), 1, [("a", 1)], steps=1).dataset
    turned = 0
    for draw in range(40):
        expected, found = plain[draw, 0], half[draw, 0]
        turned += not torch.equal(found.images, expected.images)
        if not torch.equal(found.images, expected.images):
            expected = mirrored(expected)
        for (name, tensor), (_, other) in zip(leaves(found), leaves(expected), strict=True):
            assert torch.equal(tensor, other), name
    assert 8 < turned < 32
    assert torch.equal(half[1, 0].images, half[1, 0].images)
    # Its own share each: the second stage has none here.
    second = build_loader(tiny_config(stage1={"mirrored": 1.0}), 2, [("a", 1)], steps=1).dataset
    assert torch.equal(second[0, 0].images, plain[0, 0].images)


def test_what_is_held_out_is_measured_as_it_is(tiny_config: Make, tiny_store) -> None:
    measured = [
        validation_batches(
            tiny_config(data={"validate_on": ("b",)}, stage1={"mirrored": share}), 1, StoreReader(tiny_store)
        )
        for share in (0.0, 1.0)
    ]  # fmt: skip
    for plain, other in zip(*measured, strict=True):
        assert torch.equal(plain.images, other.images)
