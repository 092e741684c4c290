"""I/O errors that may pass are met by another try, whichever way units are run."""

import errno
from collections.abc import Callable
from typing import Any

import pytest

from pipelines import extract
from pipelines.config import CuesConfig
from pipelines.datasets.records import DataError
from pipelines.extract import extract_log
from pipelines.transient import is_transient
from storage.errors import StoreError

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
