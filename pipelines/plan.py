"""Which units of work an extraction consists of, what each needs first, and which of them the store holds already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.config import ConfigError, CuesConfig, closest, json_digest
from pipelines.cues.base import needs_gpu
from pipelines.cues.truth import truth_cues
from pipelines.datasets.records import DataError
from pipelines.inputs import without_faults
from pipelines.workbench import Workbench, workbench
from storage.commit import CommitRecord
from storage.errors import StoreDamage
from storage.layout import INIT, UnitId, blocks

State = Literal["current", "missing", "stale"]


@dataclass(frozen=True)
class Work:
    """One unit of work. `needs` names the work that must be current first; `truth` units go to the sibling store.

    `gpu`: the unit's extractor asks for a GPU.
    """

    unit: UnitId
    truth: bool = False
    needs: tuple[str, ...] = ()
    state: State = "missing"
    gpu: bool = False

    @property
    def name(self) -> str:
        """Unique in a plan."""
        return f"truth/{self.unit}" if self.truth else str(self.unit)


@dataclass(frozen=True)
class Plan:
    """All units of an extraction, each after what it needs. `skipped`: scenes that cannot be read, and why."""

    work: tuple[Work, ...]
    skipped: dict[str, str]

    @property
    def open(self) -> list[Work]:
        """Units that have to be made."""
        return [work for work in self.work if work.state != "current"]

    def count(self, state: State) -> int:
        """Units in a state."""
        return sum(work.state == state for work in self.work)


def plan(
    config: CuesConfig, scenes: Sequence[str] | None = None, cues: Sequence[str] | None = None, fresh: bool = True
) -> Plan:
    """Work of an extraction in the order in which it can be done. Reads tables and commit records, no raw file.

    A unit is current when the store holds it under the fingerprint of its inputs, its configuration and what it is made
    from, and it was made from just that. Where the digests of a scene's raw files are not known, or a file has changed,
    its units count as stale until `init` has looked at the content.

    Args:
        config: what to extract.
        scenes: only these scenes.
        cues: only these cues, and whatever they are made from; "truth" names the ground truth.
        fresh: look at the disk anew rather than trust what this process has read before.

    Raises:
        ConfigError: a scene or cue that is not there, or a cue whose upstream is not configured.
        DataError: a log that cannot be read; a scene that cannot, unless on_error is skip.
    """
    bench = workbench(config, fresh)
    wanted = wanted_cues(bench, cues)
    for cue in wanted:
        if cue != "truth":
            # Weights that are missing or damaged are told before any unit starts.
            bench.extractors[cue].config_digest()
    work: list[Work] = []
    skipped: dict[str, str] = {}
    for name in bench.scene_names(None if scenes is None else tuple(scenes)):
        try:
            work += _scene_work(bench, name, wanted)
        except DataError as error:
            if config.on_error == "fail":
                raise
            skipped[name] = str(error)
    return Plan(tuple(work), skipped)


def wanted_cues(bench: Workbench, cues: Sequence[str] | None) -> list[str]:
    """The cues to extract where only these are asked for (None: all), with what they are made from, upstream first.

    Raises:
        ConfigError: a cue that is not configured, or whose upstream is not.
    """
    extractors = bench.extractors
    names = [*extractors, *(["truth"] if bench.config.truth else [])]
    if cues is None:
        return names
    wanted = set(cues)
    for cue in wanted:
        if cue not in names:
            raise ConfigError(f"cue {cue!r} is not in this configuration; {closest(cue, names)}")
    for cue in reversed(list(extractors)):
        if cue in wanted:
            wanted |= set(extractors[cue].needs)
    return [name for name in names if name in wanted]


def _scene_work(bench: Workbench, name: str, cues: Sequence[str]) -> list[Work]:
    scene = bench.raw_scene(name)
    inputs = bench.known_inputs(name)
    digest = None if inputs is None else inputs.digest(without_faults(scene, inputs.faults))
    units: list[tuple[UnitId, bool, tuple[str, ...]]] = [(UnitId(INIT, name), False, ())]
    ranges = blocks(len(scene.keyframes), bench.config.block_keyframes)
    for cue in cues:
        if cue == "truth":
            continue
        for b in range(len(ranges)):
            needs = tuple(str(UnitId(need, name, b)) for need in bench.extractors[cue].needs)
            units.append((UnitId(cue, name, b), False, (str(UnitId(INIT, name)), *needs)))
    kinds = truth_cues(bench.truth(name)) if "truth" in cues else ()
    if kinds:
        opened = Work(UnitId(INIT, name), truth=True).name
        units.append((UnitId(INIT, name), True, (str(UnitId(INIT, name)),)))
        units += [(UnitId(cue, name, b), True, (opened,)) for cue in kinds for b in range(len(ranges))]
    gpu = {cue for cue, extractor in bench.extractors.items() if needs_gpu(extractor)}
    return [
        Work(unit, truth, needs, _state(bench, digest, unit, truth), gpu=not truth and unit.cue in gpu)
        for unit, truth, needs in units
    ]


def _state(bench: Workbench, scene_digest: str | None, unit: UnitId, truth: bool) -> State:
    store = bench.open_store(truth)
    try:
        record = None if store is None else store.record(unit)
    except StoreDamage:
        return "stale"
    if record is None:
        return "missing"
    if scene_digest is None:
        return "stale"
    marks = upstream_marks(bench, unit, scene_digest, truth)
    current = record.fingerprint == fingerprint(bench, unit, scene_digest, truth, marks) and made_from(record, marks)
    return "current" if current else "stale"


def upstream_marks(bench: Workbench, unit: UnitId, scene_digest: str, truth: bool = False) -> dict[str, str]:
    """Fingerprints of the units that this one is to be made from, by cue name."""
    if unit.cue == INIT:
        return {}
    needs = (bench.truth_extractors if truth else bench.extractors)[unit.cue].needs
    return {need: fingerprint(bench, UnitId(need, unit.scene, unit.block), scene_digest) for need in needs}


def made_from(record: CommitRecord, marks: Mapping[str, str]) -> bool:
    """Whether a unit was made from the units with these fingerprints; its own only says that it should have been."""
    return all(record.provenance.upstream.get(need, mark) == mark for need, mark in marks.items())


def fingerprint(
    bench: Workbench,
    unit: UnitId,
    scene_digest: str,
    truth: bool = False,
    marks: Mapping[str, str] | None = None,
) -> str:
    """Digest of all that decides what a unit holds: raw content, records, configuration, upstream units, its frames.

    The scene is the grain of the inputs: a changed raw file makes every block of its scene stale, because extractors
    read beyond their block's edges.

    Args:
        marks: the unit's `upstream_marks`, where they are known already.
    """
    parts: list[object] = ["truth" if truth else "cues", str(unit), scene_digest, list(bench.cameras)]
    if unit.cue != INIT:
        extractor = (bench.truth_extractors if truth else bench.extractors)[unit.cue]
        upstream = upstream_marks(bench, unit, scene_digest, truth) if marks is None else marks
        parts += [extractor.config_digest(), dict(upstream)]
        options = getattr(bench.log, "truth_options", None) if truth else None
        if options is not None and options(unit.cue):  # of which fingerprints under default options say nothing
            parts.append(dict(options(unit.cue)))
    return json_digest([bench.config.digest(), *parts])
