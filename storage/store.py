"""The writer's side of a cue store: create, open a scene, commit blocks, clean up after killed writers."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from storage import files
from storage.attributes import read_attributes, require_equal
from storage.backend import ObjectBackend, backend
from storage.chunks import ChunkReader
from storage.claims import StartOver, check_conditions, collect_bucket_scene, discard_from_bucket, scene_generations
from storage.collect import collect_scene
from storage.commit import CommitRecord, Provenance, as_read, commit_path, read_record, record_units
from storage.errors import StoreDamage, StoreError
from storage.layout import (
    INIT,
    SPARE_ROOT,
    ArrayLayout,
    UnitId,
    axis_sizes,
    blocks,
    cue_layout,
    cue_specs,
    generation_path,
    root_metadata,
)
from storage.location import Location, ObjectPath, as_location
from storage.profiles import reduced
from storage.schema import SceneTable, StoreAttributes
from storage.tables import check_attributes, check_table, init_digest
from storage.work import Turn, decodable, scene_lock, sweep, sweep_unit, turn, unit_lock, writing
from storage.writer import check_unit, write_block, write_table

__all__ = ["CommitRecord", "CueStore", "Provenance", "SceneTable", "StoreAttributes", "UnitId"]


_TURNS = 8
"""Turns after which a writer gives up on a unit that others keep changing."""


class CueStore:
    """A store to write to, on a disk or at s3://bucket/prefix. Any number of processes and threads may; two that write
    one unit take turns (on a disk), or one of them keeps the other's (in a bucket).

    Use `create` or `open`. Instances hold no open files and pickle.
    """

    def __init__(self, path: Location, attributes: StoreAttributes) -> None:
        self.path = path
        self.attributes = attributes
        self._specs = cue_specs(attributes.kind, attributes.profile)

    @classmethod
    def create(cls, path: str | Path | ObjectPath, attributes: StoreAttributes) -> "CueStore":
        """Make a store, or open the one that is there if its attributes are equal.

        Raises:
            StoreError: other attributes, a folder that is no store, or the disk refuses.
            SchemaVersionError: a store of another schema version is there.
        """
        root = as_location(path)
        place, main = backend(root), "zarr.json"
        found = cls.find(root, attributes)
        if found is not None and place.exists(SPARE_ROOT):
            return found
        try:
            if isinstance(place, ObjectBackend):
                check_conditions(place)
            fresh = place.create(main, root_metadata(attributes))
            place.replace({SPARE_ROOT: place.get(main)})
        except OSError as error:
            raise files.explain(error, root, "creating the store") from error
        return cls(root, attributes) if fresh else cls._existing(root, attributes)

    @classmethod
    def find(cls, path: str | Path | ObjectPath, attributes: StoreAttributes) -> "CueStore | None":
        """Open the store that is there if its attributes are equal; None where one can be made. Writes nothing.

        Raises as `create`.
        """
        root = as_location(path)
        check_attributes(root, attributes)
        place, main = backend(root), "zarr.json"
        if not place.exists(main):
            if _may_become_store(root):
                return None
            if not place.exists(main):  # another process may have made the store between these looks
                raise StoreError(f"{root}: not empty and not a store. Give a new path, or remove what is there.")
        return cls._existing(root, attributes)

    @classmethod
    def _existing(cls, root: Location, attributes: StoreAttributes) -> "CueStore":
        found = cls.open(root)
        require_equal(root, found.attributes, attributes)
        return found

    @classmethod
    def open(cls, path: str | Path | ObjectPath) -> "CueStore":
        """Open a store that is there. Raises StoreError, SchemaVersionError, StoreDamage."""
        root = as_location(path)
        return cls(root, read_attributes(root))

    def cues(self) -> tuple[str, ...]:
        """The cues that a store of this kind may hold."""
        return tuple(self._specs)

    def scenes(self) -> list[str]:
        """Scenes whose init unit is committed, sorted."""
        return [unit.scene for unit in record_units(self.path) if unit.cue == INIT]

    def table(self, scene: str) -> SceneTable:
        """The committed scene table. Raises CueMissing, StoreDamage."""
        return ChunkReader(self.path).table(scene)

    def blocks(self, scene: str) -> list[range]:
        """Keyframes of each block of a scene whose init unit is committed. Raises StoreError."""
        return blocks(self._init(scene).frames[1], self.attributes.block_keyframes)

    def record(self, unit: UnitId) -> CommitRecord | None:
        """The unit's commit record, None when it is not committed (or only under an earlier init of its scene).

        Raises StoreDamage when the record cannot be decoded.
        """
        found = read_record(self.path, unit)
        if found is None or unit.cue == INIT:
            return found
        init = read_record(self.path, UnitId(INIT, unit.scene))
        return found if init is not None and init.init == found.init else None

    def records(self) -> Iterator[CommitRecord]:
        """Records of all committed units, sorted by cue, scene, block. Raises StoreDamage."""
        for unit in record_units(self.path):
            found = self.record(unit)
            if found is not None:
                yield found

    def is_current(self, unit: UnitId, fingerprint: str) -> bool:
        """Whether the unit is committed with this fingerprint; a record that cannot be decoded counts as not."""
        try:
            found = self.record(unit)
        except StoreDamage:
            return False
        return found is not None and found.fingerprint == fingerprint

    def read_block(self, unit: UnitId) -> dict[str, np.ndarray]:
        """Arrays of a committed unit as they were committed (ragged axes filled up). Raises CueMissing, StoreDamage."""
        source = ChunkReader(self.path)
        record = source.require(unit)
        return {entry.layout.name: source.block(record, entry.layout.name) for entry in record.shards}

    def commit_init(self, scene: str, table: SceneTable, fingerprint: str) -> CommitRecord:
        """Open a scene: fix its sizes, write its table and the metadata of all its arrays.

        Committed already with this fingerprint: nothing happens. With another fingerprint but the same table: only the
        record is renewed, and blocks stay valid. With another table: a new generation, and the scene's blocks are no
        longer committed.

        Raises:
            StoreError: a field of the table has a wrong shape or dtype, or the disk refuses.
        """
        unit = UnitId(INIT, scene)
        check_table(scene, table, self.attributes)

        def write(mine: Turn) -> CommitRecord:
            found = mine.found
            if found is not None and found.fingerprint == fingerprint:
                return found
            digest = init_digest(scene, table, self.attributes)
            if found is not None and found.init == digest:
                record = replace(found, provenance=Provenance(fingerprint))
            else:
                generation = mine.reserve(self.next_generation(scene, digest))
                sizes, folder = axis_sizes(self.attributes, table), generation_path(scene, generation)
                always = {spec.name for specs in self._specs.values() for spec in specs if not spec.optional}
                every = [layout for cue in self._specs for layout in self._layouts(cue, sizes, folder)]
                blocks_of = [layout for layout in every if layout.name in always]
                shards, metadata = write_table(table, sizes, folder, scene, blocks_of, mine.batch)
                span, source = (0, table.length), Provenance(fingerprint)
                record = CommitRecord(unit, generation, span, digest, shards, metadata, source, sizes)
            return mine.publish(as_read(record))

        return self.in_turn(unit, write)

    def commit_block(self, unit: UnitId, arrays: Mapping[str, np.ndarray], provenance: Provenance) -> CommitRecord:
        """Write one block of one cue, all its arrays, and make it visible in one step.

        Committed already with this fingerprint: nothing happens and that record is returned. With another: a new
        generation is written and made visible, then the old one is collected.

        Args:
            unit: cue, scene and block; the scene's init unit must be committed.
            arrays: by the names of the cue's specs, first axis = keyframes of the block. Ragged axes (image bytes,
                LiDAR points, mask rows) may be shorter than the scene's maximum; optional arrays may be left out. Of
                their precision the store keeps what its profile says.
            provenance: where the data comes from; `fingerprint` decides about rebuilding.

        Raises:
            StoreError: unknown cue or block, an array missing, left over, or of wrong shape or dtype; or the disk
                refuses (full: what was committed before stays readable, what this call wrote is removed).
        """
        if unit.cue not in self._specs:
            raise StoreError(f"cue {unit.cue!r} is not one of this store's: {', '.join(self._specs)}.")
        with scene_lock(self.path, unit.scene):
            init = self._init(unit.scene)
            frames = check_unit(unit, arrays, self._specs[unit.cue], init, self.attributes.block_keyframes)
            kept = reduced(arrays, self.attributes.profile)

            def write(mine: Turn) -> CommitRecord:
                found = mine.found
                first = init.generation
                if found is not None and found.init == init.init:
                    if found.fingerprint == provenance.fingerprint:
                        return found
                    first = found.generation + 1
                generation = mine.reserve(first)
                every = self._layouts(unit.cue, init.sizes, generation_path(unit.scene, generation))
                layouts = [layout for layout in every if layout.name in kept]
                shards, metadata = write_block(kept, layouts, unit.block, mine.batch)
                span = (frames.start, frames.stop)
                record = CommitRecord(unit, generation, span, init.init, shards, metadata, provenance)
                return mine.publish(as_read(record))

            return self.in_turn(unit, write)

    def discard(self, unit: UnitId) -> None:
        """Take a unit back: its record first, then its data, so that it is extracted again. No-op where there is none.

        An init unit's blocks stay on disk and are visible again once the same table is committed.
        """
        place = backend(self.path)
        if isinstance(place, ObjectBackend):
            discard_from_bucket(place, unit, self._specs)
            return
        root = place.root
        with contextlib.ExitStack() as held:
            if unit.cue != INIT:
                held.enter_context(unit_lock(root, UnitId(INIT, unit.scene), shared=True))
            held.enter_context(writing(root, unit, self._specs))
            files.remove_file(commit_path(root, unit))
            files.sync_directory(root / "commits")
            sweep_unit(root, unit, self._specs)

    def collect(self, scene: str) -> None:
        """Remove what no record of the scene names; waits for the scene's writers at work."""
        place = backend(self.path)
        if isinstance(place, ObjectBackend):
            collect_bucket_scene(place, scene, self._specs)
            return
        with writing(place.root, UnitId(INIT, scene), self._specs):
            collect_scene(place.root, scene)

    def sweep_temporaries(self) -> int:
        """Remove what killed writers left: scratch files, data without a record, generations nobody refers to.

        Writers at work are left alone. Returns how many units were cleaned.
        """
        return sweep(self.path, self._specs)

    def in_turn(self, unit: UnitId, write: Callable[[Turn], CommitRecord]) -> CommitRecord:
        """What `write` returns, in as many turns as it takes for no other writer to have come between.

        Raises StoreError when others keep changing the unit, or the disk refuses.
        """
        for _ in range(_TURNS):
            with contextlib.suppress(StartOver), turn(self.path, unit, self._specs) as mine:
                return write(mine)
        raise StoreError(
            f"{self.path}: unit {unit} was changed by other writers {_TURNS} times while it was written. Let one "
            "writer at a time make a unit, then run the same command again."
        )

    def _layouts(self, cue: str, sizes: Mapping[str, int], folder: str) -> list[ArrayLayout]:
        return [cue_layout(spec, sizes, self.attributes.block_keyframes, folder) for spec in self._specs[cue]]

    def _init(self, scene: str) -> CommitRecord:
        record = read_record(self.path, UnitId(INIT, scene))
        if record is None:
            raise StoreError(f"{self.path}: scene {scene!r} has no init unit. Call commit_init before its blocks.")
        return record

    def next_generation(self, scene: str, digest: str) -> int:
        """For an init unit: 0, or one more than every generation that a record of another init may still refer to."""
        found = [decodable(self.path, unit) for unit in record_units(self.path) if unit.scene == scene]
        others = [record.generation for record in found if record is not None and record.init != digest]
        place = backend(self.path)
        if isinstance(place, ObjectBackend):  # writers at work, and dead ones, may hold generations without a record
            others.extend(scene_generations(place, scene))
        return max(others) + 1 if others else 0


def _may_become_store(root: Location) -> bool:
    """Whether there is nothing here, or only what a creation that was cut short leaves."""
    if isinstance(root, Path) and root.exists() and not root.is_dir():
        return False
    folders, found = backend(root).children("")
    return not found and set(folders) <= {"commits"}
