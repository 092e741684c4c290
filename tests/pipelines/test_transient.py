"""I/O errors that may pass are met by another try, whichever way units are run."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from pipelines import extract
from pipelines.config import CuesConfig
from pipelines.datasets.records import DataError
from pipelines.extract import extract_log
from pipelines.transient import is_transient
from storage.errors import StoreError
from storage.store import CueStore

ConfigMaker = Callable[..., CuesConfig]


def test_what_is_tried_again() -> None:
    def caused(error: Exception) -> StoreError:
        wrapped = StoreError("writing failed")
        wrapped.__cause__ = error
        return wrapped

    assert is_transient(ConnectionResetError())
    assert is_transient(caused(OSError(errno.ESTALE, "stale handle")))
    assert not is_transient(caused(OSError(errno.ENOSPC, "full")))
    assert not is_transient(DataError("truncated"))
    assert not is_transient(FileNotFoundError("gone"))


@pytest.mark.parametrize(("faults", "code", "ends"), [(2, errno.ESTALE, True), (3, errno.ESTALE, False),
                                                      (1, errno.ENOSPC, False)])  # fmt: skip
def test_plain_threads_try_again_as_often_as_they_are_told(
    cues_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, faults: int, code: int, ends: bool
) -> None:
    left, original = [faults], extract.extract_unit

    def flaky(config: CuesConfig, unit: Any, truth: bool = False) -> Any:
        if unit.cue == "lidar" and left[0]:
            left[0] -= 1
            raise OSError(code, "a fault")
        return original(config, unit, truth)

    monkeypatch.setattr(extract, "extract_unit", flaky)
    config = cues_config(runner={"workers": 1, "retries": 2, "retry_wait_s": 0})
    if ends:
        assert not extract_log(config).failed
    else:
        with pytest.raises(OSError, match="a fault"):
            extract_log(config)
    assert left == [0]


@pytest.mark.parametrize("where", ["digest", "bound", "cue"])
@pytest.mark.parametrize(("faults", "on_error"), [(2, "skip"), (2, "fail"), (3, "skip")])
def test_a_raw_file_that_cannot_be_reached_for_now_is_read_again_and_never_left_out(
    cues_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, where: str, faults: int, on_error: str
) -> None:
    left, passed = [faults], [{"digest": 0, "bound": 0, "cue": 1}[where]]
    read, open_image = Path.read_bytes, PIL.Image.open

    def reach(source: Any) -> None:
        if not (isinstance(source, Path) and source.name == "000002.png" and left[0]):
            return
        if passed[0]:
            passed[0] -= 1
            return
        left[0] -= 1
        raise OSError(errno.ESTALE, "Stale file handle", str(source))

    def read_bytes(path: Path) -> bytes:
        reach(path)
        return read(path)

    def opened(source: Any, *given: Any) -> Any:
        reach(source)
        return open_image(source, *given)

    if where == "digest":
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
    else:
        monkeypatch.setattr(PIL.Image, "open", opened)
    runner = {"workers": 1, "retries": 2, "retry_wait_s": 0, "image_cache_mb": 0}
    config = cues_config(runner=runner, on_error=on_error, truth=False, cues={"images": {}})
    report = extract_log(config, scenes=["00"])
    assert left == [0]
    assert report.skipped_files == {}
    assert all("Stale" not in note for note in report.notes)
    if faults <= 2:
        assert report.failed == {}
        return
    assert any("Stale file handle" in reason for reason in report.failed.values())
    assert extract_log(config, scenes=["00"]).failed == {}, "the next run finds the file"
    assert CueStore.open(config.store).table("00").camera_valid.all()
