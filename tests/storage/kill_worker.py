"""A writer to be killed: forks a child per command, so that a kill costs milliseconds, not an interpreter's start.

Reads one JSON command per line: {"store": path, "job": name, "kill_at": n or null, "arguments": {}}. Answers with the
child's process id and, when it has ended, its exit status. With `kill_at` the child kills itself just before its n-th
system call that changes the disk; a child that gets by with fewer calls exits with 0.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import make_arrays, make_table

from storage.schema import CUES
from storage.store import CueStore, Provenance, UnitId
from storage.transfer import transfer
from storage.transfer_plan import plan_transfer

CHANGING = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "rmdir")


def fill(path: Path, sizes: dict[str, int] | None = None) -> None:
    """Commit every unit that is missing; tells of each on standard output once it is committed."""
    store = CueStore.open(path)
    store.sweep_temporaries()
    for block, span in enumerate(store.blocks("a")):
        for cue in CUES:
            unit = UnitId(cue, "a", block)
            if not store.is_current(unit, "fp-0"):
                store.commit_block(unit, make_arrays(cue, len(span), 0, sizes), Provenance("fp-0"))
                os.write(1, f"done {unit}\n".encode())


def fill_large(path: Path) -> None:
    """As `fill`, for a store whose blocks take a while to write."""
    fill(path, {"H": 96, "W": 160, "h": 96, "w": 160, "L": 20_000, "S": 5_000, "N": 5_000})


def commit_masks(path: Path) -> None:
    """Commit block 0 of the masks with seed 2."""
    arrays = make_arrays("masks", 2, 2)
    CueStore.open(path).commit_block(UnitId("masks", "a"), arrays, Provenance("fp-2"))


def commit_one(path: Path, unit: str, seed: int) -> None:
    """Commit a unit with content of a seed."""
    store, parsed = CueStore.open(path), UnitId.parse(unit)
    arrays = make_arrays(parsed.cue, len(store.blocks(parsed.scene)[parsed.block]), seed)
    store.commit_block(parsed, arrays, Provenance(f"fp-{seed}"))


def reopen_scene(path: Path) -> None:
    """Commit another table of the scene."""
    CueStore.open(path).commit_init("a", make_table(frames=6, seed=2), "init-2")


def discard_masks(path: Path) -> None:
    """Take block 0 of the masks back."""
    CueStore.open(path).discard(UnitId("masks", "a"))


def copy_full(path: Path) -> None:
    """Copy every unit of `full.zarr`, which lies beside."""
    source = path.with_name("full.zarr")
    transfer(source, path, plan_transfer(source, path))


def overwrite_full(path: Path) -> None:
    """The same in place of what is there."""
    source = path.with_name("full.zarr")
    transfer(source, path, plan_transfer(source, path, overwrite=True))


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job
    for job in (fill, fill_large, commit_masks, commit_one, reopen_scene, discard_masks, copy_full, overwrite_full)
}


def kill_before_call(number: int) -> None:
    """Arm the n-th (from 0) call that changes the disk."""
    calls = 0

    def armed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return function(*args, **kwargs)

        return call

    for name in CHANGING:
        setattr(os, name, armed(getattr(os, name)))


def main() -> None:
    """Serve commands until standard input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            if command["kill_at"] is not None:
                kill_before_call(command["kill_at"])
            JOBS[command["job"]](Path(command["store"]), **command.get("arguments", {}))
            os._exit(0)
        os.write(1, f"pid {child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"exit {status}\n".encode())


if __name__ == "__main__":
    main()
