"""The paper's ablations as a matrix of runs, row by seed, that accumulates over many invocations: `make ablate`.

It joins rooms that may not import each other, which is why it stands beside them. Logs and cues are made here only
where they are missing: a machine that trains needs neither `pipelines` nor what it depends on.
"""

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from occflow_demo import Size, Stopwatch, make_log
from occflow_matrix import Material, MatrixError, Plan, agree, locked, write_json
from occflow_shell import names, out, say, verb

# As in occflow.py, and for the same reason.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SIZE = Size(training_scenes=8, held_out_scenes=3)
"""The log that is made where no store is given."""
SWEEP_KEYFRAMES = 6
"""Keyframes of the training scenes on which a run's occupancy threshold is chosen."""


def run(
    folder: Path, console: Console, plan: Plan, material: Material | None = None, size: Size = SIZE
) -> dict[str, Any]:
    """Go on with the matrix in `folder` until it is complete or the budget is spent; what summary.json holds then.

    Several processes may work on one folder: each takes the runs that no other one holds.

    Raises:
        MatrixError: `folder` holds runs of other settings, or a row that there is not.
        ConfigError: a base or override that cannot be used.
    """
    from eval.ablation import finished_runs
    from train.ablations import distinct, rows
    from train.interrupt import stop_on_sigterm

    deadline = None if plan.budget_minutes is None else time.monotonic() + 60 * plan.budget_minutes
    unknown = set(plan.rows or ()) - set(rows())
    if unknown:
        raise MatrixError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows())}")
    folder.mkdir(parents=True, exist_ok=True)
    given = material
    with locked(folder / ".lock", wait=True):
        material = material or make_material(folder, size, console)
        digests = agree(folder, plan, material)
    for name, reason in finished_runs(folder, digests, material.held_out)[1].items():
        say_in(console, f"{name}: {reason}; not counted. Take the folder away, and the run is made here")
    trained = distinct(digests)
    wanted = list(dict.fromkeys(trained[row] for row in (plan.rows or rows())))
    with stop_on_sigterm(deadline) as stop:
        # Seed by seed: when time is up, every row has as many seeds as any other, give or take one.
        for seed in range(plan.first_seed, plan.first_seed + plan.seeds):
            for row in wanted:
                place = folder / "runs" / f"{row}-{seed}"
                place.mkdir(parents=True, exist_ok=True)
                with locked(place / ".lock", wait=False) as mine:
                    if mine and not stop.made and not (place / "result.json").exists():
                        run_one(place, row, seed, plan, material, stop, console)
    return summarise(folder, digests, material, command_of(folder, plan, given), console)


def make_material(folder: Path, size: Size, console: Console) -> Material:
    """Store and scenes under `folder`, made where they are not there yet."""
    store, kept = folder / "store.zarr", folder / "scenes.json"
    if not kept.exists():
        from pipelines.config import load_config
        from pipelines.console import extract_shown, show_report
        from pipelines.plan import plan

        watch = Stopwatch(folder / "seconds.json")
        training, held_out = make_log(folder / "log", size, watch, console)
        config = load_config("ablation", {"dataset.root": folder / "log", "store": store, **size.cues})
        if plan(config).open:
            with watch.part("cues"):
                report = extract_shown(config, None, None, console, prefect=False)
            show_report(report, config, console)
            if report.interrupted:
                raise KeyboardInterrupt
        write_json(kept, {"training": training, "held_out": held_out})
    scenes = json.loads(kept.read_text())
    return Material(str(store), tuple(scenes["training"]), tuple(scenes["held_out"]))


def run_one(
    place: Path, row: str, seed: int, plan: Plan, material: Material, stop: Any, console: Console
) -> dict[str, Any] | None:
    """Train and evaluate one row with one seed; its result, written whole to result.json. None: stopped on the way.

    A run that diverges is a result too: it is kept, with its reason and without figures, and never drawn again.
    """
    from train.ablations import digest, row_config, share_first_stage
    from train.loop import train
    from train.watch import TrainingDiverged

    config = row_config(row, seed, material.store, place / "train", material.training, plan.base, plan.overrides)
    shared = share_first_stage(config)
    say_in(console, f"{row}, seed {seed}: training" + (f", from the first stage of {shared}" if shared else ""))
    started = time.monotonic()
    result: dict[str, Any] = {"row": row, "seed": seed, "digest": digest(config), "held_out": list(material.held_out)}
    result |= {"status": "done", "reason": None}
    try:
        trained = train(config, resume=True, stop=stop)
    except TrainingDiverged as error:
        result |= {"status": "failed", "reason": str(error), "figures": {}}
        say_in(console, f"{row}, seed {seed}: {error}")
    else:
        if not trained.finished:
            return None
        spent = sum(stage.seconds for stage in trained.stages)
        result["seconds"] = {"train": round(spent, 1)}
        result["steps"] = {f"stage{stage.stage}": stage.steps for stage in trained.stages}
        result |= evaluate_run(trained.checkpoint, config.run.accelerator, material)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in result["figures"].items() if value is not None)
        say_in(console, f"{row}, seed {seed}: {time.monotonic() - started:.0f} s; {shown}")
    write_json(place / "result.json", result)
    return result


def evaluate_run(checkpoint: Path, accelerator: str, material: Material) -> dict[str, Any]:
    """Figures of a checkpoint on the held-out scenes, by the paper's names, and everything behind them.

    The occupancy threshold is chosen on training scenes.
    """
    import torch

    from eval.ablation import figures_of
    from eval.evaluate import SWEEP, choose_threshold, evaluate
    from eval.image_motion import image_motion
    from train.checkpoint import load_model

    started = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"
    model = load_model(checkpoint)[0].to(device)
    threshold = choose_threshold(model, material.store, material.training, SWEEP, keyframes=SWEEP_KEYFRAMES)
    own = (model.config.occupancy_threshold,)
    given: dict[str, Any] = {"checkpoint": checkpoint, "threshold": threshold, "sweep": own}
    found = evaluate(model, material.store, material.held_out, **given)
    motion = image_motion(model, material.store, material.held_out)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "figures": figures_of(found, motion),
        "device": name,
        "evaluation": found,
        "image_motion": motion,
        "eval_seconds": round(time.perf_counter() - started, 1),
    }


def summarise(
    folder: Path, digests: dict[str, str], material: Material, command: str, console: Console
) -> dict[str, Any]:
    """Tables of everything that is finished: on the console, as summary.json and as summary.md with the `command`."""
    from eval.ablation import compare, console_tables, finished_runs, markdown
    from train.ablations import distinct

    results, refused = finished_runs(folder, digests, material.held_out)
    trained = distinct(digests)
    by_row = {row: results.get(source, {}) for row, source in trained.items()}
    summary = compare(by_row, {row: source for row, source in trained.items() if row != source})
    summary["refused"] = refused
    write_json(folder / "summary.json", summary)
    setting = f"Trained on {', '.join(material.training)}; held out: {', '.join(material.held_out)}."
    (folder / "summary.md").write_text(markdown(summary, command, setting))
    for table in console_tables(summary):
        console.print(table)
    say_in(console, f"{summary['runs']} runs finished -> {folder / 'summary.md'}, {folder / 'summary.json'}")
    if refused:
        say_in(console, f"not counted, made with other settings or scenes: {', '.join(refused)}")
    return summary


def command_of(folder: Path, plan: Plan, material: Material | None) -> str:
    """The command that was given, whole; `material`: where it names one."""
    words = ["python", "occflow_ablate.py", "--out", str(folder), "--base", plan.base, "--seeds", str(plan.seeds)]
    words += ["--first-seed", str(plan.first_seed)] if plan.first_seed else []
    words += ["--rows", ",".join(plan.rows)] if plan.rows else []
    words += ["--budget-minutes", f"{plan.budget_minutes:g}"] if plan.budget_minutes is not None else []
    if material is not None:
        words += ["--store", material.store]
        words += ["--scenes", ",".join(material.training), "--held-out", ",".join(material.held_out)]
    for override in plan.overrides:
        words += ["--set", override]
    return shlex.join(words)


def say_in(console: Console, line: str) -> None:
    """One line, not wrapped, no markup."""
    console.print(line, markup=False, soft_wrap=True)


@verb
def main(
    folder: Annotated[Path, typer.Option("--out", help="Where everything goes, and is found again.")] = Path(
        "runs/ablation"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Of every row; more of them later go on from here.")] = 3,
    rows: Annotated[str | None, typer.Option(help="Only these rows, comma-separated.")] = None,
    first_seed: Annotated[
        int, typer.Option(min=0, help="Where seeds begin; another machine may have those before.")
    ] = 0,
    budget_minutes: Annotated[float | None, typer.Option(min=0, help="Stop in order after so long.")] = None,
    store: Annotated[str | None, typer.Option(help="A store with truth beside it; default: one is made.")] = None,
    scenes: Annotated[str | None, typer.Option(help="With --store: scenes to train on.")] = None,
    held_out: Annotated[str | None, typer.Option(help="With --store: scenes to be judged by.")] = None,
    base: Annotated[str, typer.Option(help="Preset or YAML file that every row is laid over.")] = "ablation",
    set_: Annotated[list[str] | None, typer.Option("--set", help="For all rows: a.b=c (repeatable).")] = None,
) -> None:
    """The paper's ablation tables on held-out scenes; every invocation goes on where the last one stopped."""
    material = _given(store, names(scenes), names(held_out))
    run(folder, out, Plan(base, tuple(set_ or ()), names(rows), seeds, first_seed, budget_minutes), material)
    say("next: the same command again goes on; --seeds with a higher number narrows the intervals")


def _given(store: str | None, scenes: Sequence[str] | None, held_out: Sequence[str] | None) -> Material | None:
    """The material that the options name, None where none is named."""
    if store is None and scenes is None and held_out is None:
        return None
    if store is None or not scenes or not held_out:
        raise MatrixError("--store, --scenes and --held-out go together: what to train on and what to be judged by")
    both = sorted(set(scenes) & set(held_out))
    if both:
        raise MatrixError(f"held out and trained on at once: {', '.join(both)}")
    return Material(store, tuple(scenes), tuple(held_out))


if __name__ == "__main__":
    typer.run(main)
