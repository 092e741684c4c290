"""Writes a whole synthetic log, scene by scene on all cores; what an earlier run finished is kept."""

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.datasets.records import DataError
from pipelines.synth.config import SynthConfig
from pipelines.synth.files import write_json
from pipelines.synth.kitti_mot_writer import KittiMotScene, kitti_mot_settings
from pipelines.synth.nuscenes_writer import NuScenesScene, check_cameras
from pipelines.synth.nuscenes_writer import write_tables as write_nuscenes_tables
from pipelines.synth.semantic_kitti_writer import KittiScene, semantic_kitti_settings, write_splits
from pipelines.synth.world import build_world

Rows = dict[str, Any]
SETTINGS = "synth.json"
"""In the log's folder: the settings it was made with."""
DATASETS = ("nuscenes", "semantic_kitti", "kitti_mot")
WORLD_VERSION = 3
"""Raised whenever the same settings give other bytes, so that a log is never half of one world and half of another."""


class SceneWriter(Protocol):
    """One scene in some layout: its files as independent jobs, then what the log's tables need of it."""

    def jobs(self) -> Iterable[tuple[Callable[[], None], int]]:
        """Pieces of work for threads, with the number of images each writes."""
        ...

    def table_rows(self) -> Rows:
        """Plain values, after all jobs are done."""
        ...


def write_log(folder: Path, config: SynthConfig, dataset: str = "nuscenes", console: Console | None = None) -> None:
    """Write `config.scenes` scenes in the layout of `dataset` into `folder`, with a progress bar on `console`.

    A scene that is there whole, from the same settings, is kept; more scenes can be added to a log.

    Raises:
        DataError: the folder holds a log of other settings, or files that are no synthetic log; an unknown data set;
            cameras that its cars do not carry.
    """
    if dataset not in DATASETS:
        raise DataError(f"synthetic logs come in the layouts {', '.join(DATASETS)}, not {dataset!r}")
    if dataset == "nuscenes":
        check_cameras(config.cameras)
    else:
        config = semantic_kitti_settings(config) if dataset == "semantic_kitti" else kitti_mot_settings(config)
    settings = _settings(config, dataset)
    _check_folder(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    scenes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as progress:
        task = progress.add_task("images", total=None)
        for index in range(config.scenes):
            progress.update(task, description=f"scene {index + 1} of {config.scenes}")
            scenes.append(_scene(folder, config, dataset, index, lambda n: progress.advance(task, n)))
    finish = write_nuscenes_tables if dataset == "nuscenes" else write_splits
    finish(folder, config, scenes)


def _settings(config: SynthConfig, dataset: str) -> dict[str, Any]:
    """What decides the content of every single scene."""
    values = config.model_dump(mode="json", exclude={"scenes", "val_scenes", "threads", "difficulty"})
    return {"dataset": dataset, "world_version": WORLD_VERSION, **values, "level": config.level.model_dump(mode="json")}


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if path.exists():
        found = json.loads(path.read_text())
        other = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
        if other:
            was = ", ".join(f"{key} = {found.get(key)!r} (now {settings.get(key)!r})" for key in other)
            raise DataError(
                f"{folder}: holds a synthetic log made with {was}; choose another folder, or delete this one"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: not empty, and not a synthetic log (no {SETTINGS}); choose another folder")


def _scene(folder: Path, config: SynthConfig, dataset: str, index: int, advance: Callable[[int], None]) -> Rows:
    """Table rows of a scene; renders it unless its finished rows are kept in `.scenes/`."""
    kept = folder / ".scenes" / f"{index:04d}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    writer: SceneWriter
    if dataset == "nuscenes":
        writer = NuScenesScene(folder, config, index, build_world(config, index))
    else:
        writer = (KittiScene if dataset == "semantic_kitti" else KittiMotScene)(folder, config, index)
    _run(list(writer.jobs()), config.threads or os.cpu_count() or 1, advance)
    rows = writer.table_rows()
    write_json(kept, rows)
    return rows


def _run(jobs: list[tuple[Callable[[], None], int]], threads: int, advance: Callable[[int], None]) -> None:
    """All jobs on a few threads (the kernels release the interpreter's lock); the first error ends them."""
    with ThreadPoolExecutor(threads, thread_name_prefix="synth") as pool:
        images: dict[Future[None], int] = {pool.submit(job): count for job, count in jobs}
        pending = set(images)
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    advance(images[future])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
