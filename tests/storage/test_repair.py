"""Repair goes by what a store holds now, not by what `verify` found a while ago."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from occflow import app
from storage.finding import Finding
from storage.repair import repair
from storage.store import CueStore, UnitId
from storage.verify import verify, verify_unit

UNIT = UnitId("masks", "a", 1)


@pytest.mark.parametrize("name", ["scenes/a/masks/table/c.1.0.0.0", f"commits/{UNIT}.json"])
def test_a_unit_that_was_made_anew_meanwhile_stays(full_store: CueStore, tiny: SimpleNamespace, name: str) -> None:
    tiny.flip_bit(full_store.path / name, 999)
    found = verify(full_store.path)
    assert UNIT in {finding.unit for finding in found}
    arrays = tiny.commit(full_store, "masks", 1, seed=4)
    assert repair(full_store.path, found) == []
    assert verify(full_store.path) == []
    np.testing.assert_array_equal(full_store.read_block(UNIT)["masks/instance"], arrays["masks/instance"])


def test_a_unit_that_is_made_anew_while_it_is_looked_at_stays(
    full_store: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.flip_bit(full_store.path / "scenes/a/masks/table/c.1.0.0.0", 999)
    found = verify(full_store.path)

    def looked_at(path: Path, unit: UnitId) -> list[Finding]:
        seen = verify_unit(path, unit)
        tiny.commit(full_store, "masks", 1, seed=4)
        return seen

    monkeypatch.setattr("storage.repair.verify_unit", looked_at)
    assert repair(full_store.path, found) == []
    assert full_store.record(UNIT) is not None
    assert verify(full_store.path) == []


def test_a_scene_that_was_opened_again_meanwhile_stays(full_store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.flip_bit(full_store.path / "scenes/a/frames/K/c.0.0.0.0", 999)
    found = verify(full_store.path)
    full_store.commit_init("a", tiny.table(seed=3), "init-2")
    tiny.commit(full_store, "lidar", 0)
    assert repair(full_store.path, found) == []
    assert verify(full_store.path) == []
    assert full_store.is_current(UnitId("lidar", "a", 0), "fp-0")


def test_an_index_that_is_whole_by_now_stays(full_store: CueStore) -> None:
    index, content = full_store.path / "commits/.index", b"{}\n"
    index.write_bytes(b"1 no digest\n{}")
    found = verify(full_store.path)
    assert [finding.kind for finding in found] == ["aside"]
    index.write_bytes(f"1 {hashlib.sha256(content).hexdigest()}\n".encode() + content)
    assert repair(full_store.path, found) == []
    assert index.exists()
    assert verify(full_store.path) == []


def test_one_unit_alone(full_store: CueStore, tiny: SimpleNamespace) -> None:
    assert verify_unit(full_store.path, UNIT) == []
    tiny.flip_bit(full_store.path / "scenes/a/masks/table/c.1.0.0.0", 99)
    tiny.flip_bit(full_store.path / "scenes/a/masks/table/c.0.0.0.0", 99)
    assert [(finding.kind, finding.unit) for finding in verify_unit(full_store.path, UNIT)] == [("digest", UNIT)]
    full_store.discard(UNIT)
    assert verify_unit(full_store.path, UNIT) == []


@pytest.mark.parametrize(("kind", "code"), [("denied", 1), ("schema", 1), ("digest", 0)])
def test_what_repair_cannot_help_is_no_success(
    full_store: CueStore, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    """A script goes by the exit code: what nobody could read must not pass as sound."""
    found = [Finding(kind, full_store.path / "scenes/a/masks/table/c.1.0.0.0", "a fault", UNIT)]
    monkeypatch.setattr("storage.verify.verify", lambda path, decode: found)
    done = CliRunner().invoke(app, ["verify", "--repair", str(full_store.path)])
    assert done.exit_code == code, done.output
    assert (f"1 findings stay as they are ({kind})" in " ".join(done.output.split())) is (code == 1)
