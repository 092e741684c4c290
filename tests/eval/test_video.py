"""Films hold every keyframe, in order and time, in each format that can be written here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from eval import camera_tiles, video
from eval import pictures as drawing
from eval.rules import EvaluationError
from eval.video import film, save_film

GREYS = (20, 90, 160, 230)


def frames() -> list[np.ndarray]:
    return [np.full((48, 64, 3), grey, dtype=np.uint8) for grey in GREYS]


def test_a_gif_has_its_frames_at_their_pace(tmp_path: Path) -> None:
    path = save_film(frames(), tmp_path / "a" / "film.gif", 0.5)
    with Image.open(path) as found:
        assert (found.n_frames, found.size, found.info["duration"], found.info["loop"]) == (4, (64, 48), 500, 0)
        shown = []
        for k in range(4):
            found.seek(k)
            shown.append(np.asarray(found.convert("RGB"))[24, 32].tolist())
    assert shown == [[grey] * 3 for grey in GREYS]
    assert [p.name for p in path.parent.iterdir()] == ["film.gif"]


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_a_video_can_be_read_back(tmp_path: Path, ending: str) -> None:
    try:
        path = save_film(frames(), tmp_path / f"film{ending}", 0.5)
    except EvaluationError as error:
        pytest.skip(f"no encoder here: {error}")
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(2.0)
    shown = []
    while True:
        there, picture = capture.read()
        if not there:
            break
        shown.append(float(picture.mean()))
    np.testing.assert_allclose(shown, GREYS, atol=6)


def test_colours_are_in_the_right_order(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), dtype=np.uint8)
    red[..., 0] = 220
    try:
        path = save_film([red], tmp_path / "film.webm", 1.0)
    except EvaluationError as error:
        pytest.skip(f"no encoder here: {error}")
    there, picture = cv2.VideoCapture(str(path)).read()
    assert there
    blue, green, back = picture[24, 32]
    assert back > 150 > 60 > max(blue, green)


def test_frames_of_another_size_are_fitted(tmp_path: Path) -> None:
    path = save_film([frames()[0], np.zeros((24, 80, 3), np.uint8)], tmp_path / "film.gif", 0.1)
    with Image.open(path) as found:
        found.seek(1)
        second = np.asarray(found.convert("RGB"))
    assert (second[:24] == 0).all()
    assert (second[24:] == 255).all()


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match=r"film\.avi: a film's name ends in one of \.gif, \.mp4, \.webm"):
        save_film(frames(), tmp_path / "film.avi", 0.5)
    with pytest.raises(EvaluationError, match="no frames"):
        save_film([], tmp_path / "film.gif", 0.5)
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False, raising=False)
    monkeypatch.setattr(video, "CODECS", {".mp4": ()})
    with pytest.raises(EvaluationError, match="no encoder"):
        save_film(frames(), tmp_path / "film.mp4", 0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_scene_becomes_a_film(
    tmp_path: Path, small_log: Any, make_log: type, exact: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_VIEW_SIZE", (60, 100))
    monkeypatch.setattr(camera_tiles, "_STRIP", 128)
    log = make_log(grid=small_log.grid, blind=((1, 0), (1, 1), (2, 0)))
    store = log.write(tmp_path / "store.zarr")
    with Image.open(film(exact(log), store, "a", tmp_path / "a.gif", width=301)) as found:
        # Keyframe 1 has no image.
        assert (found.n_frames, found.width) == (2, 300)
        assert found.height % 2 == 0
