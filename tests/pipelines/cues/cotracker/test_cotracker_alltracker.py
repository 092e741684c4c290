"""AllTracker with a stand-in network of the upstream signature, whose flow is known in closed form."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config import ConfigError
from pipelines.cues.cotracker.alltracker import AllTracker, build_network, load_alltracker
from pipelines.cues.cotracker.cue import AllTrackerFlowCue
from pipelines.weights import WeightsError

CPU = torch.device("cpu")


class Net(torch.nn.Module):
    """Flow of pixel (u, v) to frame t: t * (1 + u / 8, -v / 4); visibility 0.9, confidence falls from left to right."""

    def __init__(self, seqlen: int, **settings: Any) -> None:
        super().__init__()
        self.settings = (seqlen, settings)
        name = "fnet" if settings.get("use_basicencoder") else "cnn"
        self.add_module(name, torch.nn.Linear(1, 1))

    def forward_sliding(self, images: torch.Tensor, iters: int, sw: None, is_training: bool) -> tuple[Any, ...]:
        assert iters == 4
        assert not is_training
        _, frames, three, height, width = images.shape
        assert three == 3
        assert height % 8 == 0
        assert width % 8 == 0
        assert min(height, width) >= 128
        v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        t = torch.arange(frames)[:, None, None, None]
        flow = (t * torch.stack([1 + u / 8, -v / 4]))[None]
        sight = torch.stack([torch.full_like(u, 0.9), 1 - u / width]).expand(1, frames, 2, height, width)
        return (flow[:, -1], sight[:, -1], [], []) if frames == 2 else (flow, sight, None, None)


@pytest.mark.parametrize("frames", [2, 4])
@pytest.mark.parametrize("size", [(128, 160), (133, 167), (45, 67)])
def test_the_dense_answer_is_read_at_the_points(frames: int, size: tuple[int, int]) -> None:
    film = [np.zeros((*size, 3), np.uint8)] * frames
    points = np.array([[10, 20], [33, 7], [50, 40]], np.float32)
    found = AllTracker(Net(16), CPU)(film, points)
    # 133x167 is stretched to 128x160 and back, 45x67 to 128x128; pixel centres are at +0.5.
    width = max(128, size[1] // 8 * 8)
    stretch = np.array([width / size[1], 128 / size[0]])
    place = (points + 0.5) * stretch
    moved = (frames - 1) * np.stack([1 + place[:, 0] / 8, -place[:, 1] / 4], 1) / stretch
    np.testing.assert_allclose(found.ends - points, moved, rtol=1e-4)
    np.testing.assert_allclose(found.visible, 0.9 * (1 - place[:, 0] / width), rtol=1e-4)


def test_which_network_a_checkpoint_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nets", ModuleType("nets"))
    module = ModuleType("nets.alltracker")
    module.Net = Net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nets.alltracker", module)
    path = tmp_path / "a.pth"
    torch.save({"model": Net(16).state_dict()}, path)
    network = build_network(path)
    assert network.settings == (16, {"init_weights": False}), "or upstream fetches weights of torchvision"
    assert not network.training
    torch.save({"model": Net(16, use_basicencoder=True).state_dict()}, path)
    assert build_network(path).settings == (16, {"use_basicencoder": True, "no_split": True})
    torch.save({"model": {"cnn.weight": torch.zeros(1, 1)}}, path)
    with pytest.raises(WeightsError, match=r"does not fit the network of the repository alltracker.*cnn.bias"):
        build_network(path)
    torch.save({"model": {"other": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match="not a checkpoint of AllTracker"):
        build_network(path)
    with pytest.raises(ConfigError, match="CUDA GPU only"):
        load_alltracker(path, "", CPU)


def test_without_the_repository_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nets", None)
    with pytest.raises(WeightsError, match="git clone https://github"):
        AllTrackerFlowCue().config_digest()
    assert AllTrackerFlowCue().licence() == "MIT"
