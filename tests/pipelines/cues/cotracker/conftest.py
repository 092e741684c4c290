"""A stand-in for the package cotracker, with its signatures, whose tracks and visibility are known in closed form."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cues.cotracker import tracker

BUILDER = '''
"""Points move by `motion.weight` pixels of the stretched image per frame, back in a film that gets darker."""

import torch

CALLS = []


class Net(torch.nn.Module):
    model_resolution = (48, 64)

    def __init__(self, window_len, v2):
        super().__init__()
        self.window_len, self.v2 = window_len, v2
        self.register_buffer("time_emb", torch.zeros(1, window_len, 4))
        if v2:
            self.register_buffer("pos_emb", torch.zeros(1, 4, 12, 16))
        self.motion = torch.nn.Linear(2, 1, bias=False)

    def forward(self, video, queries, iters=4):
        assert iters == 6 and not self.training
        frames, height, width = video.shape[1], *video.shape[-2:]
        assert frames >= self.window_len // 2 + 1 or not self.v2, "CoTracker 2 answers 0 for shorter films"
        assert 2 < video.max() <= 255 and video.min() >= 0
        assert (queries[..., 0] == 0).all()
        assert (queries[..., 1:] >= 0).all()
        assert (queries[..., 1] <= width).all() and (queries[..., 2] <= height).all()
        CALLS.append((tuple(video.shape), queries.shape[1]))
        step = torch.arange(frames)[None, :, None, None]
        tracks = queries[:, None, :, 1:] + step * self.motion.weight[0]
        if video[0, 0].mean() > video[0, -1].mean():
            tracks = queries[:, None, :, 1:] - step * self.motion.weight[0]
        left = (queries[:, None, :, 1] < width / 2).float().expand(-1, frames, -1)
        vis = 0.1 + 0.8 * left
        return (tracks, vis, None) if self.v2 else (tracks, vis, torch.full_like(vis, 0.75), None)


def build_cotracker(checkpoint=None, offline=True, window_len=16, v2=False):
    assert checkpoint is None and offline
    return Net(window_len, v2)
'''


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., str]:
    """Saves a checkpoint of the stand-in, its parameters bare or under "model" as the official files hold theirs."""

    def save(motion: tuple[float, float], window: int = 60, v2: bool = False, under: str = "") -> str:
        state: dict[str, Any] = {"time_emb": torch.zeros(1, window, 4), "motion.weight": torch.tensor([motion])}
        if v2:
            state["pos_emb"] = torch.zeros(1, 4, 12, 16)
        path = tmp_path / f"tracker_{window}_{v2}.pth"
        torch.save({under: state} if under else state, path)
        return str(path)

    return save


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The package on the path; gives the list of (shape of the video, number of queries) of its calls."""
    folder = tmp_path / "site" / "cotracker" / "models"
    folder.mkdir(parents=True)
    (folder / "build_cotracker.py").write_text(BUILDER)
    for package in (folder, folder.parent):
        (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    _forget()
    yield importlib.import_module("cotracker.models.build_cotracker").CALLS
    _forget()


def _forget() -> None:
    tracker._network.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "cotracker"]:
        del sys.modules[name]
