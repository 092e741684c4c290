"""The demo: a synthetic log, its cues, both training stages and their evaluation, as one resumable run.

It joins rooms that may not import each other, which is why it stands beside them.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from occflow_eval import METRICS, chief_figures, evaluate_checkpoint
from occflow_shell import CommandError, command, say
from storage.whole_file import whole_file

STAGES = ("untrained", "stage1", "stage2")


@dataclass(frozen=True)
class Size:
    """How large a demo is: its log, and what it overrides in the `demo` presets of cues and training."""

    training_scenes: int = 8
    held_out_scenes: int = 2
    keyframes: int = 10
    synth: dict[str, Any] = field(default_factory=lambda: {"width": 264, "height": 148})
    cues: dict[str, Any] = field(default_factory=dict)
    train: tuple[str, ...] = ()


_OUTPUTS = (
    "log",
    "store.zarr",
    "store.truth.zarr",
    "store.inspection",
    "train",
    "eval",
    "results.json",
    "report.html",
    "seconds.json",
)


@dataclass
class Stopwatch:
    """Seconds of each part, added up over runs that were interrupted; a part that did nothing adds nothing."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.seconds = json.loads(self.path.read_text())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the work inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            with whole_file(self.path) as temporary:
                temporary.write_text(json.dumps(self.seconds))


def run(folder: Path, console: Console, fresh: bool = False, size: Size | None = None) -> dict[str, Any]:
    """Everything under `folder`; what an earlier run finished is kept. Returns what results.json holds.

    Raises:
        CommandError: `folder` holds files of a demo's names that no demo made.
    """
    _check_folder(folder)
    if fresh:
        for name in _OUTPUTS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(folder / "seconds.json")
    size = size or Size()
    training, held_out = make_log(folder / "log", size, watch, console)
    labels = make_cues(folder, size, watch, console)
    train_stages(folder, training, size, watch, console)
    figures = evaluate_stages(folder, training, held_out, watch, console)
    results = {**figures, "labels": labels, "seconds": {k: round(v, 1) for k, v in watch.seconds.items()}}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    show(results, console)
    say(f"{folder / 'results.json'}, {folder / 'report.html'}", console)
    look = command("occflow", "status", folder / "store.zarr")
    say(f"next: {command('open', folder / 'report.html')}, or {look}", console)
    return results


def _check_folder(folder: Path) -> None:
    """Raise CommandError rather than write into, or with --fresh remove, what is somebody else's.

    Folders called `train` or `log` are found in many places; a synthetic log or the stopwatch's file is a demo's mark.
    """
    there = [name for name in _OUTPUTS if (folder / name).exists()]
    if there and not any((folder / mark).exists() for mark in ("seconds.json", "log/synth.json")):
        raise CommandError(
            f"{folder}: holds {', '.join(there)}, which no demo made (there is neither seconds.json nor "
            "log/synth.json); give another --out, or take these away"
        )


def make_log(folder: Path, size: Size, watch: Stopwatch, console: Console) -> tuple[list[str], list[str]]:
    """Write what is missing of the synthetic log; names of training and of held-out scenes."""
    from pipelines.datasets.nuscenes import NuScenesLog

    scenes = size.training_scenes + size.held_out_scenes
    wanted = {"scenes": scenes, "val_scenes": size.held_out_scenes, "keyframes": size.keyframes}
    with watch.part("synth"):
        write_synthetic_log(folder, "nuscenes", wanted | size.synth, console)
    log = NuScenesLog(folder)
    return log.scene_names("train"), log.scene_names("val")


def make_cues(folder: Path, size: Size, watch: Stopwatch, console: Console) -> dict[str, Any]:
    """Extract every cue by the Prefect flow; the labels' quality against the exact truth, all scenes pooled."""
    from pipelines.config import load_config
    from pipelines.console import extract_shown, show_report
    from pipelines.plan import plan

    paths = {"dataset.root": folder / "log", "store": folder / "store.zarr"}
    config = load_config("demo", paths | size.cues)
    if plan(config).open:
        with watch.part("cues"):
            report = extract_shown(config, None, None, console)
        show_report(report, config, console)
        if report.interrupted:
            raise KeyboardInterrupt
    return label_figures(folder / "store.zarr")


def label_figures(store: Path) -> dict[str, Any]:
    """Quality figures of every cue from its commit records, blocks pooled by their counts.

    Figures are {"value", "count"} under the cue's name; besides, the chief ones as plain numbers: `flow_epe`,
    `flow_epe_moving`, `mask_iou`, where the store has them.
    """
    from eval.labels import summarise
    from storage.store import CueStore

    qualities: dict[str, list[Any]] = {}
    for record in CueStore.open(store).records():
        qualities.setdefault(record.unit.cue, []).append(record.provenance.quality)
    pooled: dict[str, Any] = {cue: summarise(found) for cue, found in qualities.items()}
    chief = {
        "flow_epe": ("flow_next", "epe"),
        "flow_epe_moving": ("flow_next", "epe_moving"),
        "mask_iou": ("masks", "iou"),
    }
    for name, (cue, key) in chief.items():
        figure = _find(pooled.get(cue, {}), key)
        if figure is not None:
            pooled[name] = figure["value"]
    return pooled


def _find(figures: dict[str, Any], key: str) -> dict[str, float] | None:
    """The figure of this name, at the top or in any nested group."""
    if key in figures:
        return figures[key]
    for value in figures.values():
        found = _find(value, key) if isinstance(value, dict) and "count" not in value else None
        if found is not None:
            return found
    return None


def train_stages(folder: Path, scenes: list[str], size: Size, watch: Stopwatch, console: Console) -> None:
    """Both stages; what is trained already stays."""
    from train.checkpoint import find_checkpoint, load_state
    from train.config import load_config
    from train.loop import train

    names = f"data.scenes={json.dumps(scenes)}"
    config = load_config("demo", [f"store={folder / 'store.zarr'}", f"out={folder / 'train'}", names, *size.train])
    last = find_checkpoint(folder / "train" / STAGES[-1])
    if last is not None and load_state(last).finished:
        return
    with watch.part("train"):
        result = train(config, resume=(folder / "train" / "config.yaml").exists())
    if not result.finished:
        raise KeyboardInterrupt
    for stage in result.stages:
        say(f"stage {stage.stage}: {stage.steps} steps, {stage.seconds:.0f} s -> {stage.checkpoint}", console)


def evaluate_stages(
    folder: Path, training: list[str], scenes: list[str], watch: Stopwatch, console: Console
) -> dict[str, Any]:
    """`stages` and `baselines` of results.json, each checkpoint evaluated once, and the report page.

    Where a field of distances has its surface best is chosen on training scenes: it moves RayIoU by 0.2.
    """
    evaluations = {}
    for stage in STAGES:
        checkpoint, kept = folder / "train" / stage, folder / "eval" / stage
        average = checkpoint / "ema"
        checkpoint = average if average.is_dir() else checkpoint
        written = kept / "results.json"
        if not _in_order(checkpoint / "model.safetensors", written, kept / "report.html"):
            with watch.part("eval"):
                pictures = 3 if stage == STAGES[-1] else 0
                choose_on = () if stage == STAGES[0] else training
                evaluate_checkpoint(
                    checkpoint, folder / "store.zarr", tuple(scenes), kept, console, pictures, choose_on=choose_on
                )
        evaluations[stage] = json.loads(written.read_text())
    shutil.copyfile(folder / "eval" / STAGES[-1] / "report.html", folder / "report.html")
    return {
        "stages": {stage: chief_figures(evaluation) for stage, evaluation in evaluations.items()},
        "baselines": {name: chief_figures(found) for name, found in evaluations[STAGES[-1]]["baselines"].items()},
    }


def _in_order(*files: Path) -> bool:
    """Whether all files are there, each as new as the one before it: an evaluation that was interrupted between its
    figures and its page lacks the page, or has an old one."""
    if not all(file.exists() for file in files):
        return False
    times = [file.stat().st_mtime_ns for file in files]
    return times == sorted(times)


def write_synthetic_log(folder: Path, dataset: str, values: dict[str, Any], console: Console) -> None:
    """A synthetic log in the layout of `dataset`, with a progress bar; `values` are keys of SynthConfig."""
    from pydantic import ValidationError

    from pipelines.config import ConfigError, explain
    from pipelines.synth import write_log
    from pipelines.synth.config import SynthConfig

    try:
        config = SynthConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, SynthConfig, "synth")) from None
    started = time.perf_counter()
    write_log(folder, config, dataset=dataset, console=console)
    say(
        f"{config.scenes} scenes of {config.keyframes} keyframes, {time.perf_counter() - started:.0f} s -> {folder}",
        console,
    )


def show(results: dict[str, Any], console: Console) -> None:
    """The table of stages and baselines, then the seconds of each part."""
    table = Table("", *METRICS.values())
    for name, figures in {**results["stages"], **results["baselines"]}.items():
        table.add_row(name, *(f"{figures[key]:.3f}" if key in figures else "" for key in METRICS))
    console.print(table)
    seconds = results["seconds"]
    say(
        ", ".join(f"{part} {value:.0f} s" for part, value in seconds.items())
        + f", in all {sum(seconds.values()):.0f} s",
        console,
    )
