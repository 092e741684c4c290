"""Whole runs on the tiny store: both stages, every ablation, interruption and resumption, schedules, checkpoints."""

import ast
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import train.loop
from model.checkpoint import CheckpointError
from model.network import OccFlow
from occflow import app
from storage.errors import CueMissing, StoreError
from storage.store import CueStore, UnitId
from storage.truth import truth_path
from train.checkpoint import TrainingState, find_checkpoint, load_model, load_state, save_checkpoint
from train.config import ConfigError, TrainConfig, dump_config, load_config
from train.data import KeyframeDataset, build_loader
from train.feed import stage_steps
from train.loop import run_stage
from train.loop import train as run
from train.module import StageModule
from train.schedule import build_optimiser, part_rate, rate_factor
from train.settings import StageConfig
from train.stage import stage_settings
from train.trainer import trainer_options

Make = Callable[..., TrainConfig]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_both_stages_run_and_leave_what_they_promise(tiny_config: Make) -> None:
    config = tiny_config()
    result = run(config)
    assert result.finished
    assert [stage.steps for stage in result.stages] == [3, 3]
    assert all(torch.isfinite(torch.tensor(stage.losses)).all() for stage in result.stages)
    untrained, first, second = (weights_of(config.out / name) for name in ("untrained", "stage1", "stage2"))
    changed = {name.split(".")[0] for name in untrained if not torch.equal(untrained[name], first[name])}
    assert changed == {"backbone", "pyramid", "tpv", "fusion", "refine", "sdf_head", "renderer"}
    changed = {name.split(".")[0] for name in untrained if not torch.equal(first[name], second[name])}
    assert changed == {"backbone", "pyramid", "tpv", "fusion", "refine", "sdf_head", "flow_head"}
    network, loaded = load_model(result.checkpoint)
    assert loaded == config
    assert all(torch.equal(value, second[name]) for name, value in network.state_dict().items())
    assert list((config.out / "tensorboard").glob("events*"))


def test_scalars_have_names_and_counts(tiny_config: Make) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config()
    run(config)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    for name in ("photometric", "flow", "dreg", "smooth_flow", "lidar", "eikonal", "hessian", "smooth_depth", "total"):
        assert f"stage2/loss/{name}" in names
    for name in ("dynamic", "flow_dynamic", "flow_dropped", "photometric_dropped", "lidar_returns"):
        assert f"stage2/rays/{name}" in names
    assert "stage1/loss/flow" not in names
    assert [event.step for event in events.Scalars("stage1/loss/total")] == [1, 2, 3]


def test_what_the_second_stage_lacks_is_told_before_the_first_begins(
    world: Any, tiny_config: Make, tmp_path: Path
) -> None:
    """The first stage may take days. Nor is a folder left behind that the next try would trip over."""
    without_flow = world.write(tmp_path / "without_flow.zarr")
    CueStore.open(without_flow).discard(UnitId("flow_next", "a", 0))
    config = tiny_config(store=without_flow)
    with pytest.raises(CueMissing, match=r"stage 2 needs .* --cues flow_next"):
        run(config)
    assert not config.out.exists()
    from_lidar = tiny_config(store=world.write(tmp_path / "s.zarr", masks_from=("lidar",)), ablation={"lidar": False})
    with pytest.raises(CueMissing, match="'masks' was made from LiDAR"):
        run(from_lidar)
    unscored = tiny_config(data={"dynamic": {"repeat": 3}})
    with pytest.raises(StoreError, match="occflow dynamics"):
        run(unscored)
    assert not unscored.out.exists()


ABLATIONS: list[dict[str, Any]] = [
    {"ablation": {"two_stage": False}},
    {"ablation": {"dynamic_disentanglement": False}},
    {"ablation": {"forward_static_flow": False, "backward_static_flow": False}},
    {"ablation": {"flow_supervision": False}},
    {"ablation": {"flow_supervision": False, "dynamic_disentanglement": False}},
    {"ablation": {"lidar": False}},
    {"data": {"backward_cue": "prev"}},
    {"loss": {"neighbours": "min", "automask": False}, "rays": {"far_sample": False}},
    *({"model": {"fusion": {"kind": kind}}} for kind in ("none", "concat", "bev_pool_forward", "bev_pool_bfam")),
    {"model": {"render": {"alpha": "consecutive"}}, "run": {"batch": 2}},
]


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_every_ablation_trains(tiny_config: Make, changes: dict[str, Any]) -> None:
    base = tiny_config().model_dump()
    merged = {key: {**base[key], **value} for key, value in changes.items() if key != "model"}
    if "model" in changes:
        merged["model"] = {**base["model"], **{k: {**base["model"][k], **v} for k, v in changes["model"].items()}}
    config = tiny_config(
        **merged, stage1={"max_steps": 1, "warmup_steps": 0}, stage2={"max_steps": 2, "warmup_steps": 0}
    )
    result = run(config)
    assert result.finished
    assert all(torch.isfinite(torch.tensor(stage.losses)).all() for stage in result.stages)
    assert len(result.stages) == (1 if not config.ablation.two_stage else 2)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: int, step: int) -> None:
    """Send this process SIGTERM in the middle of a step."""
    original = StageModule.training_step

    def step_and_kill(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        if self.stage == stage and self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    monkeypatch.setattr(StageModule, "training_step", step_and_kill)


@pytest.mark.parametrize("stage", [1, 2])
def test_sigterm_saves_and_resuming_changes_nothing(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    lengths = {"stage1": {"max_steps": 3, "warmup_steps": 2}, "stage2": {"max_steps": 3, "warmup_steps": 2}}
    whole = run(tiny_config(**lengths, out=tmp_path / "whole"))
    config = tiny_config(**lengths, out=tmp_path / "cut")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, 1)
        cut = run(config)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not cut.finished
    assert (cut.stages[-1].stage, cut.stages[-1].steps) == (stage, 2)
    rest = run(config, resume=True)
    assert rest.finished
    assert cut.stages[-1].losses + rest.stages[stage - 1].losses == whole.stages[stage - 1].losses
    assert rest.stages[1].losses == whole.stages[1].losses[len(whole.stages[1].losses) - len(rest.stages[1].losses) :]
    one, other = weights_of(whole.checkpoint), weights_of(rest.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_command_tells_of_an_orderly_stop(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    path = tmp_path / "train.yaml"
    path.write_text(dump_config(config))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 0)
        stopped = CliRunner().invoke(app, ["train", str(path)])
    assert stopped.exit_code == 143
    assert "stage 1: 1 steps" in stopped.output
    assert "stopped early; next: the same command with --resume" in stopped.output
    assert load_state(config.out / "stage1").step == 1
    done = CliRunner().invoke(app, ["train", str(path), "--resume"])
    assert done.exit_code == 0
    assert "next: occflow eval" in done.output


def test_the_rest_of_an_epoch_is_what_was_not_seen(
    make_world: Any, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten keyframes in batches of three, interrupted in the second step, scene c committed in between."""
    long = {"stage1": {"epochs": 1.0, "max_steps": None, "warmup_steps": 0}, "run": {"batch": 3}}
    store = tmp_path / "store.zarr"
    shutil.copytree(tiny_config().store, store)
    drawn: list[int] = []
    original = KeyframeDataset.__getitem__

    def listed(self: KeyframeDataset, key: tuple[int, int]) -> Any:
        if self.stage == 1:
            drawn.append(int(key[1]))
        return original(self, key)

    monkeypatch.setattr(KeyframeDataset, "__getitem__", listed)
    whole = run(tiny_config(**long, store=store, out=tmp_path / "whole"))
    expected = drawn.copy()
    assert whole.stages[0].steps == 4
    assert sorted(expected[:10]) == list(range(10)), "the fourth step ends the epoch and begins the next"
    drawn.clear()
    config = tiny_config(**long, store=store, out=tmp_path / "cut")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 1)
        cut = run(config)
    state = load_state(config.out / "stage1")
    assert (state.step, state.epoch, state.position) == (2, 0, 6)
    assert state.frames == {"a": list(range(5)), "b": list(range(5))}
    del drawn[6:]  # the loader reads ahead
    make_world().write(tmp_path / "more.zarr", scenes=("c",))
    shutil.copytree(tmp_path / "more.zarr" / "scenes" / "c", store / "scenes" / "c")
    for record in (tmp_path / "more.zarr" / "commits").glob("*--c--*.json"):
        shutil.copy(record, store / "commits")
    rest = run(config, resume=True)
    assert drawn == expected
    assert cut.stages[0].losses + rest.stages[0].losses == whole.stages[0].losses
    assert sum(map(len, load_state(rest.checkpoint).frames.values())) == 15, "the next stage has the new scene too"


def test_a_stage_cannot_go_on_without_its_keyframes(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copytree(tiny_config().store, tmp_path / "store.zarr")
    config = tiny_config(store=store)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 1)
        run(config)
    CueStore.open(store).discard(UnitId("lidar", "b", 0))
    with pytest.raises(CueMissing, match=r"began with 10 keyframes, and 5 of them \(first: b:0\)"):
        run(config, resume=True)


def test_a_stage_that_is_over_has_its_length(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tiny_config(stage1={"max_steps": 1, "warmup_steps": 0}, stage2={"max_steps": 5, "warmup_steps": 0})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, 0)
        assert not run(short).finished
    # While it lasts another length is taken.
    config = tiny_config(stage1={"max_steps": 1, "warmup_steps": 0}, stage2={"max_steps": 2, "warmup_steps": 0})
    assert run(config, resume=True).stages[1].steps == 2
    longer = config.model_copy(update={"stage2": config.stage2.model_copy(update={"max_steps": 6})})
    with pytest.raises(ConfigError, match=r"stage 2 is over, after 2 steps \(stage2\.max_steps was 2, is 6\)"):
        run(longer, resume=True)
    assert load_config(config.out / "config.yaml") == config
    assert run(config, resume=True).finished


def test_several_processes_of_a_cpu_know_steps_without_a_volume(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `auto` finds no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    share = {"stage1": {"image_share": 0.5}, "model": {"depth_lift": {"bins": 8}}, "loss": {"pixel_depth": 1.0}}
    for config, strategy in (
        (tiny_config(run={"devices": 2}), "ddp"),
        (tiny_config(**share, run={"devices": 2}), "ddp_find_unused_parameters_true"),
        (tiny_config(**share, run={"accelerator": "auto", "devices": 2}), "ddp_find_unused_parameters_true"),
        (tiny_config(**share, run={"accelerator": "auto", "devices": "auto"}), "auto"),
        (tiny_config(**share), "auto"),
    ):
        assert trainer_options(config)["strategy"] == strategy


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_config(out=tmp_path / "whole"))
    original = StageModule.training_step

    def step_or_die(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        if self.step == 2:
            raise MemoryError("killed")
        return original(self, batch, index)

    config = tiny_config(out=tmp_path / "cut", run={"checkpoint_seconds": 1e-9})
    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", step_or_die)
        with pytest.raises(MemoryError, match="killed"):
            run(config)
    rest = run(config, resume=True)
    assert rest.stages[0].losses == whole.stages[0].losses[2:]
    assert rest.stages[1].losses == whole.stages[1].losses


def test_a_finished_run_resumes_to_nothing(tiny_config: Make) -> None:
    config = tiny_config()
    run(config)
    again = run(config, resume=True)
    assert again.finished
    assert [stage.losses for stage in again.stages] == [[], []]


def test_a_second_run_does_not_overwrite_the_first(tiny_config: Make) -> None:
    config = tiny_config()
    run(config)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(config)
    with pytest.raises(ConfigError, match=r"loss.flow was 0.005, is 0.5"):
        run(tiny_config(loss={"flow": 0.5, "eikonal_samples": 512}), resume=True)


def test_time_ends_a_stage(tiny_config: Make) -> None:
    result = run(
        tiny_config(stage1={"max_seconds": 0.2, "warmup_steps": 0}, stage2={"max_seconds": 0.2, "warmup_steps": 0})
    )
    assert result.finished
    assert all(stage.steps >= 1 for stage in result.stages)
    assert all(stage.seconds < 10 for stage in result.stages)


def test_epochs_and_steps() -> None:
    settings = load_config("nuscenes").stage1
    begun = TrainingState(1, step=0, seconds=0.0, finished=False)
    assert stage_steps(settings, 28130, 8, begun) == 35163
    # 1.1 * 100 is 110.00000000000001.
    assert stage_steps(settings.model_copy(update={"epochs": 1.1}), 100, 1, begun) == 110
    assert stage_steps(settings.model_copy(update={"max_steps": 100}), 28130, 8, begun) == 100


def test_steps_that_are_left_when_the_number_of_processes_changes() -> None:
    """10 epochs of 12 frames: 20 steps of 2 by one process; the other 80 frames take four processes 10 steps of 8."""
    settings = StageConfig(epochs=10)
    state = TrainingState(1, step=20, seconds=0.0, finished=False, epoch=3, position=4)
    assert stage_steps(settings, 12, 2, state) == 60
    assert stage_steps(settings, 12, 8, state) == 30


def test_removing_the_truth_changes_no_step(make_world: Any, tiny_config: Make, tmp_path: Path) -> None:
    store = make_world().write(tmp_path / "s.zarr")
    beside = truth_path(store)
    beside.mkdir()
    (beside / "zarr.json").write_text("not even a store")
    short = {"stage1": {"max_steps": 1, "warmup_steps": 0}, "stage2": {"max_steps": 2, "warmup_steps": 0}}
    with_truth = run(tiny_config(store=store, out=tmp_path / "one", **short))
    (beside / "zarr.json").unlink()
    beside.rmdir()
    without = run(tiny_config(store=store, out=tmp_path / "two", **short))
    assert [stage.losses for stage in with_truth.stages] == [stage.losses for stage in without.stages]


def test_nothing_in_training_can_open_the_truth() -> None:
    for path in Path(train.loop.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not any(str(name).startswith(("storage.truth", "pipelines", "eval")) for name in names), path


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = StageModule.training_step

    def poisoned(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        loss = original(self, batch, index)
        return loss * torch.nan if self.step == 0 else loss

    monkeypatch.setattr(StageModule, "training_step", poisoned)
    config = tiny_config(stage1={"max_steps": 1, "warmup_steps": 0})
    network = OccFlow(config.model)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config.out.mkdir(parents=True)
    result = run_stage(config, 1, network)
    assert result.finished
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_schedule_by_hand() -> None:
    stage = load_config("nuscenes").stage2
    assert rate_factor(stage, 0, 0.0) == pytest.approx(0.001)
    assert rate_factor(stage, 999, 0.1) == 1
    assert rate_factor(stage, 5000, 0.59) == 1
    assert rate_factor(stage, 5000, 0.6) == pytest.approx(0.4)
    assert rate_factor(stage, 5000, 0.9) == pytest.approx(0.16)


def test_rates_by_part() -> None:
    config = load_config("nuscenes")
    rates = {
        name: part_rate(f"{name}.x", config.stage2, config.optimiser)
        for name in ("backbone", "pyramid", "tpv", "fusion", "refine", "sdf_head", "flow_head")
    }
    assert rates == pytest.approx(
        {
            "backbone": 2.5e-6,
            "pyramid": 2.5e-5,
            "tpv": 2.5e-5,
            "fusion": 4e-5,
            "refine": 4e-5,
            "sdf_head": 4e-5,
            "flow_head": 1e-4,
        }
    )
    assert part_rate("backbone.x", config.stage1, config.optimiser) == pytest.approx(1e-5)
    faster = config.optimiser.model_copy(update={"flow_rate": 5.0})
    assert part_rate("flow_head.x", config.stage2, faster) == pytest.approx(5e-4)


def test_a_second_stage_alone_has_nothing_trained_already() -> None:
    alone = load_config("nuscenes", ["ablation.two_stage=false"])
    settings = stage_settings(alone, 2)
    assert (settings.image_rate, settings.geometry_rate, settings.epochs) == (1.0, 1.0, 16)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("kind", ["none", "full"])
def test_every_trained_parameter_gets_a_gradient(tiny_config: Make, stage: int, kind: str) -> None:
    """Else training on several devices waits for ever for the missing ones."""
    base = tiny_config().model_dump()["model"]
    config = tiny_config(model={**base, "fusion": {**base["fusion"], "kind": kind}})
    module = StageModule(config, stage, OccFlow(config.model), 10)
    batch = next(iter(build_loader(config, stage, [("a", 2)], steps=1)))
    module.training_step(batch, 0).backward()
    without = [n for n, p in module.network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_optimiser_covers_every_trained_parameter_once(tiny_config: Make) -> None:
    config = tiny_config()
    network = OccFlow(config.model)
    StageModule(config, 2, network, 10)
    optimiser = build_optimiser(network.named_parameters(), config.stage2, config.optimiser)
    covered = [id(p) for group in optimiser.param_groups for p in group["params"]]
    expected = {id(p) for name, p in network.named_parameters() if not name.startswith("renderer.")}
    assert len(covered) == len(set(covered))
    assert set(covered) == expected


def test_a_kill_between_the_renames_leaves_a_checkpoint(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config()
    folder = tmp_path / "stage1"
    save_checkpoint(folder, OccFlow(config.model), config, TrainingState(1, 7, 1.0, False))
    folder.rename(tmp_path / "stage1.old")
    found = find_checkpoint(folder)
    assert found is not None
    assert load_state(found).step == 7
    (found / "training.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"training.pt: cannot be read"):
        load_state(found)


@pytest.mark.slow
def test_a_tiny_world_is_learned(tiny_config: Make) -> None:
    """Overfitting one scene for a minute: the first stage's loss falls below six tenths of where it began."""
    config = tiny_config(
        data={"scenes": ["a"]},
        stage1={"max_steps": 150, "warmup_steps": 5, "milestones": [0.8]},
        stage2={"max_steps": 60, "warmup_steps": 5},
    )
    result = run(config)
    first = torch.tensor(result.stages[0].losses)
    assert first[-20:].mean() < 0.6 * first[:5].mean()
