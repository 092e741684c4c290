"""Training leaves out what a reviewer or a check has marked, says so, and says which marks no longer hold."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import StoreError
from storage.exclusions import ExcludedFrame, fingerprints, write_exclusions
from storage.reader import StoreReader
from train.config import ConfigError, TrainConfig, dump_config, load_config
from train.data import KeyframeDataset
from train.selection import frames_again, training_frames

Make = Callable[..., TrainConfig]


@pytest.fixture
def marked(tiny_store: Path, tmp_path: Path) -> Path:
    """A file that marks a:1 as it is now and b:2 as it was once."""
    reader = StoreReader(tiny_store)
    now = fingerprints(reader.scene("a"), 1)
    marks = [
        ExcludedFrame("a", 1, reader.scene("a").table.tokens[1], fingerprints=now),
        ExcludedFrame("b", 2, fingerprints=now | {"masks": "of a build that is gone"}),
    ]
    return write_exclusions(tmp_path / "exclusions.json", marks, str(tiny_store))


def test_marked_keyframes_are_left_out_and_told(
    tiny_config: Make, tiny_store: Path, marked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(data={"exclude_files": [str(marked)], "exclude": ["b:4"]})
    with caplog.at_level(logging.WARNING):
        frames = training_frames(config, 1, StoreReader(tiny_store))
    assert set(frames) == {(s, t) for s in "ab" for t in range(5)} - {("a", 1), ("b", 4)}
    assert "1 keyframes excluded by" in caplog.text
    assert "1 marks no longer hold" in caplog.text
    assert "masks" in caplog.text


def test_they_are_no_neighbours_either(tiny_config: Make, marked: Path) -> None:
    config = tiny_config(data={"exclude_files": [str(marked)]})
    sample = KeyframeDataset(config, 2, [("a", 0)], 0)[0, 0]
    assert not sample.later.valid.any()
    clean = KeyframeDataset(tiny_config(), 2, [("a", 0)], 0)[0, 0]
    assert clean.later.valid.all()


def test_a_mark_that_comes_while_a_stage_waits_is_named(tiny_config: Make, tiny_store: Path, marked: Path) -> None:
    """Nothing is wrong with its cues, and to extract them again would not help."""
    reader = StoreReader(tiny_store)
    began = {"a": [0, 1, 2], "b": [0]}
    config = tiny_config(data={"exclude_files": [str(marked)]})
    with pytest.raises(ConfigError, match=r"exclusions\.json: excludes 1 keyframes \(first: a:1\) that the stage"):
        frames_again(began, training_frames(config, 1, reader), config, reader)


def test_a_file_that_is_missing_stops_the_run(tiny_config: Make, tiny_store: Path, tmp_path: Path) -> None:
    config = tiny_config(data={"exclude_files": [str(tmp_path / "none.json")]})
    with pytest.raises(StoreError, match=r"none\.json: cannot be read"):
        training_frames(config, 1, StoreReader(tiny_store))


def test_the_option_survives_the_configuration_file(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(data={"exclude_files": ["marks.json"]})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path).data.exclude_files == (Path("marks.json"),)
