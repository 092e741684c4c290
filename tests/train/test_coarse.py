"""Halved images: means of what they cover, cameras that still see the same, and for how long a stage has them."""

from collections.abc import Callable

import pytest
import torch

from geometry.cameras import project
from model.fields import FrameInput
from model.network import OccFlow
from train.batch import collate
from train.coarse import halved
from train.config import ConfigError, TrainConfig
from train.data import KeyframeDataset
from train.module import StageModule

Make = Callable[..., TrainConfig]
SHORT = {"model": {"depth_lift": {"bins": 8}}, "loss": {"pixel_depth": 1.0}}


def queue(images: torch.Tensor) -> FrameInput:
    """One frame of one camera."""
    K = torch.tensor([[20.0, 0.0, 3.0], [0.0, 30.0, 2.0], [0.0, 0.0, 1.0]])
    pose = torch.eye(4)
    return FrameInput(images[None, None, None], K[None, None, None], pose[None, None, None], pose[None, None],
                      torch.ones(1, 1, 1, dtype=torch.bool))  # fmt: skip


def test_a_pixel_is_the_mean_of_four() -> None:
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    image[0, :2, :2] = torch.tensor([[10, 20], [30, 41]])
    image[2, 3, 5] = 204
    half = halved(queue(image)).images[0, 0, 0]
    assert half.shape == (3, 2, 3)
    assert half[0, 0, 0].item() == pytest.approx(101 / 4 / 255)
    assert half[2, 1, 2].item() == pytest.approx(0.2)
    assert half.sum().item() == pytest.approx(101 / 4 / 255 + 0.2)
    assert torch.equal(halved(queue(image.float() / 255)).images[0, 0, 0], half)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_cameras_see_the_same(size: tuple[int, int]) -> None:
    """A point falls at the same part of the image, of odd sizes too."""
    whole = queue(torch.zeros(3, *size))
    half = halved(whole)
    points = torch.tensor([[0.3, -0.2, 4.0], [-0.5, 0.1, 9.0]])
    at = [
        project(frames.K[0, 0, 0], points)[0] / torch.tensor(frames.images.shape[-2:]).flip(0)
        for frames in (whole, half)
    ]
    torch.testing.assert_close(at[0], at[1])
    assert torch.equal(half.ref_from_cam, whole.ref_from_cam)


def test_a_stage_has_them_as_long_as_told(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**SHORT, stage1={"image_share": 0.5, "coarse_share": 0.25, "max_steps": 8})
    batch = collate([KeyframeDataset(config, 1, [("a", 1)], 0)[0, 0]])
    network = OccFlow(config.model)
    sizes: list[tuple[int, ...]] = []
    look = network.look

    def seen(frames: FrameInput) -> object:
        sizes.append(tuple(frames.images.shape[-2:]))
        return look(frames)

    monkeypatch.setattr(network, "look", seen)
    module = StageModule(config, 1, network, total_steps=8)
    for module.step in (0, 1, 2, 3):
        module.training_step(batch, 0).backward()
    height, width = batch.frames.images.shape[-2:]
    assert sizes == [(height // 2, width // 2)] * 2 + [(height, width)] * 2


def test_whole_steps_see_whole_images(tiny_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"coarse_share is part of image_share \(0.2\), got 0.3"):
        tiny_config(**SHORT, stage1={"image_share": 0.2, "coarse_share": 0.3, "max_steps": 8})
