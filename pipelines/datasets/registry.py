"""Finds the reader of a data set by name: the built-in ones, and any that an installed package offers.

A package outside this repository offers one through the entry point group `occflow.datasets`
(docs/adding_a_dataset.md).
"""

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

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
        DataError: unknown kind, no such folder, an option that the reader does not have, a value that is not what a
            built-in reader's annotation says, a reader that does not load.
    """
    reader = _reader(kind)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; set the data set's root to where {kind} is unpacked")
    given = {name: value for name, value in options.items() if value is not None}
    if kind in BUILT_IN:
        _check_options(kind, reader, given)
    try:
        return reader(path, **given)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise DataError(f"data set {kind}: {error}; options given: {', '.join(sorted(given))}") from error


def _check_options(kind: str, reader: Any, given: dict[str, Any]) -> None:
    """DataError for a value of another type than the option's annotation; nothing is converted.

    A word would pass for a list of letters, and any word for true.
    """
    hints = get_type_hints(reader.__init__)
    for name, value in given.items():
        if name not in hints:
            continue
        try:
            TypeAdapter(hints[name], config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
        except ValidationError as error:
            faults = [fault for fault in error.errors() if fault["type"] != "none_required"]
            expected = "; ".join(dict.fromkeys(fault["msg"] for fault in faults))
            hint = f"; a list of one is [{value}]" if any(fault["type"] == "sequence_str" for fault in faults) else ""
            raise DataError(f"data set {kind}: option {name} is {value!r}: {expected}{hint}") from None


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
