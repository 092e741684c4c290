"""Both stages from configuration to checkpoints: `train(config)`; interruptible, and exactly resumable."""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger

from model.checkpoint import CheckpointError, load_weights, save_model
from model.memory import keep_freed_memory
from model.network import OccFlow
from storage.reader import StoreReader
from train.checkpoint import CONFIG_NAME, TrainingState, find_checkpoint, load_state, save_checkpoint
from train.config import ConfigError, TrainConfig, dump_config, load_config
from train.feed import StageFeed, stage_steps
from train.interrupt import StopRequest, stop_on_sigterm
from train.module import StageModule, stage_settings
from train.progress import Reporter
from train.selection import frames_again, training_frames


@dataclass(frozen=True)
class StageResult:
    """One stage of a run: its checkpoint folder, whether it reached its end, the total loss of this call's steps."""

    stage: int
    checkpoint: Path
    finished: bool
    steps: int
    seconds: float
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RunResult:
    """A run: the untrained network's folder and the stages in order. `finished` is false after an interruption."""

    out: Path
    untrained: Path
    stages: tuple[StageResult, ...]
    finished: bool
    seconds: float

    @property
    def checkpoint(self) -> Path:
        """The last stage's checkpoint folder."""
        return self.stages[-1].checkpoint


class Keeper(pl.Callback):
    """Saves every `checkpoint_seconds`, at the end, and where a stop is requested, which ends the run in order."""

    def __init__(self, folder: Path, config: TrainConfig, feed: StageFeed, stop: StopRequest) -> None:
        self.folder, self.config, self.feed, self.stop = folder, config, feed, stop
        self.interrupted = False
        self._saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, whose handler raises in the middle of an epoch; it restores ours later."""
        self.stop.listen()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where a limit or a signal says so; save where it is time."""
        assert isinstance(pl_module, StageModule)
        # Clocks and signals differ between processes; if one went on alone it would wait for the others for ever, and
        # rates that follow different clocks would make different networks of one.
        own = torch.tensor([float(self.stop.made), pl_module.seconds], device=trainer.strategy.root_device)
        stop, pl_module.seconds_agreed = trainer.strategy.reduce(own, reduce_op="max").tolist()
        self.interrupted = stop > 0
        if self.interrupted or pl_module.progress >= 1:
            trainer.should_stop = True
        elif time.monotonic() - self._saved > self.config.run.checkpoint_seconds:
            self.save(trainer, pl_module, finished=False)

    def save(self, trainer: pl.Trainer, module: StageModule, *, finished: bool) -> None:
        """Write the stage's checkpoint (rank 0)."""
        if trainer.is_global_zero:
            state = TrainingState(module.stage, module.step, module.seconds, finished)
            state.epoch, state.position = self.feed.place(module.step)
            state.frames = self.feed.by_scene()
            if not finished:
                state.optimiser = trainer.optimizers[0].state_dict()
            save_checkpoint(self.folder, module.network, self.config, state)
        self._saved = time.monotonic()


def train(config: TrainConfig, *, resume: bool = False) -> RunResult:
    """Train both stages (or the second alone, without `ablation.two_stage`) from the store into `config.out`.

    Writes `untrained/`, `stage1/`, `stage2/` (checkpoint folders), `tensorboard/` and `config.yaml`. SIGTERM ends the
    step under way, saves a checkpoint and returns with `finished` false; `train(config, resume=True)` then goes on as
    if nothing had happened, and returns at once where everything is done.

    Under torchrun every process calls this; they share the steps (see `StepSampler`) and the first one writes.

    Raises:
        ConfigError: `config.out` already holds a run and `resume` is false, or it holds a run of another configuration.
        StoreError, CueMissing: the store cannot be read or lacks a cue that the configuration needs.
        CheckpointError: a checkpoint to go on from is damaged.
    """
    started = time.monotonic()
    if config.run.accelerator == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    _prepare(config, resume)
    network = _initial_network(config)
    results: list[StageResult] = []
    with stop_on_sigterm() as stop:
        for stage in (1, 2) if config.ablation.two_stage else (2,):
            results.append(run_stage(config, stage, network, resume=resume, stop=stop))
            if not results[-1].finished:
                break
    finished = all(result.finished for result in results) and results[-1].stage == 2
    return RunResult(config.out, config.out / "untrained", tuple(results), finished, time.monotonic() - started)


def run_stage(
    config: TrainConfig, stage: int, network: OccFlow, *, resume: bool = False, stop: StopRequest | None = None
) -> StageResult:
    """Train `network` in place through one stage; its checkpoint folder is `config.out/stage<stage>`."""
    folder = config.out / f"stage{stage}"
    state = TrainingState(stage, step=0, seconds=0.0, finished=False)
    found = find_checkpoint(folder) if resume else None
    if found is not None:
        state = load_state(found)
        load_weights(network, found)
        if state.finished:
            return StageResult(stage, folder, True, state.step, state.seconds)
    reader = StoreReader(config.store)
    frames = frames_again(state.frames, training_frames(config, stage, reader), reader)
    feed = StageFeed(config, stage, frames, state)
    keeper = Keeper(folder, config, feed, stop or StopRequest())
    reporter = Reporter(config.run.log_every, config.run.progress)
    with _quiet():
        trainer = pl.Trainer(callbacks=[reporter, keeper], **_trainer_options(config))
        total = stage_steps(stage_settings(config, stage), len(frames), config.run.batch * trainer.world_size, state)
        module = StageModule(config, stage, network.train(), total)
        module.step, module.seconds_before, module.seconds_agreed = state.step, state.seconds, state.seconds
        module.optimiser_state = state.optimiser or None
        feed.serve(trainer, module)
        if module.progress < 1:
            trainer.fit(module, feed)
        finished = not keeper.interrupted
        keeper.save(trainer, module, finished=finished)
    return StageResult(stage, folder, finished, module.step, module.seconds, module.totals)


def _first_process() -> bool:
    """Whether this is the process that writes: Lightning sets the rank from the launcher's environment at import."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _prepare(config: TrainConfig, resume: bool) -> None:
    """Make the run's folder, or check that what it holds is this run. The first process does it for all."""
    if not _first_process():
        return
    path = config.out / CONFIG_NAME
    if path.is_file():
        if not resume:
            raise ConfigError(f"{config.out}: already holds a run; go on with it (resume), or give another `out`")
        changed = _differences(load_config(path), config)
        if changed:
            raise ConfigError(
                f"{path}: this run was started with other values, so going on would mix two: {'; '.join(changed)}. "
                "Resume with the old values, or give another `out`"
            )
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_config(config))


def _differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Keys that differ and may not: all but where things lie, the machine's side and the stages' lengths."""
    lengths = {stage: {"epochs", "max_steps", "max_seconds"} for stage in ("stage1", "stage2")}
    free: Any = {"store": True, "out": True, "run": True, **lengths}
    before, after = (_flatten(c.model_dump(mode="json", exclude=free)) for c in (old, new))
    return [f"{key} was {before[key]!r}, is {after.get(key)!r}" for key in before if before[key] != after.get(key)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat |= inner
    return flat


def _initial_network(config: TrainConfig) -> OccFlow:
    """The network from the seed; kept in `untrained/` as the baseline that training is measured against."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = OccFlow(config.model)
    folder = config.out / "untrained"
    if not _first_process():
        return network
    try:
        load_weights(network, folder)
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)
        save_model(network, folder)
        (folder / CONFIG_NAME).write_text(dump_config(config))
    return network


def _trainer_options(config: TrainConfig) -> dict[str, Any]:
    run = config.run
    devices = run.devices if run.accelerator != "cpu" or run.devices != "auto" else 1
    nodes, several = 1, run.devices != 1 and run.accelerator != "cpu" and torch.cuda.device_count() > 1
    if torch.distributed.is_torchelastic_launched():
        # torchrun decides how many processes there are, whatever the configuration says.
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        several = devices * nodes > 1
    return {
        "accelerator": run.accelerator,
        "devices": devices,
        "num_nodes": nodes,
        "precision": run.precision,
        "strategy": "ddp" if several else "auto",
        "max_epochs": 1,
        "logger": TensorBoardLogger(save_dir=config.out, name="tensorboard", version=""),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its advertisements: what it says here is either known or of no use to the reader."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for module in (r"lightning\..*", r"torch\.utils\.tensorboard.*", r"tensorboard\..*"):
                warnings.filterwarnings("ignore", module=module)
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
