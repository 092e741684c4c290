"""History encoded once and kept: the same fields as encoding whole queues, in any order, in bounded memory."""

from pathlib import Path

import pytest
import torch

from eval.predict import Predictor
from model.config import (
    BackboneConfig,
    DepthLiftConfig,
    FusionConfig,
    GridConfig,
    ModelConfig,
    PixelMotionConfig,
    RefineConfig,
    TPVConfig,
)
from model.fields import FrameInput
from model.lifted import Lifted
from model.network import OccFlow
from storage.reader import StoreReader

CONFIG = ModelConfig(
    grid=GridConfig(voxel=3.2),
    backbone=BackboneConfig(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), layer_scale=1.0),
    fpn_dim=8,
    tpv=TPVConfig(factor=1, dim=8, ffn_dim=8, heads=2, layers=1, self_points=2, ground_anchors=2, side_anchors=2),
    fusion=FusionConfig(heads=2, points=2),
    refine=RefineConfig(channels=4, blocks=(1,), multipliers=(1,), strides=(1,)),
)


class Counting(OccFlow):
    """Notes how many keyframes it encodes."""

    encoded = 0

    def lift(self, frames: FrameInput, *, motion: bool = True) -> Lifted:
        self.encoded += frames.images.shape[0] * frames.images.shape[1]
        return super().lift(frames, motion=motion)


def network(config: ModelConfig = CONFIG) -> Counting:
    """A network whose fusion is not the identity that it starts as: history matters."""
    torch.manual_seed(0)
    model = Counting(config)
    for step in [*model.fusion.attention.backward_steps, *model.fusion.attention.forward_steps]:
        torch.nn.init.normal_(step.output.weight, std=0.5)
    return model


@pytest.fixture
def store(tmp_path: Path, make_log: type) -> Path:
    """Six keyframes; the third has no image at all, the fifth one of two."""
    log = make_log(keyframes=6, lidar_at=(), truth_at=None, blind=((2, 0), (2, 1), (4, 1)))
    return log.write(tmp_path / "store.zarr")


@pytest.mark.parametrize(("bins", "cell"), [(0, 0), (8, 0), (8, 8)])
def test_fields_are_those_of_whole_queues_and_every_keyframe_is_encoded_once(store: Path, bins: int, cell: int) -> None:
    parts = {"depth_lift": DepthLiftConfig(bins=bins, context=2), "pixel_motion": PixelMotionConfig(cell=cell, width=8)}
    model = network(CONFIG.model_copy(update=parts))
    reusing, plain = Predictor(model, StoreReader(store)), Predictor(model, StoreReader(store), reuse=False)
    expected = [plain.fields("a", t) for t in range(6)]
    assert model.encoded == 6 * 3
    model.encoded = 0
    for t in range(6):
        found = reusing.fields("a", t)
        torch.testing.assert_close(found.sdf, expected[t].sdf, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.flow, expected[t].flow, atol=1e-5, rtol=1e-5)
        assert len(reusing._lifted) <= 3
    assert model.encoded == 6
    assert not torch.allclose(expected[4].sdf, expected[5].sdf, atol=1e-3), "keyframes must differ to prove anything"


def test_history_matters_and_any_order_is_right(store: Path) -> None:
    model = network()
    reusing, plain = Predictor(model, StoreReader(store)), Predictor(model, StoreReader(store), reuse=False)
    for t in (5, 0, 4, 3, 3, 1):
        torch.testing.assert_close(reusing.fields("a", t).sdf, plain.fields("a", t).sdf, atol=1e-5, rtol=1e-5)
    blind = reusing._lifted["a", 0]
    reusing._lifted["a", 0] = blind._replace(volume=blind.volume + 1)
    assert not torch.allclose(reusing.fields("a", 1).sdf, plain.fields("a", 1).sdf, atol=1e-3)


def test_errors_are_those_of_whole_queues(tmp_path: Path, make_log: type) -> None:
    log = make_log(keyframes=2, lidar_at=(), truth_at=None, blind=((0, 0), (0, 1)))
    predictor = Predictor(network(), StoreReader(log.write(tmp_path / "store.zarr")))
    with pytest.raises(ValueError, match="no camera is valid"):
        predictor.fields("a", 0)
    with pytest.raises(IndexError, match="keyframe 2 of a scene of 2"):
        predictor.fields("a", 2)
    assert torch.isfinite(predictor.fields("a", 1).sdf).all()


def test_the_rate_counts_predictions(store: Path) -> None:
    predictor = Predictor(network(), StoreReader(store))
    assert predictor.rate == 0
    for t in range(2):
        predictor.predict("a", t)
    assert predictor.keyframes == 2
    assert predictor.rate == pytest.approx(2 / predictor.seconds)
