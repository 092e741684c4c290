"""An inspection as a whole: sampling, verdicts, comparison, cards, single sheets, exclusions, and the command."""

import gc
import json
import math
import shlex
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from eval.inspection.catalogue import BY_NAME, CHECKS
from eval.inspection.frame_sheet import value_lines as lines
from eval.inspection.gallery import cards, reopen
from eval.inspection.measure import RIG
from eval.inspection.reject import automatic
from eval.inspection.report import beside, make_report
from eval.inspection.run import Inspector, inspect_store
from eval.inspection.sampling import sample_keyframes
from eval.inspection.settings import InspectionSettings, Threshold, load_settings
from eval.inspection.tally import KEPT_WORST, Spread, Tally
from eval.inspection.verdict import CHANCE, LEAST_OF_CAMERA, check_result, state_of, too_many
from eval.rules import EvaluationError
from storage.exclusions import ExcludedFrame, excluded_by, excluded_frames, read_exclusions, write_exclusions
from storage.layout import UnitId
from storage.reader import StoreReader
from storage.schema import SceneTable
from storage.store import CueStore, Provenance
from tests.eval.inspection.corruptions import Arrays, no_flow

ONE = ("street-0",)
Corrupt = Callable[[Path, Path, Callable[[SceneTable, Arrays], SceneTable]], Path]


def test_every_check_is_explained() -> None:
    assert len(BY_NAME) == len(CHECKS)
    for check in CHECKS:
        assert check.values.extent[0] <= check.bad.limit <= check.values.extent[1]
        assert check.measures.endswith(".")
        assert check.meaning.endswith(".")


def test_a_sample_is_even_seeded_and_in_order() -> None:
    lengths = {"a": 5, "b": 1000, "c": 1}
    drawn = sample_keyframes(lengths, InspectionSettings(sample=50, seed=3))
    assert drawn == sample_keyframes(lengths, InspectionSettings(sample=50, seed=3))
    assert drawn != sample_keyframes(lengths, InspectionSettings(sample=50, seed=4))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 50
    assert all(0 <= t < lengths[scene] for scene, t in drawn)
    assert len(sample_keyframes(lengths, InspectionSettings(sample=50, every=True))) == 1006


def test_states_by_share() -> None:
    spread = Spread(BY_NAME["static_bias"], InspectionSettings())
    assert state_of(spread) == "none"
    for k in range(100):
        spread.add(0.05, "s", k, RIG)
    assert state_of(spread) == "pass"
    for k in range(17):
        spread.add(0.5, "s", 100 + k, RIG)
    assert state_of(spread) == "warn"  # 17 of 117 are more than the 10 % that may be: so do 7 % of good samples
    spread.add(0.9, "s", 117, RIG)
    assert state_of(spread) == "fail"
    found = check_result(spread)
    assert found["worst"][0] == {"scene": "s", "t": 117, "camera": RIG, "value": 0.9}
    assert found["by_camera"] == {str(RIG): {"bad": 18, "count": 118}}
    assert sum(found["histogram"]["counts"]) == 118


def test_too_many_is_a_binomial_test() -> None:
    # At least one of four at 10 %: 1 - 0.9^4 = 0.34. Two: 1 - 0.9^4 - 4 0.1 0.9^3 = 0.052. Half is not the majority.
    assert [too_many(bad, 4, 0.1) for bad in range(5)] == [False, False, False, True, True]
    # Two of three at 10 %: 0.028; at 40 % chance gives it often, but then the median is bad.
    assert too_many(2, 3, 0.1)
    assert too_many(2, 3, 0.4)
    assert [too_many(bad, 100, 0.4) for bad in (40, 48, 49, 50)] == [False, False, True, True]
    assert too_many(1, 1000, 0.0)
    assert not too_many(0, 5, 0.0)
    assert not too_many(7, 10, 0.8)
    # Exact against the sum itself.
    for count, share in ((9, 0.15), (26, 0.1), (40, 0.05)):
        for bad in range(count // 2 + 1):
            tail = sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(bad, count + 1))
            assert too_many(bad, count, share) == (tail < CHANCE and bad > share * count), (bad, count, share)


def test_one_systematically_bad_value_of_one_fails() -> None:
    spread = Spread(BY_NAME["mask_edges"], InspectionSettings())
    spread.add(8.0, "the only scene", RIG, RIG)
    assert state_of(spread) == "fail"
    for k in range(3):
        spread.add(0.0, f"another {k}", RIG, RIG)
    assert state_of(spread) == "warn"


def test_one_camera_of_six_is_enough() -> None:
    spread = Spread(BY_NAME["lidar_alignment"], InspectionSettings())
    for k in range(60):
        spread.add(1.2 if k % 6 == 4 else 0.1, "s", k // 6, k % 6)
    assert spread.bad < spread.settings.share(spread.check) * spread.count
    assert state_of(spread) == "fail"
    assert check_result(spread)["bad_cameras"] == [4]
    few = Spread(BY_NAME["lidar_alignment"], InspectionSettings())
    for k in range(LEAST_OF_CAMERA - 1):
        few.add(1.2, "s", k, 4)
        few.add(0.1, "s", k, 0)
        few.add(0.1, "s", k, 1)
    assert state_of(few) == "warn"


def test_memory_of_a_check_is_bounded() -> None:
    spread = Spread(BY_NAME["flow_valid"], InspectionSettings())
    for k in range(25_000):
        spread.add(k / 25_000, "s", k, 0)
    assert len(spread.kept) == 20_000
    assert len(spread.worst) == KEPT_WORST
    assert sorted(spread.worst, reverse=True)[0] == (0.0, "s", 0, 0)  # low is bad
    assert np.median(spread.kept) == pytest.approx(0.5, abs=0.02)


def test_thresholds_are_configured(tmp_path: Path) -> None:
    path = tmp_path / "inspect.yaml"
    path.write_text("sample: 7\nchecks:\n  flow_valid: {limit: 0.7, exclude: true}\n")
    settings = load_settings(path, seed=5, sample=None)
    assert (settings.sample, settings.seed) == (7, 5)
    assert settings.bad(BY_NAME["flow_valid"], 0.6)
    assert settings.share(BY_NAME["flow_valid"]) == BY_NAME["flow_valid"].bad.share
    path.write_text("checks: {flow_vald: {limit: 1}}")
    with pytest.raises(EvaluationError, match="did you mean 'flow_valid'"):
        load_settings(path)
    path.write_text("checks: {mask_flicker: {exclude: true}}")
    with pytest.raises(EvaluationError, match="belong to no single keyframe"):
        load_settings(path)
    path.write_text("sample: none")
    with pytest.raises(EvaluationError, match=r"sample = none"):
        load_settings(path)
    with pytest.raises(EvaluationError, match=r"missing\.yaml"):
        load_settings(tmp_path / "missing.yaml")


@pytest.mark.parametrize("limit", [".inf", "-.inf", ".nan"])
def test_a_limit_is_a_finite_number(tmp_path: Path, limit: str) -> None:
    file = tmp_path / "inspect.yaml"
    file.write_text(f"checks: {{static_bias: {{limit: {limit}}}}}\n")
    with pytest.raises(EvaluationError, match=r"checks\.static_bias\.limit = -?(inf|nan): .*finite"):
        load_settings(file)


def test_the_twin_is_plain_and_versioned(clean_store: Path) -> None:
    found = inspect_store(clean_store, InspectionSettings(sample=3)).result
    again = json.loads(json.dumps(found, allow_nan=False))
    assert (again["schema"], again["schema_version"]) == ("occflow.inspection", 1)
    assert again["sample"] == {"keyframes": 3, "of": 12, "scenes": 2, "seed": 0, "all": False}
    assert {row["cue"] for row in again["provenance"]} == {"images", "lidar", "masks", "flow_next", "flow_prev"}
    assert all(row[cue] == "complete" for row in again["coverage"]["scenes"] for cue in again["coverage"]["cues"])


def test_unknown_scenes_are_named(clean_store: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no scene 'x'; it has street-0, street-1"):
        inspect_store(clean_store, InspectionSettings(scenes=("x",)))


def test_damage_is_reported_and_the_rest_inspected(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", lambda table, arrays: table)
    shard = next((path / "scenes" / "street-0" / "images").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(bytes(data))
    found = inspect_store(path, InspectionSettings(scenes=ONE, every=True)).result
    assert found["unreadable_count"] >= 1
    assert "street-0" in found["unreadable"][0]
    assert {c["name"]: c["state"] for c in found["checks"]}["coverage"] == "fail"


def spoil(file: Path) -> None:
    """Zeros over the first half of a file."""
    data = bytearray(file.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    file.write_bytes(bytes(data))


def test_a_damaged_sweep_is_reported_though_the_usual_is_taken_from_it(
    clean_store: Path, corrupt: Corrupt, tmp_path: Path
) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", lambda table, arrays: table)
    spoil(next((path / "scenes" / "street-0" / "lidar" / "points").glob("c.*")))
    found = inspect_store(path, InspectionSettings(every=True)).result
    assert found["unreadable_count"] > 0
    assert all("street-0" in line and "lidar" in line for line in found["unreadable"])
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["coverage"]["state"] == "fail"
    assert checks["lidar_coverage"]["count"] == 12 - found["unreadable_count"]
    assert checks["lidar_coverage"]["state"] == "pass", "judged by the sweeps that can be read"


def test_a_damaged_table_is_reported_and_the_other_scenes_inspected(
    clean_store: Path, corrupt: Corrupt, tmp_path: Path
) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", lambda table, arrays: table)
    spoil(next((path / "scenes" / "street-0" / "frames" / "timestamp_us").glob("c.*")))
    settings = InspectionSettings(sample=9, checks={"coverage": Threshold(exclude=True)})
    report = make_report(path, tmp_path / "page", settings, against=clean_store)
    found = report.inspection.result
    bad = [(scene, t) for scene, t in report.inspection.frames if scene == "street-0"]
    assert found["unreadable_count"] == len(bad) > 0
    assert {check["name"]: check["count"] for check in found["checks"]}["pose_jump"] == 4, "of street-1 alone"
    assert {check["name"]: check["state"] for check in found["checks"]}["coverage"] == "fail"
    assert "timestamp_us" in next(card["error"] for card in report.drawn.cards if card["check"] == "coverage")
    assert found["against"]["unreadable"] == len(bad)
    marks = automatic(report.inspection)
    assert [(mark.scene, mark.t, mark.token) for mark in marks] == [(*place, "") for place in bad]
    # A scene that the sample passes over is named too: tables are read of all.
    outside = inspect_store(path, InspectionSettings(sample=1, seed=0))
    assert [scene for scene, _ in outside.frames] == ["street-1"]
    assert outside.result["unreadable"][0].startswith("street-0: ")
    assert outside.result["verdict"] == "fail"


def test_automatic_exclusions(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", no_flow)
    settings = InspectionSettings(scenes=ONE, every=True, checks={"flow_valid": Threshold(exclude=True)})
    marks = automatic(inspect_store(path, settings))
    assert [(m.scene, m.t, m.by) for m in marks] == [("street-0", 2, "check:flow_valid")]
    assert set(marks[0].fingerprints) == {"flow_next"}
    assert automatic(inspect_store(path, InspectionSettings(scenes=ONE, every=True))) == []


def test_a_keyframe_that_lacked_a_cue_is_used_once_it_has_it(
    clean_store: Path, corrupt: Corrupt, tmp_path: Path
) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", lambda table, arrays: table)
    store, sweeps = CueStore.open(path), UnitId("lidar", "street-0")
    arrays = store.read_block(sweeps)
    store.discard(sweeps)
    marks = automatic(inspect_store(path, InspectionSettings(every=True, checks={"coverage": Threshold(exclude=True)})))
    assert [(mark.scene, mark.t) for mark in marks] == [("street-0", t) for t in range(6)]
    assert excluded_frames(StoreReader(path), marks).frames == {("street-0", t) for t in range(6)}
    store.commit_block(sweeps, arrays, Provenance("f"))
    found = excluded_frames(StoreReader(path), marks)
    assert (found.frames, len(found.stale)) == (frozenset(), 6)


def test_cards_are_worst_first_and_reopen(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", no_flow)
    found = cards(inspect_store(path, InspectionSettings(scenes=ONE, worst=4, random=2)), pictures=False)
    assert [card["why"] for card in found] == ["worst"] * 4 + ["random"] * 2
    first = found[0]
    assert (first["check"], first["t"], first["camera"]) == ("flow_valid", 2, "CAM_LEFT")
    assert shlex.split(first["command"])[3:] == ["--scene", first["scene"], "--frame", "2", "--camera", "CAM_LEFT"]
    hostile = reopen("/data/a b; rm -rf $HOME/x.zarr", "s'", 1, "C\n")
    assert shlex.split(hostile)[2:] == [
        "/data/a b; rm -rf $HOME/x.zarr",
        "--scene",
        "s'",
        "--frame",
        "1",
        "--camera",
        "C\n",
    ]


def test_the_command(clean_store: Path, tmp_path: Path) -> None:
    from occflow import app

    run, out = CliRunner(), tmp_path / "out"
    done = run.invoke(
        app, ["inspect", str(clean_store), "--sample", "4", "--out", str(out), "--against", str(clean_store)]
    )
    assert done.exit_code == 0, done.output
    twin = json.loads((out / "inspection.json").read_text())
    assert twin["against"]["keyframes"] == 4
    command = shlex.split(twin["cards"][0]["command"])[1:]
    done = run.invoke(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    with Image.open(done.output.strip().splitlines()[-1]) as sheet:
        assert sheet.size[0] > 1500
    wrong = run.invoke(app, ["inspect", str(clean_store), "--scene", "street-0", "--frame", "99"])
    assert wrong.exit_code == 2
    assert run.invoke(app, ["inspect", str(clean_store), "--frame", "1"]).exit_code == 2
    assert run.invoke(app, ["inspect", str(clean_store), "--scene", "x", "--frame", "1"]).exit_code == 2


def test_a_sheet_judges_by_what_is_usual_in_the_whole_store(
    clean_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.inspection import frame_sheet
    from occflow import app

    told: list[list[str]] = []
    monkeypatch.setattr(frame_sheet, "value_lines", lambda *a: told.append(lines(*a)) or told[-1])
    done = CliRunner().invoke(
        app, ["inspect", str(clean_store), "--scene", "street-1", "--frame", "2", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    inspector = Inspector.open(clean_store, InspectionSettings())
    values = inspector.all_values(inspector.keyframe("street-1", 2))
    assert told == [lines(values, c, InspectionSettings()) for c in range(2)]


def test_a_sheet_of_a_camera_without_an_image_is_refused(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    from occflow import app

    def unseen(table: SceneTable, arrays: Arrays) -> SceneTable:
        valid = table.camera_valid.copy()
        valid[2, 1] = False
        return replace(table, camera_valid=valid)

    path = corrupt(clean_store, tmp_path / "store.zarr", unseen)
    options = ["--scene", "street-0", "--frame", "2", "--camera", "CAM_LEFT", "--out", str(tmp_path / "sheets")]
    done = CliRunner().invoke(app, ["inspect", str(path), *options])
    assert done.exit_code == 2, done.output
    told = "--camera CAM_LEFT: no image at keyframe 2 of scene street-0; cameras that have one: CAM_FRONT"
    assert told in " ".join(done.output.split())


def test_points_that_are_not_finite_are_not_counted_as_unseen(
    clean_store: Path, corrupt: Corrupt, tmp_path: Path
) -> None:
    def half_lost(table: SceneTable, arrays: Arrays) -> SceneTable:
        for t, count in enumerate(arrays["lidar"]["lidar/count"]):
            arrays["lidar"]["lidar/points"][t, : count // 2] = np.nan
            arrays["lidar"]["lidar/cameras"][t, : count // 2] = 0
        return table

    path = corrupt(clean_store, tmp_path / "store.zarr", half_lost)
    found = inspect_store(path, InspectionSettings(scenes=ONE)).result["lidar"]
    assert found["not_finite_share"] == pytest.approx(0.5, abs=1e-3)
    assert found["unseen_share"] == 0, "every point that is left is seen"


@pytest.mark.slow
def test_the_command_keeps_reviewers_marks(clean_store: Path, tmp_path: Path) -> None:
    from occflow import app

    path = tmp_path / "marks.json"
    write_exclusions(path, [ExcludedFrame("street-0", 0), ExcludedFrame("street-0", 1, by="check:old")], "s")
    config = tmp_path / "inspect.yaml"
    config.write_text("checks: {frozen: {limit: 1000, exclude: true}}\n")
    options = ["--sample", "2", "--out", str(tmp_path), "--config", str(config), "--exclude", str(path)]
    done = CliRunner().invoke(app, ["inspect", str(clean_store), *options])
    assert done.exit_code == 0, done.output
    authors = {mark.by for mark in read_exclusions(path)}
    assert authors == {"reviewer", "check:frozen"}
    assert ("street-0", 0) in excluded_by(StoreReader(clean_store), [path]).frames


def test_marks_of_scenes_that_are_not_asked_for_stay(clean_store: Path, tmp_path: Path) -> None:
    from occflow import app

    path, config = tmp_path / "marks.json", tmp_path / "inspect.yaml"
    old = [ExcludedFrame(f"street-{k}", t, by="check:frozen") for k in (0, 1) for t in (0, 5)]
    write_exclusions(path, old, "s")
    config.write_text("checks: {flow_valid: {exclude: true}}\n")
    chosen = ["--scenes", "street-1", "--sample", "1", "--seed", "0"]
    options = [*chosen, "--out", str(tmp_path), "--config", str(config), "--exclude", str(path)]
    done = CliRunner().invoke(app, ["inspect", str(clean_store), *options])
    assert done.exit_code == 0, done.output
    assert read_exclusions(path) == old[:2]
    assert "2 by checks of other scenes" in done.output
    looked = sample_keyframes({"street-1": 6}, InspectionSettings(sample=1))
    gone = sum((mark.scene, mark.t) not in looked for mark in old[2:])
    assert f"{gone} earlier marks by checks are gone" in done.output


def test_a_store_of_images_alone(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    def images_only(table: SceneTable, arrays: Arrays) -> SceneTable:
        for cue in set(arrays) - {"images"}:
            del arrays[cue]
        table.camera_valid[1, 0] = False
        table.camera_global_from_ego[1, 0] = table.ego_from_cam[1, 0] = np.nan
        return table

    path = corrupt(clean_store, tmp_path / "store.zarr", images_only)
    made = make_report(path, tmp_path / "out", InspectionSettings(scenes=ONE, random=3))
    states = {check["name"]: check["state"] for check in made.inspection.result["checks"]}
    measured = {name for name, state in states.items() if state != "none"}
    assert measured == {"coverage", "frozen", "exposure", "camera_offset", "pose_time", "pose_jump"}
    assert made.failing() == ["Cues present"]
    assert made.page.exists()


def test_a_closed_keyframe_is_freed_at_once(clean_store: Path) -> None:
    keyframe = Inspector.open(clean_store, InspectionSettings()).keyframe("street-0", 1)
    assert all(view.image is not None for view in keyframe.cameras())
    gone = weakref.ref(keyframe)
    gc.disable()
    try:
        keyframe.close()
        del keyframe
        assert gone() is None
    finally:
        gc.enable()


def test_where_the_page_goes() -> None:
    assert beside("/data/big.zarr") == Path("/data/big.inspection")
    assert beside("s3://bucket/a/big.zarr") == Path("big.inspection")


def test_the_end_of_an_extraction(
    clean_store: Path, corrupt: Corrupt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.inspection import inspect_made, leave_inspection, markdown

    path = corrupt(clean_store, tmp_path / "a b<x>.zarr", lambda table, arrays: table)
    text = markdown(inspect_made(path, sample=2))
    assert "from 2 of 12 keyframes. Failing: none." in text
    assert "a%20b%3Cx%3E.inspection/inspection.html" in text
    assert markdown(inspect_made(tmp_path / "none.zarr")).startswith("no inspection: ")
    left: dict[str, str] = {}
    monkeypatch.setattr("prefect.artifacts.create_markdown_artifact", lambda **artifact: left.update(artifact))
    assert leave_inspection(path, sample=2) == f"labels: warn, {tmp_path / 'a b<x>.inspection' / 'inspection.html'}"
    assert (left["key"], left["markdown"]) == ("inspection", text)


def test_values_that_are_nan_do_not_count() -> None:
    from eval.inspection.measure import Measured

    tally = Tally(InspectionSettings())
    tally.add(Measured("s", 0, 0, {"exposure": float("nan"), "flow_valid": 0.5}))
    assert (tally.spreads["exposure"].count, tally.spreads["flow_valid"].count) == (0, 1)
