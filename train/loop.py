"""Both stages from configuration to checkpoints: `train(config)`; interruptible, and exactly resumable."""

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from model.checkpoint import CheckpointError, load_weights, save_model
from model.memory import keep_freed_memory
from model.network import OccFlow
from storage.reader import StoreReader
from train.average import WeightAverage
from train.checkpoint import CONFIG_NAME, TrainingState, find_checkpoint, load_state
from train.config import ConfigError, TrainConfig, dump_config, load_config
from train.determinism import deterministic
from train.feed import StageFeed, stage_steps
from train.interrupt import StopRequest, stop_on_sigterm
from train.keeper import Keeper
from train.module import StageModule
from train.pictures import Painter
from train.progress import Reporter
from train.selection import frames_again, require_frames, training_frames, with_repeats
from train.speed import compile_blocks, products
from train.stage import stage_settings
from train.start import Taken, begin_from
from train.trainer import on_cpu, quiet, trainer_options
from train.validate import Validator, validation_batches

LENGTHS = ("epochs", "max_steps", "max_seconds")
"""Settings of a stage that may change while it lasts."""


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


def train(config: TrainConfig, *, resume: bool = False, stop: StopRequest | None = None) -> RunResult:
    """Train both stages (or the second alone, without `ablation.two_stage`) from the store into `config.out`.

    Writes `untrained/`, `stage1/`, `stage2/` (checkpoint folders), `tensorboard/` and `config.yaml`; with
    `data.validate_on` also `stage1-best/` and `stage2-best/`, with `optimiser.ema` `stage2/ema/`. SIGTERM ends the
    step under way, saves a checkpoint and returns with `finished` false; `train(config, resume=True)` then goes on as
    if nothing had happened, and returns at once where everything is done. A `stop` that the caller listens with takes
    SIGTERM's place.

    Under torchrun every process calls this; they share the steps (see `StepSampler`) and the first one writes.

    Raises:
        ConfigError: `config.out` already holds a run and `resume` is false, or it holds a run of another configuration.
        StoreError, CueMissing: the store cannot be read or lacks a cue that the configuration needs; of either stage
            that is told before the first one begins.
        CheckpointError: a checkpoint to go on from is damaged.
        TrainingDiverged: a loss that is not finite, or too many steps in a row without a finite gradient.
    """
    started = time.monotonic()
    if on_cpu(config.run):
        keep_freed_memory()
    network = _new_network(config)
    kept = resume and _load_untrained(config, network)
    stages = (1, 2) if config.ablation.two_stage else (2,)
    # Before the run's folder is made: a file or a store that cannot be used leaves none behind.
    begun = None if kept else begin_from(network, config.start)
    for stage in stages:
        if not resume or find_checkpoint(config.out / f"stage{stage}") is None:
            require_frames(config, stage, StoreReader(config.store))
    _prepare(config, resume)
    if not kept and _first_process():
        _keep_untrained(config, network, begun)
    if config.run.compile:
        compile_blocks(network)
    results: list[StageResult] = []
    with nullcontext(stop) if stop is not None else stop_on_sigterm() as request:
        for stage in stages:
            results.append(run_stage(config, stage, network, resume=resume, stop=request))
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
    found_frames = training_frames(config, stage, reader)
    if not state.frames:  # where a stage goes on, its own list has the repeats that it began with
        found_frames = with_repeats(config, stage, reader, found_frames)
    frames = frames_again(state.frames, found_frames, config, reader)
    feed = StageFeed(config, stage, frames, state)
    keeper, callbacks = _callbacks(config, stage, network, feed, state, found, stop or StopRequest())
    with quiet(), deterministic(config.run.deterministic), products(config.run.precision):
        trainer = pl.Trainer(callbacks=callbacks, **trainer_options(config))
        if state.precision:
            trainer.precision_plugin.load_state_dict(state.precision)
        total = stage_steps(stage_settings(config, stage), len(frames), config.run.batch * trainer.world_size, state)
        module = StageModule(config, stage, network.train(), total)
        module.go_on(state)
        module.optimiser_state = state.optimiser or None
        feed.serve(trainer, module)
        if module.progress < 1:
            trainer.fit(module, feed)
        finished = not keeper.interrupted
        keeper.save(trainer, module, finished=finished)
    return StageResult(stage, folder, finished, module.step, module.seconds, module.totals)


def _callbacks(
    config: TrainConfig,
    stage: int,
    network: OccFlow,
    feed: StageFeed,
    state: TrainingState,
    found: Path | None,
    stop: StopRequest,
) -> tuple[Keeper, list[pl.Callback]]:
    """What happens after each step, in this order: average, measure, draw, report; last the checkpoint of it all."""
    folder, run = config.out / f"stage{stage}", config.run
    average = WeightAverage(network, config.optimiser.ema) if config.optimiser.ema is not None else None
    if average is not None:
        average.begin(found)
    batches = validation_batches(config, stage, StoreReader(config.store)) if config.data.validate_on else []
    best = folder.with_name(f"{folder.name}-best")
    validator = Validator(config, batches, best, state, average) if batches else None
    painter = Painter(run.picture_every, batches[0] if batches else None)
    keeper = Keeper(folder, config, feed, stop, average, validator)
    chosen = [average, validator, painter, Reporter(run.log_every, run.progress), keeper]
    return keeper, [callback for callback in chosen if callback is not None]


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
        for stage in (1, 2):
            _same_end(config, stage)
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_config(config))


def _same_end(config: TrainConfig, stage: int) -> None:
    """Refuse another length for a stage that is over: nothing would come of it but a record that is untrue."""
    found = find_checkpoint(config.out / f"stage{stage}")
    if found is None or not (state := load_state(found)).finished:
        return
    then, now = (getattr(c, f"stage{stage}") for c in (load_config(found / CONFIG_NAME), config))
    changed = [key for key in LENGTHS if getattr(then, key) != getattr(now, key)]
    if changed:
        was = "; ".join(f"stage{stage}.{key} was {getattr(then, key)}, is {getattr(now, key)}" for key in changed)
        raise ConfigError(
            f"{found}: stage {stage} is over, after {state.step} steps ({was}). Resume with the old values; to train "
            f"on from it, give another `out` and start.network={found}"
        )


def _differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Keys that differ and may not: all but where things lie, the machine's side and the stages' lengths."""
    lengths = {stage: set(LENGTHS) for stage in ("stage1", "stage2")}
    free: Any = {"store": True, "out": True, "run": True, **lengths}
    before, after = (_flatten(c.model_dump(mode="json", exclude=free)) for c in (old, new))
    return [f"{key} was {before[key]!r}, is {after.get(key)!r}" for key in before if before[key] != after.get(key)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat |= inner
    return flat


def _new_network(config: TrainConfig) -> OccFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return OccFlow(config.model)


def _load_untrained(config: TrainConfig, network: OccFlow) -> bool:
    """Whether the run that goes on has its start in `untrained/`, from where it is then taken."""
    try:
        load_weights(network, config.out / "untrained")
    except CheckpointError:
        return False
    return True


def _keep_untrained(config: TrainConfig, network: OccFlow, begun: Taken | None) -> None:
    """Keep the network in `untrained/`, the baseline that training is measured against."""
    folder = config.out / "untrained"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(network, folder)
    (folder / CONFIG_NAME).write_text(dump_config(config))
    if begun is not None:
        begun.tell(Console())
