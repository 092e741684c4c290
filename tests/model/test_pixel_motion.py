"""Motion by image cells: matches by hand, the geometry of a moving wall, and what nothing can be said of."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from geometry.grid import VoxelGrid
from model.config import DepthLiftConfig, FusionConfig, HeadConfig, ModelConfig, PixelMotionConfig
from model.depth_lift import DepthLift
from model.earlier_images import DepthMap, EarlierImage, Look, best_match, nearest_cameras
from model.heads import FlowHead
from model.network import OccFlow
from model.pixel_depth import DepthBins, PixelDepth, cell_centres
from model.pixel_motion import FASTEST_M, PixelMotionHead
from model.visibility import CameraRig

HEIGHT, WIDTH, FOCAL = 16, 48, 40.0
ROWS, COLUMNS = 4, 12
SIZE = (ROWS, COLUMNS)
FORWARD = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def rig(*valid: bool) -> CameraRig:
    """Cameras 1.5 m above the ego origin that look along x."""
    pose = torch.eye(4)
    pose[:3, :3], pose[2, 3] = FORWARD, 1.5
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])
    count = len(valid)
    K, pose = K.repeat(1, count, 1, 1), pose.repeat(1, count, 1, 1)
    return CameraRig.build(K, pose, torch.tensor([valid]), (HEIGHT, WIDTH))


def wall(depth: float, views: int = 1) -> DepthMap:
    """Every cell is sure of one depth."""
    return DepthMap(torch.full((views, *SIZE), math.log(depth)), torch.zeros(views, *SIZE))


def moved(x: float = 0.0, y: float = 0.0) -> Tensor:
    """now_from_then of a car that drove (x, y) metres."""
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 3], pose[0, 1, 3] = -x, -y
    return pose


class Believing(nn.Module):
    """Decodes to nothing but full belief in what was measured."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 5, *x.shape[-2:])
        out[:, 2] = 50.0
        return out


def head(width: int = 8) -> PixelMotionHead:
    return PixelMotionHead(PixelMotionConfig(cell=4, width=width, context=2), feature_dim=8)


def believing(then_cells: Tensor) -> PixelMotionHead:
    """A head that finds cell i again at `then_cells` (cells, 2), column and row, and believes it."""
    module = head()
    module.decode = Believing()  # type: ignore[assignment]
    columns, rows = torch.arange(COLUMNS) + 0.5, torch.arange(ROWS) + 0.5
    x, y = then_cells[:, 0, None], then_cells[:, 1, None]
    far = ((x - columns) ** 2)[:, None, :] + ((y - rows) ** 2)[:, :, None]
    module.match = lambda now, then, landing: (-far / 2 / 0.6**2).flatten(1)[None].expand(len(now), -1, -1)  # type: ignore[method-assign]
    return module


def cells() -> Tensor:
    """Column and row of every cell's middle."""
    y, x = torch.meshgrid(torch.arange(ROWS) + 0.5, torch.arange(COLUMNS) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def look(depth: float, *valid: bool) -> Look:
    valid = valid or (True,)
    return Look(torch.zeros(len(valid), 8, *SIZE), wall(depth, len(valid)), rig(*valid))


def inner(motion: Tensor) -> Tensor:
    """Of (views, 2, rows, columns) what lies away from the borders, where the window of the match is cut."""
    return motion[:, :, 1:-1, 3:-3].flatten(2)


def test_the_best_match_by_hand() -> None:
    logits = torch.full((1, 3, ROWS * COLUMNS), -60.0)
    logits[0, 0, 1 * COLUMNS + 5] = 0.0  # one cell alone
    logits[0, 1, 1 * COLUMNS + 5] = logits[0, 1, 1 * COLUMNS + 6] = 0.0  # two side by side
    logits[0, 2, 0] = 0.0  # the corner, and as likely as half of it a cell far away, which does not pull
    logits[0, 2, -1] = -math.log(2)
    _, place, share, peak = best_match(logits, logits.logsumexp(-1), SIZE)
    assert torch.allclose(place[0], torch.tensor([[5.5, 1.5], [6.0, 1.5], [0.5, 0.5]]), atol=1e-5)
    assert torch.allclose(share[0], torch.tensor([1.0, 1.0, 2 / 3]), atol=1e-5)
    assert torch.allclose(peak[0], torch.tensor([1.0, 0.5, 2 / 3]), atol=1e-5)


def test_the_window_against_a_slow_version() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 7, ROWS * COLUMNS, dtype=torch.float64) * 2
    _, place, share, _ = best_match(logits, logits.logsumexp(-1), SIZE)
    likelihood = logits.softmax(-1)
    for view in range(2):
        for cell in range(7):
            best = int(likelihood[view, cell].argmax())
            total, x, y = 0.0, 0.0, 0.0
            for k, p in enumerate(likelihood[view, cell].tolist()):
                if abs(k // COLUMNS - best // COLUMNS) <= 2 and abs(k % COLUMNS - best % COLUMNS) <= 2:
                    total, x, y = total + p, x + p * (k % COLUMNS + 0.5), y + p * (k // COLUMNS + 0.5)
            assert share[view, cell].item() == pytest.approx(total)
            assert place[view, cell].tolist() == pytest.approx([x / total, y / total])


def test_the_best_match_in_the_second_of_two_images() -> None:
    """Each image has a window of its own: the last cell of one and the first of the next are no neighbours."""
    logits = torch.full((1, 2, 2 * ROWS * COLUMNS), -60.0)
    logits[0, 0, ROWS * COLUMNS + COLUMNS + 5] = 0.0
    logits[0, 1, ROWS * COLUMNS] = 0.0
    logits[0, 1, ROWS * COLUMNS - 1] = -math.log(2)
    image, place, share, _ = best_match(logits, logits.logsumexp(-1), SIZE)
    assert image.tolist() == [[1, 1]]
    assert torch.allclose(place[0], torch.tensor([[5.5, 1.5], [0.5, 0.5]]), atol=1e-5)
    assert torch.allclose(share[0], torch.tensor([1.0, 2 / 3]), atol=1e-5)


def ring(valid: Tensor, degrees: tuple[float, ...] = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)) -> CameraRig:
    """Cameras in a ring, the first one looking along x, the others to the left of it by so many degrees."""
    one = rig(True)
    angles = torch.tensor(degrees).deg2rad()
    pose = torch.eye(4).repeat(len(degrees), 1, 1)
    for k, angle in enumerate(angles):
        c, s = angle.cos(), angle.sin()
        pose[k, :3, :3] = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ FORWARD
    pose[:, 2, 3] = 1.5
    frames = len(valid)
    K = one.K.expand(frames, len(degrees), 3, 3)
    return CameraRig.build(K, pose.expand(frames, -1, -1, -1), valid, (HEIGHT, WIDTH))


def test_the_cameras_that_look_nearest_to_the_same_way() -> None:
    """Two frames of six cameras; in the second one's earlier keyframe the camera to the left of the first is gone."""
    there = torch.ones(2, 6, dtype=torch.bool)
    missing = there.clone()
    missing[1, 1] = False
    order = nearest_cameras(ring(there), ring(missing), 2).view(2, 6, 3)
    assert order[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert [set(row[1:]) for row in order[0].tolist()] == [{(k - 1) % 6, (k + 1) % 6} for k in range(6)]
    assert order[1, 1, 0] == 6 + 1
    assert 6 + 1 not in order[1, 0].tolist()
    assert order[1, 0, :2].tolist() == [6 + 0, 6 + 5]
    assert nearest_cameras(ring(there), ring(missing), 0)[:, 0].tolist() == list(range(12))
    every = nearest_cameras(ring(there), ring(missing), 9).view(2, 6, 6)
    assert every[1, 0, -1] == 6 + 1
    assert all(sorted(row) == list(range(6, 12)) for row in every[1].tolist())


def turned(degrees: float) -> Tensor:
    """now_from_then of a car that turned to the left on the spot."""
    angle = torch.tensor(-degrees).deg2rad()
    pose = torch.eye(4)[None].clone()
    pose[0, :2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    return pose


@pytest.mark.parametrize("neighbours", [0, 1])
def test_what_another_camera_saw_before(neighbours: int) -> None:
    """A wall all round, 10 m away along each camera's axis; the car turned by 60 degrees, so that each camera looks
    where its left neighbour did. Nothing moved; the camera's own earlier image shows nothing of it."""
    module = PixelMotionHead(PixelMotionConfig(cell=4, width=8, context=2, neighbours=neighbours), feature_dim=8)
    module.decode = Believing()  # type: ignore[assignment]
    with torch.no_grad():
        module.reach.fill_(-0.5)
    cameras = ring(torch.ones(1, 6, dtype=torch.bool))
    # Every other camera out of the way, so that there is one nearest: the left one.
    there = torch.tensor([[True, True, False, False, False, False]])
    seen = Look(torch.zeros(6, 8, *SIZE), wall(10.0, 6), cameras)
    found = module(seen, seen._replace(rig=ring(there)), turned(60.0))
    assert found.searched.shape == (6, 1 + neighbours)
    assert found.match.shape[-1] == (1 + neighbours) * ROWS * COLUMNS
    image, place, _, _ = best_match(found.match, found.total, SIZE)
    if neighbours:
        assert found.searched[0].tolist() == [0, 1]
        assert (image[0] == 1).all()
        assert torch.allclose(place[0].unflatten(0, SIZE)[1:-1, 1:-1], cells().unflatten(0, SIZE)[1:-1, 1:-1], atol=0.1)
        assert inner(found.motion)[0].abs().max() < 0.05
    else:
        assert inner(found.motion)[0].norm(dim=0).min() > 3


def test_nothing_is_found_behind_another_camera() -> None:
    """Nor in an image that is missing; and what the camera's own image says stays as it is."""
    module = PixelMotionHead(PixelMotionConfig(cell=4, width=8, context=2, neighbours=2), feature_dim=8)
    cameras = ring(torch.tensor([[True, True, True]]), (0.0, 180.0, 60.0))
    then = Look(torch.randn(3, 8, *SIZE), wall(10.0, 3), cameras._replace(valid=torch.tensor([[True, True, False]])))
    now = Look(torch.randn(3, 8, *SIZE), wall(10.0, 3), cameras)
    found = module(now, then, moved(x=1.0))
    assert found.searched[0].tolist() == [0, 1, 2]
    count = ROWS * COLUMNS
    assert found.match[0, :, count:].max() < -9e3
    single = head()
    single.load_state_dict(module.state_dict())
    torch.testing.assert_close(found.match[0, :, :count], single(now, then, moved(x=1.0)).match[0])
    torch.testing.assert_close(found.motion[0], single(now, then, moved(x=1.0)).motion[0])
    image = EarlierImage.of(then, torch.tensor([1, 0, 0]), moved(x=1.0).expand(3, -1, -1), torch.full((3, 4, 3), 20.0))
    assert image.in_front[:, 0].tolist() == [False, True, True]


def test_without_descriptors_a_surface_is_where_it_would_be_had_it_stood_still() -> None:
    """A wall 10 m away, the car 2 m nearer than before: the picture was smaller by 10 / 12."""
    module = head()
    module.decode = Believing()  # type: ignore[assignment]
    with torch.no_grad():
        module.reach.fill_(-0.5)
    found = module(look(10.0), look(12.0), moved(x=2.0))
    _, place, _, _ = best_match(found.match, found.total, SIZE)
    middle = torch.tensor([COLUMNS / 2, ROWS / 2])
    away = (cells()[:, 1] > 1) & (cells()[:, 1] < ROWS - 1) & (cells()[:, 0] > 1) & (cells()[:, 0] < COLUMNS - 1)
    assert torch.allclose(place[0][away], (middle + (cells() - middle) * 10 / 12)[away], atol=0.1)
    assert inner(found.motion).abs().max() < 0.12


def test_a_wall_that_moved_aside() -> None:
    """It is found again 0.75 cells to the left of where it is now: at 10 m that is 0.75 m, and it came from the left
    (y is left), so it moves by -0.75 m along y."""
    found = believing(cells() - torch.tensor([0.75, 0.0]))(look(10.0), look(10.0), moved(y=0.001))
    assert torch.allclose(inner(found.motion)[0, 1], torch.tensor(-0.75), atol=0.02)
    assert inner(found.motion)[0, 0].abs().max() < 1e-4


def test_a_wall_that_came_nearer() -> None:
    """12 m away then, 10 m now, and the car stood (but for a millimetre): it moves by -2 m along x."""
    middle = torch.tensor([COLUMNS / 2, ROWS / 2])
    found = believing(middle + (cells() - middle) * 10 / 12)(look(10.0), look(12.0), moved(x=0.001))
    assert torch.allclose(inner(found.motion)[0, 0], torch.tensor(-2.0), atol=2e-3)
    assert inner(found.motion)[0, 1].abs().max() < 0.05


def test_errors_that_both_depths_share_cancel() -> None:
    """Both depths a tenth too large: motion along the view is off by a tenth, not by the metre that the place is."""
    middle = torch.tensor([COLUMNS / 2, ROWS / 2])
    found = believing(middle + (cells() - middle) * 10 / 12)(look(11.0), look(13.2), moved(x=0.001))
    assert torch.allclose(inner(found.motion)[0, 0], torch.tensor(-2.2), atol=2e-3)


def test_a_wrong_match_counts_as_no_more_than_the_fastest() -> None:
    found = believing(cells())(look(50.0), look(2.0), moved(x=0.001))
    assert found.motion.abs().max() <= FASTEST_M


def test_what_has_no_image_before_is_told_so() -> None:
    """At the start of a log the keyframe stands in for the one before; a camera may have had no image. Both is told in
    the same channel, and nothing is NaN."""
    module, told = head(), []
    module.decode[0].register_forward_hook(lambda _, inputs, __: told.append(inputs[0]))
    module(look(10.0, True, True), look(10.0, True, False), moved(x=1.0))
    module(look(10.0, True, True), look(10.0, True, True), moved())
    unknown = [channels[:, -3].mean(dim=(1, 2)).tolist() for channels in told]
    assert unknown == [[0.0, 1.0], [1.0, 1.0]]
    assert all(torch.isfinite(channels).all() for channels in told)


def test_hostile_depths_and_poses_stay_finite() -> None:
    """Surfaces that were behind the earlier camera, and places far outside of its image."""
    module = PixelMotionHead(PixelMotionConfig(cell=4, width=8, context=2, neighbours=1), feature_dim=8)
    for pose in (moved(x=-100.0), moved(x=100.0), moved(y=1e4)):
        found = module(look(10.0, True, True), look(10.0, True, True), pose)
        found.motion.sum().backward()
        assert all(torch.isfinite(x).all() for x in found)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


def test_autocast_rounds_no_place() -> None:
    """The car drove and turned; in 8 bits its pose would be off by centimetres and a third of a degree."""
    module = PixelMotionHead(PixelMotionConfig(cell=4, width=8, context=2, neighbours=2), feature_dim=8)
    module.decode = Believing()  # type: ignore[assignment]
    cameras = ring(torch.ones(1, 6, dtype=torch.bool))
    now, then = (Look(torch.randn(6, 8, *SIZE), wall(depth, 6), cameras) for depth in (10.0, 12.0))
    pose = turned(7.0) @ moved(x=5.3, y=0.4)
    plain = module(now, then, pose)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(now, then, pose)
    assert torch.equal(plain.searched, rounded.searched)
    torch.testing.assert_close(plain.match, rounded.match, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(plain.motion, rounded.motion, atol=1e-3, rtol=1e-3)


def test_no_gradient_leaves_it() -> None:
    module = head()
    level = torch.randn(1, 8, ROWS, COLUMNS, requires_grad=True)
    logits = torch.randn(1, 8, ROWS, COLUMNS, requires_grad=True)
    depth = DepthMap.of(PixelDepth(logits, DepthBins(0.0, 3.0, 8)), SIZE)
    described = module.describe(torch.randn(1, 3, HEIGHT, WIDTH), level)
    found = module(Look(described, depth, rig(True)), Look(described.detach(), depth, rig(True)), moved(x=1.0))
    (found.motion.sum() + found.match.sum() + found.context.sum()).backward()
    assert level.grad is None
    assert logits.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in module.named_parameters() if "bias" not in n)


@pytest.mark.parametrize(("cell", "size"), [(4, (4, 12)), (8, (2, 6)), (16, (1, 3))])
def test_larger_cells(cell: int, size: tuple[int, int]) -> None:
    module = PixelMotionHead(PixelMotionConfig(cell=cell, width=8), feature_dim=8)
    level = torch.randn(1, 8, ROWS, COLUMNS)
    described = module.describe(torch.randn(1, 3, HEIGHT, WIDTH), level)
    assert described.shape[-2:] == size
    depth = DepthMap.of(PixelDepth(torch.randn(1, 8, ROWS, COLUMNS), DepthBins(0.0, 3.0, 8)), size)
    found = module(Look(described, depth, rig(True)), Look(described, depth, rig(True)), moved(x=1.0))
    assert found.motion.shape == (1, 2, *size)
    assert found.match.shape == (1, size[0] * size[1], size[0] * size[1])
    assert cell_centres(rig(True), size, level)[0, 0].tolist() == [WIDTH / size[1] / 2, HEIGHT / size[0] / 2]


@pytest.mark.parametrize(("cell", "width"), [(8, 176), (12, 176), (16, 184), (32, 176)])
def test_a_cell_is_described_by_what_lies_around_its_centre(cell: int, width: int) -> None:
    """Also where cells do not divide the image: to half a cell of the image level, not by up to half a cell more at the
    right border than at the left one."""
    module = PixelMotionHead(PixelMotionConfig(cell=cell, width=8), feature_dim=8)
    columns = ((torch.arange(width // 4) + 0.5) * 4).expand(1, 8, 16, -1)
    module.stem.register_forward_hook(lambda *_: columns)
    module.features.register_forward_hook(lambda *_: torch.zeros_like(columns))
    module.blocks, module.describe_cells = nn.Sequential(), nn.Identity()
    described = module.describe(torch.zeros(1, 3, 64, width), torch.zeros_like(columns))[0, 0]
    assert described.shape[-1] == -(-width // cell)
    camera = rig(True)._replace(height=64, width=width)
    centres = cell_centres(camera, (described.shape[-2], described.shape[-1]), described)[0, :, 0]
    torch.testing.assert_close(described.flatten(), centres, atol=2.0, rtol=0.0)


def test_depths_of_cells_by_hand() -> None:
    """Even odds of 1 m and e^2 m: mean 1, deviation 1; averaged over the pixels of a cell."""
    logits = torch.full((1, 3, 2, 4), -50.0)
    logits[:, 0] = logits[:, 2] = 0.0
    mean, spread = DepthMap.of(PixelDepth(logits, DepthBins(0.0, 2.0, 3)), (1, 2))
    assert torch.allclose(mean, torch.ones(1, 1, 2))
    assert torch.allclose(spread, torch.ones(1, 1, 2))


def test_voxels_read_what_their_cells_carry() -> None:
    """Cells that are sure of a surface at 6 m: up to 13 m voxels read what they carry, the mean over the cameras that
    see them, at 16.5 m half of it, from 20 m on nothing; where no camera sees them, nothing."""
    grid = VoxelGrid((-8.0, -4.0, 0.5), (32.0, 4.0, 2.5), (40, 8, 2))
    module = DepthLift(DepthLiftConfig(bins=64, context=2), feature_dim=8, dim=6, grid=grid)
    bins = module.head.bins
    sure = -40 * (torch.arange(64) - bins.position(torch.tensor(6.0).log())).abs()
    predicted, context = PixelDepth(sure[None, :, None, None].expand(2, -1, *SIZE), bins), torch.randn(2, 2, *SIZE)
    carried = torch.tensor([[1.0, -3.0], [2.0, 5.0]])[:, :, None, None].expand(-1, -1, *SIZE)
    features, read = module.tell(predicted, context, rig(True, True), carried)
    assert read is not None
    along = read[0, :, 4, 0]
    assert torch.allclose(along[12:20], torch.tensor([1.5, 1.0]), atol=1e-5)
    assert torch.allclose(along[24], torch.tensor([0.75, 0.5]), atol=0.08)
    assert along[29:].abs().max() == along[:8].abs().max() == 0
    torch.testing.assert_close(features, module.tell(predicted, context, rig(True, True))[0])
    alone = module.tell(predicted, context, rig(True, False), carried)[1]
    assert alone is not None
    assert torch.allclose(alone[0, 12:20, 4, 0], torch.tensor([1.0, -3.0]), atol=1e-5)


def test_the_flow_decoder_believes_half_of_it_at_first() -> None:
    grid = VoxelGrid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (2, 2, 2))
    decoder = FlowHead(HeadConfig(hidden=8, flow_init_std=1e-12), 4, grid, carried=3)
    features, carried = torch.randn(1, 2, 2, 2, 4), torch.randn(1, 2, 2, 2, 3)
    assert torch.allclose(decoder(features, carried), carried[..., :2] / 2, atol=1e-6)


@pytest.mark.parametrize("tiny_config", ["from_nothing"], indirect=True)
def test_history_decides_motion_and_nothing_else(tiny_config: ModelConfig, tiny_frames: object) -> None:
    """The earlier images change what cells say of motion, the first of three does not; depth stays what it is."""
    network = OccFlow(tiny_config).eval()
    with torch.no_grad():
        before = network(tiny_frames)
        for place, changes in ((1, True), (0, False)):
            images = tiny_frames.images.clone()  # type: ignore[attr-defined]
            images[:, place] = 255 - images[:, place]
            after = network(tiny_frames._replace(images=images))  # type: ignore[attr-defined]
            assert torch.equal(before.pixel_depth.logits, after.pixel_depth.logits)
            assert torch.equal(before.pixel_motion.match, after.pixel_motion.match) != changes
        alone = network.pixel_motion(tiny_frames)
    torch.testing.assert_close(alone[0].logits, before.pixel_depth.logits)
    torch.testing.assert_close(alone[1].motion, before.pixel_motion.motion)


def test_geometry_alone_is_the_same_geometry(
    tiny_config: ModelConfig, tiny_frames: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked without motion the network gives the same distances, a flow of zero, and works out nothing for it."""
    network = OccFlow(tiny_config).eval()
    with torch.no_grad():
        whole = network(tiny_frames)
        for part in (network.flow_head, network.pixel_motion_head):
            if part is not None:
                monkeypatch.setattr(part, "forward", None)
                monkeypatch.setattr(part, "describe", None, raising=False)
        bare = network(tiny_frames, motion=False)
    assert torch.equal(whole.sdf, bare.sdf)
    assert whole.flow.any()
    assert not bare.flow.any()
    assert bare.flow.shape == whole.flow.shape
    assert bare.pixel_motion is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pixel_motion": {"cell": 4}}, "depth_lift.bins"),
        ({"pixel_motion": {"cell": 4}, "depth_lift": {"bins": 8}, "fusion": {"history": 0}}, "fusion.history"),
        ({"pixel_motion": {"cell": 4}, "depth_lift": {"bins": 8}, "fusion": {"kind": "none"}}, "fusion.kind"),
        ({"pixel_motion": {"cell": 6}}, "multiple of 4"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ModelConfig.model_validate(changes)


def test_a_network_without_it_says_so(tiny_frames: object) -> None:
    network = OccFlow(ModelConfig.demo().model_copy(update={"fusion": FusionConfig(heads=4, points=1)}))
    with pytest.raises(ValueError, match=r"model\.pixel_motion\.cell"):
        network.pixel_motion(tiny_frames)  # type: ignore[arg-type]
