"""More than one later image: which are read, what they judge, that the rest of a draw stays, where there is none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.network import OccFlow
from train.batch import Batch, View, collate
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.losses.photometric import Comparison, lowest, photometric_loss
from train.module import StageModule
from train.neighbours import KEYFRAME, Neighbour, view_geometry

Make = Callable[..., TrainConfig]


def sample_of(config: TrainConfig, stage: int, t: int, draw: int = 0) -> Batch:
    return KeyframeDataset(config, stage, [("a", t)], 2**24)[draw, 0]


def comparison(warped: list[float], identity: list[float], valid: list[bool]) -> Comparison:
    row = [torch.tensor(values, dtype=torch.float64)[None, None] for values in (warped, identity)]
    return Comparison(*row, valid=torch.tensor(valid)[None, None])


def test_each_ray_is_judged_by_the_image_that_explains_it_by_hand() -> None:
    near = comparison(
        [0.5, 0.1, 0.9, 7.0, torch.nan], [0.6, 0.4, torch.inf, 0.1, 0.1], [True, True, True, False, False]
    )
    further = comparison([0.2, 0.3, 9.0, 0.3, 5.0], [0.5, 0.2, 0.8, 0.2, 0.2], [True, True, False, True, False])
    both = lowest([near, further])
    assert both.valid.tolist() == [[[True, True, True, True, False]]]
    assert both.warped.tolist() == [[[0.2, 0.1, 0.9, 0.3, 0.0]]]
    assert both.identity[..., :4].tolist() == [[[0.5, 0.2, torch.inf, 0.2]]]
    assert photometric_loss([both]).loss.item() == pytest.approx((0.2 + 0.1 + 0.9 + 0.2) / 4)
    # With an earlier one, hidden nowhere: the mean is taken after the choice, so both sides count alike.
    earlier = comparison([0.4] * 5, [torch.inf] * 5, [True] * 5)
    mean = (0.3 + 0.25 + 0.65 + 0.3 + 0.4) / 5
    assert photometric_loss([earlier, both], automask=True).loss.item() == pytest.approx(mean)
    assert lowest([near]) is near


def test_the_lowest_of_all_is_the_lowest_of_the_later_ones() -> None:
    """An identity: with `loss.neighbours: min` it makes no difference that later images are joined first."""
    torch.manual_seed(0)
    three = [
        Comparison(*torch.rand(2, 2, 5, 7, dtype=torch.float64), valid=torch.rand(2, 5, 7) < 0.6) for _ in range(3)
    ]
    flat, joined = photometric_loss(three, "min"), photometric_loss([three[0], lowest(three[1:])], "min")
    assert flat.loss.item() == pytest.approx(joined.loss.item(), abs=1e-12)


def test_gradients_go_to_the_image_that_judges() -> None:
    valid = torch.tensor([[[True, True, False]]])

    def loss(near: Tensor, further: Tensor) -> Tensor:
        identity = torch.full_like(near, torch.inf)
        joined = lowest([Comparison(near, identity, valid), Comparison(further, identity, ~valid | True)])
        return photometric_loss([joined]).loss

    near = torch.tensor([[[0.1, 0.9, 0.5]]], dtype=torch.float64, requires_grad=True)
    further = torch.tensor([[[0.4, 0.2, 0.6]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (near, further))
    slopes = torch.autograd.grad(loss(near, further), (near, further))
    assert [s.flatten().tolist() for s in slopes] == [pytest.approx([1 / 3, 0, 0]), pytest.approx([0, 1 / 3, 1 / 3])]


def same(view: View, other: View) -> bool:
    assert view.images is not None
    assert other.images is not None
    return all(
        torch.equal(getattr(view, name), getattr(other, name))
        for name in ("cam_from_ref", "K", "interval", "valid", "images")
    )


def test_off_reads_nothing_and_on_leaves_the_rest_of_a_draw(tiny_config: Make) -> None:
    on = tiny_config(data={"future_frames": 2})
    for stage in (1, 2):
        plain, more = sample_of(tiny_config(), stage, 1, draw=4), sample_of(on, stage, 1, draw=4)
        assert plain.further is None
        assert collate([plain]).further_views() == []
        assert same(plain.earlier, more.earlier)
        assert same(plain.later, more.later)
        assert plain.return_points is not None
        assert more.return_points is not None
        assert torch.equal(plain.return_points, more.return_points)


def test_the_second_stage_reads_the_keyframes_that_follow(world: Any, tiny_config: Make) -> None:
    """Keyframes t + 2, t + 3 as `later` is t + 1; beyond the end of the scene none is valid."""
    dataset = KeyframeDataset(tiny_config(data={"future_frames": 2}), 2, [("a", 0), ("a", 1), ("a", 2)], 2**24)
    batch = collate([dataset[0, k] for k in range(3)])
    views = batch.further_views()
    assert [view.valid.all(dim=1).tolist() for view in views] == [[True, True, True], [True, True, False]]
    table = dataset._scene("a").table
    for k, view in enumerate(views):
        for sample in range(3 - k):
            expected = view_geometry(table, sample, Neighbour(sample + 2 + k), 0.5, 0.5)
            assert torch.equal(view.cam_from_ref[sample], torch.from_numpy(expected.cam_from_ref))
            assert view.interval[sample].tolist() == pytest.approx([2 + k] * 2, abs=1e-4)
            image = world.look(world.camera_time(sample + 2 + k, 1), 1, (16, 32))["colour"]
            assert view.images is not None
            assert (view.images[sample, 1].permute(1, 2, 0) / 255 - torch.from_numpy(image)).abs().mean() < 0.06
    assert views[1].images is not None
    assert not views[1].images[2].any()


def test_the_first_stage_draws_each_image_once(tiny_config: Make) -> None:
    """By the neighbours' rule: later ones only, none twice, and none where the rule leaves too few."""
    config = tiny_config(data={"future_frames": 3})
    for draw in range(6):
        batch = collate([sample_of(config, 1, 1, draw)])
        times = [float(view.interval[0, 0]) for view in (batch.later, *batch.further_views()) if view.valid.all()]
        assert len(times) == len(set(times)) == 4
        assert min(times) > 0
    few = tiny_config(data={"future_frames": 3, "exclude": ["a:3-4"], "neighbour": {"sweeps": False}})
    views = collate([sample_of(few, 1, 1)]).further_views()
    assert [view.valid.any().item() for view in views] == [False, False, False]
    assert KEYFRAME == -1


def test_a_step_takes_them_and_a_camera_may_be_missing(tiny_config: Make) -> None:
    """Rays that no later image sees are judged by the further ones; none of them at all is the step without them."""
    config = tiny_config(data={"future_frames": 1})
    batch = collate([sample_of(config, 1, 1)])

    def photometric() -> tuple[float, float]:
        torch.manual_seed(0)
        module = StageModule(config, 1, OccFlow(config.model), total_steps=10)
        module.fixed_seed = 3
        module.training_step(batch, 0)
        return module.numbers["loss/photometric"], module.numbers["rays/photometric_compared"]

    with_it = photometric()
    batch.later.valid[:, 1] = False
    assert photometric()[1] > 0.9 * with_it[1]
    assert batch.further is not None
    batch.further.valid[..., 1] = False
    without_camera = photometric()
    assert without_camera[1] < 0.8 * with_it[1]
    batch.further.valid[:] = False
    alone = photometric()
    batch.further = None
    assert photometric() == alone
