"""`occflow inspect`: the label-quality page and its JSON twin, one image as a full-size sheet, or the whole store
served on this machine."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from occflow_shell import CommandError, command, names, out, refuse, say, verb

HOST, PORT = "127.0.0.1", 8765
"""Where a page is served unless told otherwise."""
_COLOURS = {"fail": "red", "warn": "yellow", "pass": "green", "none": "dim"}


@verb
def inspect(
    store: Annotated[str, typer.Argument(help="A cue store: a path, or s3://bucket/….zarr.")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of page and JSON; default beside it.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with thresholds and sizes (docs/inspection.md).")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Keyframes whose pixels are read.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Read all keyframes.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sample.")] = None,
    scenes: Annotated[str | None, typer.Option(help="Only these scenes, comma-separated.")] = None,
    against: Annotated[str | None, typer.Option(help="Another store to compare with, frame by frame.")] = None,
    rrd: Annotated[
        Path | None, typer.Option(help="Also write the sample as Rerun recordings, one per scene, into this folder.")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="Write keyframes that checks with `exclude` reject here.")
    ] = None,
    scene: Annotated[str | None, typer.Option(help="With --frame: one image as a full-size sheet.")] = None,
    frame: Annotated[int | None, typer.Option(min=0, help="Keyframe of --scene.")] = None,
    camera: Annotated[str | None, typer.Option(help="Camera of --scene and --frame; default all.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Offer the page and the whole store on this machine.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help=f"Of --serve; default {PORT}.")] = None,
    host: Annotated[str | None, typer.Option(help=f"Of --serve; any but {HOST}, the default, lets others in.")] = None,
) -> None:
    """Whether a store's labels can be trained on: checks, a page that shows where they fail, marks that exclude."""
    from eval.inspection.report import beside, make_report
    from eval.inspection.rerun_export import export_recordings
    from eval.inspection.serve import require_port
    from eval.inspection.settings import load_settings

    given: dict[str, Any] = {"sample": sample, "every": every or None, "seed": seed, "scenes": names(scenes)}
    settings, folder = load_settings(config, **given), out_dir or beside(store)
    sheet = scene is not None or frame is not None
    if not sheet:
        refuse({"--camera": camera}, "this says what to draw of --scene and --frame, which are not given")
    if not serve:
        refuse({"--port": port, "--host": host}, "this is for --serve, which is not given")
    if sheet:
        whole = {"--against": against, "--rrd": rrd, "--exclude": exclude, "--serve": serve or None}
        refuse(whole | {"--sample": sample, "--all": every or None}, "--scene and --frame draw one image and no more")
        _sheets(store, settings, folder, scene, frame, camera)
        return
    _look_ahead(folder, rrd, exclude, against)
    address = host or HOST, PORT if port is None else port
    if serve:
        require_port(*address)
    with _bar("inspect") as tick:
        made = make_report(store, folder, settings, against, tick)
    _show(made.inspection.result)
    if rrd is not None:
        with _bar("record") as tick:
            paths = export_recordings(made.inspection.inspector, made.inspection.frames, rrd, tick)
        say(f"{len(paths)} recordings in {rrd}; next: {command('rerun', paths[0])}")
    if exclude is not None:
        _exclude(made.inspection, exclude)
    say(f"{made.page}, {made.twin}")
    if serve:
        _serve(made, folder, *address)
        return
    elsewhere = [] if out_dir is None else ["--out", out_dir]
    say(f"next: {command('open', made.page)}, or {command('occflow', 'inspect', store, *elsewhere, '--serve')}")


def _look_ahead(folder: Path, rrd: Path | None, exclude: Path | None, against: str | None) -> None:
    """Tell what cannot be done before the inspection, not after it."""
    from eval.inspection.rerun_export import rerun_sdk
    from storage.reader import StoreReader

    for option, place in (("--out", folder), ("--rrd", rrd), ("--exclude", exclude and exclude.parent)):
        if place is not None:
            _require_folder(option, place)
    if rrd is not None:
        rerun_sdk()
    if exclude is not None:
        _marks(exclude)
    if against is not None:
        StoreReader(against)


def _require_folder(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written to; it is not made yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise CommandError(f"{option}: {there} is no folder; give a place where {folder} can be made")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CommandError(f"{option}: {there} may not be written to by this user; give another folder")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar while the work inside lasts; gives the function that moves it."""
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(result: dict[str, Any]) -> None:
    """The checks as a table, worst first."""
    table = Table("", "check", "median", "limit", "beyond it", "allowed", box=None)
    for check in sorted(result["checks"], key=lambda check: list(_COLOURS).index(check["state"])):
        state = f"[{_COLOURS[check['state']]}]{check['state']}[/]"
        if not check["count"]:
            table.add_row(state, check["title"], "not measured")
            continue
        sign = ">=" if check["low"] else "<="
        limit, share = f"{sign} {check['limit']:g} {check['unit']}", f"{100 * check['share_allowed']:g}%"
        table.add_row(
            state, check["title"], f"{check['value']:.3g}", limit, f"{check['bad']} of {check['count']}", share
        )
    out.print(table)
    for line in result["unreadable"]:
        say(f"could not be read: {line}")
    more = result["unreadable_count"] - len(result["unreadable"])
    if more:
        say(f"{more} more keyframes could not be read")
    for side, cameras in result.get("against", {}).get("cameras_not_compared", {}).items():
        if cameras:
            only = "this store" if side == "own" else "the other"
            say(f"not compared: {', '.join(cameras)}, which only {only} has")
    for check in result["checks"]:
        if check["state"] == "fail":
            say(f"{check['title']}: {check['meaning']}")
    sample = result["sample"]
    say(f"{result['verdict']}: {sample['keyframes']} of {sample['of']} keyframes, {result['seconds']:g} s")


def _exclude(found: Any, path: Path) -> None:
    """Write the automatic exclusions, keeping in the same file the marks of reviewers and of scenes that were not asked
    for."""
    from eval.inspection.reject import automatic
    from storage.exclusions import merged, write_exclusions

    there, marks = _marks(path), automatic(found)
    reviewers = [mark for mark in there if not mark.checks]
    earlier = [mark for mark in there if mark.checks]
    # A run with --scenes says nothing about the others: what checks found there stands.
    others = [mark for mark in earlier if mark.scene not in found.inspector.lengths]
    judged = set(found.frames) | {(mark.scene, mark.t) for mark in marks}
    gone = sum(mark.scene in found.inspector.lengths and (mark.scene, mark.t) not in judged for mark in earlier)
    write_exclusions(path, merged(reviewers, others, marks), found.result["store"])
    kept = f"{len(reviewers)} marks of reviewers kept"
    kept += f", {len(others)} by checks of other scenes" if others else ""
    say(f"{len(marks)} keyframes excluded by checks, {kept} -> {path}")
    if gone:
        say(f"{gone} earlier marks by checks are gone: their keyframes are not in this sample; --all judges every one")
    say(f"next: {command('occflow', 'train', 'CONFIG', '--set', f'data.exclude_files=[{path}]')}")


def _marks(path: Path) -> list[Any]:
    """The marks in a file, none where there is no such file."""
    from storage.exclusions import read_exclusions

    return read_exclusions(path) if path.exists() else []


def _sheets(store: str, settings: Any, folder: Path, scene: str | None, frame: int | None, camera: str | None) -> None:
    from eval.inspection.frame_sheet import frame_sheet, save_sheet
    from eval.inspection.run import Inspector

    if scene is None or frame is None:
        raise CommandError("--scene and --frame go together: which keyframe of which scene is to be drawn")
    # Not of this scene alone: what is usual in the store must be what the page judged by.
    inspector = Inspector.open(store, settings)
    if scene not in inspector.lengths:
        raise CommandError(f"--scene {scene}: the store has {', '.join(list(inspector.lengths)[:8])}")
    cameras = inspector.reader.attributes.cameras
    if camera is not None and camera not in cameras:
        raise CommandError(f"--camera {camera}: the store has {', '.join(cameras)}")
    length = inspector.lengths[scene]
    if frame >= length:
        raise CommandError(f"--frame {frame}: scene {scene} has keyframes 0 to {length - 1}")
    keyframe = inspector.keyframe(scene, frame)
    views = [view for view in keyframe.cameras() if camera in (None, cameras[view.c])]
    if not views:
        asked = f"--frame {frame}" if camera is None else f"--camera {camera}"
        there = ", ".join(cameras[view.c] for view in keyframe.cameras()) or "none"
        raise CommandError(f"{asked}: no image at keyframe {frame} of scene {scene}; cameras that have one: {there}")
    values = inspector.all_values(keyframe)
    for view in views:
        name = f"{scene}-{frame:05d}-{cameras[view.c]}.png"
        say(str(save_sheet(frame_sheet(view, values, settings), folder / name)))


def _serve(made: Any, folder: Path, host: str, port: int) -> None:
    from eval.inspection.serve import make_server

    server = make_server(made.inspection, made.drawn, folder, host, port)
    address = f"http://{host}:{server.server_address[1]}/"
    say(f"{address} (report), {address}browse (every keyframe); marks go to {folder / 'exclusions.json'}; Ctrl+C ends")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.server_close()
