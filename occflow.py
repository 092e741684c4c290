"""The command line: one sub-command per verb, thin; what is heavy is imported inside the command."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich.console import Console
from rich.table import Table

# Threads that spin while they wait take the core that others need: on a busy machine a training step was seen to take
# ten times as long. Read when torch is loaded, so it is set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Driving logs to 3D occupancy and flow, from cues alone. Start with `occflow demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

KNOWN_ERRORS = {
    "pipelines.config:ConfigError": 2,
    "train.config:ConfigError": 2,
    "pipelines.datasets.records:DataError": 1,
    "storage.errors:StoreError": 1,
    "model.checkpoint:CheckpointError": 1,
    "train.checkpoint:CheckpointError": 1,
    "eval.rules:EvaluationError": 2,
    "pipelines.prefect_home:PrefectError": 1,
    "occflow:CommandError": 2,
}
"""Errors whose message is a remedy, and the exit code they give; anything else is a bug and shows its traceback."""


class CommandError(ValueError):
    """An option that cannot be used."""


def exit_code(error: BaseException) -> int | None:
    """The exit code for an error that needs no traceback, else None. Looks only at modules imported already."""
    for name, code in KNOWN_ERRORS.items():
        module, _, cls = name.partition(":")
        kind = getattr(sys.modules.get(module), cls, None)
        if kind is not None and isinstance(error, kind):
            return code
    # The operating system's own message, where it says which file.
    return 1 if isinstance(error, OSError) and error.filename is not None else None


def verb(function: FunctionT) -> FunctionT:
    """Show a known error as one red paragraph, without a traceback unless --debug asks for it."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("\n[yellow]interrupted[/]: what is committed stays; run the same command to go on")
            raise typer.Exit(130) from None
        except Exception as error:
            code = exit_code(error)
            if code is None or os.environ.get("OCCFLOW_DEBUG"):
                raise
            err.print(str(error), style="red", markup=False, soft_wrap=True)
            raise typer.Exit(code) from None

    return run  # type: ignore[return-value]


@app.callback()
def settings(debug: Annotated[bool, typer.Option(help="Show tracebacks of known errors too.")] = False) -> None:
    """Driving logs to 3D occupancy and flow, from cues alone. Start with `occflow demo`."""
    if debug:
        os.environ["OCCFLOW_DEBUG"] = "1"


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """["a.b=c"] as {"a.b": c}, c read as YAML."""
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise CommandError(f"--set {pair}: expected key=value, such as runner.workers=4")
        parsed[key] = yaml.safe_load(value)
    return parsed


def say(line: str) -> None:
    """One line on standard output, as it is: not wrapped, no markup, so that paths can be copied."""
    out.print(line, markup=False, soft_wrap=True)


def names(text: str | None) -> tuple[str, ...] | None:
    """ "a,b" as ("a", "b")."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one key: a.b=c (repeatable).")]
ScenesOption = Annotated[str | None, typer.Option(help="Only these scenes, comma-separated.")]
ThresholdOption = Annotated[float | None, typer.Option(help="Occupied where sdf <= this many metres.")]


@app.command()
@verb
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over instead of going on.")] = False,
) -> None:
    """The whole way in minutes: synthetic log, cues, both training stages, evaluation, report."""
    import occflow_demo

    occflow_demo.run(out_dir, out, fresh=fresh)


@app.command()
@verb
def synth(
    folder: Annotated[Path, typer.Argument(help="Where the log is written.")],
    dataset: Annotated[str, typer.Option(help="nuscenes or semantic_kitti.")] = "nuscenes",
    preset: Annotated[str, typer.Option(help="easy or hard.")] = "easy",
    scenes: Annotated[int, typer.Option(min=1)] = 3,
    keyframes: Annotated[int, typer.Option(min=2)] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    set_: SetOption = None,
) -> None:
    """Write a synthetic driving log in a data set's own layout on disk."""
    from occflow_demo import write_synthetic_log

    values = {"preset": preset, "scenes": scenes, "keyframes": keyframes, "seed": seed, **overrides(set_ or [])}
    write_synthetic_log(folder, dataset, values, out)
    config = "demo" if dataset == "nuscenes" else dataset
    say(f"next: occflow cues {config} --root {folder} --store {folder.parent / 'store.zarr'}")


@app.command()
@verb
def cues(
    config: Annotated[str, typer.Argument(help="A YAML file, or a preset: demo, nuscenes, semantic_kitti.")],
    root: Annotated[Path | None, typer.Option(help="Overrides dataset.root.")] = None,
    store: Annotated[Path | None, typer.Option(help="Overrides store.")] = None,
    scenes: ScenesOption = None,
    cues: Annotated[str | None, typer.Option(help="Only these cues (and what they are made from).")] = None,
    runner: Annotated[str | None, typer.Option(help="threads, dask, or plain (no Prefect).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Overrides runner.workers.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Estimate time and space, check the disk, write nothing.")] = False,
    set_: SetOption = None,
) -> None:
    """Extract the cues of a log into a store; goes on where an earlier run stopped."""
    from pipelines.config import load_config
    from pipelines.console import extract_shown, show_dry_run, show_report

    kind = "dask" if scheduler is not None else None if runner == "plain" else runner
    given: dict[str, Any] = {"dataset.root": root, "store": store, "runner.kind": kind}
    given |= {"runner.workers": workers, "runner.scheduler": scheduler}
    settings = load_config(config, overrides(set_ or []) | given)
    if dry_run:
        show_dry_run(settings, names(scenes), names(cues), out)
        say(f"next: the same command without --dry-run writes {settings.store}")
        return
    report = extract_shown(settings, names(scenes), names(cues), out, prefect=runner != "plain")
    show_report(report, settings, out)
    if report.interrupted:
        say("next: the same command again goes on where this one stopped")
        raise typer.Exit(130)
    say(f"next: occflow status {settings.store}    or    occflow train demo --set store={settings.store}")
    raise typer.Exit(1 if report.failed else 0)


@app.command()
@verb
def status(store: Annotated[Path, typer.Argument(help="A cue store.")]) -> None:
    """What a store holds, scene by scene and cue by cue, and what is missing and why."""
    from storage.status import status as store_status
    from storage.truth import truth_path

    table = Table("scene", "cue", "state", "blocks", "keyframes", "size", "why", box=None)
    rows = store_status(store)
    truth = store_status(truth_path(store)) if truth_path(store).exists() else []
    for label, row in [*(("", row) for row in rows), *(("truth ", row) for row in truth)]:
        size = f"{row.bytes / 1e6:.1f} MB"
        blocks = f"{row.committed}/{row.blocks}"
        table.add_row(row.scene, label + row.cue, row.state, blocks, str(row.frames), size, row.why)
    out.print(table)
    total = sum(row.bytes for row in [*rows, *truth])
    incomplete = sum(row.state in ("partial", "damaged") for row in rows)
    say(f"{len({row.scene for row in rows})} scenes, {total / 1e6:.1f} MB, {incomplete} cues incomplete: {store}")
    say(f"next: occflow {'verify' if not incomplete else 'verify --repair'} {store}")


@app.command()
@verb
def verify(
    store: Annotated[Path, typer.Argument(help="A cue store.")],
    repair: Annotated[
        bool, typer.Option(help="Take back what is damaged, so that `occflow cues` makes it anew.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="Compare files with their digests, decode nothing.")] = False,
) -> None:
    """Read everything in a store (and its truth) and check it; exits with 1 on damage."""
    from storage.truth import truth_path
    from storage.verify import repair as store_repair
    from storage.verify import verify as store_verify

    damaged = 0
    for path in [store, *([truth_path(store)] if truth_path(store).exists() else [])]:
        findings = store_verify(path, decode=not quick)
        damaged += len(findings)
        for finding in findings:
            unit = f" ({finding.unit})" if finding.unit is not None else ""
            say(f"{finding.kind}: {finding.path}{unit}: {finding.detail}")
        if repair and findings:
            taken = store_repair(path, findings)
            say(f"{path}: repaired; {len(taken)} units were taken back")
    say(f"{damaged} findings in {store}" if damaged else f"{store}: every record, file and chunk is sound")
    if damaged and not repair:
        say(f"next: occflow verify --repair {store}, then the occflow cues command that made it")
    raise typer.Exit(1 if damaged and not repair else 0)


@app.command()
@verb
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or a preset: demo, nuscenes, semantic_kitti, ...")],
    resume: Annotated[bool, typer.Option(help="Go on with the run in `out`.")] = False,
    set_: SetOption = None,
) -> None:
    """Train both stages from a store; also under torchrun."""
    from train.config import load_config

    settings = load_config(config, set_ or [])
    from train.loop import train as run_training  # seconds of imports, after a mistyped key is told

    result = run_training(settings, resume=resume)
    for stage in result.stages:
        loss = f", loss {stage.losses[0]:.3f} -> {stage.losses[-1]:.3f}" if stage.losses else ""
        say(f"stage {stage.stage}: {stage.steps} steps in {stage.seconds:.0f} s{loss} -> {stage.checkpoint}")
    if not result.finished:
        say("stopped early; next: the same command with --resume")
        raise typer.Exit(143)
    say(f"next: occflow eval {result.checkpoint} {settings.store}")


@app.command("eval")
@verb
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder (model.safetensors and model.yaml).")],
    store: Annotated[Path, typer.Argument(help="The cue store; its truth store lies beside it.")],
    scenes: Annotated[str | None, typer.Option(help="Only these scenes, or keyframes of scenes: a,b:3,c:5-9.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of results and report.")] = None,
    protocol: Annotated[str | None, typer.Option(help="geometry or semantickitti; default by the truth.")] = None,
    threshold: ThresholdOption = None,
    sweep: Annotated[bool, typer.Option(help="RayIoU at nine thresholds too.")] = False,
    keyframes: Annotated[int | None, typer.Option(min=1, help="At most so many, evenly spaced.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Keyframes drawn in the report.")] = 3,
) -> None:
    """Metrics by protocol, as JSON, a table and a page."""
    from occflow_demo import evaluate_checkpoint, show_evaluation

    folder = out_dir or checkpoint / "eval"
    options = {"protocol": protocol, "threshold": threshold, "keyframes": keyframes}
    show_evaluation(evaluate_checkpoint(checkpoint, store, names(scenes), folder, out, pictures, sweep, **options), out)
    say(f"{folder / 'results.json'}, {folder / 'report.html'}")
    say(f"next: open {folder / 'report.html'}, or occflow predict {checkpoint} {store}")


@app.command()
@verb
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    store: Annotated[Path, typer.Argument(help="A store; images, calibration and poses are enough.")],
    scenes: ScenesOption = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where labels and pictures go.")] = None,
    threshold: ThresholdOption = None,
    pictures: Annotated[bool, typer.Option(help="Draw every keyframe, as <scene>/<token>/pictures.png.")] = False,
) -> None:
    """Occupancy and flow of every keyframe, as <scene>/<token>/labels.npz."""
    from eval.predict import Predictor
    from model.checkpoint import load_model
    from storage.reader import StoreReader

    folder = out_dir or checkpoint / "predictions"
    predictor = Predictor(load_model(checkpoint), StoreReader(store), threshold=threshold)
    wanted = names(scenes) or predictor.reader.scenes()
    count = 0
    for scene in wanted:
        for path in predictor.run(scene, folder):
            count += 1
            if pictures:
                from eval.sheet import draw_prediction

                draw_prediction(predictor, scene, path.parent)
    say(f"{count} keyframes, occupied where sdf <= {predictor.threshold:g} m -> {folder}")
    say(f"next: occflow eval {checkpoint} {store}")


@app.command()
@verb
def doctor() -> None:
    """What this machine can run, and the exact missing step for what it cannot."""
    from pipelines.doctor import examine

    findings = examine()
    table = Table("what", "state", "found", "step", box=None)
    for finding in findings:
        table.add_row(finding.what, finding.state, finding.found, finding.remedy)
    out.print(table)
    missing = [finding.what for finding in findings if finding.state == "missing"]
    say(f"missing: {', '.join(missing)}" if missing else "everything the demo needs is here; next: occflow demo")
    raise typer.Exit(1 if missing else 0)


if __name__ == "__main__":
    app()
