"""What the units of one extraction share in a process: the log, its scenes, their inputs, extractors and caches."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, lru_cache

import numpy as np

from pipelines.config import ConfigError, CuesConfig, closest
from pipelines.cues.base import CueExtractor
from pipelines.datasets.records import DataError, Log, Scene, SceneTruth
from pipelines.inputs import ImageCache, SceneInputs, examine_inputs, facts_file, known_inputs, without_faults
from pipelines.registry import build_extractor, build_truth_extractors, open_log
from storage.layout import UnitId
from storage.profiles import PLAIN
from storage.schema import StoreAttributes
from storage.store import CueStore
from storage.truth import truth_path

_SCENES_KEPT = 16
"""Scenes whose records are kept: a nuScenes scene is about 2 MB of them, the data set 850 scenes."""


class Workbench:
    """Opens everything lazily: planning reads tables only, and nothing is written before the first unit."""

    def __init__(self, config: CuesConfig) -> None:
        self.config = config
        self.run: str | None = None
        self._found: dict[bool, CueStore] = {}
        self.images = ImageCache(config.runner.image_cache_mb << 20)
        self.sizes = config.sizes.image_sizes()
        self.raw_scene = lru_cache(_SCENES_KEPT)(self._raw_scene)
        self.inputs = lru_cache(_SCENES_KEPT)(self._inputs)
        self.known_inputs = lru_cache(_SCENES_KEPT)(self._known_inputs)
        self.scene = lru_cache(_SCENES_KEPT)(self._scene)
        self.scene_digest = lru_cache(_SCENES_KEPT)(self._scene_digest)

    @cached_property
    def log(self) -> Log:
        """The raw log. Raises DataError."""
        return open_log(self.config)

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """The store's camera order."""
        return tuple(self.log.cameras)

    @cached_property
    def extractors(self) -> dict[str, CueExtractor]:
        """One per configured cue, upstream before downstream.

        Raises:
            ConfigError: a cue needs another that is not configured, or cues need each other in a circle.
        """
        waiting = {name: build_extractor(self.config, name) for name in self.config.cues}
        for name, extractor in waiting.items():
            for need in extractor.needs:
                if need not in waiting:
                    raise ConfigError(
                        f"cues: {name!r} is made from {need!r}, which is not listed; add {need!r} to cues"
                    )
        ordered: dict[str, CueExtractor] = {}
        while waiting:
            ready = [name for name, extractor in waiting.items() if set(extractor.needs) <= set(ordered)]
            if not ready:
                raise ConfigError(_told_circle(waiting))
            ordered |= {name: waiting.pop(name) for name in ready}
        return ordered

    def scene_names(self, only: tuple[str, ...] | None = None) -> list[str]:
        """Scenes of the configured split and list, of these those in `only`. ConfigError for an unknown name."""
        names = self.log.scene_names(self.config.dataset.split)
        for wanted in (self.config.dataset.scenes, only):
            if wanted is None:
                continue
            for name in wanted:
                if name not in names:
                    raise ConfigError(
                        f"scene {name!r} is not among the {len(names)} of this log; {closest(name, names)}"
                    )
            names = [name for name in names if name in wanted]
        return names

    def truth(self, scene: str) -> SceneTruth | None:
        """Ground truth of a scene where it is wanted and there is some."""
        return self.log.truth(scene) if self.config.truth else None

    @cached_property
    def store(self) -> CueStore:
        """The cue store, created where there is none yet. Raises StoreError if another kind of store is there."""
        return CueStore.create(self.config.store, self._attributes("cues"))

    @cached_property
    def truth_store(self) -> CueStore:
        """The sibling store of ground truth."""
        return CueStore.create(truth_path(self.config.store), self._attributes("truth"))

    def open_store(self, truth: bool) -> CueStore | None:
        """The cue or truth store if it is there already, checked against the configuration; else None. Writes nothing.

        Raises StoreError if another kind of store is there.
        """
        path = truth_path(self.config.store) if truth else self.config.store
        if truth not in self._found and path.exists():
            found = CueStore.find(path, self._attributes("truth" if truth else "cues"))
            if found is not None:
                self._found[truth] = found
        return self._found.get(truth)

    @cached_property
    def truth_extractors(self) -> dict[str, CueExtractor]:
        """Those of the truth store."""
        return build_truth_extractors(self.log.occupancy_grid.shape)

    def extractor_for(self, unit: UnitId, truth: bool) -> CueExtractor:
        """The extractor of a unit, with the bounds that its scene's init unit fixed. Raises CueMissing before it."""
        if truth:
            return self.truth_extractors[unit.cue]
        table = self.store.table(unit.scene)
        bytes_per_image = table.max_sweep_bytes if unit.cue == "sweeps" else table.max_image_bytes
        return build_extractor(
            self.config, unit.cue, {"max_bytes": bytes_per_image, "max_points": table.max_lidar_points}
        )

    def upstream(self, unit: UnitId, needs: Sequence[str]) -> Callable[[str], Mapping[str, np.ndarray]]:
        """A function from the name of a cue in `needs` to its committed arrays in the block of `unit`.

        The function raises KeyError for another cue and CueMissing for one that is not committed. It reads a cue once:
        extractors ask for it at every keyframe.
        """

        @cache
        def arrays(cue: str) -> Mapping[str, np.ndarray]:
            if cue not in needs:
                raise KeyError(f"{unit.cue} asks for {cue!r}, but its `needs` lists only {list(needs)}")
            return self.store.read_block(UnitId(cue, unit.scene, unit.block))

        return arrays

    def _scene_digest(self, scene: str) -> str:
        """Digest of a scene's records and of the content of its raw files, without those that cannot be used."""
        return self.inputs(scene).digest(self.scene(scene))

    def _attributes(self, kind: str) -> StoreAttributes:
        log, config = self.log, self.config
        grid = log.occupancy_grid
        described: dict[str, list[float]] = {
            "lower": list(grid.lower),
            "upper": list(grid.upper),
            "shape": list(grid.shape),
        }
        return StoreAttributes(
            dataset=log.dataset,
            cameras=self.cameras,
            classes=tuple(log.classes),
            network_size=config.sizes.network,
            render_size=config.sizes.render,
            keyframe_interval_s=config.keyframe_interval_s,
            block_keyframes=config.block_keyframes,
            image_crop=config.sizes.keep,
            kind=kind,
            profile=config.profile if kind == "cues" else PLAIN,
            occupancy_grid=described if kind == "truth" else None,
            occupancy_classes=tuple(log.occupancy_classes) if kind == "truth" else (),
        )

    def _raw_scene(self, name: str) -> Scene:
        scene = self.log.scene(name)
        if not scene.keyframes:
            raise DataError(f"{self.config.dataset.root}: scene {name} has no keyframe; leave it out of dataset.scenes")
        return scene

    def _inputs(self, name: str) -> SceneInputs:
        kept = facts_file(self.config.store, name)
        return examine_inputs(self.log, self.raw_scene(name), self.config.dataset.root, kept, self._decodes)

    def _known_inputs(self, name: str) -> SceneInputs | None:
        kept = facts_file(self.config.store, name)
        return known_inputs(self.raw_scene(name), self.config.dataset.root, kept, self._decodes)

    @property
    def _decodes(self) -> bool:
        """Whether every image is decoded before its scene's table is written: where faults are left out, not raised."""
        return self.config.on_error == "skip"

    def _scene(self, name: str) -> Scene:
        faults = self.inputs(name).faults
        if faults and self.config.on_error == "fail":
            more = f"\n(and {len(faults) - 3} more files of scene {name})" if len(faults) > 3 else ""
            raise DataError("\n".join(list(faults.values())[:3]) + more)
        return without_faults(self.raw_scene(name), faults)


def _told_circle(waiting: Mapping[str, CueExtractor]) -> str:
    """What cues that need each other are told: who needs whom, and which parameter would do without."""
    who = [f"{name!r} is made from {need!r}" for name, cue in waiting.items() for need in cue.needs if need in waiting]
    hints = [
        hint
        for cue in waiting.values()
        for need, hint in getattr(cue, "without", {}).items()
        if need in waiting and need in cue.needs
    ]
    return f"cues: {' and '.join(who)}: a circle; " + ("; or ".join(hints) or "leave one out")


_open: dict[str, Workbench] = {}
_opening = threading.Lock()


def workbench(config: CuesConfig, fresh: bool = False, run: str | None = None) -> Workbench:
    """This process's workbench for a configuration; one at a time is kept.

    `fresh` looks at the disk anew. So does a `run` other than the one that the workbench has served: workers of a
    cluster outlive runs, and raw files may change between two.
    """
    key = config.model_dump_json()
    with _opening:
        kept = _open.get(key)
        if kept is None or fresh or (run is not None and kept.run not in (None, run)):
            _open.clear()
            kept = _open[key] = Workbench(config)
        kept.run = run or kept.run
        return kept
