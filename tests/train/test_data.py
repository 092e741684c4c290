"""Samples against the analytic world they were written from: geometry, neighbours, flow targets, exclusion."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geometry.cameras import project
from geometry.transforms import transform_points
from storage.errors import CueMissing
from storage.reader import SceneReader, StoreReader
from storage.store import CueStore, UnitId
from train.batch import Batch, collate
from train.config import ConfigError, TrainConfig
from train.data import KeyframeDataset, build_loader
from train.neighbours import Neighbour, candidates, draw_neighbour
from train.returns import Measured, draw_returns
from train.selection import Exclusion, training_frames
from train.settings import NeighbourConfig

Make = Callable[..., TrainConfig]


def sample_of(config: TrainConfig, stage: int, t: int, draw: int = 0) -> Batch:
    dataset = KeyframeDataset(config, stage, [("a", t)], 2**24)
    return dataset[draw, 0]


def test_every_needed_cue_is_asked_for(tiny_config: Make, tiny_store: Path) -> None:
    frames = training_frames(tiny_config(), 2, StoreReader(tiny_store))
    assert frames == [(s, t) for s in "ab" for t in range(5)]


def test_scenes_and_exclusions(tiny_config: Make, tiny_store: Path) -> None:
    reader = StoreReader(tiny_store)
    config = tiny_config(data={"scenes": ["b*"], "exclude": ["b:1", "b:3-9"]})
    assert training_frames(config, 1, reader) == [("b", 0), ("b", 2)]
    with pytest.raises(ConfigError, match=r"matches no scene .* it has: a, b"):
        training_frames(tiny_config(data={"scenes": ["c"]}), 1, reader)
    with pytest.raises(ConfigError, match="leaves no keyframe"):
        training_frames(tiny_config(data={"exclude": ["*"]}), 1, reader)
    excluded = Exclusion(("scene-1:2", "x*"))
    assert (excluded("scene-1", 2), excluded("scene-1", 3), excluded("scene-12", 2), excluded("xy", 7)) == (
        True, False, False, True,
    )  # fmt: skip


def test_scenes_without_poses_are_left_out(
    world, tiny_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = world.write(tmp_path / "s.zarr", scenes=("a", "b"), without_poses=("a",))
    frames = training_frames(tiny_config(store=path), 1, StoreReader(path))
    assert {scene for scene, _ in frames} == {"b"}
    assert "1 of 2 scenes left out: no poses, first: a" in caplog.text
    with pytest.raises(ConfigError, match="none of the 1 chosen scenes has poses"):
        training_frames(tiny_config(store=path, data={"scenes": ["a"]}), 1, StoreReader(path))


def test_a_missing_cue_names_the_command(world, tiny_config: Make, tmp_path: Path) -> None:
    path = world.write(tmp_path / "s.zarr")
    CueStore.open(path).discard(UnitId("flow_next", "a", 0))
    config = tiny_config(store=path)
    assert len(training_frames(config, 1, StoreReader(path))) == 5
    with pytest.raises(CueMissing, match=r"--cues flow_next"):
        training_frames(config, 2, StoreReader(path))


def test_the_command_for_several_missing_cues_can_be_typed_as_it_is(world, tiny_config: Make, tmp_path: Path) -> None:
    path = world.write(tmp_path / "s.zarr")
    for cue in ("flow_next", "masks"):
        CueStore.open(path).discard(UnitId(cue, "a", 0))
    with pytest.raises(CueMissing, match=r"`occflow cues <config> --cues flow_next,masks`"):
        training_frames(tiny_config(store=path), 2, StoreReader(path))


def test_camera_only_refuses_masks_made_from_lidar(world, tiny_config: Make, tmp_path: Path) -> None:
    path = world.write(tmp_path / "s.zarr", masks_from=("lidar",))
    training_frames(tiny_config(store=path), 2, StoreReader(path))
    with pytest.raises(CueMissing, match="'masks' was made from LiDAR"):
        training_frames(tiny_config(store=path, ablation={"lidar": False}), 2, StoreReader(path))
    let_pass = tiny_config(store=path, ablation={"lidar": False}, data={"lidar_masks": True})
    assert training_frames(let_pass, 2, StoreReader(path))


def test_images_are_the_worlds(world, tiny_config: Make) -> None:
    sample = sample_of(tiny_config(), 2, 2)
    for c in range(2):
        network = world.look(world.camera_time(2, c), c, world.network_size)["colour"]
        got = sample.frames.images[-1, c].permute(1, 2, 0).numpy() / 255
        assert np.abs(got - network).mean() < 0.02
        averaged = network.reshape(16, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(sample.images[c].permute(1, 2, 0).numpy() / 255 - averaged).mean() < 0.02
        following = world.look(world.camera_time(3, c), c, world.network_size)["colour"]
        assert (
            np.abs(
                sample.later.images[c].permute(1, 2, 0).numpy() / 255
                - following.reshape(16, 2, 32, 2, 3).mean(axis=(1, 3))
            ).mean()
            < 0.02
        )


def test_static_surface_lands_where_the_flow_cue_says(world, tiny_config: Make) -> None:
    """Depth from the world, geometry from the sample, flow from the store: static pixels agree to 1/64 px + rounding.

    Covers poses at 1e5 m, each camera's own time, K at render size, and both flow slots.
    """
    sample = sample_of(tiny_config(), 2, 2)
    for target in (sample.flow_next, sample.flow_back):
        assert target is not None
        assert target.known.float().mean() > 0.3
        for c in range(2):
            here = world.look(world.camera_time(2, c), c, world.render_size)
            pixels = np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(16) + 0.5), axis=-1).reshape(-1, 2)
            K = sample.K[c].double()
            uv = torch.from_numpy(pixels)
            depth = torch.from_numpy(np.where(np.isinf(here["depth"]), 1e3, here["depth"]).reshape(-1))
            rays = torch.cat([uv, torch.ones(len(uv), 1)], dim=1).double() @ torch.linalg.inv(K).T
            points = transform_points(sample.ref_from_cam[c].double(), rays * depth[:, None])
            landed, _, front = project(
                target.view.K[c].double(), transform_points(target.view.cam_from_ref[c].double(), points)
            )
            known = target.known[c].reshape(-1) & torch.from_numpy(here["kind"].reshape(-1) == 0)
            cue = target.flow[c].reshape(2, -1).T.double() / 64
            error = (landed - uv - cue).abs().amax(dim=-1)[known]
            assert front[known].all()
            assert known.sum() > 100
            assert error.max() < 0.03


def test_moving_box_lands_with_its_true_motion(world, tiny_config: Make) -> None:
    sample = sample_of(tiny_config(), 2, 1)
    assert sample.flow_next is not None
    here = world.look(world.camera_time(1, 0), 0, world.render_size)
    box = torch.from_numpy(here["kind"].reshape(-1) == 1) & sample.flow_next.known[0].reshape(-1)
    assert box.sum() > 3
    ego = np.linalg.inv(world.ego(0.5))
    points = torch.from_numpy(transform_points(ego, here["points"].reshape(-1, 3)))
    velocity = ego[:3, :3] @ np.array([*world.box_velocity, 0.0])
    motion = torch.from_numpy(velocity * 0.5) * sample.flow_next.view.interval[0].double()
    view = sample.flow_next.view
    landed, _, _ = project(view.K[0].double(), transform_points(view.cam_from_ref[0].double(), points + motion))
    still, _, _ = project(view.K[0].double(), transform_points(view.cam_from_ref[0].double(), points))
    pixels = torch.from_numpy(np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(16) + 0.5), axis=-1).reshape(-1, 2))
    cue = sample.flow_next.flow[0].reshape(2, -1).T.double() / 64
    assert (landed - pixels - cue).abs()[box].max() < 0.03
    assert (still - pixels - cue).abs()[box].max() > 0.5
    assert sample.movable is not None
    assert sample.movable[0].reshape(-1)[box].float().mean() > 0.7


def test_interval_is_the_cameras_own(tiny_config: Make) -> None:
    sample = sample_of(tiny_config(), 2, 1)
    assert sample.flow_next is not None
    assert sample.flow_back is not None
    assert sample.flow_next.view.interval.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert sample.flow_back.view.interval.tolist() == pytest.approx([-1 / 3, -1 / 3], abs=1e-5)


def test_last_keyframe_has_no_later_neighbour_and_no_flow(tiny_config: Make) -> None:
    sample = sample_of(tiny_config(), 2, 4)
    assert sample.flow_next is not None
    assert not sample.flow_next.known.any()
    assert not sample.flow_next.view.valid.any()
    assert not sample.later.valid.any()
    assert sample.earlier.valid.all()
    first = sample_of(tiny_config(), 1, 0)
    assert not first.earlier.valid.any()
    assert first.later.valid.all()


def test_first_keyframes_repeat_in_the_queue(tiny_config: Make) -> None:
    frames = sample_of(tiny_config(), 1, 0).frames
    assert torch.equal(frames.images[0], frames.images[2])
    assert torch.equal(frames.current_from_ref, torch.eye(4).expand(3, 4, 4))


def test_gaussian_rule(world, tiny_store: Path) -> None:
    """At 2 m/s the sweeps are a third of a metre apart: their frequencies follow the Gaussian."""
    table = StoreReader(tiny_store).scene("a").table
    rule = NeighbourConfig(mean_m=0.5, sigma_m=0.5, max_m=1.5)
    found, distances = candidates(table, 2, "later", rule, lambda n: True)
    assert found[:4] == [Neighbour(2, 0), Neighbour(2, 1), Neighbour(3), Neighbour(3, 0)]
    assert (distances <= 1.5).all()
    expected = np.exp(-0.5 * ((distances - 0.5) / 0.5) ** 2)
    expected /= expected.sum()
    rng = np.random.default_rng(0)
    draws = Counter(draw_neighbour(table, 2, "later", rule, lambda n: True, rng) for _ in range(1500))
    for neighbour, probability in zip(found, expected, strict=True):
        assert draws[neighbour] / 1500 == pytest.approx(probability, abs=0.05)
    earlier, _ = candidates(table, 2, "earlier", rule, lambda n: True)
    assert earlier[:3] == [Neighbour(1, 1), Neighbour(1, 0), Neighbour(1)]
    only_key, _ = candidates(table, 2, "later", NeighbourConfig(sweeps=False, max_m=9.0), lambda n: True)
    assert only_key == [Neighbour(3), Neighbour(4)]
    limited, _ = candidates(table, 2, "later", NeighbourConfig(max_frames=2), lambda n: True)
    assert limited == [Neighbour(2, 0), Neighbour(2, 1)]
    assert draw_neighbour(table, 2, "later", NeighbourConfig(max_m=0.1), lambda n: True, rng) is None
    fast = NeighbourConfig(mean_m=0.0, sigma_m=0.001)
    assert draw_neighbour(table, 2, "later", fast, lambda n: True, rng) == Neighbour(2, 0)


def test_a_road_that_comes_back_is_another_passage(tiny_store: Path) -> None:
    """Out and back: images of the way back are within the rule's metres, but as many images away as it was long."""
    table = StoreReader(tiny_store).scene("a").table
    there = np.concatenate([np.arange(30.0), np.arange(30.0)[::-1]])
    pose = np.tile(np.eye(4), (60, 1, 1))
    pose[:, 0, 3] = there
    cameras = table.camera_valid.shape[1]
    long = replace(
        table,
        tokens=tuple(map(str, range(60))),
        camera_valid=np.ones((60, cameras), dtype=bool),
        global_from_ego=pose,
        camera_global_from_ego=np.repeat(pose[:, None], cameras, axis=1),
        **{name: np.repeat(getattr(table, name)[:1], 60, axis=0)
           for name in ("camera_timestamp_us", "ego_from_cam", "K")},
    )  # fmt: skip
    rule = NeighbourConfig(sweeps=False, max_m=6.0, max_frames=20)
    found, distances = candidates(long, 5, "later", rule, lambda n: True)
    assert [n.t for n in found] == [6, 7, 8, 9, 10, 11]
    assert distances.tolist() == [1, 2, 3, 4, 5, 6]
    found, _ = candidates(long, 54, "earlier", rule, lambda n: True)
    assert [n.t for n in found] == [53, 52, 51, 50, 49, 48]
    # Near the turn the way back is but a few images off, and so is it in time.
    found, _ = candidates(long, 27, "later", rule, lambda n: True)
    assert [n.t for n in found] == list(range(28, 39))


def test_excluded_keyframes_are_no_neighbours_either(tiny_config: Make) -> None:
    sample = sample_of(tiny_config(data={"exclude": ["a:3-9"]}), 2, 2)
    assert not sample.later.valid.any()
    assert sample.flow_next is not None
    assert not sample.flow_next.known.any()


def test_returns_are_those_inside_the_volume(tiny_config: Make) -> None:
    grid = tiny_config().model.grid.build()
    rng = np.random.default_rng(0)
    points = np.array([[1.0, 2.0, 0.5], [100.0, 0.0, 0.0], [3.0, 0.0, 0.0]], dtype=np.float32)
    drawn, valid, *_ = draw_returns(Measured(points, np.zeros_like(points), np.ones(3, dtype=bool)), grid, 5, rng)
    assert valid.tolist() == [True, True, False, False, False]
    assert sorted(drawn[valid][:, 0].tolist()) == [1.0, 3.0]
    drawn, valid, *_ = draw_returns(Measured(points[:0], points[:0], np.ones(0, dtype=bool)), grid, 5, rng)
    assert not valid.any()
    assert torch.isfinite(drawn).all()


def test_a_missing_camera_is_marked_and_harmless(world, tiny_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    world.write(path)
    config = tiny_config(store=path)
    dataset = KeyframeDataset(config, 2, [("a", 2)], 2**24)
    _ = dataset[0, 0]
    table = dataset._scene("a").table
    table.camera_valid[2, 1] = False
    table.K[2, 1] = np.nan
    table.ego_from_cam[2, 1] = np.nan
    sample = dataset[0, 0]
    assert sample.camera_valid.tolist() == [True, False]
    assert sample.later.valid.tolist() == [True, False]
    assert sample.flow_next is not None
    assert not sample.flow_next.known[1].any()
    for tensor in (sample.K, sample.ref_from_cam, sample.later.cam_from_ref, sample.flow_next.view.cam_from_ref):
        assert torch.isfinite(tensor).all()


def test_samples_repeat_by_seed_and_differ_by_draw(tiny_config: Make) -> None:
    config = tiny_config()
    first, again, other = (sample_of(config, 1, 2, draw) for draw in (5, 5, 6))
    assert first.return_points is not None
    assert torch.equal(first.return_points, again.return_points)
    assert torch.equal(first.earlier.images, again.earlier.images)
    assert not torch.equal(first.return_points, other.return_points)


def test_cache_is_bounded_and_changes_nothing(tiny_config: Make) -> None:
    config = tiny_config()
    dataset = KeyframeDataset(config, 2, [("a", t) for t in range(5)], 60_000)
    plain = KeyframeDataset(config, 2, [("a", t) for t in range(5)], 0)
    for t in (0, 1, 2, 3, 4, 2, 0):
        with_cache, without = dataset[t, t], plain[t, t]
        assert torch.equal(with_cache.frames.images, without.frames.images)
        assert torch.equal(with_cache.earlier.images, without.earlier.images)
        assert dataset._cache.size <= 60_000
    assert plain._cache.size == 0


def test_batches_stack_and_move(tiny_config: Make) -> None:
    config = tiny_config(ablation={"lidar": False})
    batch = collate([sample_of(config, 1, 1), sample_of(config, 1, 2)])
    assert batch.frames.images.shape[:3] == (2, 3, 2)
    assert batch.return_points is None
    assert batch.to("cpu").earlier.images.shape == (2, 2, 3, 16, 32)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where one core is to be had
def test_the_number_of_workers_changes_nothing(tiny_config: Make) -> None:
    config = tiny_config()
    frames = [("a", 1), ("a", 2), ("b", 3)]
    own = list(build_loader(config, 2, frames, steps=4, first=1))
    two = config.model_copy(update={"data": config.data.model_copy(update={"workers": 2})})
    spawned = list(build_loader(two, 2, frames, steps=4, first=1))
    assert len(own) == len(spawned) == 4
    for left, right in zip(own, spawned, strict=True):
        assert torch.equal(left.frames.images, right.frames.images)
        assert torch.equal(left.earlier.cam_from_ref, right.earlier.cam_from_ref)
        assert left.return_points is not None
        assert torch.equal(left.return_points, right.return_points)


def test_all_that_is_read_was_asked_for_before(
    tiny_config: Make, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cue and keyframe that a sample reads is in a list that was fetched; what is kept decoded is not again."""
    fetched: list[tuple] = []
    read: list[tuple] = []
    prefetch, image = SceneReader.prefetch, SceneReader._image

    def noted(self: SceneReader, wanted: Iterable[tuple]) -> None:
        fetched.extend(wanted := list(wanted))
        prefetch(self, wanted)

    def noting(self: SceneReader, cue: str, array: str, lengths: str, t: int, *rest: int) -> np.ndarray:
        read.append((cue, t, *rest[:-1]))
        return image(self, cue, array, lengths, t, *rest)

    monkeypatch.setattr(SceneReader, "prefetch", noted)
    monkeypatch.setattr(SceneReader, "_image", noting)
    for name in ("masks", "lidar"):
        original = getattr(SceneReader, name)
        monkeypatch.setattr(
            SceneReader, name, lambda self, t, *c, f=original, n=name: (read.append((n, t)), f(self, t, *c))[1]
        )
    dataset = KeyframeDataset(tiny_config(), 2, [("a", 2)], 2**24)
    for draw in range(6):
        dataset[draw, 0]
    assert {cue for cue, *_ in read} >= {"images", "masks", "lidar"}
    assert set(read) <= set(fetched)
    assert {cue for cue, *_ in fetched} >= {"flow_next", "masks", "lidar", "images"}
    fetched.clear()
    dataset[0, 0]
    assert fetched == []
