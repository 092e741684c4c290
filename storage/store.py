"""The writer's side of a cue store: create, open a scene, commit blocks, clean up after killed writers."""

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from storage import files
from storage.chunks import ChunkReader, read_attributes
from storage.collect import collect_scene, collect_unit
from storage.commit import CommitRecord, Provenance, as_read, commit_path, publish, read_record, record_units
from storage.errors import StoreDamage, StoreError
from storage.invariants import broken_rules
from storage.layout import (
    INIT,
    PENDING,
    SPARE_ROOT,
    TABLE_ARRAYS,
    ArrayLayout,
    UnitId,
    axis_sizes,
    blocks,
    cue_layout,
    cue_specs,
    encode_json,
    generation_path,
    group_metadata,
    group_paths,
    root_metadata,
    table_layout,
)
from storage.schema import SceneTable, StoreAttributes
from storage.tables import check_attributes, check_table, init_digest, table_metadata
from storage.work import decodable, sweep, sweep_unit, unit_lock, writing
from storage.writer import check_block, write_shard

__all__ = ["CommitRecord", "CueStore", "Provenance", "SceneTable", "StoreAttributes", "UnitId"]


class CueStore:
    """A store to write to. Any number of processes and threads may; two that write one unit take turns.

    Use `create` or `open`. Instances hold no open files and pickle.
    """

    def __init__(self, path: Path, attributes: StoreAttributes) -> None:
        self.path = path
        self.attributes = attributes
        self._specs = cue_specs(attributes.kind)

    @classmethod
    def create(cls, path: str | Path, attributes: StoreAttributes) -> "CueStore":
        """Make a store, or open the one that is there if its attributes are equal.

        Raises:
            StoreError: other attributes, a folder that is no store, or the disk refuses.
            SchemaVersionError: a store of another schema version is there.
        """
        root = Path(path)
        check_attributes(root, attributes)
        main, spare = root / "zarr.json", root / SPARE_ROOT
        if main.exists() and spare.exists():
            return cls._existing(root, attributes)
        if not main.exists() and root.exists() and not _may_become_store(root):
            raise StoreError(f"{root}: not empty and not a store. Give a new path, or remove what is there.")
        folder = root / PENDING / f"create-{uuid.uuid4().hex}"
        try:
            with files.lock(folder.with_suffix(".lock")), files.scratch_folder(folder) as scratch:
                content = root_metadata(attributes)
                fresh = files.put(main, content, scratch, replace=False)
                files.put(spare, main.read_bytes(), scratch, replace=True)
        except OSError as error:
            raise files.explain(error, root, "creating the store") from error
        return cls(root, attributes) if fresh else cls._existing(root, attributes)

    @classmethod
    def _existing(cls, root: Path, attributes: StoreAttributes) -> "CueStore":
        found = cls.open(root)
        theirs, ours = (json.loads(encode_json(asdict(a))) for a in (found.attributes, attributes))
        differing = [
            f"{key}: {theirs[key]!r} there, {ours[key]!r} asked for" for key in ours if theirs[key] != ours[key]
        ]
        if differing:
            raise StoreError(
                f"{root}: a store with other attributes is here ({'; '.join(differing)}). Give another path, or "
                "configure the run as that store was made."
            )
        return found

    @classmethod
    def open(cls, path: str | Path) -> "CueStore":
        """Open a store that is there. Raises StoreError, SchemaVersionError, StoreDamage."""
        root = Path(path)
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
        with writing(self.path, unit, self._specs) as scratch:
            found = decodable(self.path, unit)
            if found is not None and found.fingerprint == fingerprint:
                return found
            digest = init_digest(scene, table, self.attributes)
            if found is not None and found.init == digest:
                record = replace(found, provenance=Provenance(fingerprint))
            else:
                record = self._write_table(unit, table, digest, fingerprint, scratch)
            record = as_read(record)
            publish(self.path, record, scratch, replace=True)
            collect_scene(self.path, scene)
            return record

    def commit_block(self, unit: UnitId, arrays: Mapping[str, np.ndarray], provenance: Provenance) -> CommitRecord:
        """Write one block of one cue, all its arrays, and make it visible in one step.

        Committed already with this fingerprint: nothing happens and that record is returned. With another: a new
        generation is written and made visible, then the old one is collected.

        Args:
            unit: cue, scene and block; the scene's init unit must be committed.
            arrays: by the names of the cue's specs, first axis = keyframes of the block. Ragged axes (image bytes,
                LiDAR points, mask rows) may be shorter than the scene's maximum.
            provenance: where the data comes from; `fingerprint` decides about rebuilding.

        Raises:
            StoreError: unknown cue or block, an array missing, left over, or of wrong shape or dtype; or the disk
                refuses (full: what was committed before stays readable, what this call wrote is removed).
        """
        if unit.cue not in self._specs:
            raise StoreError(f"cue {unit.cue!r} is not one of this store's: {', '.join(self._specs)}.")
        with unit_lock(self.path, UnitId(INIT, unit.scene), shared=True):
            init = self._init(unit.scene)
            frames = self._check(unit, arrays, init)
            with writing(self.path, unit, self._specs) as scratch:
                found = decodable(self.path, unit)
                if found is not None and found.init == init.init:
                    if found.fingerprint == provenance.fingerprint:
                        return found
                    generation = found.generation + 1
                else:
                    generation = init.generation
                layouts = self._layouts(unit.cue, init.sizes, generation_path(unit.scene, generation))
                batch = files.Batch(self.path, scratch)
                shards = tuple(write_shard(arrays[layout.name], layout, unit.block, batch) for layout in layouts)
                metadata = {
                    f"{x.path}/zarr.json": batch.add_fixed(f"{x.path}/zarr.json", x.metadata()) for x in layouts
                }
                batch.land()
                span = (frames.start, frames.stop)
                record = as_read(CommitRecord(unit, generation, span, init.init, shards, metadata, provenance))
                self._publish_block(record, scratch)
                collect_unit(self.path, unit, self._specs[unit.cue], record)
                return record

    def discard(self, unit: UnitId) -> None:
        """Take a unit back: its record first, then its data, so that it is extracted again. No-op where there is none.

        An init unit's blocks stay on disk and are visible again once the same table is committed.
        """
        with contextlib.ExitStack() as held:
            if unit.cue != INIT:
                held.enter_context(unit_lock(self.path, UnitId(INIT, unit.scene), shared=True))
            held.enter_context(writing(self.path, unit, self._specs))
            files.remove_file(commit_path(self.path, unit))
            files.sync_directory(self.path / "commits")
            sweep_unit(self.path, unit, self._specs)

    def collect(self, scene: str) -> None:
        """Remove what no record of the scene names; waits for the scene's writers at work."""
        with writing(self.path, UnitId(INIT, scene), self._specs):
            collect_scene(self.path, scene)

    def sweep_temporaries(self) -> int:
        """Remove what killed writers left: scratch files, data without a record, generations nobody refers to.

        Writers at work are left alone. Returns how many units were cleaned.
        """
        return sweep(self.path, self._specs)

    def _init(self, scene: str) -> CommitRecord:
        record = read_record(self.path, UnitId(INIT, scene))
        if record is None:
            raise StoreError(f"{self.path}: scene {scene!r} has no init unit. Call commit_init before its blocks.")
        return record

    def _next_generation(self, scene: str, digest: str) -> int:
        """0, or one more than every generation that a record of another init may still refer to."""
        found = [decodable(self.path, unit) for unit in record_units(self.path) if unit.scene == scene]
        others = [record.generation for record in found if record is not None and record.init != digest]
        return max(others) + 1 if others else 0

    def _layouts(self, cue: str, sizes: Mapping[str, int], folder: str) -> list[ArrayLayout]:
        return [cue_layout(spec, sizes, self.attributes.block_keyframes, folder) for spec in self._specs[cue]]

    def _check(self, unit: UnitId, arrays: Mapping[str, np.ndarray], init: CommitRecord) -> range:
        """The block's keyframes, once the arrays are what the cue needs. Raises StoreError."""
        spans = blocks(init.frames[1], self.attributes.block_keyframes)
        if unit.block >= len(spans):
            raise StoreError(f"unit {unit}: scene {unit.scene!r} has blocks 0 to {len(spans) - 1}.")
        specs = self._specs[unit.cue]
        names = {spec.name for spec in specs}
        if names != set(arrays):
            raise StoreError(
                f"unit {unit}: arrays missing {sorted(names - set(arrays))}, left over {sorted(set(arrays) - names)}."
            )
        layouts = self._layouts(unit.cue, init.sizes, generation_path(unit.scene, init.generation))
        for spec, layout in zip(specs, layouts, strict=True):
            check_block(f"{unit} {spec.name}", arrays[spec.name], spec, layout, len(spans[unit.block]))
        broken = broken_rules(arrays, init.frames[1])
        if broken:
            raise StoreError(f"unit {unit}: {'; '.join(broken)}. The extractor is at fault; nothing was written.")
        return spans[unit.block]

    def _write_table(
        self, unit: UnitId, table: SceneTable, digest: str, fingerprint: str, scratch: Path
    ) -> CommitRecord:
        """Write a scene's table and the metadata of all its arrays; the record that makes them visible."""
        generation = self._next_generation(unit.scene, digest)
        folder = generation_path(unit.scene, generation)
        sizes = axis_sizes(self.attributes, table)
        tables = [table_layout(name, sizes, folder) for name in TABLE_ARRAYS]
        arrays = [*tables, *(layout for cue in self._specs for layout in self._layouts(cue, sizes, folder))]
        contents = {f"{path}/zarr.json": group_metadata() for path in group_paths([a.path for a in arrays], unit.scene)}
        contents[f"{folder}/frames/zarr.json"] = table_metadata(table)
        contents |= {f"{layout.path}/zarr.json": layout.metadata() for layout in arrays}
        batch = files.Batch(self.path, scratch)
        shards = tuple(
            write_shard(np.asarray(getattr(table, name)), layout, 0, batch)
            for name, layout in zip(TABLE_ARRAYS, tables, strict=True)
        )
        metadata = {key: batch.add_fixed(key, content) for key, content in contents.items()}
        batch.land()
        provenance = Provenance(fingerprint)
        return CommitRecord(unit, generation, (0, table.length), digest, shards, metadata, provenance, sizes)

    def _publish_block(self, record: CommitRecord, scratch: Path) -> None:
        present = commit_path(self.path, record.unit).exists()
        if not publish(self.path, record, scratch, replace=present):
            raise StoreError(
                f"{commit_path(self.path, record.unit)}: another writer committed this unit in spite of its lock. Run "
                "one writer, and check that this file system's locks work."
            )


def _may_become_store(root: Path) -> bool:
    """Whether this folder holds nothing, or only what a creation that was cut short leaves."""
    return root.is_dir() and {entry.name for entry in root.iterdir()} <= {"commits"}
