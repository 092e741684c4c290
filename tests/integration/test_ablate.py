"""The ablation matrix: it stops in order, goes on, shares runs, keeps failures, and never mixes two settings."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import occflow_ablate
import train.loop
from eval.ablation import FIGURES
from occflow_ablate import Material, MatrixError, Plan, command_of, make_material, run
from occflow_demo import Size
from storage.store import CueStore
from tests.storage.conftest import make_attributes, make_table
from train.ablations import digest as config_digest
from train.ablations import distinct, first_stage_digest, row_config, rows, share_first_stage
from train.checkpoint import CONFIG_NAME, TRAINING_NAME, TrainingState, load_state
from train.config import TrainConfig, dump_config
from train.loop import RunResult, StageResult
from train.watch import TrainingDiverged

ROOT = Path(__file__).parents[2]
SIZE = Size(
    training_scenes=1,
    held_out_scenes=1,
    keyframes=3,
    synth={"width": 176, "height": 99, "lidar_beams": 16, "lidar_azimuths": 360},
    cues={"sizes.network": [32, 88], "sizes.render": [32, 88]},
)
TINY = (
    "model.grid.voxel=1.6", "rays.grid=[8,22]", "rays.lidar=256", "loss.eikonal_samples=512", "model.render.samples=16",
    "stage1.max_steps=1", "stage2.max_steps=2", "run.accelerator=cpu",
)  # fmt: skip
QUIET = Console(quiet=True)


MATERIAL = Material("s.zarr", ("a",), ("b",))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs are made up at once: the list that fills with (row, seed) as they are trained. DE is 1 + seed, less 0.5
    without the flow loss."""
    order: list[tuple[str, int]] = []

    def trained(config: TrainConfig, *, resume: bool, stop: Any) -> RunResult:
        assert resume, "every run goes on where an earlier invocation left it"
        name, _, seed = config.out.parent.name.rpartition("-")
        assert config.seed == int(seed)
        order.append((name, config.seed))
        config.out.mkdir(exist_ok=True)
        (config.out / "trained").write_text(json.dumps([config.seed, config.ablation.flow_supervision]))
        return RunResult(config.out, config.out, (StageResult(2, config.out, True, 3, 1.0),), True, 1.0)

    def evaluated(checkpoint: Path, accelerator: str, material: Material) -> dict[str, Any]:
        seed, flow = json.loads((checkpoint / "trained").read_text())
        figures = {**dict.fromkeys(FIGURES), "DE": 1.0 + seed - (0.0 if flow else 0.5)}
        baselines = {"flat_ground": {"abs_rel": 0.5}, "zero_flow": {}}
        evaluation = {"protocol": "geometry", "baselines": baselines}
        return {"figures": figures, "evaluation": evaluation, "device": "cpu"}

    monkeypatch.setattr(train.loop, "train", trained)
    monkeypatch.setattr(occflow_ablate, "evaluate_run", evaluated)
    return order


def test_seeds_come_in_turn_and_nothing_is_run_twice(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    wanted = ("t7_without_flow", "t5_full", "t7_with_flow")
    assert run(tmp_path, QUIET, Plan(rows=wanted, seeds=2, budget_minutes=0), MATERIAL)["runs"] == 0
    assert run(tmp_path, QUIET, Plan(rows=wanted, seeds=1), MATERIAL)["runs"] == 2
    console = Console(record=True, width=250)
    summary = run(tmp_path, console, Plan(rows=wanted, seeds=3), MATERIAL)
    both = ("t7_without_flow", "camera_lidar")
    assert drawn == [(row, seed) for seed in range(3) for row in both]
    assert summary["rows"]["t5_full"] == summary["rows"]["camera_lidar"]
    found = next(c for c in summary["comparisons"] if (c["table"], c["metric"]) == ("7", "DE"))
    assert (found["seeds"], found["mean"], found["low"]) == ([0, 1, 2], 0.5, 0.5)
    assert found["verdict"] == "as the paper"
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    for text in (console.export_text(), (tmp_path / "summary.md").read_text()):
        assert "t5_full (= camera_lidar)" in text
        assert "as the paper" in text
    page = (tmp_path / "summary.md").read_text()
    given = f"--out {tmp_path} --base ablation --seeds 3 --rows {','.join(wanted)}"
    assert f"python occflow_ablate.py {given} --store s.zarr --scenes a --held-out b\n" in page
    assert "Trained on a; held out: b." in page
    assert not list(tmp_path.rglob(".*.json.*")), "no half-written file stays"


def test_a_second_machine_takes_the_seeds_after_the_first_ones(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    wanted = ("camera_only", "camera_lidar")
    run(tmp_path / "here", QUIET, Plan(rows=wanted, seeds=2), MATERIAL)
    run(tmp_path / "there", QUIET, Plan(rows=wanted, seeds=1, first_seed=2), MATERIAL)
    assert drawn[4:] == [("camera_only", 2), ("camera_lidar", 2)]
    assert "--first-seed 2" in (tmp_path / "there" / "summary.md").read_text()
    shutil.copytree(tmp_path / "there" / "runs", tmp_path / "here" / "runs", dirs_exist_ok=True)
    assert run(tmp_path / "here", QUIET, Plan(rows=wanted, seeds=2), MATERIAL)["runs"] == 6
    assert len(drawn) == 6, "what was copied is not run again"


def test_results_of_other_settings_or_scenes_are_not_counted_but_named(
    drawn: list[tuple[str, int]], tmp_path: Path
) -> None:
    here, wanted = tmp_path / "here", ("camera_only", "camera_lidar")
    others = {
        1: (Plan(rows=wanted, seeds=1, first_seed=1, overrides=("stage1.max_steps=7",)), MATERIAL),
        2: (Plan(rows=wanted, seeds=1, first_seed=2), Material("s.zarr", ("a",), ("c",))),
        3: (Plan(rows=wanted, seeds=1, first_seed=3), Material("elsewhere/t.zarr", ("a",), ("b",))),
    }
    for seed, (plan, material) in others.items():
        run(tmp_path / str(seed), QUIET, plan, material)
        shutil.copytree(tmp_path / str(seed) / "runs", here / "runs", dirs_exist_ok=True)
    (here / "runs" / "alien-0").mkdir()
    (here / "runs" / "alien-0" / "result.json").write_text(json.dumps({"row": "alien", "seed": 0}))
    console = Console(record=True, width=250)
    summary = run(here, console, Plan(rows=wanted, seeds=4), MATERIAL)
    assert summary["rows"]["camera_only"]["seeds"] == [0, 3], "of the same settings and scenes, wherever it was made"
    assert set(summary["refused"]) == {f"{row}-{seed}" for row in wanted for seed in (1, 2)} | {"alien-0"}
    page, said = (here / "summary.md").read_text(), console.export_text()
    for text in (page, said):
        assert all(name in text for name in summary["refused"])
    assert "- not counted: camera_only-2: judged by c, and this matrix by b" in page
    assert "camera_only-1: settings '" in said
    shutil.rmtree(here / "runs" / "camera_only-1")
    assert run(here, QUIET, Plan(rows=wanted, seeds=4), MATERIAL)["rows"]["camera_only"]["seeds"] == [0, 1, 3]


def test_the_whole_command_is_kept(tmp_path: Path) -> None:
    plan = Plan("my base", ("a.b=[1, 2]",), ("camera_only", "t5_joint"), 2, 3, 1.5)
    command = command_of(tmp_path, plan, Material("s 1.zarr", ("a", "b"), ("c",)))
    assert shlex.split(command)[2:] == [
        *("--out", str(tmp_path), "--base", "my base", "--seeds", "2", "--first-seed", "3"),
        *("--rows", "camera_only,t5_joint", "--budget-minutes", "1.5"),
        *("--store", "s 1.zarr", "--scenes", "a,b", "--held-out", "c", "--set", "a.b=[1, 2]"),
    ]
    assert "--store" not in command_of(tmp_path, Plan(), None), "where the command made the log it makes it again"


def test_all_rows_by_default(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    run(tmp_path, QUIET, Plan(seeds=1), MATERIAL)
    assert len(drawn) == 17
    assert drawn[:2] == [("camera_only", 0), ("camera_lidar", 0)]


def test_another_store_with_scenes_of_the_same_names_is_refused(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    """Every synthetic log has a scene-0001: names alone do not tell what a run was trained on."""

    def material(name: str, frames: int) -> Material:
        store = CueStore.create(tmp_path / name, make_attributes())
        for scene in ("a", "b"):
            store.commit_init(scene, make_table(frames), "fp")
        return Material(str(store.path), ("a",), ("b",))

    first, other, folder = material("one.zarr", 5), material("two.zarr", 4), tmp_path / "matrix"
    shutil.copytree(first.store, tmp_path / "copy.zarr")
    plan = Plan(rows=("camera_only",), seeds=1)
    run(folder, QUIET, plan, first)
    with pytest.raises(MatrixError, match=r"begun with another store \(other keyframes, poses or sizes in a, b\)"):
        run(folder, QUIET, plan, other)
    run(folder, QUIET, plan, Material(str(tmp_path / "copy.zarr"), ("a",), ("b",)))
    begun = json.loads((folder / "matrix.json").read_text())
    del begun["tables"]
    (folder / "matrix.json").write_text(json.dumps(begun))
    run(folder, QUIET, plan, first)
    assert drawn == [("camera_only", 0)]


def test_two_processes_share_a_matrix(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    plan = Plan(rows=("camera_only", "camera_lidar"), seeds=1)
    run(tmp_path, QUIET, Plan(rows=plan.rows, seeds=1, budget_minutes=0), MATERIAL)
    with (tmp_path / "runs" / "camera_only-0" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run(tmp_path, QUIET, plan, MATERIAL)
        assert drawn == [("camera_lidar", 0)]
    run(tmp_path, QUIET, plan, MATERIAL)
    assert drawn == [("camera_lidar", 0), ("camera_only", 0)]


def test_sigterm_ends_it_in_order(
    drawn: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.loop.train

    def stopped(config: TrainConfig, *, resume: bool, stop: Any) -> RunResult:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.made
        unfinished = StageResult(1, config.out, False, 1, 1.0)
        return RunResult(config.out, config.out, (unfinished,), False, 1.0)

    before, plan = signal.getsignal(signal.SIGTERM), Plan(rows=("camera_only", "camera_lidar"), seeds=2)
    monkeypatch.setattr(train.loop, "train", stopped)
    assert run(tmp_path, QUIET, plan, MATERIAL)["runs"] == 0
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.setattr(train.loop, "train", whole)
    assert run(tmp_path, QUIET, plan, MATERIAL)["runs"] == 4


def test_a_run_that_diverges_is_kept_and_counted(
    drawn: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.loop.train

    def train_or_fail(config: TrainConfig, **options: Any) -> RunResult:
        if not config.ablation.flow_supervision and config.seed == 1:
            raise TrainingDiverged("stage 2, step 1: loss not finite")
        return whole(config, **options)

    plan = Plan(rows=("camera_lidar", "t7_without_flow"), seeds=3)
    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "train", train_or_fail)
        summary = run(tmp_path, QUIET, plan, MATERIAL)
    assert summary["failed"] == {"t7_without_flow, seed 1": "stage 2, step 1: loss not finite"}
    found = next(c for c in summary["comparisons"] if c["table"] == "7" and c["metric"] == "DE")
    assert (found["seeds"], found["without_value"], found["verdict"]) == ([0, 2], [1], "unresolved")
    assert "failed: t7_without_flow, seed 1" in (tmp_path / "summary.md").read_text()
    assert run(tmp_path, QUIET, plan, MATERIAL) == summary, "a failed seed is not drawn again"


def test_two_settings_do_not_share_a_folder(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    plan = Plan(overrides=("stage1.max_steps=1",), budget_minutes=0)
    run(tmp_path, QUIET, plan, MATERIAL)
    with pytest.raises(MatrixError, match=r"begun with another digests.*stage1.max_steps=1"):
        run(tmp_path, QUIET, Plan(overrides=("stage1.max_steps=2",), budget_minutes=0), MATERIAL)
    with pytest.raises(MatrixError, match="begun with another held_out"):
        run(tmp_path, QUIET, plan, Material("s.zarr", ("a",), ("c",)))
    with pytest.raises(MatrixError, match="no such row: t9; there are camera_only"):
        run(tmp_path, QUIET, Plan(rows=("t9",)), MATERIAL)
    run(tmp_path, QUIET, plan, Material("moved/s.zarr", ("a",), ("b",)))
    assert drawn == []


def test_a_matrix_takes_rows_that_came_later(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    plan = Plan(rows=("camera_lidar", "own_locality"), seeds=1)
    run(tmp_path, QUIET, Plan(rows=plan.rows, seeds=1, budget_minutes=0), MATERIAL)
    begun = json.loads((tmp_path / "matrix.json").read_text())
    del begun["digests"]["own_locality"]
    (tmp_path / "matrix.json").write_text(json.dumps(begun))
    assert run(tmp_path, QUIET, plan, MATERIAL)["runs"] == 2
    assert "own_locality" in json.loads((tmp_path / "matrix.json").read_text())["digests"]
    begun["digests"]["camera_lidar"] = "another"
    (tmp_path / "matrix.json").write_text(json.dumps(begun))
    with pytest.raises(MatrixError, match="begun with another digests"):
        run(tmp_path, QUIET, plan, MATERIAL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--store", "s.zarr"], "--store, --scenes and --held-out go together"),
        (["--store", "s.zarr", "--scenes", "a,b", "--held-out", "b"], "held out and trained on at once: b"),
    ],
)
def test_options_that_cannot_be_used(options: list[str], words: str) -> None:
    app = occflow_ablate.typer.Typer()
    app.command()(occflow_ablate.main)
    ended = CliRunner().invoke(app, options)
    assert ended.exit_code != 0
    assert words in (ended.output + str(ended.exception))


def test_rows_differ_in_their_switches_alone(tmp_path: Path) -> None:
    configs = {row: row_config(row, 7, "s.zarr", tmp_path, ["a"], "ablation") for row in rows()}
    trained = distinct({row: config_digest(config) for row, config in configs.items()})
    assert {row: source for row, source in trained.items() if row != source} == {
        "t4_full": "camera_only",
        "t5_full": "camera_lidar",
        "t6_both": "camera_only",
        "t7_with_flow": "camera_lidar",
    }
    base = configs["camera_lidar"].model_dump()
    for row, config in configs.items():
        changed = {key for key, value in config.model_dump().items() if value != base[key]}
        if row.startswith("own_"):
            assert changed == ({"loss"} if row == "own_instance_flow" else {"data"}), row
        else:
            assert changed <= {"ablation", "model", *({"loss"} if row == "t7_without_flow" else {"stage2"})}, row
        stages = [config.stage1, config.stage2][not config.ablation.two_stage :]
        steps = [stage.max_steps or 0 for stage in stages]
        assert sum(steps) == 860, row
        assert sum(n * stage.image_share for n, stage in zip(steps, stages, strict=True)) == pytest.approx(561), row
        assert config.ablation.lidar == (not row.startswith(("t4", "t6", "camera_only"))), row
    whole = configs["t5_joint"]
    assert whole.stage2.lr_scale == whole.stage1.lr_scale, "one stage from nothing is trained as a first one"
    assert (configs["t7_without_flow"].loss.lifted_flow, base["loss"]["lifted_flow"]) == (0, 1)


def test_rows_that_share_a_first_stage(tmp_path: Path) -> None:
    found: dict[str | None, set[str]] = {}
    for row in distinct({row: row for row in rows()}):
        config = row_config(row, 7, "s.zarr", tmp_path, ["a"], "ablation")
        found.setdefault(first_stage_digest(config), set()).add(row)
    groups = {frozenset(group) for group in found.values()}
    assert groups == {
        frozenset({"camera_only", "t4_full", "t6_none", "t6_forward", "t6_both"}),
        frozenset(
            {"camera_lidar", "t5_two_stage", "t5_full", "t7_without_flow", "t7_with_flow", "t8_two_stage", "t8_full"}
            | {"own_instance_flow"}
        ),
        frozenset({"t4_concat"}),
        frozenset({"t4_bev_pool_forward"}),
        frozenset({"t4_bev_pool_bfam"}),
        frozenset({"t5_joint", "t8_joint"}),
        frozenset({"own_confidence"}),
        frozenset({"own_future_frames"}),
        frozenset({"own_locality"}),
    }
    assert found[None] == {"t5_joint", "t8_joint"}, "without a first stage"
    other = row_config("camera_only", 7, "s.zarr", tmp_path, ["a"], "ablation", ["stage1.max_steps=7"])
    assert first_stage_digest(other) not in found
    compared = [
        row_config(row, 7, "s.zarr", tmp_path, ["a"], "two_hours") for row in ("t7_without_flow", "t7_with_flow")
    ]
    assert [config.loss.pixel_motion for config in compared] == [0.0, 2.0]
    assert len({first_stage_digest(config) for config in compared}) == 1, (
        "images are compared in the second stage alone"
    )


def test_a_run_that_was_given_its_first_stage_just_now_is_taken_from_too(tmp_path: Path) -> None:
    """It has no configuration of its own yet. Unfinished ones, and those of another seed, are not taken."""
    configs = {
        name: row_config(name[:-2], int(name[-1]), "s.zarr", tmp_path / name / "train", ["a"], "ablation")
        for name in ("camera_lidar-0", "camera_lidar-1", "t5_two_stage-0", "t8_full-0", "t8_full-1")
    }
    for name, finished in (("camera_lidar-0", False), ("t5_two_stage-0", True)):
        stage = configs[name].out / "stage1"
        stage.mkdir(parents=True)
        (stage / CONFIG_NAME).write_text(dump_config(configs[name]))
        torch.save(asdict(TrainingState(1, 3, 1.0, finished)), stage / TRAINING_NAME)
    assert share_first_stage(configs["t8_full-0"]) == "t5_two_stage-0"
    assert load_state(configs["t8_full-0"].out / "stage1").finished
    assert share_first_stage(configs["t8_full-0"]) is None, "it has one now"
    assert share_first_stage(configs["t8_full-1"]) is None


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A store of one scene to train on and one held out, made once."""
    return make_material(tmp_path_factory.mktemp("ablation"), SIZE, QUIET)


@pytest.mark.slow
def test_the_whole_way(material: Material, tmp_path: Path) -> None:
    """Log, cues, two rows, real figures; the store is not made again."""
    summary = run(tmp_path, QUIET, Plan(overrides=TINY, rows=("t5_full", "t7_without_flow"), seeds=1), material)
    assert summary["runs"] == 2
    row = summary["rows"]["camera_lidar"]
    assert {name for name in FIGURES if row[name] is not None} >= {"RayIoU", "non-ground", "flow error", "Abs Rel"}
    assert row["DE"]["mean"] > 0
    assert row["EPE_FG"]["mean"] > 0
    assert {"RayIoU", "non-ground", "Abs Rel"} <= set(summary["baselines"]["flat ground"])
    result = json.loads((tmp_path / "runs" / "camera_lidar-0" / "result.json").read_text())
    assert result["steps"] == {"stage1": 1, "stage2": 2}
    assert result["evaluation"]["scenes"] == list(material.held_out)
    assert result["evaluation"]["sweep"][0]["threshold_m"] == 0.1
    folder = Path(material.store).parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert make_material(folder, SIZE, QUIET) == material
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before


@pytest.mark.slow
def test_a_first_stage_taken_from_another_row_changes_no_bit(material: Material, tmp_path: Path) -> None:
    """And one that is damaged, unfinished or of another seed is not taken."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    console = Console(record=True, width=200)
    run(together, console, Plan(overrides=TINY, rows=("camera_lidar", "t7_without_flow"), seeds=1), material)
    assert "t7_without_flow, seed 0: training, from the first stage of camera_lidar-0" in console.export_text()
    console = Console(record=True, width=200)
    run(alone, console, Plan(overrides=TINY, rows=("t7_without_flow",), seeds=1), material)
    assert "from the first stage" not in console.export_text()
    for stage in ("stage1", "stage2"):
        for other in ("", "ema/"):
            taken, own = (
                load_file(folder / "runs/t7_without_flow-0/train" / stage / f"{other}model.safetensors")
                for folder in (together, alone)
            )
            assert all(torch.equal(taken[name], own[name]) for name in own)
            assert taken.keys() == own.keys()
    (together / "runs/camera_lidar-0/train/stage1/training.pt").write_bytes(b"damaged")
    shutil.rmtree(together / "runs/t7_without_flow-0")
    console = Console(record=True, width=200)
    run(together, console, Plan(overrides=TINY, rows=("t7_without_flow", "t8_full"), seeds=1), material)
    text = console.export_text()
    assert "t7_without_flow, seed 0: training\n" in text
    assert "t8_full, seed 0: training, from the first stage of t7_without_flow-0" in text


@pytest.mark.slow
def test_a_training_machine_needs_no_pipelines(material: Material, tmp_path: Path) -> None:
    """With the store there, a run touches neither the extraction nor zarr, Prefect or numba."""
    script = (
        "import sys, json\n"
        "for name in ('pipelines', 'prefect', 'zarr', 'numba'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "from occflow_ablate import Material, Plan, run\n"
        f"material = Material({material.store!r}, {material.training!r}, {material.held_out!r})\n"
        f"plan = Plan(overrides={TINY!r}, rows=('camera_only',), seeds=1)\n"
        f"print(run(Path({str(tmp_path)!r}), Console(quiet=True), plan, material)['runs'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1:] == ["1"], ended.stderr  # lines before it are of the training
