"""`occflow eval`, `predict` and `dynamics`: what a network or a folder of predictions is worth, what it says of a
store, and how much moves in each keyframe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from occflow_shell import CommandError, ScenesOption, command, names, out, refuse, say, verb

ThresholdOption = Annotated[float | None, typer.Option(help="Occupied where sdf <= this many metres.")]

METRICS = {
    "rayiou_geometry": "RayIoU",
    "rayiou_nonground": "RayIoU non-ground",
    "mave": "mAVE m/s",
    "abs_rel": "Abs Rel",
    "flow_epe_dynamic": "flow error (moving) m/s",
}
"""Figures of results.json and their headings."""

CHOOSING_KEYFRAMES = 4
"""Keyframes on which an occupancy threshold is chosen."""


@verb
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or predictions of any system (--layout).")],
    store: Annotated[str, typer.Argument(help="The cue store; its truth store lies beside it.")],
    scenes: Annotated[str | None, typer.Option(help="Only these scenes, or keyframes of scenes: a,b:3,c:5-9.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of results and report.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="geometry, semantickitti, or openocc, which needs classes; default by the truth.")
    ] = None,
    threshold: ThresholdOption = None,
    threshold_from: Annotated[
        str | None, typer.Option(help="Choose the threshold on these scenes, which should be training scenes.")
    ] = None,
    sweep: Annotated[bool, typer.Option(help="RayIoU at nine thresholds too.")] = False,
    keyframes: Annotated[int | None, typer.Option(min=1, help="At most so many, evenly spaced.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Keyframes drawn in the report.")] = 3,
    exclude: Annotated[list[Path] | None, typer.Option(help="File of marks by `occflow inspect` (repeatable).")] = None,
    against: Annotated[Path | None, typer.Option(help="Another checkpoint, measured and drawn beside it.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Predictions only: OpenOcc's or Occ3D's truth folder.")] = None,
    layout: Annotated[str | None, typer.Option(help="Predictions only: openocc, uniocc or submission.")] = None,
    half: Annotated[bool, typer.Option("--float16", help="Predictions only: round as the challenge does.")] = False,
    skip_missing: Annotated[bool, typer.Option(help="Predictions only: leave out keyframes without one.")] = False,
    export: Annotated[Path | None, typer.Option(help="Predictions only: write them as X.gz or UniOcc folder.")] = None,
) -> None:
    """Metrics by protocol, as JSON, a table and a page; of a checkpoint, or of predictions of any system in files."""
    if not (checkpoint / "model.safetensors").exists():
        from eval.score import score_shown

        network = {"--threshold": threshold, "--threshold-from": threshold_from, "--against": against}
        network |= {"--sweep": sweep or None}
        refuse(network, f"{checkpoint} holds no network (model.safetensors), which this asks for")
        given: dict[str, Any] = {"truth": truth, "layout": layout, "half": half, "skip_missing": skip_missing}
        given |= {"protocol": protocol, "keyframes": keyframes, "exclude": exclude or ()}
        show_evaluation(score_shown(checkpoint, store, names(scenes), out_dir, export, out, pictures, **given), out)
        return
    files: dict[str, Any] = {"--truth": truth, "--layout": layout, "--export": export}
    files |= {"--float16": half or None, "--skip-missing": skip_missing or None}
    refuse(files, f"{checkpoint} is a checkpoint, and this is for predictions in files (occflow predict writes some)")
    folder = out_dir or checkpoint / "eval"
    options: dict[str, Any] = {
        "protocol": protocol,
        "threshold": threshold,
        "keyframes": keyframes,
        "exclude": exclude or (),
    }
    if threshold is not None and threshold_from is not None:
        raise CommandError("--threshold gives a threshold and --threshold-from chooses one: leave one of them out")
    options["choose_on"] = names(threshold_from) or ()
    found = evaluate_checkpoint(checkpoint, store, names(scenes), folder, out, pictures, sweep, **options)
    show_evaluation(found, out)
    if against is not None:
        from eval.comparison import compare_checkpoints

        other = evaluate_checkpoint(against, store, names(scenes), folder / "against", out, 0, sweep, **options)
        results = {checkpoint: found, against: other}
        same: dict[str, Any] = {key: options[key] for key in ("keyframes", "exclude")}
        say(str(compare_checkpoints(results, store, names(scenes), folder, pictures, **same)))
    say(f"{folder / 'results.json'}, {folder / 'report.html'}")
    say(f"next: {command('open', folder / 'report.html')}, or {command('occflow', 'predict', checkpoint, store)}")


@verb
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    store: Annotated[str, typer.Argument(help="A store; images, calibration and poses are enough.")],
    scenes: ScenesOption = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where labels and pictures go.")] = None,
    threshold: ThresholdOption = None,
    pictures: Annotated[bool, typer.Option(help="Draw every keyframe, as <scene>/<token>/pictures.png.")] = False,
    video: Annotated[str | None, typer.Option(help="Film of every scene, <scene>.gif: gif, mp4 or webm.")] = None,
) -> None:
    """Occupancy and flow of every keyframe, as <scene>/<token>/labels.npz."""
    from eval.pictures import picture_sources
    from model.checkpoint import load_model

    folder = out_dir or checkpoint / "predictions"
    # On the truth's grid where there is one: what is written is to be scored and drawn beside it.
    predictor, _ = picture_sources(load_model(checkpoint), store, threshold)
    wanted = names(scenes) or predictor.reader.scenes()
    if video is not None:
        from eval.video import check_format, film

        check_format(f"film.{video}")
    count = 0
    for scene in wanted:
        for path in predictor.run(scene, folder):
            count += 1
            if pictures:
                from eval.sheet import draw_prediction

                draw_prediction(predictor, scene, path.parent)
        if video is not None:
            say(str(film(predictor.model, store, scene, folder / f"{scene}.{video}", threshold=threshold)))
    say(f"{count} keyframes, {predictor.rate:.2f} per second, occupied where sdf <= {predictor.threshold:g} m")
    say(f"{folder}")
    say(f"next: {command('occflow', 'eval', checkpoint, store)}")


@verb
def dynamics(
    store: Annotated[str, typer.Argument(help="A cue store with LiDAR and flow_next.")],
    file: Annotated[Path | None, typer.Option("--out", help="Default <store>.dynamics.json beside it.")] = None,
    scenes: ScenesOption = None,
    pixels: Annotated[float, typer.Option(min=0.0, help="Flow beyond this moves, pixels of a 704 wide image.")] = 8.0,
) -> None:
    """How much of each keyframe moves, so that training can draw dynamic ones more often (data.dynamic)."""
    from storage.dynamics import dynamics_path, write_dynamics
    from storage.reader import StoreReader
    from train.dynamics import MotionRule, score_store

    path, rule = file or dynamics_path(store), MotionRule(pixels=pixels)
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task("dynamics", total=None)
        scored = score_store(
            StoreReader(store), names(scenes), rule, lambda done, total: bar.update(task, completed=done, total=total)
        )
        frames = list(scored)
    write_dynamics(path, frames, store, vars(rule))
    shares = sorted(frame.share for frame in frames)
    middle = shares[len(shares) // 2]
    say(f"{len(frames)} keyframes, share of moving points: median {middle:.2%}, most {shares[-1]:.2%}")
    words = ["--set", f"store={store}", "--set", "data.dynamic.repeat=3"]
    if file is not None:  # elsewhere than training looks by itself
        words += ["--set", f"data.dynamic.scores={file}"]
    say(f"{path}; next: {command('occflow', 'train', 'CONFIG', *words)}")


def evaluate_checkpoint(
    checkpoint: Path,
    store: str | Path,
    scenes: tuple[str, ...] | None,
    folder: Path,
    console: Console,
    pictures: int = 0,
    sweep: bool = False,
    choose_on: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Metrics of a checkpoint on scenes of a store; writes results.json, and report.html with `pictures` keyframes
    drawn, into `folder`. `options` are those of `eval.evaluate.evaluate`.

    `choose_on`: scenes, not those that are evaluated, on whose truth the occupancy threshold is chosen.
    """
    from eval.evaluate import SWEEP, choose_threshold, evaluate
    from eval.pictures import draw_examples
    from eval.report import write_report
    from model.checkpoint import load_model
    from storage.whole_file import whole_file

    folder.mkdir(parents=True, exist_ok=True)
    model, thresholds = load_model(checkpoint), SWEEP if sweep else ()
    same: dict[str, Any] = {key: options[key] for key in ("keyframes", "exclude") if key in options}
    if choose_on:
        options["threshold"] = choose_threshold(
            model, store, choose_on, SWEEP, keyframes=CHOOSING_KEYFRAMES, exclude=options.get("exclude", ())
        )
    results = evaluate(model, store, scenes, checkpoint=checkpoint, sweep=thresholds, console=console, **options)
    if choose_on:
        results["notes"].append(
            f"threshold: sdf <= {options['threshold']:g} m was the best of {len(SWEEP)} by the truth of "
            f"{CHOOSING_KEYFRAMES} keyframes of {', '.join(choose_on)}"
        )
    # The figures first: what took hours must not be lost to a picture.
    with whole_file(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False))
    threshold = results["threshold_m"]
    drawn = draw_examples(model, store, scenes, pictures, threshold=threshold, **same) if pictures else []
    write_report(results, folder / "report.html", drawn)
    figures = ", ".join(f"{METRICS[key]} {value:.3f}" for key, value in chief_figures(results).items())
    say(f"{checkpoint}: {figures} -> {folder}", console)
    return results


def show_evaluation(results: dict[str, Any], console: Console) -> None:
    """The chief figures of one evaluation beside their baselines, the sweep, and what was not computed."""
    from eval.report import time_step_text, verdicts

    table = Table("", "files" if "layout" in results else "network", "baseline", "", box=None)
    for verdict in verdicts(results):
        value, baseline = ("–" if v is None else f"{v:.3f}" for v in (verdict["value"], verdict["baseline"]))
        against = f"{verdict['against']}, {'higher' if verdict['higher'] else 'lower'} is better"
        table.add_row(f"{verdict['name']} {verdict['unit']}".strip(), value, baseline, against)
    console.print(table)
    for row in results.get("sweep", []):
        say(
            f"sdf <= {row['threshold_m']:g} m: RayIoU {row['rayiou']:.3f}, off ground {row['rayiou_nonground']:.3f}",
            console,
        )
    say(f"time step, {time_step_text(results['time_step'])}", console)
    for line in [*results["not_computed"], *results["notes"]]:
        say(line, console)


def chief_figures(evaluation: dict[str, Any]) -> dict[str, float]:
    """The figures of METRICS that an evaluation has."""
    return {key: evaluation[key] for key in METRICS if evaluation.get(key) is not None}
