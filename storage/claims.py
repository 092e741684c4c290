"""Writers of a store in a bucket, where nothing can be locked: who may write which generation of a unit, and publish.

Three rules keep writers apart, whatever dies when:

1. A generation of a unit belongs to one writer for ever: to the one whose small object `commits/.pending/<unit>/<k>`
   got there first (conditional put). Whoever comes second takes the next. So no two commits ever write one key.
2. A record is put on condition that the record it replaces (or that there is none) is the one its writer saw. Of two
   writers one is refused; it keeps the other's record where the fingerprints agree, and replaces it or starts over
   where they do not.
3. Data is removed by its own writer; by the writer of a later generation, once that is published; by whoever took its
   record back; or when its claim is older than CLAIM_S.

The claims of a unit go once a record of that or a later generation is there: from then on the record says which
generations are taken.
"""

import contextlib
import json
import uuid
import warnings
from collections.abc import Iterator, Mapping

from storage.backend import ObjectBackend, ObjectBatch, OtherContent
from storage.collect import referenced
from storage.commit import (
    CommitRecord,
    commit_key,
    encode_record,
    is_init,
    parse_record,
    read_record,
    read_records,
    record_units,
)
from storage.errors import StoreDamage, StoreError
from storage.layout import INIT, PENDING, UnitId, owner_of, shard_keys
from storage.objects import age_s
from storage.schema import ArraySpec

CLAIM_S = 24 * 3600.0
"""Seconds after which the writer of a claim is taken for dead; longer than any unit takes to make."""
_DONE = ".done"
Specs = Mapping[str, tuple[ArraySpec, ...]]


class StartOver(Exception):
    """The unit changed under its writer, who has to look again."""


class UnconditionalPuts(UserWarning):
    """The server does not honour conditional puts."""


def check_conditions(place: ObjectBackend) -> None:
    """Find out whether the server decides between two writers; warn, once per process, where it does not."""
    if place.client.conditional is None and not place.client.probe(place.key(f"{PENDING}/probe-{uuid.uuid4().hex}")):
        warnings.warn(
            f"{place.root} at {place.client.endpoint}: this server does not honour conditional puts (If-None-Match), "
            "so commits are not atomic between writers: let one process at a time write to this store.",
            UnconditionalPuts,
            stacklevel=3,
        )


class ObjectTurn:
    """One writer's work on one unit. `found` is the unit's record as it was at the start, None also where damaged."""

    def __init__(self, place: ObjectBackend, unit: UnitId, specs: Specs) -> None:
        self.batch = ObjectBatch(place)
        self._place, self._unit, self._specs = place, unit, specs
        self._claim: int | None = None
        self._published = False
        self._tag, self.found = self._look()

    def reserve(self, first: int) -> int:
        """Reserve a generation, `first` or later, for this writer alone. Raises StartOver."""
        taken = _generations(self._place, self._unit)
        if self._tag is not None and self.found is None:  # a damaged record does not say which generation it is of
            taken |= _folders(self._place, self._unit.scene)
        generation = max([first, *(k + 1 for k in taken)])
        content = json.dumps({"writer": uuid.uuid4().hex}).encode()
        while not self._place.put_if(_claim(self._unit, generation), content, None):
            generation += 1
        self._claim = generation
        # Now that no record of a lower generation can come to be unseen: was there one before the claim?
        if self._look()[0] != self._tag:
            raise StartOver
        return generation

    def publish(self, record: CommitRecord) -> CommitRecord:
        """Make the unit visible. Returns the record that is there now: another writer's of the same fingerprint may be.

        Raises StartOver; StoreError when the block's scene was opened anew meanwhile.
        """
        content = encode_record(record)
        if not is_init(self._unit):
            init = read_record(self._place.root, UnitId(INIT, self._unit.scene))
            if init is None or init.init != record.init:
                raise StoreError(
                    f"{self._place.root}: scene {self._unit.scene!r} was opened anew while unit {self._unit} was "
                    "written. Run the same command again."
                )
        if self._claim is not None and self._claim not in _generations(self._place, self._unit, live=True):
            raise StartOver
        while not self._place.put_if(commit_key(self._unit), content, self._tag):
            tag, theirs = self._look()
            if theirs is not None and (theirs.fingerprint, theirs.init) == (record.fingerprint, record.init):
                return theirs
            if theirs is None or theirs.generation >= record.generation:
                raise StartOver
            self._tag = tag
        self._published = True
        self._collect(record)
        return record

    def end(self) -> None:
        """Remove what was written, unless it was published."""
        if self._published:
            return
        with contextlib.suppress(StoreError, OtherContent, OSError):
            self.batch.land()
        with contextlib.suppress(StoreError, OSError):
            self._place.delete(self.batch.added)
            if self._claim is not None:
                self._place.put(_claim(self._unit, self._claim) + _DONE, b"")

    def _look(self) -> tuple[str | None, CommitRecord | None]:
        """ETag of the unit's record, and the record, None where it is damaged."""
        try:
            raw, tag = self._place.get_tagged(commit_key(self._unit))
        except FileNotFoundError:
            return None, None
        try:
            return tag, parse_record(self._place.root, self._unit, raw)
        except StoreDamage:
            return tag, None

    def _collect(self, record: CommitRecord) -> None:
        if not is_init(self._unit):
            specs = self._specs[self._unit.cue]
            self._place.delete(key for k in range(record.generation) for key in shard_keys(self._unit, specs, k))
        if self._claim is not None:
            old = [k for k in _generations(self._place, self._unit) if k <= record.generation]
            self._place.delete(_claim(self._unit, k) + end for k in old for end in ("", _DONE))
        if is_init(
            self._unit
        ):  # after the claims, or what a dead opener of the scene left would count as being written
            collect_bucket_scene(self._place, self._unit.scene, self._specs)


@contextlib.contextmanager
def bucket_turn(place: ObjectBackend, unit: UnitId, specs: Specs) -> Iterator[ObjectTurn]:
    """Work on a unit; what was written and not published is removed at the end. OtherContent becomes StartOver."""
    check_conditions(place)
    turn = ObjectTurn(place, unit, specs)
    try:
        yield turn
    except OtherContent as error:
        raise StartOver from error
    finally:
        turn.end()


def discard_from_bucket(place: ObjectBackend, unit: UnitId, specs: Specs) -> None:
    """Take a unit back: its record, then its data. Its generation stays taken, so that late readers see no other."""
    try:
        record = read_record(place.root, unit)
        if record is None:
            return
        last = record.generation
    except StoreDamage:
        last = max(_generations(place, unit) | _folders(place, unit.scene))
    for end in ("", _DONE):
        place.put(_claim(unit, last) + end, b"{}")
    place.delete([commit_key(unit)])
    if is_init(unit):
        collect_bucket_scene(place, unit.scene, specs)
    else:
        place.delete(key for k in range(last + 1) for key in shard_keys(unit, specs[unit.cue], k))


def collect_bucket_scene(place: ObjectBackend, scene: str, specs: Specs) -> None:
    """Remove blocks' records of an earlier init of the scene, then what no record names and no writer is at work on."""
    units = [unit for unit in record_units(place.root) if unit.scene == scene]
    records = dict(zip(units, read_records(place.root, units), strict=True))
    init = records.get(UnitId(INIT, scene))
    if isinstance(init, CommitRecord):
        stale = [u for u, r in records.items() if not isinstance(r, CommitRecord) or r.init != init.init]
        place.delete(commit_key(unit) for unit in stale if records[unit] is not None)
    place.delete(unnamed(place, scene, specs))


def unnamed(place: ObjectBackend, scene: str, specs: Specs) -> list[str]:
    """Keys of a scene's files that no record names, without those of writers at work."""
    # In this order: the writer of a listed file is still at work when claims are listed, or has a record after it.
    keys = list(place.list(f"scenes/{scene}"))
    live = live_claims(place)
    named = referenced(place.root, scene)
    at_work = {generation for unit, generation in live if unit.scene == scene}
    found = []
    for key in keys:
        unit, generation = owner_of(key, specs)
        busy = (unit, generation) in live if unit is not None else generation in at_work
        if key not in named and not busy:
            found.append(key)
    return found


def sweep_bucket(place: ObjectBackend, specs: Specs) -> int:
    """Remove what writers left that are taken for dead; returns how many units were cleaned."""
    check_conditions(place)
    swept = 0
    found = list(place.client.list(place.key(PENDING)))
    done = {info.key for info in found if info.key.endswith(_DONE)}
    for info in found:
        claim = _parse(info.key)
        if claim is None or age_s(info) < CLAIM_S or info.key + _DONE in done or info.key in done:
            continue
        unit, generation = claim
        place.client.put(info.key + _DONE, b"")  # first: its writer, should it live after all, then does not publish
        with contextlib.suppress(StoreDamage):
            record = read_record(place.root, unit)
            if unit.cue in specs and (record is None or record.generation != generation):
                place.delete(shard_keys(unit, specs[unit.cue], generation))
                swept += 1
            elif is_init(unit):
                collect_bucket_scene(place, unit.scene, specs)
                swept += 1
    return swept


def live_claims(place: ObjectBackend) -> set[tuple[UnitId, int]]:
    """(unit, generation) of every writer at work."""
    found = list(place.client.list(place.key(PENDING)))
    done = {info.key for info in found if info.key.endswith(_DONE)}
    young = [info.key for info in found if age_s(info) < CLAIM_S and info.key + _DONE not in done]
    return {claim for key in young if key not in done and (claim := _parse(key)) is not None}


def _claim(unit: UnitId, generation: int) -> str:
    return f"{PENDING}/{unit}/{generation:08d}"


def _parse(key: str) -> tuple[UnitId, int] | None:
    """Unit and generation of a claim's key, None for another object."""
    *_, folder, name = key.split("/")
    name = name.removesuffix(_DONE)
    with contextlib.suppress(StoreError):
        return (UnitId.parse(folder), int(name)) if name.isdecimal() else None
    return None


def _generations(place: ObjectBackend, unit: UnitId, *, live: bool = False) -> set[int]:
    """Generations of a unit that are claimed; `live`: and whose writers were neither done nor taken for dead."""
    names = {info.key.rpartition("/")[2] for info in place.client.list(place.key(f"{PENDING}/{unit}"))}
    if live:
        names = {name for name in names if name + _DONE not in names and not name.endswith(_DONE)}
    return {int(name.removesuffix(_DONE)) for name in names if name.removesuffix(_DONE).isdecimal()}


def _folders(place: ObjectBackend, scene: str) -> set[int]:
    """Generations of a scene that there are folders of."""
    return {0, *(int(name) for name in place.children(f"scenes/{scene}/generations")[0] if name.isdecimal())}


def scene_generations(place: ObjectBackend, scene: str) -> set[int]:
    """Generations that any unit of a scene has claimed, or that there are folders of."""
    claims = (_parse(info.key) for info in place.client.list(place.key(PENDING)))
    claimed = {claim[1] for claim in claims if claim is not None and claim[0].scene == scene}
    return claimed | {k for k in _folders(place, scene) if k > 0}
