"""What a store shows its readers, in forms that two stores can be compared by."""

from pathlib import Path

import numpy as np

from storage.layout import UnitId
from storage.store import CueStore

Files = dict[str, tuple[int, str]]


def visible(store: Path) -> dict[UnitId, Files]:
    """Every unit that is committed now: size and SHA-256 of its files, by key, as its record has them."""
    found = {record.unit: record for record in CueStore.open(store).records()} if (store / "zarr.json").exists() else {}
    return {unit: {shard.key: (shard.size, shard.sha256) for shard in r.shards} for unit, r in found.items()}


def content(store: CueStore | Path) -> dict[str, np.ndarray]:
    """All that readers get, by unit and array; each chunk is read, checked and decoded."""
    opened = store if isinstance(store, CueStore) else CueStore.open(store)
    return {
        f"{record.unit} {name}": array
        for record in opened.records()
        for name, array in opened.read_block(record.unit).items()
    }


def chunks(store: Path) -> dict[str, bytes]:
    """The same as bytes, which `==` compares."""
    return {name: array.tobytes() for name, array in content(store).items()}
