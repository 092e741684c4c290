"""A disk that is full or refuses, at every call: a clear error, nothing committed lost, no litter, a clean resume."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from storage.errors import StoreError
from storage.reader import StoreReader
from storage.schema import CUES
from storage.store import CueStore, Provenance, UnitId
from storage.verify import verify
from storage.work import writing


class FailingDisk:
    """Lets `after` calls of one function of `os` pass, then fails each with an error number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, after: int, code: int = errno.ENOSPC) -> None:
        self.failed = 0
        self._left = after
        self._code = code
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                self.failed += 1
                raise OSError(self._code, os.strerror(self._code))
            self._left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)


def files_below(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def fail_at_every_call(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> int:
    """Run the action with `os.<name>` failing from its 1st, 2nd, … call on; how often it failed before it passed."""
    for after in range(500):
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, name, after)
            try:
                action()
            except StoreError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                assert "free space" in str(error)  # noqa: PT017
                continue
        assert disk.failed == 0, "a failed call was not told"
        return after
    pytest.fail("the action never passed")


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "link"])
def test_full_disk_while_a_block_is_committed(
    store: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    committed = tiny.commit(store, "masks", 1)
    before = files_below(store.path)
    arrays = tiny.arrays("masks", 2, 4)

    def commit() -> None:
        # Only the very last step, making the record's folder durable, may fail with the whole unit in place.
        if store.record(UnitId("masks", "a")) is None:
            assert files_below(store.path) == before, "a failed commit left something behind"
        store.commit_block(UnitId("masks", "a"), arrays, Provenance("fp"))

    assert fail_at_every_call(monkeypatch, call, commit) > 0
    scene = StoreReader(store.path).scene("a")
    np.testing.assert_array_equal(scene.masks(0, 1), arrays["masks/instance"][0, 1])
    np.testing.assert_array_equal(scene.masks(2, 1), committed["masks/instance"][0, 1])
    assert verify(store.path) == []


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk_while_a_block_is_rebuilt(
    store: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    tiny.commit(store, "masks", 0, seed=1)
    unit, new = UnitId("masks", "a"), tiny.arrays("masks", 2, 2)

    def rebuild() -> None:
        record = store.record(unit)
        assert record is not None
        want = tiny.arrays("masks", 2, 1 if record.fingerprint == "fp-1" else 2)
        np.testing.assert_array_equal(store.read_block(unit)["masks/instance"], want["masks/instance"])
        store.commit_block(unit, new, Provenance("fp-2"))

    assert fail_at_every_call(monkeypatch, call, rebuild) > 0
    np.testing.assert_array_equal(store.read_block(unit)["masks/instance"], new["masks/instance"])
    store.sweep_temporaries()
    assert verify(store.path) == []


@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
def test_full_disk_while_a_scene_is_opened(
    store: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    masks = tiny.commit(store, "masks", 0)

    def reopen() -> None:
        np.testing.assert_array_equal(StoreReader(store.path).scene("a").masks(0, 0), masks["masks/instance"][0, 0])
        store.commit_init("b", tiny.table(seed=3), "fp")

    assert fail_at_every_call(monkeypatch, call, reopen) > 0
    assert store.scenes() == ["a", "b"]
    assert verify(store.path) == []


@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
def test_full_disk_while_a_store_is_created(
    memory: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = memory / "new.zarr"
    assert fail_at_every_call(monkeypatch, call, lambda: CueStore.create(path, tiny.attributes())) > 0
    assert CueStore.open(path).attributes == tiny.attributes()
    assert verify(path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO])
def test_other_refusals_name_path_and_permissions(
    store: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patch:
        FailingDisk(patch, "fsync", 2, code)
        with pytest.raises(StoreError) as caught:
            tiny.commit(store, "masks", 0)
    assert os.strerror(code) in str(caught.value)
    assert str(store.path) in str(caught.value)
    assert "permissions" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_may_not_be_written(store: CueStore, tiny: SimpleNamespace) -> None:
    for folder in [store.path, *(p for p in store.path.rglob("*") if p.is_dir())]:
        folder.chmod(0o555)
    with pytest.raises(StoreError, match="permissions"):
        tiny.commit(store, "masks", 0)
    assert verify(store.path) == []
    for folder in [store.path, *(p for p in store.path.rglob("*") if p.is_dir())]:
        folder.chmod(0o755)


def test_an_interrupt_leaves_nothing_behind(
    store: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(store.path)
    with monkeypatch.context() as patch:
        patch.setattr("storage.work.publish", lambda *args, **kwargs: raise_interrupt())
        with pytest.raises(KeyboardInterrupt):
            tiny.commit(store, "masks", 0)
    assert files_below(store.path) == before
    assert verify(store.path) == []


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_sweep_leaves_writers_at_work_alone(store: CueStore, tiny: SimpleNamespace) -> None:
    unit = UnitId("masks", "a")
    with writing(store.path, unit, CUES) as scratch:
        (scratch / "half").write_bytes(b"half")
        assert store.sweep_temporaries() == 0
        assert (scratch / "half").exists()
        assert [f.kind for f in verify(store.path)] == []
    assert not scratch.exists()
    left = store.path / "commits/.pending" / str(unit)
    left.mkdir()
    (left / "file-0000").write_bytes(b"half a shard")
    assert [(f.kind, f.path) for f in verify(store.path)] == [("temporary", left)]
    assert store.sweep_temporaries() == 1
    assert verify(store.path) == []
