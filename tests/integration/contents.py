"""What a store shows its readers, in forms that two stores can be compared by."""

from pathlib import Path

from storage.layout import UnitId
from storage.store import CueStore

Files = dict[str, tuple[int, str]]


def visible(store: Path) -> dict[UnitId, Files]:
    """Every unit that is committed now: size and SHA-256 of its files, by key, as its record has them."""
    found = {record.unit: record for record in CueStore.open(store).records()} if (store / "zarr.json").exists() else {}
    return {unit: {shard.key: (shard.size, shard.sha256) for shard in r.shards} for unit, r in found.items()}


def chunks(store: Path) -> dict[str, bytes]:
    """All that readers get, by unit and array; each chunk is read, checked and decoded."""
    opened = CueStore.open(store)
    return {
        f"{record.unit} {name}": array.tobytes()
        for record in opened.records()
        for name, array in opened.read_block(record.unit).items()
    }
