"""The command line: one sub-command per verb, thin; what is heavy is imported inside the command."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import occflow_eval
import occflow_inspect
import occflow_store
import occflow_weights
from occflow_shell import ScenesOption, command, names, out, overrides, preset_list, refuse, say, verb

# Threads that spin while they wait take the core that others need: on a busy machine a training step was seen to take
# ten times as long. Read when torch is loaded, so it is set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Driving logs to 3D occupancy and flow, from cues alone. Start with `occflow demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(occflow_store.app, name="store")
app.add_typer(occflow_weights.app, name="weights")

SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one key: a.b=c (repeatable).")]


def _said(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given: one that was not must not undo a --set of the same key."""
    return {key: value for key, value in options.items() if value is not None}


@app.callback()
def settings(debug: Annotated[bool, typer.Option(help="Show tracebacks of known errors too.")] = False) -> None:
    """Driving logs to 3D occupancy and flow, from cues alone. Start with `occflow demo`."""
    if debug:
        os.environ["OCCFLOW_DEBUG"] = "1"


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
    dataset: Annotated[str, typer.Option(help="nuscenes, semantic_kitti or kitti_mot.")] = "nuscenes",
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
    store = folder.parent / "store.zarr"
    say(f"next: {command('occflow', 'cues', config, '--root', folder, '--store', store)}")


@app.command()
@verb
def cues(
    config: Annotated[str, typer.Argument(help=f"A YAML file, or a preset: {preset_list('pipelines')}.")],
    root: Annotated[Path | None, typer.Option(help="Overrides dataset.root.")] = None,
    store: Annotated[str | None, typer.Option(help="Overrides store: a path, or s3://bucket/….zarr.")] = None,
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

    if runner not in (None, "dask"):
        refuse({"--scheduler": scheduler}, f"this is for --runner dask, and --runner {runner} is given")
    kind = "dask" if scheduler is not None else None if runner == "plain" else runner
    given: dict[str, Any] = {"dataset.root": root, "store": store, "runner.kind": kind}
    given |= {"runner.workers": workers, "runner.scheduler": scheduler}
    settings = load_config(config, overrides(set_ or []) | _said(given))
    if dry_run:
        show_dry_run(settings, names(scenes), names(cues), out)
        say(f"next: the same command without --dry-run writes {settings.store}")
        return
    report = extract_shown(settings, names(scenes), names(cues), out, prefect=runner != "plain")
    show_report(report, settings, out)
    if report.interrupted:
        say("next: the same command again goes on where this one stopped")
        raise typer.Exit(130)
    trained = Path(config).stem
    trained = trained if trained in preset_list("train").split(", ") else "CONFIG"
    look = command("occflow", "status", settings.store)
    say(f"next: {look}    or    {command('occflow', 'train', trained, '--set', f'store={settings.store}')}")
    raise typer.Exit(1 if report.failed else 0)


@app.command()
@verb
def deploy(
    config: Annotated[str, typer.Argument(help="A YAML file, or a preset, as for `occflow cues`.")],
    name: Annotated[str | None, typer.Option(help="Of the deployment; default the store's name.")] = None,
    pool: Annotated[str, typer.Option(help="Work pool; a process pool is created where there is none.")] = "occflow",
    image: Annotated[str | None, typer.Option(help="For pools that start containers: one with occflow.")] = None,
    cron: Annotated[str | None, typer.Option(help="When to run, as in '0 3 * * *'; else only when asked.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of --cron, such as Europe/Berlin; default UTC.")] = None,
    root: Annotated[Path | None, typer.Option(help="Overrides dataset.root.")] = None,
    store: Annotated[str | None, typer.Option(help="Overrides store: a path, or s3://bucket/….zarr.")] = None,
    scenes: ScenesOption = None,
    cues: Annotated[str | None, typer.Option(help="Only these cues (and what they are made from).")] = None,
    set_: SetOption = None,
) -> None:
    """Make the extraction a Prefect deployment, for workers of a work pool, by hand or on a schedule."""
    from pipelines.config import load_config
    from pipelines.deployments import deploy as deploy_flow

    if cron is None:
        refuse({"--timezone": timezone}, "this is for --cron, which is not given")
    settings = load_config(config, overrides(set_ or []) | _said({"dataset.root": root, "store": store}))
    given: dict[str, Any] = {"cron": cron, "timezone": timezone, "image": image}
    given |= {"scenes": names(scenes), "cues": names(cues)}
    default = str(settings.store).rsplit("/", 1)[-1].removesuffix(".zarr")
    done = deploy_flow(settings, name or default, pool, **given)
    when = f"runs at '{done.schedule}'" if done.schedule else "runs when asked"
    say(f"{done.name} at {done.server}: {when}, on work pool {done.pool}")
    if not done.log_seen:
        say(f"note: {settings.dataset.root} is not on this machine; whether it is a log, its run will tell")
    start = command("prefect", "worker", "start", "--pool", done.pool)
    say(f"next: {start}    and    {command('prefect', 'deployment', 'run', done.name)}")


@app.command()
@verb
def status(
    store: Annotated[str, typer.Argument(help="A cue store: a path, or s3://bucket/….zarr.")],
    every: Annotated[bool, typer.Option("--all", help="Every scene and cue, however many.")] = False,
) -> None:
    """What a store holds, what is missing and why, what failed, and how far the run is that goes on."""
    from storage.status import store_status

    found = store_status(store)
    occflow_store.show_status(found, every, store)
    rows = [*found.rows, *found.truth]
    incomplete = sum(row.wanting for row in rows)
    total = f"{sum(row.bytes for row in rows) / 1e6:.1f} MB"
    say(f"{len({row.scene for row in found.rows})} scenes, {total}, {incomplete} cues incomplete: {store}")
    if any(row.state == "damaged" for row in rows):
        say(f"next: {command('occflow', 'verify', '--repair', store)}, then the occflow cues command that made it")
    elif incomplete and not (found.run is not None and found.run.runs):
        say("next: the occflow cues command that made it goes on")
    else:
        say(f"next: {command('occflow', 'verify', store)}")


@app.command()
@verb
def verify(
    store: Annotated[str, typer.Argument(help="A cue store: a path, or s3://bucket/….zarr.")],
    repair: Annotated[
        bool, typer.Option(help="Take back what is damaged, so that `occflow cues` makes it anew.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="Compare files with their digests, decode nothing.")] = False,
) -> None:
    """Read everything in a store (and its truth) and check it; exits with 1 on damage that is still there."""
    from storage.repair import LEFT_ALONE
    from storage.repair import repair as store_repair
    from storage.truth import truth_path
    from storage.verify import verify as store_verify

    damaged = left = 0
    for path in [store, *([truth_path(store)] if truth_path(store).exists() else [])]:
        findings = store_verify(path, decode=not quick)
        damaged += len(findings)
        for finding in findings:
            unit = f" ({finding.unit})" if finding.unit is not None else ""
            say(f"{finding.kind}: {finding.path}{unit}: {finding.detail}")
        if repair and findings:
            taken = store_repair(path, findings)
            beyond = [finding.kind for finding in findings if finding.kind in LEFT_ALONE]
            left += len(beyond)
            rest = f"; {len(beyond)} findings stay as they are ({', '.join(sorted(set(beyond)))})" if beyond else ""
            say(f"{path}: repaired; {len(taken)} units were taken back{rest}")
    say(f"{damaged} findings in {store}" if damaged else f"{store}: every record, file and chunk is sound")
    if damaged:
        first = "" if repair else f"{command('occflow', 'verify', '--repair', store)}, then "
        say(f"next: {first}the occflow cues command that made it")
    raise typer.Exit(1 if left or (damaged and not repair) else 0)


@app.command()
@verb
def train(
    config: Annotated[str, typer.Argument(help=f"A YAML file, or a preset: {preset_list('train')}.")],
    resume: Annotated[bool, typer.Option(help="Go on with the run in `out`.")] = False,
    set_: SetOption = None,
) -> None:
    """Train both stages from a store; also under torchrun."""
    from train.config import load_config

    settings = load_config(config, set_ or [])
    from train.loop import train as run_training  # seconds of imports, after a mistyped key is told

    result = run_training(settings, resume=resume)
    tell = say if os.environ.get("RANK", "0") == "0" else lambda line: None  # torchrun: one process speaks for all
    for stage in result.stages:
        loss = f", loss {stage.losses[0]:.3f} -> {stage.losses[-1]:.3f}" if stage.losses else ""
        tell(f"stage {stage.stage}: {stage.steps} steps in {stage.seconds:.0f} s{loss} -> {stage.checkpoint}")
    if not result.finished:
        tell("stopped early; next: the same command with --resume")
        raise typer.Exit(143)
    tell(f"next: {command('occflow', 'eval', result.checkpoint, settings.store)}")


app.command("inspect")(occflow_inspect.inspect)
app.command("eval")(occflow_eval.evaluate)
app.command("predict")(occflow_eval.predict)
app.command("dynamics")(occflow_eval.dynamics)


@app.command()
@verb
def adapt(
    config: Annotated[str, typer.Argument(help="A YAML file, or a preset, as for `occflow cues`: which log.")],
    weights: Annotated[str, typer.Option(help="Where to start: a file, or a name of `occflow weights list`.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of pairs, states and the result.")],
    root: Annotated[Path | None, typer.Option(help="Overrides dataset.root.")] = None,
    scenes: ScenesOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting: steps=500 (repeatable).")] = None,
) -> None:
    """Fine-tune UniMatch on a log without labels."""
    from pipelines.config import load_config

    settings = load_config(config, {"dataset.root": root})
    from pipelines.adapt.run import fine_tune  # seconds of imports, after a mistyped key is told

    done = fine_tune(settings, weights, out_dir, names(scenes), device, overrides(set_ or []), resume, say)
    if not done.finished:
        say("stopped early; next: the same command with --resume")
        raise typer.Exit(143)
    say(f"{out_dir / 'history.json'}, {done.checkpoint}")
    say(f"next: occflow cues CONFIG with cues.flow_next: {{backend: unimatch, weights: {done.checkpoint}}}")


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
