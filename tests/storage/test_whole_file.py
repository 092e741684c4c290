"""Files that appear whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from storage.whole_file import whole_file


def test_nothing_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "marks.json"
    with whole_file(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("whole")
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["marks.json"]
    assert path.read_text() == "whole"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "marks.json"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("ha")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["marks.json"]
    assert path.read_text() == "old"


def test_numpy_adds_no_ending_to_the_name(tmp_path: Path) -> None:
    with whole_file(tmp_path / "labels.npz") as temporary:
        np.savez_compressed(temporary, flow=np.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["labels.npz"]
