"""Samples of steps that look at images alone leave out what costs most; every step is given the kind that it needs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train.module as train_module
from model.network import OccFlow
from train.batch import collate
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.frames import CachedScene
from train.loop import train
from train.module import StageModule
from train.selection import image_step_cues, needed_cues
from train.stage import Stage

Make = Callable[..., TrainConfig]
LIFT = {"depth_lift": {"bins": 8}}
LEARN: dict[str, Any] = {"model": LIFT, "loss": {"pixel_depth": 1.0}}


def test_a_sample_for_images_alone(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the returns are the keyframe's, as beside others; neither other keyframes, sweeps nor masks are read."""
    config = tiny_config(rays={"lidar": 600, "lidar_reach": 2}, data={"neighbour": {"sweeps": True}})
    whole = KeyframeDataset(config, 1, [("a", 2)], 0)[0, 0]
    dataset = KeyframeDataset(config, 1, [("a", 2)], 0, image_draws=1)
    with monkeypatch.context() as patch:
        patch.setattr(CachedScene, "sweep_image", None)
        patch.setattr(CachedScene, "render_image", None)
        patch.setattr(CachedScene, "movable_returns", None)
        patch.setattr(CachedScene, "movable", None)
        patch.setattr(CachedScene, "instances", None)
        lean = dataset[0, 0]
    assert lean.return_points is not None
    assert whole.return_points is not None
    assert lean.return_points.shape == whole.return_points.shape
    assert torch.equal(lean.return_points[:300], whole.return_points[:300])
    assert lean.return_own is not None
    assert lean.return_valid is not None
    assert torch.equal(lean.return_own, torch.arange(600) < 300)
    assert not lean.return_valid[300:].any()
    assert lean.earlier.images is None
    assert lean.later.images is None
    assert lean.movable is None
    for alone, entry in zip(lean.frames, whole.frames, strict=True):
        assert torch.equal(alone, entry[-1:]), "the keyframe's own images and no others"
    assert dataset[1, 0].earlier.images is not None
    assert dataset[1, 0].frames.images.shape == whole.frames.images.shape


@pytest.mark.parametrize(("cell", "history", "kept"), [(0, 2, 1), (4, 2, 2), (4, 1, 2)])
def test_the_second_stage_compares_with_the_keyframe_before(
    tiny_config: Make, cell: int, history: int, kept: int
) -> None:
    """And with no other; cues of motion stay."""
    model = {**LIFT, "pixel_motion": {"cell": cell}, "fusion": {"history": history, "heads": 4, "points": 1}}
    config = tiny_config(**{**LEARN, "model": model})
    lean, whole = (KeyframeDataset(config, 2, [("a", 2)], 0, image_draws=n)[0, 0] for n in (1, 0))
    for alone, entry in zip(lean.frames, whole.frames, strict=True):
        assert torch.equal(alone, entry[-kept:])
    assert lean.flow_next is not None
    assert lean.movable is not None
    if not cell:
        return
    network = OccFlow(config.model).eval()
    with torch.no_grad():
        one, other = (network.pixel_motion(collate([sample]).frames)[1].motion for sample in (lean, whole))
    assert torch.equal(one, other)


def test_what_returns_are_made_of_is_still_read(tiny_config: Make) -> None:
    triangulated = {"rays": {"triangulated": 64}, "data": {"backward_cue": "prev"}, "ablation": {"lidar": False}}
    for changes, cues in (
        ({}, {"images", "lidar"}),
        ({"rays": {"lidar_reach": 2}}, {"images", "lidar"}),
        ({"rays": {"standing": 64}}, {"images", "lidar", "masks"}),
        (triangulated, {"images", "flow_next", "flow_prev", "masks"}),
    ):
        config = tiny_config(**changes)
        assert set(image_step_cues(config, 1)) == cues
        assert set(image_step_cues(config, 2)) == set(needed_cues(config, 2)) - {"sweeps"}
        assert set(image_step_cues(config, 1)) <= set(needed_cues(config, 1))


def test_where_nothing_is_beside_all_returns_are_its_own(tiny_config: Make) -> None:
    config = tiny_config(rays={"lidar": 600, "lidar_reach": 0})
    lean = KeyframeDataset(config, 1, [("a", 2)], 0, image_draws=1)[0, 0]
    assert lean.return_own is not None
    assert lean.return_own.all()


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.4444, 0.55, 0.7, 0.8667, 0.99])
def test_the_first_whole_step_is_the_one(tiny_config: Make, share: float) -> None:
    config = tiny_config(**LEARN, stage1={"image_share": share, "max_steps": 10})
    for total in (1, 2, 3, 7, 10, 90, 100, 1000):
        stage = Stage(config, 1, total_steps=total)
        first = stage.first_whole_step
        for stage.step in {0, max(0, first - 1), first, total - 1}:
            assert stage.images_only == (stage.step < first), (share, total, stage.step)


def test_where_time_may_end_that_part_samples_are_whole(tiny_config: Make) -> None:
    config = tiny_config(**LEARN, stage1={"image_share": 0.5, "max_steps": 10, "max_seconds": 60})
    assert Stage(config, 1, total_steps=10).first_whole_step == 0


def test_every_step_has_its_kind_and_a_stop_between_changes_nothing(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {
        "stage1": {"max_steps": 4, "image_share": 0.5},
        "stage2": {"max_steps": 4, "image_share": 0.5},
        "run": {"batch": 2},
    }
    original, seen, stop_in = StageModule.training_step, [], [0]

    def watched(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        seen.append((self.stage, self.step, self.images_only, batch.earlier.images is None))
        if stop_in[0] == self.stage and self.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    monkeypatch.setattr(StageModule, "training_step", watched)
    whole = train(tiny_config(**LEARN, **lengths, out=tmp_path / "whole"))
    assert seen == [(stage, step, step < 2, step < 2) for stage in (1, 2) for step in range(4)]
    cut = tiny_config(**LEARN, **lengths, out=tmp_path / "cut")
    for stop_in[0] in (1, 2, 0):
        rest = train(cut, resume=stop_in[0] != 1)
    assert rest.finished
    losses = [value for stage in whole.stages for value in stage.losses]
    assert rest.stages[1].losses == losses[-len(rest.stages[1].losses) :]
    assert all(images_only == lean for _, _, images_only, lean in seen)


def test_the_cosine_is_annealed_from_the_first_volume_on(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By steps that render: those on images alone do not count, and a stop between changes nothing."""
    original, seen, stop_in = train_module.cast_camera_rays, [], [True]

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["step"])
        if stop_in.pop() if stop_in else False:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(train_module, "cast_camera_rays", watched)
    lengths = {"stage1": {"max_steps": 6, "image_share": 0.5}, "stage2": {"max_steps": 2}}
    config = tiny_config(**LEARN, **lengths, out=tmp_path / "cut")
    assert not train(config).finished
    assert train(config, resume=True).finished
    past = config.model.render.anneal_steps
    assert seen == [0, 1, 2, past, past + 1]
