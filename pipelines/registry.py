"""From names in a configuration to code: cue and backend to an extractor, data set kind to a reader."""

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from pipelines.cues.base import CueExtractor
from pipelines.datasets.records import Log
from storage.schema import CUES

if TYPE_CHECKING:
    from pipelines.config import CuesConfig

ENTRY_POINT_GROUP = "occflow.cues"
"""Other distributions add extractors here, named `<cue>.<backend>`, each a dataclass that is a CueExtractor."""

BACKENDS: dict[str, dict[str, str]] = {
    "images": {"jpeg": "pipelines.cues.images:ImagesCue"},
    "sweeps": {"jpeg": "pipelines.cues.images:SweepsCue"},
    "lidar": {"points": "pipelines.cues.lidar:LidarCue"},
    "flow_next": {
        "dis": "pipelines.cues.flow_dis:DisFlowCue",
        "dis_chain": "pipelines.cues.flow_chain:ChainedDisFlowCue",
        "tracks": "pipelines.cues.flow_tracks:TracksFlowCue",
        "cotracker": "pipelines.cues.cotracker.cue:CoTrackerFlowCue",
        "alltracker": "pipelines.cues.cotracker.cue:AllTrackerFlowCue",
        "composed": "pipelines.cues.cotracker.composed:ComposedFlowCue",
        "unimatch": "pipelines.cues.unimatch.cue:UniMatchFlowCue",
    },
    "flow_prev": {
        "dis": "pipelines.cues.flow_dis:DisFlowCue",
        "dis_chain": "pipelines.cues.flow_chain:ChainedDisFlowCue",
        "tracks": "pipelines.cues.flow_tracks:TracksFlowCue",
        "cotracker": "pipelines.cues.cotracker.cue:CoTrackerFlowCue",
        "alltracker": "pipelines.cues.cotracker.cue:AllTrackerFlowCue",
        "composed": "pipelines.cues.cotracker.composed:ComposedFlowCue",
        "unimatch": "pipelines.cues.unimatch.cue:UniMatchFlowCue",
    },
    "masks": {
        "motion_lidar": "pipelines.cues.masks_motion:LidarMotionMasks",
        "motion_epipolar": "pipelines.cues.masks_motion:EpipolarMotionMasks",
        "grounded_sam": "pipelines.cues.grounded_sam.cue:GroundedSamMasks",
        "sam3": "pipelines.cues.grounded_sam.cue:Sam3Masks",
    },
    "flow_aux": {
        "dis": "pipelines.cues.flow_dis:DisFlowCue",
        "unimatch": "pipelines.cues.unimatch.cue:UniMatchFlowCue",
    },
}
"""Cue -> backend -> "module:dataclass"; the first backend is the default. Modules are imported when asked for."""


def backends(cue: str) -> dict[str, str]:
    """Backend name -> "module:dataclass" for a cue, those of other distributions included.

    Raises:
        ValueError: the store knows no such cue.
    """
    from pipelines.config import closest

    if cue not in CUES:
        raise ValueError(f"unknown cue {cue!r}; {closest(cue, CUES)}")
    added = {backend: value for name, backend, value in _installed() if name == cue}
    return BACKENDS.get(cue, {}) | added


@lru_cache(1)
def _installed() -> tuple[tuple[str, str, str], ...]:
    """(cue, backend, "module:class") of other distributions; looking through what is installed takes 20 ms."""
    found = [(*point.name.partition("."), point.value) for point in entry_points(group=ENTRY_POINT_GROUP)]
    return tuple((cue, backend, value) for cue, _, backend, value in found)


def extractor_class(cue: str, parameters: Mapping[str, Any]) -> type:
    """The dataclass that `parameters["backend"]`, or the cue's default backend, stands for. ValueError if unknown."""
    from pipelines.config import closest

    offered = backends(cue)
    backend = parameters.get("backend", next(iter(offered), None))
    if backend not in offered:
        raise ValueError(f"cue {cue!r} has no backend {backend!r}; {closest(str(backend), offered)}")
    module, _, name = offered[backend].partition(":")
    return getattr(import_module(module), name)


def check_cue(cue: str, parameters: Mapping[str, Any]) -> None:
    """Raise a ValueError that quotes cue, key and value unless an extractor can be built from `parameters`."""
    _build(cue, parameters, {})


def build_backend(cue: str, parameters: Mapping[str, Any], slot: str) -> CueExtractor:
    """The extractor of a flow cue from its parameters alone. ValueError as for check_cue."""
    return _build(cue, parameters, {"slot": slot})


def build_extractor(config: "CuesConfig", cue: str, limits: Mapping[str, int] | None = None) -> CueExtractor:
    """The extractor of one cue as configured.

    Args:
        config: shared settings (JPEG quality, data set) fill parameters that the cue's own do not name, key by key
            where a parameter is a group of them (`road`, `draw`).
        cue: a key of `config.cues`.
        limits: bounds fixed by a scene's init unit (`max_bytes`, `max_points`), given to extractors that take them.
    """
    shared: dict[str, Any] = {"jpeg_quality": config.jpeg_quality, "slot": cue.removeprefix("flow_"), **(limits or {})}
    return _build(cue, config.cues[cue], shared | _of_dataset(config.dataset.kind, cue))


def _of_dataset(kind: str, cue: str) -> dict[str, Any]:
    """Parameters of a cue that a data set fixes; none for data sets that are not known here."""
    if cue == "lidar":
        from pipelines.cues.lidar import OWN_CAR

        box = OWN_CAR.get(kind)
        return {"own_car_lower": box[0], "own_car_upper": box[1]} if box else {}
    if cue == "masks":
        from pipelines.cues.road_bounds import GROUND_Z

        return {"road": {"ground_z": GROUND_Z[kind]}} if kind in GROUND_Z else {}
    if cue == "flow_aux":
        from pipelines.cues.neighbours import RULES

        return {"draw": dataclasses.asdict(RULES[kind])} if kind in RULES else {}
    return {}


def _build(cue: str, parameters: Mapping[str, Any], shared: Mapping[str, Any]) -> CueExtractor:
    from pipelines.config import closest

    kind = extractor_class(cue, parameters)
    known = [field.name for field in dataclasses.fields(kind)]
    given = {key: value for key, value in parameters.items() if key != "backend"}
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"cue {cue!r} has no parameter {key!r} (value {value!r}); {closest(key, known)}")
    slot = cue.removeprefix("flow_")
    if given.get("slot", slot) != slot:
        raise ValueError(f"cue {cue!r}, parameter slot = {given['slot']!r}: the cue's name says it, leave it out")
    values = {key: value for key, value in shared.items() if key in known} | given
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(shared.get(key), Mapping):
            values[key] = {**shared[key], **value}
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise ValueError(f"cue {cue!r}, parameter {key} = {fault['input']!r}: {fault['msg']}") from None


@lru_cache(32)
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Building one costs more than an extractor."""
    return TypeAdapter(kind)


def build_truth_extractors(occupancy_shape: tuple[int, int, int]) -> dict[str, CueExtractor]:
    """The extractors of the truth store, by cue name; `occupancy_shape` (X, Y, Z) is the truth's voxel grid."""
    from pipelines.cues.truth import BoxTruth, CameraTruth, OccupancyTruth

    return {"occupancy": OccupancyTruth(occupancy_shape), "camera": CameraTruth(), "boxes": BoxTruth()}


def open_log(config: "CuesConfig") -> Log:
    """The reader for `config.dataset`. Raises DataError for an unknown kind or a folder without that data set."""
    from pipelines.datasets import registry

    dataset = config.dataset
    return registry.open_log(dataset.kind, dataset.root, version=dataset.version, **dataset.options)
