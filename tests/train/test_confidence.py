"""Cues weighed by their confidence: off changes nothing, by hand, in both least squares, on hostile scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.network import OccFlow
from storage.errors import StoreError
from storage.reader import StoreReader
from storage.schema import FLOW_SCALE
from train.batch import Batch, collate
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.frames import ByteCache, CachedScene
from train.lifted_flow import lift_flow, lift_weights
from train.losses.flow import flow_loss
from train.module import StageModule
from train.triangulate import Towards, triangulate

Make = Callable[..., TrainConfig]
FORWARD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
K = np.array([[88.0, 0, 88], [0, 88, 32], [0, 0, 1]])
SHAPE = (64, 176)


def batch_of(config: TrainConfig) -> Batch:
    return collate([KeyframeDataset(config, 2, [("a", 1)], 2**24)[0, 0]])


def step(config: TrainConfig, batch: Batch) -> dict[str, float]:
    torch.manual_seed(0)
    module = StageModule(config, 2, OccFlow(config.model), total_steps=10)
    module.fixed_seed = 7
    module.training_step(batch, 0)
    return module.numbers


def test_off_nothing_is_carried_and_on_full_confidence_is_the_same_to_the_bit(tiny_config: Make) -> None:
    """And a confidence of one half everywhere is half the static and half the dynamic part, no other term, no count."""
    rays = {"grid": [16, 32], "strides": [1, 1]}
    off, on = tiny_config(rays=rays), tiny_config(rays=rays, data={"weigh_by_confidence": True})
    plain, weighed = batch_of(off), batch_of(on)
    assert plain.flow_next is not None
    assert plain.flow_next.confidence is None
    assert plain.mask_score is None
    assert weighed.flow_next is not None
    assert weighed.flow_back is not None
    assert weighed.mask_score is not None
    assert (weighed.flow_next.confidence == 255).equal(weighed.flow_next.known)
    expected = step(off, plain)
    assert expected["rays/flow_dynamic"] > 3
    # Whatever confidence says, a run that does not weigh looks at none.
    weighed.flow_next.confidence = torch.randint_like(weighed.flow_next.confidence, 256)
    assert step(off, weighed) == expected
    for target in (weighed.flow_next, weighed.flow_back):
        target.confidence = torch.full_like(target.known, 255, dtype=torch.uint8)
    weighed.mask_score[:] = 1
    assert step(on, weighed) == expected
    for target in (weighed.flow_next, weighed.flow_back):
        target.confidence = torch.full_like(target.known, 51, dtype=torch.uint8)
    fifth = step(on, weighed)
    assert fifth["loss/flow"] == pytest.approx(expected["loss/flow"] / 5, rel=1e-5)
    # A mask that is worth nothing takes what is left of the dynamic rays, and of no other.
    weighed.mask_score[..., 1:] = 0
    without = step(on, weighed)
    assert without["loss/flow"] < 0.95 * fifth["loss/flow"]
    others = expected.keys() - {"loss/flow", "loss/total"}
    assert {k: fifth[k] for k in others} == {k: without[k] for k in others} == {k: expected[k] for k in others}
    for target in (weighed.flow_next, weighed.flow_back):
        target.confidence = torch.zeros_like(target.known, dtype=torch.uint8)
    assert step(on, weighed)["loss/flow"] == 0


def test_eq_11_by_hand() -> None:
    """The worked case of `flow_loss`, static rays trusted by half, dynamic ones by a quarter: 0.45 + 10 x 0.05."""
    dynamic = torch.arange(100) < 10
    errors, weights = torch.where(dynamic, 2.0, 1.0), torch.where(dynamic, 0.25, 0.5)
    out = flow_loss(errors, ~dynamic, dynamic, sampled=100, weights=weights)
    assert (out.total.item(), out.gamma.item(), out.dynamic_rays.item()) == (pytest.approx(0.95), 10.0, 10)
    errors[3] = torch.nan
    assert flow_loss(errors, ~dynamic, dynamic, sampled=100, weights=weights).dropped == 1
    assert torch.isfinite(flow_loss(errors, ~dynamic, dynamic, sampled=100, weights=weights).total)
    errors = torch.rand(100, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda e: flow_loss(e, ~dynamic, dynamic, sampled=100, weights=weights.double()).total, (errors,)
    )


def towards(flow: tuple[float, float], moved: tuple[float, float, float], weight: float | None) -> Towards:
    target_from_ref = np.linalg.inv(FORWARD)
    target_from_ref[:3, 3] = -target_from_ref[:3, :3] @ np.array(moved)
    everywhere = np.broadcast_to((np.array(flow) * FLOW_SCALE).astype(np.int16)[:, None, None], (2, *SHAPE))
    weights = None if weight is None else np.full(SHAPE, weight, np.float32)
    return Towards(everywhere, np.ones(SHAPE, dtype=bool), target_from_ref, K, weights)


def test_triangulation_by_hand() -> None:
    """A cue of weight 1/4 is one of twice the error; of two that differ each counts by its weight times its slope²."""
    still = np.zeros(SHAPE, dtype=bool)
    still[31, 87] = True
    near, far = ((11.0, 0.0), (0.0, 1.0, 0.0)), ((-22.5, 0.0), (0.0, -2.0, 0.0))

    def at(*weights: float | None) -> Any:
        return triangulate(FORWARD, K, still, [towards(*c, w) for c, w in zip((near, far), weights, strict=False)])

    assert at(1.0).error == at(None).error == pytest.approx([1 / 11], abs=0.001)
    assert at(0.5).error == pytest.approx([np.sqrt(2) / 11], abs=0.001)
    assert not len(at(0.25).depth)  # 2 / 11 is more than SURE
    # The second cue's depth is 8 x 22 / 22.5: in the logarithm 1/45 less (to first order), for it counts four times.
    logs = [float(np.log(at(*weights).depth[0] / 8)) for weights in ((1.0, 1.0), (0.4, 0.1), (1.0, 0.0))]
    assert logs == pytest.approx([-0.8 / 45, -0.5 / 45, 0.0], abs=6e-4)
    assert at(None, None).depth == at(1.0, 1.0).depth
    assert not len(at(0.0, 0.0).depth)
    # What is not trusted at all does not speak against the other cue either, wherever it ends; what is a little does.
    far = ((40.0, 9.0), (0.0, -2.0, 0.0))
    assert at(1.0, 0.0).depth == pytest.approx([8.0], abs=0.01)
    assert not len(at(1.0, 0.01).depth)


def test_lifted_motion_by_hand() -> None:
    """Information goes with the weight; what fits is told in pixels all the same; what is not trusted at all is out."""

    def lift(weight: float | None, flow: tuple[float, float]) -> Any:
        cue = np.broadcast_to((np.array(flow) * FLOW_SCALE).astype(np.int16)[:, None, None], (2, *SHAPE))
        weights = None if weight is None else np.full(SHAPE, weight, np.float32)
        return lift_flow(
            np.array([[8.0, 0.0, 0.0]]), FORWARD, K, np.ones(SHAPE, np.uint16), cue, np.ones(SHAPE, dtype=bool),
            np.linalg.inv(FORWARD), K, 1.0, None, weights,
        )  # fmt: skip

    plain, quarter = lift(None, (-11.0, 0.0)), lift(0.25, (-11.0, 0.0))
    assert all(np.array_equal(a, b) for a, b in zip(plain, lift(1.0, (-11.0, 0.0)), strict=True))
    assert quarter.information == pytest.approx(plain.information / 4, rel=0.01)
    # 11 px are y / (8 + x) = 1/8, and of these the prior likes x = -8/65, y = 64/65 best. A likely error, 1/11 m or
    # 2/11 m, against its 3 m takes a little more.
    assert plain.motion[0, 1] == pytest.approx(64 / 65 * (1 - (1 / 11) ** 2 / 9), abs=5e-4)
    assert quarter.motion[0, 1] == pytest.approx(64 / 65 * (1 - (2 / 11) ** 2 / 9), abs=5e-4)
    assert not len(lift(0.0, (-11.0, 0.0)).points)
    # 3 px upwards fit no motion on the ground, however little the cue counts.
    assert not len(lift(0.01, (-11.0, -3.0)).points)


def test_lifting_weighs_by_the_cue_and_its_mask(tiny_config: Make) -> None:
    dataset = KeyframeDataset(tiny_config(data={"weigh_by_confidence": True}), 2, [("a", 1)], 2**24)
    sample = dataset[0, 0]
    assert sample.instances is not None
    weights = lift_weights(sample)
    assert weights is not None
    expected = np.where(sample.instances.numpy() == 1, 0.9, 1.0) * sample.flow_next.known.numpy()
    assert weights == pytest.approx(expected, abs=1e-6)
    assert lift_weights(KeyframeDataset(tiny_config(), 2, [("a", 1)], 2**24)[0, 0]) is None


def test_numbers_and_scores_of_hostile_tables(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = StoreReader(tiny_store).scene("a")

    def scene_of(ids: np.ndarray, rows: list[tuple[float, float]]) -> CachedScene:
        table = np.zeros((len(rows), 8), dtype=np.float32)
        table[:, [0, 2]] = np.array(rows, dtype=np.float32).reshape(-1, 2)
        monkeypatch.setattr(reader, "masks", lambda t, c: ids)
        monkeypatch.setattr(reader, "mask_table", lambda t, c: table)
        return CachedScene(reader, ByteCache(0), 1, ids.shape)

    ids = np.array([[0, 700, 9, 9], [12, 0, 700, 40]])
    scene = scene_of(ids, [(9, np.nan), (700, 1.7), (12, 0.4)])
    number, scores = scene.numbered(0, 0, 0.0)
    assert number.tolist() == [[0, 4, 1, 1], [2, 0, 4, 3]]
    # Not a number, 0.4, in no row, above one.
    assert scores[:6].tolist() == pytest.approx([1.0, 0.0, 0.4, 0.0, 1.0, 0.0])
    number, scores = scene.numbered(0, 0, 0.5)
    assert number.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert scores[:3].tolist() == [1.0, 1.0, 0.0]
    number, scores = scene_of(np.full((2, 3), 5), [(5, 0.25)]).numbered(0, 0, 0.0)
    assert (number.min(), scores[1]) == (1, 0.25)
    number, scores = scene_of(np.zeros((2, 3), int), []).numbered(0, 0, 0.0)
    assert (number.max(), scores[0]) == (0, 1)
    with pytest.raises(StoreError, match="65 instances in one mask"):
        scene_of(np.arange(66).reshape(6, 11), []).numbered(0, 0, 0.0)
