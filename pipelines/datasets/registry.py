"""Finds the reader of a data set by name: the built-in ones, and any that an installed package offers.

A package outside this repository offers one through the entry point group `occflow.datasets`
(docs/adding_a_dataset.md).
"""

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pipelines.datasets.records import DataError, Log

GROUP = "occflow.datasets"

BUILT_IN = {
    "nuscenes": "pipelines.datasets.nuscenes:NuScenesLog",
    "kitti_mot": "pipelines.datasets.kitti_mot:KittiMotLog",
    "semantic_kitti": "pipelines.datasets.semantic_kitti:SemanticKittiLog",
}
"""Readers that need no installed entry point, so that a source tree works as it is."""


def dataset_kinds() -> list[str]:
    """Names that `open_log` accepts, sorted."""
    return sorted(set(BUILT_IN) | {point.name for point in _installed()})


def open_log(kind: str, root: Path | str, **options: Any) -> Log:
    """The log of data set `kind` at `root`.

    Args:
        kind: one of `dataset_kinds()`; a built-in name cannot be taken over by an installed package.
        root: the data set's folder.
        options: the reader's own keyword arguments; those that are None are left out.

    Raises:
        DataError: unknown kind, no such folder, an option that the reader does not have, a reader that does not load.
    """
    reader = _reader(kind)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; set the data set's root to where {kind} is unpacked")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return reader(path, **given)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise DataError(f"data set {kind}: {error}; options given: {', '.join(sorted(given))}") from error


def _reader(kind: str) -> Any:
    if kind in BUILT_IN:
        module, _, name = BUILT_IN[kind].partition(":")
        return getattr(import_module(module), name)
    for point in _installed():
        if point.name == kind:
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                raise DataError(
                    f"data set {kind}: its reader {point.value} does not load ({error}); repair that package"
                ) from error
    near = difflib.get_close_matches(kind, dataset_kinds(), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(dataset_kinds())}"
    raise DataError(f"no reader for data set '{kind}'; {hint}")


def _installed() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))
