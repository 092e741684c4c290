"""What a person sees of a run: pictures, time left, lines in a log; and the switch for repeatable bits."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train.progress
from model.network import OccFlow
from train.config import TrainConfig
from train.data import build_loader
from train.determinism import deterministic
from train.loop import train as run
from train.module import StageModule
from train.pictures import depth_colours, draw
from train.progress import TimeLeft
from train.validate import measuring

Make = Callable[..., TrainConfig]


def test_a_picture_has_the_images_above_and_their_depth_below(tiny_config: Make) -> None:
    config = tiny_config()
    module = StageModule(config, 1, OccFlow(config.model), 10)
    batch = next(iter(build_loader(config, 1, [("a", 2)], steps=1)))
    batch.camera_valid[0, 1] = False
    with measuring(module):
        picture = draw(module, batch)
    assert picture.shape == (32, 64, 3)
    assert np.array_equal(picture[:16, :32], batch.images[0, 0].permute(1, 2, 0).numpy())
    assert np.array_equal(picture[:16, 32:], batch.images[0, 1].permute(1, 2, 0).numpy())
    assert picture[16:, :32].any()
    assert not picture[16:, 32:].any(), "a missing camera has no depth"


def test_depth_colours_darken_with_distance() -> None:
    colours = depth_colours(torch.tensor([[0.0, 0.5, 1.0, 60.0, 500.0], [2.0, 4.0, 8.0, 16.0, 32.0]])).astype(int)
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert colours[0, 1].tolist() == colours[0, 2].tolist() == [255, 246, 190]
    assert colours[0, 3].tolist() == colours[0, 4].tolist() == [10, 6, 30]
    assert (np.diff(colours[1].sum(axis=-1)) < 0).all()


def test_pictures_come_when_they_are_due_and_change_nothing(tiny_config: Make, tmp_path: Any) -> None:
    short: dict[str, Any] = {stage: {"max_steps": 2, "warmup_steps": 0} for stage in ("stage1", "stage2")}
    config = tiny_config(**short, run={"picture_every": 2}, out=tmp_path / "with")
    result = run(config)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("stage1/depth")] == [2]
    assert events.Images("stage2/depth")[0].width == 64
    without = run(tiny_config(**short, run={"picture_every": 0}, out=tmp_path / "without"))
    assert [stage.losses for stage in result.stages] == [stage.losses for stage in without.stages]


def test_time_left_by_hand() -> None:
    clock = TimeLeft(0.5, 100.0)
    assert clock.text(0.5, 120.0) == ""
    assert clock.text(0.6, 160.0) == "4:00 left"
    assert clock.text(0.51, 160.0) == "49:00 left"
    assert clock.text(0.501, 160.0) == "8:19:00 left"
    assert clock.text(1.0, 160.0) == "0:00 left"


def test_time_left_goes_by_the_last_minutes() -> None:
    """80 % in a minute, then 1 % a minute: after three minutes of that the first one counts no more."""
    clock = TimeLeft(0.0, 0.0)
    assert clock.text(0.8, 60.0) == "0:15 left"
    for minute in (1, 2):
        clock.text(0.8 + 0.01 * minute, 60.0 + 60 * minute)
    assert clock.text(0.83, 240.0) == "17:00 left"
    assert clock.text(0.84, 300.0, end=0.9) == "6:00 left"


def test_images_first_the_time_left_is_theirs(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step takes ten times as long, and how long nobody knows before the first one."""
    written = io.StringIO()
    monkeypatch.setattr(train.progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(train.progress, "Console", lambda: Console(file=written, width=40))
    lift: dict[str, Any] = {"model": {"depth_lift": {"bins": 8}}, "loss": {"pixel_depth": 1.0}}
    run(tiny_config(**lift, stage1={"max_steps": 6, "image_share": 0.5}, run={"progress": True}))
    lines = [line for line in written.getvalue().splitlines() if line.startswith("stage 1 step")]
    assert [line.endswith(" on images") for line in lines] == [False, True, False, False, False, False]
    assert [line.endswith(" left") for line in lines[2:]] == [False, True, True, True]


def test_a_log_file_gets_lines_with_losses_and_time(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(train.progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(train.progress, "Console", lambda: Console(file=written, width=40))
    run(tiny_config(run={"progress": True}))
    lines = written.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("stage 1 step 1 total ")
    assert " lidar " in lines[0]
    assert lines[0].endswith(" left")
    assert " dreg " in lines[5]
    assert " 100% 0:00 left" in lines[5]


@pytest.mark.parametrize(
    ("start", "empty"), [({"sdf_init": "free", "sdf_bias": 3.0}, True), ({"sdf_init": "ground"}, False)]
)
def test_a_volume_that_stays_empty_is_said(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, start: dict[str, Any], empty: bool
) -> None:
    """Also where no progress is asked for. 3 m from any matter all light passes; on a ground much of it ends."""
    written = io.StringIO()
    monkeypatch.setattr(train.progress, "Console", lambda: Console(file=written, width=40))
    run(tiny_config(model={"heads": start}, optimiser={"lr": 1e-9}))
    lines = written.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == (
        ["stage 1 leaves an empty volume", "stage 2 leaves an empty volume"] if empty else []
    )
    assert all("loss.surface" in line for line in lines)


def test_deterministic_mode_holds_for_the_run_alone(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    original = StageModule.training_step

    def look(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(self, batch, index)

    monkeypatch.setattr(StageModule, "training_step", look)
    assert run(tiny_config(run={"deterministic": "strict"})).finished
    assert seen == [True] * 6
    assert not torch.are_deterministic_algorithms_enabled()


def test_strict_refuses_what_cannot_be_repeated() -> None:
    def scatter() -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    with deterministic("off"):
        scatter()
    with deterministic("warn"), pytest.warns(UserWarning, match="deterministic"):
        scatter()
    with deterministic("strict"), pytest.raises(RuntimeError, match="deterministic"):
        scatter()
