"""VoxelSplat's loss without 3D labels: which Gaussians are drawn, what each term says, and a training run with it."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from geometry.grid import VoxelGrid
from model.fields import Fields
from model.network import OccFlow
from model.splat import Gaussians, splat
from train.batch import Batch, View, collate
from train.census import Census
from train.config import ConfigError, TrainConfig
from train.data import KeyframeDataset
from train.gaussians import (
    behind_mask,
    draw,
    draw_gaussians,
    even,
    exposed,
    in_camera,
    inclusion,
    opacities,
    voxel_centres,
)
from train.loop import train
from train.loss_settings import SplatConfig
from train.losses.splat import balanced_cross_entropy, depth_error
from train.module import StageModule
from train.supervise_splat import supervise_splat

Make = Callable[..., TrainConfig]
GRID = VoxelGrid((0.0, -4.0, -2.0), (16.0, 4.0, 2.0), (16, 8, 4))
# Looks along x from the origin: x right is -y, y down is -z, z forward is x.
CAM_FROM_REF = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
K = torch.tensor([[20.0, 0, 16], [0, 20, 8], [0, 0, 1]])
SIZE = (16, 32)


def view(interval: float = 0.0, valid: bool = True, pose: Tensor = CAM_FROM_REF) -> View:
    return View(pose[None, None], K[None, None], torch.tensor([[interval]]), torch.tensor([[valid]]))


def wall(at: int = 8, flow: tuple[float, float] = (0.0, 0.0)) -> Fields:
    """Matter from the `at`-th metre on."""
    sdf = (at - torch.arange(16) - 0.5).float()[None, :, None, None].expand(1, *GRID.shape).clone()
    return Fields(sdf, torch.tensor(flow).expand(1, *GRID.shape, 2).clone(), GRID)


def test_opacity_is_the_renderers_matter() -> None:
    sdf = torch.tensor([-0.1, 0.0, 0.1]).reshape(1, 3, 1, 1).requires_grad_()
    grid = VoxelGrid((0.0, 0.0, 0.0), (3.0, 1.0, 1.0), (3, 1, 1))
    inv_s = torch.tensor(10.0, requires_grad=True)
    opacity = opacities(Fields(sdf, torch.zeros(1, 3, 1, 1, 2), grid), inv_s)
    assert opacity.flatten().tolist() == pytest.approx([0.7311, 0.5, 0.2689], abs=1e-4)
    opacity.sum().backward()
    assert inv_s.grad is None
    assert sdf.grad is not None
    assert sdf.grad.flatten()[1].item() == pytest.approx(-2.5)


def test_matter_inside_matter_is_not_exposed() -> None:
    opacity = torch.zeros(1, 5, 5, 5)
    opacity[:, 1:4, 1:4, 1:4] = 0.9
    found = exposed(opacity)
    assert found[0, 2, 2, 2] == pytest.approx(0.9 * 0.1)
    assert found[0, 1, 2, 2] == pytest.approx(0.9)
    assert not exposed(torch.ones(1, 3, 3, 3)).any()


def test_inclusion_by_hand() -> None:
    weights = torch.tensor([[6.0, 2, 1, 1], [3, 0, 0, 1]])
    assert inclusion(weights, 2).tolist() == [pytest.approx([1.0, 0.5, 0.25, 0.25]), [1.0, 0.0, 0.0, 1.0]]
    assert inclusion(torch.zeros(1, 4), 2).tolist() == [[0.0] * 4]


def test_draws_come_as_often_as_they_say() -> None:
    """Over 1,500 draws of 4 of 12, each within three standard deviations and the method's own inexactness."""
    weights = torch.tensor([[20.0, 5, 5, 4, 3, 3, 2, 2, 1, 1, 1, 0]])
    chance = inclusion(weights, 4)[0]
    assert chance.sum().item() == pytest.approx(4.0)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(12)
    for _ in range(1500):
        drawn = draw(weights, torch.rand(12, generator=generator), 4)
        assert drawn.real.all()
        counts[drawn.index[0]] += 1
    assert counts[11] == 0
    assert counts[0] == 1500
    assert (counts / 1500 - chance).abs().max() < 0.05
    few = draw(torch.tensor([[0.0, 2, 0, 0]]), torch.rand(4, generator=generator), 3)
    assert few.real.tolist() == [[True, False, False]]
    assert (few.index[0, 0], few.share[0, 0]) == (1, 1.0)


def test_both_kinds_get_half() -> None:
    weights = even(torch.tensor([[1.0, 1, 2, 4], [0, 1, 1, 0]]), torch.tensor([[True, False, False, False]] * 2))
    assert weights[0].tolist() == pytest.approx([1.0, 1 / 7, 2 / 7, 4 / 7])
    assert weights[1].tolist() == pytest.approx([0.0, 0.5, 0.5, 0.0])


def test_behind_a_mask() -> None:
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 3, 5] = True
    mask[0, 0, 31] = True
    uv = torch.tensor([[[5.5, 3.5], [6.01, 3.5], [40.0, -3.0]]])
    assert behind_mask(uv, mask).tolist() == [[True, False, True]]


def test_what_is_drawn_is_the_walls_face_in_view() -> None:
    fields, inv_s = wall(), torch.tensor(20.0)
    opacity = opacities(fields, inv_s)
    settings = SplatConfig(gaussians=500)

    def drawn(seed: int, **other: Any) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return draw_gaussians(fields, opacity, **{"view": view(), "movable": None, "size": SIZE, "config": settings,
                                                  "generator": generator, **other})  # fmt: skip

    found = drawn(0)
    places = voxel_centres(GRID, fields.sdf)[found.index[0][found.real[0]]]
    assert len(places) == 32
    assert set(places[:, 0].tolist()) == {8.5}
    assert not drawn(0, view=view(valid=False)).real.any()
    behind = torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ CAM_FROM_REF
    assert not drawn(0, view=view(pose=behind)).real.any()
    one, same, other = (drawn(seed, config=SplatConfig(gaussians=8)).index.sort().values for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_zero_flow_at_the_same_pose_changes_nothing_and_flow_moves() -> None:
    index = torch.arange(16 * 8 * 4)[None]
    still = in_camera(wall(), view(0.0), index)
    assert torch.equal(in_camera(wall(), view(1.0), index), still)
    moved = in_camera(wall(flow=(0.5, -2.0)), view(0.5), index)
    # 0.25 m forward is depth; -1 m along y is to the right.
    torch.testing.assert_close(moved - still, torch.tensor([1.0, 0.0, 0.25]).expand_as(still))


def test_slope_from_flow_and_distance_through_the_picture() -> None:
    """float64: the signed distance through opacity and depth, the flow through where moved Gaussians are seen."""
    grid = VoxelGrid((3.0, -1.0, -1.0), (5.0, 1.0, 1.0), (2, 2, 2))
    generator = torch.Generator().manual_seed(0)
    sdf = 0.1 * torch.randn((1, 2, 2, 2), generator=generator, dtype=torch.float64)
    flow = 0.1 * torch.randn((1, 2, 2, 2, 2), generator=generator, dtype=torch.float64)
    index = torch.arange(8)[None]
    pixels = torch.tensor([[[14.0, 7.0], [18.0, 10.0]]], dtype=torch.float64)
    there = view(0.8).map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def look(sdf: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        fields = Fields(sdf, flow, grid)
        alpha = opacities(fields, torch.tensor(5.0, dtype=torch.float64)).reshape(1, -1)
        points = in_camera(fields, there, index)
        out = splat(Gaussians(points, alpha, points[..., :0], 0.3), there.K[0], pixels)
        return out.depth, out.opacity

    assert torch.autograd.gradcheck(look, (sdf.requires_grad_(), flow.requires_grad_()))


def test_depth_error_by_hand() -> None:
    rendered = torch.tensor([12.0, 10.3, 0.0, math.nan], requires_grad=True)
    loss = depth_error(rendered, torch.full((4,), 10.0), torch.tensor([True, True, False, False]), 0.8)
    assert loss.item() == pytest.approx((math.log(1.2) - math.log(1.04)) / 2)
    loss.backward()
    assert rendered.grad is not None
    assert rendered.grad.tolist() == pytest.approx([1 / 24, 0, 0, 0])


def test_cross_entropy_by_hand() -> None:
    label = torch.tensor([True, False, False, False])
    p = torch.tensor([0.5, 0.5, 0.5, 0.9])
    everywhere = torch.ones(4, dtype=torch.bool)
    expected = 0.5 * math.log(2) + 0.5 * (2 * math.log(2) - math.log(0.1)) / 3
    assert balanced_cross_entropy(p, label, everywhere).item() == pytest.approx(expected)
    assert balanced_cross_entropy(p, label, ~everywhere).item() == 0.0


def on(**changes: Any) -> dict[str, Any]:
    """Settings with the loss on, small enough for a test."""
    model = {"heads": {"hidden": 16, "movable": True}, **changes.pop("model", {})}
    return {"loss": {"splat": 1.0}, "splat": {"gaussians": 256, "returns": 32}, "model_changes": model, **changes}


@pytest.fixture
def splat_config(tiny_config: Make) -> Make:
    def make(**changes: Any) -> TrainConfig:
        settings = on(**changes)
        model = {**tiny_config().model.model_dump(), **settings.pop("model_changes")}
        return tiny_config(model=model, **settings)

    return make


def step(config: TrainConfig, batch: Batch, network: OccFlow | None = None) -> StageModule:
    torch.manual_seed(0)
    module = StageModule(config, 2, network or OccFlow(config.model), total_steps=10)
    module.training_step(batch, 0).backward()
    return module


def batch_at(config: TrainConfig, t: int = 1, stage: int = 2) -> Batch:
    return collate([KeyframeDataset(config, stage, [("a", t)], 2**24)[0, 0]])


def test_the_next_keyframes_cues_are_what_it_saw(splat_config: Make, world: Any) -> None:
    config = splat_config()
    batch = batch_at(config)
    assert batch.adjacent is not None
    assert torch.equal(batch.adjacent.movable, batch_at(config, 2).movable)  # type: ignore[arg-type]
    assert batch.adjacent.masked.all()
    points = batch.adjacent.points[0][batch.adjacent.valid[0]].double().numpy()
    in_world = points @ world.ego(0.5)[:3, :3].T + world.ego(0.5)[:3, 3]
    # Every one lies on a surface of the world as it was at the next keyframe.
    origin = world.ego(1.0)[:3, :3] @ [0.5, 0.0, 1.8] + world.ego(1.0)[:3, 3]
    distance, _ = world.cast(origin, in_world - origin, 1.0)
    assert distance == pytest.approx(1.0, abs=1e-3)
    assert len(points) > 50
    last = batch_at(config, 4)
    assert last.adjacent is not None
    assert not last.adjacent.valid.any()
    assert not last.adjacent.masked.any()
    assert batch_at(config, stage=1).adjacent is None
    assert batch_at(splat_config(splat={"adjacent": 0.0})).adjacent is None


def test_every_term_teaches_what_it_should(splat_config: Make) -> None:
    """Depth the geometry, the flow cue and the next keyframe the flow, masks the third decoder too."""
    config = splat_config(splat={"gaussians": 256, "returns": 64})
    batch = batch_at(config)
    module = StageModule(config, 2, OccFlow(config.model), 10)
    head = module.network.movable_head
    assert head is not None
    last = head.mlp[2].weight
    torch.nn.init.normal_(last)  # type: ignore[arg-type]
    fields = module.network(batch.frames)
    height = voxel_centres(fields.grid, fields.sdf)[:, 2].reshape(fields.sdf.shape)
    sdf = (height + 0.1).requires_grad_()
    flow = torch.full_like(fields.flow, 0.01).requires_grad_()
    fields = Fields(sdf, flow, fields.grid, features=fields.features)
    cast = module._cast(fields, batch, torch.Generator().manual_seed(0))
    terms = supervise_splat(fields, module.network, batch, cast, config, torch.Generator().manual_seed(0))
    taught = {}
    for name, (value, _) in terms.values.items():
        found = torch.autograd.grad(value, [sdf, flow, last], retain_graph=True, allow_unused=True)  # type: ignore[list-item]
        assert all(grad is None or torch.isfinite(grad).all() for grad in found)
        named = zip(("sdf", "flow", "decoder"), found, strict=True)
        taught[name] = {key for key, grad in named if grad is not None and grad.any()}
    assert taught == {
        "depth": {"sdf"},
        "motion": {"flow"},
        "movable": {"sdf", "decoder"},
        "next_depth": {"flow"},
        "next_movable": {"flow", "decoder"},
    }
    assert all(count > 0 for count in terms.counts.values())


def test_an_empty_volume_costs_nothing_and_breaks_nothing(splat_config: Make) -> None:
    config = splat_config(model={"heads": {"hidden": 16, "movable": True, "sdf_bias": 9.0}})
    module = step(config, batch_at(config))
    assert module.numbers["rays/splat_gaussians"] == 0
    assert module.numbers["loss/splat_depth"] == module.numbers["loss/splat_motion"] == 0
    grads = [p.grad for p in module.network.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_off_it_changes_nothing(tiny_config: Make, splat_config: Make) -> None:
    """The same draws, weights and loss whether the loss exists or not; with it the other terms see the same rays."""
    off, on_ = tiny_config(), splat_config()
    plain, splatted = step(off, batch_at(off)), step(on_, batch_at(on_))
    shared = [name for name in plain.numbers if name != "loss/total"]
    assert {name: splatted.numbers[name] for name in shared} == {name: plain.numbers[name] for name in shared}
    assert not any("splat" in name for name in plain.numbers)


def test_a_step_with_it_asks_a_gpu_for_nothing(splat_config: Make) -> None:
    config = splat_config()
    batch, network = batch_at(config).to("meta"), OccFlow(config.model).to("meta")
    shape = config.model.grid.build().shape
    sdf, flow, features = (torch.zeros(1, *shape, *more, device="meta") for more in ((), (2,), (8,)))
    fields = Fields(sdf, flow, config.model.grid.build(), features=features)
    module = StageModule(config, 2, network, 10)
    cast = module._cast(fields, batch, torch.Generator().manual_seed(0))
    for _ in range(2):
        with Census() as census:
            supervise_splat(fields, network, batch, cast, config, torch.Generator().manual_seed(0))
    assert not census.waits
    assert not census.copies


def test_a_decoder_that_nothing_teaches_is_refused(tiny_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"taught by loss\.splat alone"):
        tiny_config(model={"base": "demo", "heads": {"movable": True}})


def test_inference_never_asks_the_third_decoder(splat_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = splat_config()
    network = OccFlow(config.model).eval()
    assert network.movable_head is not None
    monkeypatch.setattr(network.movable_head, "forward", lambda features: pytest.fail("asked"))
    with torch.no_grad():
        network(batch_at(config).frames)


def ground(config: TrainConfig) -> TrainConfig:
    """A network that starts with a ground to splat."""
    heads = config.model.heads.model_copy(update={"sdf_init": "ground"})
    return config.model_copy(update={"model": config.model.model_copy(update={"heads": heads})})


def test_it_falls_where_it_is_minimised(splat_config: Make) -> None:
    """The same rays and draws at every step, the splatting terms alone."""
    config = ground(splat_config(splat={"gaussians": 256, "returns": 64}))
    batch = batch_at(config)
    torch.manual_seed(0)
    module = StageModule(config, 2, OccFlow(config.model), 10)
    module.fixed_seed = 0
    optimiser = torch.optim.Adam(module.network.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        fields = module.network(batch.frames)
        cast = module._cast(fields, batch, module._generator())
        terms = supervise_splat(fields, module.network, batch, cast, config, module._generator(purpose=2))
        loss = torch.stack([weight * value for value, weight in terms.values.values()]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_resumes_bit_equal(splat_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {"stage1": {"max_steps": 1, "warmup_steps": 0}, "stage2": {"max_steps": 3, "warmup_steps": 0}}
    whole = train(ground(splat_config(**lengths, out=tmp_path / "whole")))
    config = ground(splat_config(**lengths, out=tmp_path / "cut"))
    original = StageModule.training_step

    def step_and_kill(self: StageModule, batch: Any, index: int) -> Tensor:
        if self.stage == 2 and self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", step_and_kill)
        cut = train(config)
    assert not cut.finished
    rest = train(config, resume=True)
    assert cut.stages[-1].losses + rest.stages[1].losses == whole.stages[1].losses
    one, other = (load_file(run.checkpoint / "model.safetensors") for run in (whole, rest))
    assert all(torch.equal(one[name], other[name]) for name in one)
