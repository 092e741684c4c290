"""The folder of a matrix of runs: what every invocation on it agrees about, and how several work on it side by side."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occflow_shell import CommandError
from storage.whole_file import whole_file


class MatrixError(CommandError):
    """A matrix that cannot go on as asked. The message says what to ask for instead."""


@dataclass(frozen=True)
class Material:
    """What every run of a matrix is given: a store, scenes to train on, and scenes to be judged by."""

    store: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to run: preset and overrides that all rows share, the rows (None: all), and how many seeds from which."""

    base: str = "ablation"
    overrides: tuple[str, ...] = ()
    rows: tuple[str, ...] | None = None
    seeds: int = 3
    first_seed: int = 0
    budget_minutes: float | None = None


def agree(folder: Path, plan: Plan, material: Material) -> dict[str, str]:
    """Digest of every row's configuration; the same in all invocations on this folder, but for rows that came later.

    Raises:
        MatrixError: the matrix in `folder` was begun with other settings, scenes or another store.
        ConfigError: a base or override that cannot be used.
    """
    from train.ablations import digest, row_config, rows

    digests = {
        row: digest(row_config(row, 0, material.store, folder, material.training, plan.base, plan.overrides))
        for row in rows()
    }
    path, tables = folder / "matrix.json", _tables(material)
    material_now = {"training": list(material.training), "held_out": list(material.held_out)}
    if path.exists():
        before = json.loads(path.read_text())
        changed = [key for key in material_now if before[key] != material_now[key]]
        # Rows that came later are no change of those that there were.
        changed += ["digests"] if not before["digests"].items() <= digests.items() else []
        began = before.get("tables", {})  # matrices from before it was written have none
        other = [scene for scene, table in tables.items() if began.get(scene, table) != table]
        changed += [f"store (other keyframes, poses or sizes in {', '.join(other)})"] if other else []
        tables = began | tables
        if changed:
            raise MatrixError(
                f"{path}: this matrix was begun with another {' and '.join(changed)}; runs of both in one table would "
                f"compare what is not alike. It was: base {before['base']}, overrides {before['overrides']}. "
                "Give these, or another --out"
            )
    begun = {"base": plan.base, "overrides": list(plan.overrides), **material_now, "tables": tables}
    write_json(path, {**begun, "digests": digests})
    return digests


def _tables(material: Material) -> dict[str, str]:
    """Digest of each scene's table in the store, which a copy keeps and another log or image size changes; nothing of
    what cannot be read, which the first run tells."""
    from storage.commit import read_sound_record
    from storage.layout import INIT, UnitId
    from storage.location import as_location

    root = as_location(material.store)
    scenes = (*material.training, *material.held_out)
    found = {scene: read_sound_record(root, UnitId(INIT, scene)) for scene in scenes}
    return {scene: record.init for scene, record in found.items() if record is not None}


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock that ends with this process, however it ends; whether it was free (always, when waiting)."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def write_json(path: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False))
