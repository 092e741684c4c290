"""The same commit under another generation: in a bucket a copy may find the generation of its source taken."""

import hashlib
from dataclasses import replace

from storage.commit import CommitRecord, is_init
from storage.layout import generation_path, group_metadata, group_paths


def moved_keys(record: CommitRecord, generation: int) -> dict[str, str]:
    """Where each file that a record names lies under another generation: source key -> key there, data and metadata.

    Groups above the arrays are not in it: their content is the same for all, see `relocated`.
    """
    old, new = (generation_path(record.unit.scene, k) for k in (record.generation, generation))
    groups = _groups(record)
    keys = [*(entry.key for entry in record.shards), *(key for key in record.metadata if key not in groups)]
    return {key: new + key.removeprefix(old) if key.startswith(f"{old}/") else key for key in keys}


def relocated(record: CommitRecord, generation: int) -> CommitRecord:
    """The record of the same data, with the same provenance, under another generation."""
    if generation == record.generation:
        return record
    keys = moved_keys(record, generation)
    old, new = (generation_path(record.unit.scene, k) for k in (record.generation, generation))
    shards = tuple(
        replace(
            entry,
            key=keys[entry.key],
            layout=replace(entry.layout, path=new + entry.layout.path.removeprefix(old)),
        )
        for entry in record.shards
    )
    metadata = {keys[key]: sha256 for key, sha256 in record.metadata.items() if key in keys}
    moved = replace(record, generation=generation, shards=shards, metadata=metadata)
    groups = dict.fromkeys(_groups(moved), hashlib.sha256(group_metadata()).hexdigest())
    return replace(moved, metadata={**groups, **metadata})


def same_commit(one: CommitRecord, other: CommitRecord) -> bool:
    """Whether two records are of one commit, be it under different generations."""
    return one.unit == other.unit and relocated(one, other.generation) == other


def _groups(record: CommitRecord) -> set[str]:
    """Keys of the plain groups that an init unit names: all above its arrays but `frames`, which holds the table."""
    if not is_init(record.unit):
        return set()
    folder = generation_path(record.unit.scene, record.generation)
    frames = f"{folder}/frames/zarr.json"
    arrays = [key.removesuffix("/zarr.json") for key in record.metadata if key.startswith(f"{folder}/")]
    leaves = [path for path in arrays if not any(other.startswith(f"{path}/") for other in arrays)]
    return {f"{path}/zarr.json" for path in group_paths(leaves, record.unit.scene)} - {frames}
