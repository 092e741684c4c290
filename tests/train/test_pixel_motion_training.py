"""Motion by image cells: its losses by hand and against the truth of a small world, and when a run learns it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from geometry.cameras import in_image
from model.config import PixelMotionConfig
from model.earlier_images import DepthMap, Look, in_cells
from model.network import OccFlow
from model.pixel_depth import cell_centres
from model.pixel_motion import PixelMotion, PixelMotionHead
from model.visibility import CameraRig
from storage.schema import FLOW_SCALE
from train.batch import Batch, collate
from train.config import ConfigError, TrainConfig
from train.data import KeyframeDataset
from train.loop import train
from train.losses.pixel_motion import match_costs, match_loss
from train.module import StageModule
from train.supervise import separate_motion, supervise_flow
from train.supervise_pixel_motion import supervise_match, supervise_pixel_motion, supervise_places

Make = Callable[..., TrainConfig]
SIZE = (8, 16)
"""Cells of four network pixels, which are two render pixels, in the world's images."""
MODEL = {
    "depth_lift": {"bins": 8, "context": 2, "width": 8},
    "pixel_motion": {"cell": 4, "width": 16, "context": 2},
    "fusion": {"history": 1, "heads": 4, "points": 1},
}
LEARN = {
    "model": MODEL,
    "data": {"backward_cue": "prev"},
    "loss": {
        "pixel_depth": 1.0,
        "pixel_match": 1.0,
        "pixel_place": 1.0,
        "pixel_motion": 1.0,
        "lifted_flow": 1.0,
        "lifted_still": 0.3,
    },
}


def batch_at(config: TrainConfig, t: int) -> Batch:
    return collate([KeyframeDataset(config, 2, [("a", t)], 0)[0, 0]])


def every_cell() -> torch.Tensor:
    """Column and row of the middle of each cell."""
    return torch.stack(torch.meshgrid(torch.arange(16) + 0.5, torch.arange(8) + 0.5, indexing="xy"), -1).reshape(-1, 2)


def said(motion: torch.Tensor, match: torch.Tensor | None = None) -> PixelMotion:
    """What cells say, (2 views, 2, rows, columns)."""
    count = SIZE[0] * SIZE[1]
    match = torch.zeros(2, count, count) if match is None else match
    return PixelMotion(motion, torch.arange(2)[:, None], match, match.logsumexp(-1), torch.zeros(2, 2, *SIZE))


def test_even_logits_cost_the_logarithm_of_their_number() -> None:
    logits = torch.zeros(1, 5, 12)
    costs = match_costs(logits, logits.logsumexp(-1), torch.rand(1, 5, 2) * 4, (3, 4))
    assert costs.tolist()[0] == pytest.approx([math.log(12)] * 5)


@pytest.mark.parametrize("size", [(3, 4), (1, 5), (5, 1)])
def test_costs_against_a_slow_version(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    rows, columns = size
    logits = torch.randn(2, 9, rows * columns, dtype=torch.float64)
    place = torch.rand(2, 9, 2).double() * torch.tensor([columns, rows])
    costs = match_costs(logits, logits.logsumexp(-1), place, size)
    likelihood = logits.log_softmax(-1)
    for view in range(2):
        for cell, (x, y) in enumerate(place[view].tolist()):
            x, y = min(max(x - 0.5, 0), columns - 1), min(max(y - 0.5, 0), rows - 1)
            expected = 0.0
            for k in range(rows * columns):
                near = max(0, 1 - abs(k % columns - x)) * max(0, 1 - abs(k // columns - y))
                expected -= near * likelihood[view, cell, k].item()
            assert costs[view, cell].item() == pytest.approx(expected)


def test_gradient_and_hostile_places() -> None:
    logits = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    place = torch.tensor([[[0.1, 0.1], [1.5, 1.2], [math.nan, 1.0], [1e30, -math.inf]]]).double()
    assert torch.autograd.gradcheck(lambda x: match_costs(x, x.logsumexp(-1), place, (2, 3)), (logits,))


def test_the_loss_by_hand() -> None:
    """Still cells of cost 1 and 3, a movable one of 6, one that is not known and NaN: 2 + 6 / 2; nothing known: 0."""
    costs = torch.tensor([1.0, 3.0, 6.0, math.nan], requires_grad=True)
    known, movable = torch.tensor([True, True, True, False]), torch.tensor([False, False, True, False])
    loss = match_loss(costs, known, movable)
    loss.backward()
    assert loss.item() == 5
    assert costs.grad is not None
    assert costs.grad.tolist() == [0.5, 0.5, 0.5, 0.0]
    assert match_loss(costs, known & False, movable).item() == 0


def test_matches_are_compared_with_the_cue(tiny_config: Make) -> None:
    """Sure of where the flow ends costs little, sure of the cell beside it much; a cue that ends in a sweep, in no
    keyframe (the first one's) or is not known costs nothing."""
    config = tiny_config(**LEARN)
    batch = batch_at(config, 2)
    assert batch.flow_back is not None
    rig = CameraRig.build(batch.K, batch.ref_from_cam, batch.camera_valid, (16, 32))
    centres = cell_centres(rig, SIZE, torch.zeros(()))[0]
    u, v = centres.long().unbind(-1)
    ends = centres + batch.flow_back.flow[0][:, :, v, u].transpose(1, 2) / FLOW_SCALE
    known = batch.flow_back.known[0][:, v, u] & in_image(ends, 16, 32)
    costs = {}
    for name, shift in (("true", 0.0), ("beside", 1.0)):
        goal = in_cells(ends, rig, SIZE) + torch.tensor([shift, 0.0])
        sure = -20 * (goal[:, :, None] - every_cell()).abs().sum(-1)
        costs[name], count = supervise_match(said(torch.zeros(2, 2, *SIZE), sure), batch)
        assert count == known.sum() > 100
    assert costs["true"] < 15 < 25 < costs["beside"]

    sure = said(torch.zeros(2, 2, *SIZE))
    # Whether the cue ends in the keyframe before is told by poses, which autocast would round.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert supervise_match(sure, batch)[1] == known.sum()
    swept = batch_at(tiny_config(**{**LEARN, "data": {"backward_cue": "prev"}}), 2)
    swept.flow_back = batch_at(tiny_config(data={"backward_cue": "aux"}), 2).flow_back
    assert [x.item() for x in supervise_match(sure, swept)] == [0, 0]
    assert [x.item() for x in supervise_match(sure, batch_at(config, 0))] == [0, 0]
    batch.flow_back.known[:] = False
    assert [x.item() for x in supervise_match(sure, batch)] == [0, 0]


def test_places_are_compared_where_the_spots_were(tiny_config: Make) -> None:
    """A spot 6 m ahead of the first camera that came from 1 m to the right, in another image's coordinates too; what no
    searched image shows, and what has no keyframe before, costs nothing."""
    batch = batch_at(tiny_config(**LEARN), 1)
    frames = batch.frames
    ahead = batch.ref_from_cam[0, 0, :3, 3] + 6 * batch.ref_from_cam[0, 0, :3, 2]
    step = (-batch.ref_from_cam[0, 0, :3, 0])[:2]
    batch.moving_points, batch.moving_motion = ahead[None, None], step[None, None]
    batch.moving_weight, batch.moving_valid = torch.eye(2)[None, None], torch.ones(1, 1, dtype=torch.bool)
    batch.camera_valid[:, 1] = False
    # The other camera looks the same way, from half a metre to the side.
    frames.K[:, 0, 1], frames.ref_from_cam[:, 0, 1] = frames.K[:, 0, 0], frames.ref_from_cam[:, 0, 0]
    frames.ref_from_cam[:, 0, 1, :3, 3] += 0.5 * frames.ref_from_cam[:, 0, 0, :3, 0]
    rig = CameraRig.build(frames.K[:, 0], frames.ref_from_cam[:, 0], frames.camera_valid[:, 0], (32, 64))
    was = torch.cat([ahead[:2] - step, ahead[2:]])
    then = (frames.current_from_ref[0, 0].inverse() @ torch.cat([was, torch.ones(1)]))[:3]
    seen = [pose[:3, :3] @ then + pose[:3, 3] for pose in rig.cam_from_ref[0]]
    places = [(rig.K[0, camera] @ (at / at[2]))[:2] / 4 for camera, at in enumerate(seen)]
    grid, nothing = every_cell(), torch.zeros(2, 2, *SIZE)

    def sure_of(place: torch.Tensor, image: int, *searched: int) -> PixelMotion:
        blocks = [torch.full((2, len(grid), len(grid)), -99.0) for _ in searched]
        blocks[image] = (-20 * (place - grid).abs().sum(-1)).expand(2, len(grid), -1)
        return said(nothing, torch.cat(blocks, dim=-1))._replace(searched=torch.tensor([searched, searched[::-1]]))

    right, count = supervise_places(sure_of(places[0], 0, 0), batch)
    beside, _ = supervise_places(sure_of(places[0] - torch.tensor([2.0, 0.0]), 0, 0), batch)
    assert count == 1
    assert right < 20 < 30 < beside
    # Both images show it: the first of those that are searched counts.
    torch.testing.assert_close(supervise_places(sure_of(places[0], 0, 0, 1), batch)[0], right)
    assert supervise_places(sure_of(places[1], 1, 0, 1), batch)[0] > 60
    frames.camera_valid[:, 0, 0] = False
    assert [x.item() for x in supervise_places(sure_of(places[0], 0, 0), batch)] == [0, 0]
    other, count = supervise_places(sure_of(places[1], 1, 0, 1), batch)
    assert count == 1
    assert other < 20
    frames.camera_valid[:, 0, 0] = True
    frames.current_from_ref[:, 0] = torch.eye(4)
    assert [x.item() for x in supervise_places(sure_of(places[0], 0, 0), batch)] == [0, 0]
    assert [x.item() for x in supervise_places(sure_of(places[0], 0, 0), batch_at(tiny_config(), 1))] == [0, 0]


def test_motion_is_compared_at_the_cells_of_the_spots(tiny_config: Make) -> None:
    """A spot that moves by (1, 2), and a still one in another cell; a still one behind a movable thing does not count,
    nor does one behind every camera."""
    config = tiny_config(**LEARN)
    loss = config.loss
    batch = batch_at(config, 1)
    rig = CameraRig.build(batch.K, batch.ref_from_cam, batch.camera_valid, (16, 32))
    ahead = batch.ref_from_cam[0, 0, :3, 3] + 6 * batch.ref_from_cam[0, 0, :3, 2]
    aside = ahead + 3 * batch.ref_from_cam[0, 0, :3, 0]
    behind = -50 * batch.ref_from_cam[0, 0, :3, 2]
    batch.moving_points, batch.moving_motion = ahead[None, None], torch.tensor([[[1.0, 2.0]]])
    batch.moving_weight, batch.moving_valid = torch.eye(2)[None, None], torch.ones(1, 1, dtype=torch.bool)
    batch.still_points = torch.stack([aside, behind])[None]
    batch.still_valid = torch.ones(1, 2, dtype=torch.bool)
    batch.movable = torch.zeros(1, 2, 16, 32, dtype=torch.bool)
    batch.camera_valid[:, 1] = False
    motion = torch.zeros(2, 2, *SIZE)
    place = in_cells((rig.K[0, 0] @ torch.tensor([0.0, 0.0, 1.0]))[None, None, :2], rig, SIZE)[0, 0].long()
    motion[0, :, place[1], place[0]] = torch.tensor([1.0, 2.0])
    exact = supervise_pixel_motion(said(motion), batch, loss).item()
    assert exact == pytest.approx(0, abs=2e-3)
    elsewhere = supervise_pixel_motion(said(motion + 1), batch, loss).item()
    assert elsewhere == pytest.approx(2**0.5 + 0.3 * 2**0.5, abs=1e-3)
    nothing = supervise_pixel_motion(said(torch.zeros(2, 2, *SIZE)), batch, loss).item()
    assert nothing == pytest.approx(5**0.5, abs=2e-3)
    batch.movable[:] = True
    assert supervise_pixel_motion(said(motion + 1), batch, loss).item() == pytest.approx(2**0.5, abs=1e-3)
    batch.moving_valid[:], batch.still_valid[:] = False, False
    assert supervise_pixel_motion(said(motion + math.nan), batch, loss).item() == 0


def test_true_depth_and_true_matches_give_true_motion(world: Any, tiny_config: Make) -> None:
    """The head's geometry on the small world, with moving cameras that fire at their own times: the box moves by
    (1, 2) m/s in the world, the walls by nothing."""
    batch = batch_at(tiny_config(**LEARN), 2)
    frames = batch.frames
    looks = []
    for q, t in ((0, 1), (1, 2)):
        rig = CameraRig.build(frames.K[:, q], frames.ref_from_cam[:, q], frames.camera_valid[:, q], (32, 64))
        depth = [world.look(world.camera_time(t, c), c, SIZE)["depth"] for c in range(2)]
        mean = torch.from_numpy(np.log(np.minimum(np.stack(depth), 60.0))).float()
        looks.append(Look(torch.zeros(2, 16, *SIZE), DepthMap(mean, torch.zeros_like(mean)), rig))
    head = PixelMotionHead(tiny_config(**LEARN).model.pixel_motion, 16)
    here = [world.look(world.camera_time(2, c), c, SIZE) for c in range(2)]
    flow = [two_frames(world, c) for c in range(2)]
    ends = torch.stack([torch.from_numpy(f).float().flatten(1).T for f in flow])
    grid = every_cell()
    goal = grid + ends.nan_to_num()
    head.match = lambda *_: -((goal[:, :, None] - grid) ** 2).sum(-1) / 2 / 0.6**2  # type: ignore[method-assign]
    head.decode = Believing()  # type: ignore[assignment]
    motion = head(looks[1], looks[0], frames.current_from_ref[:, 0]).motion.flatten(2)
    turn = world.ego(1.0)[:2, :2].T
    expected = turn @ np.array(world.box_velocity) * 0.5
    kinds = np.stack([look["kind"].reshape(-1) for look in here])
    inside = (goal[..., 0] > 2.5) & (goal[..., 0] < 13.5) & (goal[..., 1] > 2.5) & (goal[..., 1] < 5.5)
    known = (~ends.isnan().any(-1) & inside).numpy()
    box = motion.transpose(1, 2)[torch.from_numpy((kinds == 1) & known)]
    still = motion.transpose(1, 2)[torch.from_numpy((kinds == 0) & known)]
    assert len(box) >= 3
    assert len(still) > 30
    assert np.abs(box.median(dim=0).values.numpy() - expected).max() < 0.25
    assert still.norm(dim=-1).median() < 0.15


class Believing(torch.nn.Module):
    """Decodes to nothing but full belief in what was measured."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(x), 5, *x.shape[-2:])
        out[:, 2] = 50.0
        return out


def two_frames(world: Any, c: int) -> np.ndarray:
    """Exact flow from keyframe 2 to 1 at the size of the cells, in cells."""
    full, world.render_size = world.render_size, SIZE
    try:
        return world.flow(c, world.camera_time(2, c), world.camera_time(1, c))
    finally:
        world.render_size = full


def test_a_head_learns_to_find_cells_again() -> None:
    """Pictures of noise that moved by two cells aside: after a hundred steps four cells of five are found, in
    pictures that were not seen."""
    torch.manual_seed(0)
    head = PixelMotionHead(PixelMotionConfig(cell=4, width=16, context=2), 4)
    K = torch.tensor([[40.0, 0, 32.0], [0, 40.0, 16.0], [0, 0, 1.0]])
    rig = CameraRig.build(K[None, None], torch.eye(4)[None, None], torch.ones(1, 1, dtype=torch.bool), (32, 64))
    depth = DepthMap(torch.full((1, *SIZE), 2.0), torch.zeros(1, *SIZE))
    pose = torch.eye(4)[None].clone()
    pose[0, 2, 3] = 1e-3
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3)
    goal = every_cell()[None] - torch.tensor([2.0, 0.0])
    inside = goal[..., 0] > 0

    def step() -> tuple[torch.Tensor, float]:
        noise = torch.randn(1, 3, 32, 64 + 8)
        level = torch.zeros(1, 4, *SIZE)
        now, then = (Look(head.describe(x, level), depth, rig) for x in (noise[..., :64], noise[..., 8:]))
        found = head(now, then, pose)
        right = found.match.argmax(-1) == (goal[..., 1].long() * 16 + goal[..., 0].long())
        return match_costs(found.match, found.total, goal, SIZE)[inside].mean(), right[inside].float().mean().item()

    before = step()[1]
    for _ in range(100):
        optimiser.zero_grad()
        step()[0].backward()
        optimiser.step()
    assert before < 0.3
    assert step()[1] > 0.8


def test_only_the_second_stage_teaches_it(tiny_config: Make) -> None:
    """Its images-only steps too, which change nothing but the image side and it."""
    config = tiny_config(
        **LEARN, stage1={"max_steps": 2, "image_share": 0.5}, stage2={"max_steps": 2, "image_share": 0.99}
    )
    train(config)
    untrained, first, second = (
        load_file(config.out / name / "model.safetensors") for name in ("untrained", "stage1", "stage2")
    )
    changed = {name.split(".")[0] for name in first if not torch.equal(untrained[name], first[name])}
    assert "pixel_motion_head" not in changed
    changed = {name.split(".")[0] for name in first if not torch.equal(second[name], first[name])}
    assert changed == {"backbone", "pyramid", "depth_lift", "pixel_motion_head"}


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_its_terms_are_logged_and_switched(tiny_config: Make, share: float) -> None:
    for supervised in (True, False):
        config = tiny_config(**LEARN, stage2={"image_share": share}, ablation={"flow_supervision": supervised})
        module = StageModule(config, 2, OccFlow(config.model), total_steps=10)
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module.training_step(batch_at(config, 2), 0)
        assert ("loss/pixel_match" in module.numbers) == supervised
        assert ("loss/pixel_place" in module.numbers) == supervised
        assert ("loss/pixel_motion" in module.numbers) == supervised
        if supervised:
            assert module.numbers["rays/pixel_match_cells"] > 100
            assert module.numbers["rays/pixel_place_cells"] > 0


def test_the_cue_is_read_for_it_alone_and_not_for_the_static_flow(tiny_config: Make) -> None:
    losses = []
    for match in (0.0, 1.0):
        config = tiny_config(
            **{**LEARN, "loss": {**LEARN["loss"], "pixel_match": match}}, ablation={"backward_static_flow": False}
        )
        batch = batch_at(config, 2)
        assert (batch.flow_back is not None) == (match > 0)
        torch.manual_seed(0)
        module = StageModule(config, 2, OccFlow(config.model), total_steps=10)
        module.fixed_seed = 1
        cast = module._cast(module.network(batch.frames), batch, module._generator())
        losses.append(supervise_flow(cast, batch, separate_motion(cast, batch, 1.0), config).total.item())
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"pixel_match": 1.0}, "data": {"backward_cue": "prev"}}, "model.pixel_motion.cell"),
        ({"model": MODEL, "loss": {"pixel_match": 1.0}}, "data.backward_cue=prev"),
        ({"model": MODEL, "loss": {"pixel_motion": 1.0}}, "loss.lifted_flow"),
        ({"loss": {"pixel_place": 1.0, "lifted_flow": 1.0}}, "model.pixel_motion.cell"),
        ({"model": MODEL, "loss": {"pixel_place": 1.0}}, "loss.pixel_place.*loss.lifted_flow"),
    ],
)
def test_what_cannot_be_learned_is_refused(tiny_config: Make, changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        tiny_config(**changes)
    assert len(str(refused.value)) < 250, "a whole configuration in its message helps nobody"
