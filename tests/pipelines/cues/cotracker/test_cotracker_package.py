"""The real package with random weights, saved as the official files are: ours against upstream's own predictor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cues.cotracker.cue import CoTrackerFlowCue
from pipelines.cues.cotracker.tracker import load_cotracker
from pipelines.weights import weights_digest
from storage.schema import INVALID_FLOW

pytestmark = pytest.mark.slow
SIZE = (96, 128)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves random weights of one of the package's networks."""
    builder = pytest.importorskip(
        "cotracker.models.build_cotracker", reason="the package cotracker (CC-BY-NC) is installed by the user"
    )
    folder = tmp_path_factory.mktemp("weights")

    def save(window: int, v2: bool, stir: float = 0.0) -> Path:
        torch.manual_seed(1)
        network = builder.build_cotracker(window_len=window, v2=v2)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if stir and ("flow_head" in name or "vis_conf_head" in name):
                    weight.normal_(std=stir)
        path = folder / f"{window}_{v2}_{stir}.pth"
        torch.save({"model": network.state_dict()} if v2 else network.state_dict(), path)
        return path

    return save


def film(frames: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (55, 95, 3), np.uint8).repeat(2, 0).repeat(2, 1) for _ in range(frames)]


def test_version_3_is_upstreams_predictor(official: Callable[..., Path]) -> None:
    from cotracker.predictor import CoTrackerPredictor

    path = official(60, v2=False, stir=0.02)
    points = np.random.default_rng(1).uniform(0, 109, (12, 2)).astype(np.float32)
    found = load_cotracker(path, weights_digest(path), torch.device("cpu"), SIZE, 1 << 30)(film(3), points)
    predictor = CoTrackerPredictor(checkpoint=str(path), window_len=60)
    predictor.interp_shape = SIZE
    video = torch.from_numpy(np.stack(film(3))).permute(0, 3, 1, 2)[None].float()
    asked = torch.cat([torch.zeros(12, 1), torch.from_numpy(points)], dim=1)[None]
    tracks, _ = predictor(video, queries=asked)
    expected = tracks[0, -1].numpy()
    assert np.abs(expected - points).max() > 5
    np.testing.assert_allclose(found.ends, expected, atol=1e-3)


def test_a_store_slot_from_the_official_form(official: Callable[..., Path], flat_world: Callable[..., Any]) -> None:
    instance = np.zeros((2, 1, 48, 80), np.uint16)
    instance[0, 0, 20:28, 30:42] = 1
    context = flat_world(keyframes=2, sweeps=1).context(
        upstream=lambda cue: {"masks": {"masks/instance": instance}}[cue]
    )
    cue = CoTrackerFlowCue(weights=str(official(60, v2=False)), device="cpu", size=SIZE, least_visibility=0.0)
    flow = cue.extract(context).arrays["flow/next/flow"][0, 0]
    np.testing.assert_array_equal((flow != INVALID_FLOW).all(axis=0), instance[0, 0] > 0)
    assert cue.weights_digest


def test_version_2_sees_a_film_shorter_than_half_its_window(official: Callable[..., Path]) -> None:
    path = official(8, v2=True)
    points = np.array([[30, 40], [90, 70]], np.float32)
    tracker = load_cotracker(path, weights_digest(path), torch.device("cpu"), None, 1 << 30)
    short = tracker(film(3), points)
    assert np.abs(short.ends - points).max() < 5, "fresh weights hardly move a point; upstream answers (0, 0) here"
    np.testing.assert_allclose(short.ends, tracker([*film(3), film(3)[-1]], points).ends, atol=1.0)
