"""Which keyframes move: scores against a world whose motion is known, their file, and how often an epoch holds them."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from occflow import app
from storage.dynamics import FrameMotion, current_motion, dynamics_path, read_dynamics, write_dynamics
from storage.errors import CueMissing, StoreError
from storage.layout import UnitId
from storage.reader import StoreReader
from storage.store import CueStore, Provenance
from train.config import ConfigError, TrainConfig
from train.dynamics import MotionRule, moves, score_store
from train.interrupt import StopRequest
from train.loop import train
from train.order import EpochOrder
from train.sampler import StepSampler
from train.selection import frames_again, training_frames, with_repeats

RULE = MotionRule(pixels=1.0, reference_width=32)
"""One pixel of the tiny store's 32."""


def test_a_point_moves_where_the_cue_is_not_what_standing_still_gives() -> None:
    """The camera drives 1 m straight ahead; a point 10 m away and 1 m aside lands at 1/9 of the focal length."""
    K = np.array([[90.0, 0, 50.0], [0, 90.0, 50.0], [0, 0, 1.0]])
    there = np.eye(4)
    there[2, 3] = -1.0
    points, uv = np.array([[1.0, 0.0, 10.0]] * 3), np.array([[59.0, 50.0]] * 3)
    flow = np.zeros((2, 100, 100), dtype=np.int16)
    flow[0, 50, 59] = 1 * 64  # at rest: 90/9 - 90/10 = 1 px to the right
    known = np.ones((100, 100), dtype=bool)
    assert not moves(points, uv, there, K, flow, known, 0.01).any()
    flow[1, 50, 59] = 2 * 64
    assert moves(points, uv, there, K, flow, known, 1.9).all()
    assert not moves(points, uv, there, K, flow, known, 2.1).any()
    known[50, 59] = False
    assert not moves(points, uv, there, K, flow, known, 1.9).any()
    behind = np.eye(4)
    behind[2, 3] = -20.0
    assert not moves(points, uv, behind, K, flow, np.ones_like(known), 0.01).any()


def test_scores_of_a_moving_and_of_a_still_world(make_world: Any, tmp_path: Path) -> None:
    moving = make_world().write(tmp_path / "moving.zarr")
    still = make_world(box_velocity=(0.0, 0.0)).write(tmp_path / "still.zarr")
    frames = list(score_store(StoreReader(moving), rule=RULE))
    assert [f.t for f in frames] == list(range(5))
    # The last keyframe has no next one to move to.
    assert [f.moving > 0 for f in frames] == [True] * 4 + [False]
    # The box is what moves: no more points than LiDAR has on it, in as many images as it is in.
    world = make_world()
    for frame in frames[:4]:
        points, _ = world.lidar(frame.t)
        low, high = world.box(frame.t * 0.5)
        pose = world.ego(frame.t * 0.5)
        placed = points[:, :3].astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
        on_box = ((placed > low - 0.02) & (placed < high + 0.02)).all(axis=1).sum()
        assert 0 < frame.moving <= 2 * on_box
        assert frame.points > 10 * frame.moving
    # At the outline of the box, which the LiDAR sees from higher up, a point may take its neighbour's flow.
    assert sum(f.moving for f in score_store(StoreReader(still), rule=RULE)) <= 2 < sum(f.moving for f in frames) / 20


def test_the_next_command_names_scores_that_lie_elsewhere(tiny_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "my scores.json"
    done = CliRunner().invoke(app, ["dynamics", str(tiny_store), "--out", str(file)])
    assert done.exit_code == 0, done.output
    words = f"--set store={tiny_store} --set data.dynamic.repeat=3 --set 'data.dynamic.scores={file}'"
    assert f"next: occflow train CONFIG {words}\n" in done.output


def test_scores_of_a_store_without_the_cues(tmp_path: Path, make_world: Any) -> None:
    source = StoreReader(make_world().write(tmp_path / "whole.zarr"))
    store = CueStore.create(tmp_path / "bare.zarr", source.attributes)
    store.commit_init("a", source.scene("a").table, "f")
    with pytest.raises(CueMissing, match="occflow cues <config> --cues lidar,flow_next"):
        list(score_store(StoreReader(store.path)))


def test_a_score_without_masks_says_nothing_once_they_have_come(tmp_path: Path, make_world: Any) -> None:
    store = make_world().write(tmp_path / "whole.zarr", scenes=("a",))
    bare = shutil.copytree(store, tmp_path / "bare.zarr")
    CueStore.open(bare).discard(UnitId("masks", "a", 0))
    frames = list(score_store(StoreReader(bare), rule=RULE))
    assert set(current_motion(StoreReader(bare), frames).frames) == {("a", f.t) for f in frames}
    after = current_motion(StoreReader(store), frames)
    assert not after.frames
    assert after.stale[0] == "a:0: made or made anew since: masks"
    # Files of earlier versions kept no word of masks that were missing.
    early = [replace(f, fingerprints={k: v for k, v in f.fingerprints.items() if k != "masks"}) for f in frames]
    assert set(current_motion(StoreReader(bare), early).frames) == {("a", f.t) for f in frames}
    assert current_motion(StoreReader(store), early) == after


def frame(t: int, moving: int, scene: str = "a", **marks: str) -> FrameMotion:
    return FrameMotion(scene, t, f"token{t}", 100, moving, marks)


def test_a_file_of_scores_reads_back(tmp_path: Path) -> None:
    frames = [frame(0, 3, lidar="x"), frame(1, 0, lidar="x"), frame(2, 9, lidar="y"), frame(0, 1, "b", lidar="x")]
    path = write_dynamics(tmp_path / "f" / "s.json", frames, "store.zarr", {"pixels": 8.0})
    assert read_dynamics(path) == frames
    assert [p.name for p in path.parent.iterdir()] == ["s.json"]
    assert frames[0].share == 0.03
    assert replace(frames[0], points=0, moving=0).share == 0.0
    assert dynamics_path("runs/a/store.zarr") == Path("runs/a/store.dynamics.json")
    with pytest.raises(StoreError, match="--out"):
        dynamics_path("s3://bucket/store.zarr")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "schema"),
        ('{"schema": "occflow.dynamics", "schema_version": 9}', "schema_version 9"),
        ('{"schema": "occflow.dynamics", "schema_version": 1}', "cannot be understood"),
        ('{"schema": "occflow.dynamics", "schema_version": 1, "groups": [{"scene": "a", "frames": [[1]]}]}', "anew"),
    ],
)
def test_files_that_are_no_scores(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=told) as error:
        read_dynamics(path)
    assert str(path) in str(error.value)
    with pytest.raises(StoreError, match="occflow dynamics"):
        read_dynamics(tmp_path / "none.json")


def test_scores_hold_while_their_cues_are_the_same(tmp_path: Path, make_world: Any) -> None:
    path = make_world().write(tmp_path / "store.zarr")
    frames = list(score_store(StoreReader(path), rule=RULE))
    assert set(frames[0].fingerprints) == {"lidar", "flow_next", "masks", "init"}
    found = current_motion(StoreReader(path), [*frames, frame(0, 1, "gone"), replace(frames[0], token="gone")])
    assert sorted(found.frames) == [("a", t) for t in range(5)]
    assert [line.split(":")[0] for line in found.stale] == ["gone", "a"]
    # Moved to another place in the scene: found by its token.
    assert list(current_motion(StoreReader(path), [replace(frames[3], t=0)]).frames) == [("a", 3)]
    store, unit = CueStore.open(path), UnitId("masks", "a", 0)
    store.commit_block(unit, store.read_block(unit), Provenance("other"))
    again = current_motion(StoreReader(path), frames)
    assert not again.frames
    assert "masks" in again.stale[0]


@pytest.fixture
def scored(tiny_store: Path, tmp_path: Path, tiny_config: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """Configurations that repeat keyframes 1 and 2 of scene a, the only ones that the file calls dynamic."""
    shares = {("a", 1): 50, ("a", 2): 1}
    kept = [replace(f, points=100, moving=shares.get((f.scene, f.t), 0)) for f in score_store(StoreReader(tiny_store))]
    path = write_dynamics(tmp_path / "scores.json", kept, str(tiny_store), {})

    def make(repeat: int = 3, **changes: Any) -> TrainConfig:
        dynamic = {"repeat": repeat, "top": 1.0, "scores": str(path), **changes.pop("dynamic", {})}
        return tiny_config(data={"dynamic": dynamic, **changes.pop("data", {})}, **changes)

    return make


def epoch(config: TrainConfig, stage: int = 2) -> list[tuple[str, int]]:
    reader = StoreReader(config.store)
    return with_repeats(config, stage, reader, training_frames(config, stage, reader))


def test_an_epoch_holds_dynamic_keyframes_more_often(scored: Callable[..., TrainConfig]) -> None:
    plain = epoch(scored(repeat=1))
    assert set(Counter(plain).values()) == {1}
    found = Counter(epoch(scored()))
    assert {key for key, times in found.items() if times == 3} == {("a", 1), ("a", 2)}
    assert found.keys() == set(plain)
    assert found.total() == len(plain) + 4
    assert Counter(epoch(scored(dynamic={"least_share": 0.02})))["a", 2] == 1
    # Ten keyframes are trained on: a tenth of them is one, the one in which most moves.
    assert len(plain) == 10
    most = Counter(epoch(scored(dynamic={"top": 0.1})))
    assert (most["a", 1], most["a", 2]) == (3, 1)
    assert len(epoch(scored(dynamic={"top": 0.11}))) == 10 + 4
    # The first stage takes the world for static, unless it is told otherwise.
    assert set(Counter(epoch(scored(), stage=1)).values()) == {1}
    assert Counter(epoch(scored(dynamic={"stages": [1, 2]}), stage=1))["a", 1] == 3


def test_over_processes_an_epoch_still_holds_each_entry_once(scored: Callable[..., TrainConfig]) -> None:
    frames = epoch(scored())
    shares = [list(StepSampler(EpochOrder(frames, 0, 2), 2, 40, first=3, rank=rank, world=3)) for rank in range(3)]
    keys = [key for step in zip(*shares, strict=True) for share in step for key in share]
    assert [draw for draw, _ in keys] == list(range(3, 3 + len(keys)))
    whole = [entry for draw, entry in keys if draw // len(frames) == 1]
    assert Counter(frames[entry] for entry in whole) == Counter(frames)


def test_what_cannot_be_selected_is_told(scored: Callable[..., TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="camera only"):
        epoch(scored(ablation={"lidar": False}))
    with pytest.raises(StoreError, match="occflow dynamics"):
        epoch(scored(dynamic={"scores": str(tmp_path / "none.json")}))
    path = write_dynamics(tmp_path / "old.json", [frame(0, 50, lidar="old")], "s", {})
    with pytest.raises(CueMissing, match=r"no score of any of \d+ keyframes holds, 1 no longer hold"):
        epoch(scored(dynamic={"scores": str(path)}))


def test_a_stage_goes_on_with_the_repeats_that_it_began_with(
    scored: Callable[..., TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = epoch(scored())
    kept: dict[str, list[int]] = {}
    for name, t in frames:
        kept.setdefault(name, []).append(t)
    reader = StoreReader(scored().store)
    again = frames_again(json.loads(json.dumps(kept)), training_frames(scored(), 2, reader), scored(), reader)
    assert again == frames
    assert "came since" not in caplog.text


@pytest.mark.slow
def test_a_run_that_repeats_goes_on_exactly(scored: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Stopped after one of four steps, and without the file of scores from then on: the same losses."""
    config = scored(ablation={"two_stage": False}, stage2={"max_steps": 4, "warmup_steps": 2}, out=str(tmp_path / "a"))
    whole = train(config).stages[0].losses
    halved = config.model_copy(update={"out": tmp_path / "b"})
    first = train(halved, stop=StopRequest(deadline=-float("inf"))).stages[0].losses
    assert config.data.dynamic.scores is not None
    config.data.dynamic.scores.unlink()
    rest = train(halved, resume=True).stages[0].losses
    assert [*first, *rest] == whole
    assert len(first) == 1
