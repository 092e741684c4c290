"""Label-free fine-tuning: its losses against slow loops and identities, its loop on a picture whose motion is known."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipelines.adapt.collect import CollectSettings, collect_pairs
from pipelines.adapt.figures import measure
from pipelines.adapt.loop import AdaptSettings, adapt, unsupervised_loss
from pipelines.adapt.losses import (
    census,
    census_difference,
    masked_mean,
    photometric_loss,
    smoothness_loss,
    teacher_loss,
)
from pipelines.adapt.pairs import FramePairs, PairsError
from pipelines.adapt.run import fine_tune, settings_of
from pipelines.adapt.views import Cut
from pipelines.config import ConfigError, CuesConfig
from pipelines.cues.unimatch.network import UniMatch, save_network
from pipelines.cues.unimatch.variants import Variant
from pipelines.cues.unimatch.weights import load_network
from pipelines.inputs import ImageCache
from pipelines.registry import open_log
from pipelines.weights import WeightsError

TINY = Variant("tiny", scales=1, splits=(2,), widths=(8, 8, 8), channels=16, layers=1)


def pictures(count: int = 1, height: int = 16, width: int = 24) -> torch.Tensor:
    noise = np.random.default_rng(0).random((height, width, 3 * count)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.0)
    return torch.from_numpy(smooth).permute(2, 0, 1).reshape(count, 3, height, width)


def shifted_pairs(count: int = 8, size: tuple[int, int] = (32, 48), shift: int = 3) -> FramePairs:
    """One picture that moves `shift` pixels to the left from image to image."""
    rng = np.random.default_rng(1)
    world = rng.integers(0, 256, (size[0], size[1] + shift * count, 3), dtype=np.uint8)
    world = cv2.normalize(cv2.GaussianBlur(world, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)
    images = np.stack([world[:, shift * t : shift * t + size[1]] for t in range(count + 1)])
    flow = np.zeros((count, 2, *size), np.float32)
    flow[:, 0] = -shift
    flow[:, :, :, :shift] = np.nan
    return FramePairs(images, np.stack([np.arange(count), np.arange(count) + 1], axis=1), flow)


def test_census_by_loops() -> None:
    image = pictures()
    found = census(image, patch=3)[0]
    grey = 255 * (0.2989 * image[0, 0] + 0.5870 * image[0, 1] + 0.1140 * image[0, 2])
    for v, u in ((1, 1), (7, 20)):
        for k, (dy, dx) in enumerate((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
            d = (grey[v + dy, u + dx] - grey[v, u]).item()
            assert found[k, v, u].item() == pytest.approx(d / (0.81 + d * d) ** 0.5, abs=1e-3)


def test_census_sees_structure_and_no_light() -> None:
    image = pictures()
    assert census_difference(image, image).max() == 0
    brighter = census_difference(image, image + 0.1)[..., 3:-3, 3:-3].mean()
    other = census_difference(image, image.flip(-1))[..., 3:-3, 3:-3].mean()
    assert brighter < 0.01 * other


def test_photometric_loss_is_least_at_the_true_flow_and_asks_nothing_of_the_hidden() -> None:
    first = pictures(1, 24, 32)
    second = first.roll(2, -1)
    visible = torch.ones(1, 1, 24, 32, dtype=torch.bool)
    visible[..., -8:] = False

    def loss(u: float) -> torch.Tensor:
        flow = torch.zeros(1, 2, 24, 32)
        flow[:, 0] = u
        return photometric_loss(first, second, flow, visible)

    values = [loss(u).item() for u in (0.0, 1.0, 1.5, 2.0, 2.5, 3.0)]
    assert np.argmin(values) == 3
    flow = torch.full((1, 2, 24, 32), 0.3, requires_grad=True)
    photometric_loss(first, second, flow, visible).backward()
    assert flow.grad is not None
    assert (flow.grad[..., -5:] == 0).all()  # the patches of what is visible reach three pixels farther
    assert (flow.grad[..., 4:-8] != 0).any()


def test_nothing_visible_asks_for_nothing() -> None:
    values = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = masked_mean(values, torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert values.grad is not None
    assert (values.grad == 0).all()


def test_smoothness_by_hand() -> None:
    flat = torch.zeros(1, 3, 8, 8)
    ramp = torch.arange(8.0).expand(1, 2, 8, 8)
    # A ramp has no second difference; its first is 1 along rows and 0 along columns. Roots of 1e-6 stay: 0.001.
    assert smoothness_loss(flat, ramp, order=2).item() == pytest.approx(0.001, abs=1e-5)
    assert smoothness_loss(flat, ramp, order=1).item() == pytest.approx((1 + 0.001) / 2, abs=1e-5)
    edge = flat.clone()
    edge[..., 4:] = 1.0
    step = torch.zeros(1, 2, 8, 8)
    step[..., 4:] = 5.0
    assert smoothness_loss(flat, step, order=1).item() > 0.3
    assert smoothness_loss(edge, step, order=1).item() < 0.002
    assert smoothness_loss(edge.repeat_interleave(4, -1).repeat_interleave(4, -2), step, order=1).item() < 0.002


def test_a_cut_keeps_image_and_flow_together() -> None:
    random = torch.Generator().manual_seed(3)
    cut = Cut.draw(32, 48, 0.4, random)
    assert 32 * 0.6 <= cut.bottom - cut.top <= 32
    assert 48 * 0.6 <= cut.right - cut.left <= 48
    # Position images: where a pixel comes from. Moving by the cut's flow must move the origin by the true flow.
    cut = Cut(4, 28, 6, 42)
    v, u = torch.meshgrid(torch.arange(32.0) + 0.5, torch.arange(48.0) + 0.5, indexing="ij")
    origin = cut.images(torch.stack([u, v])[None])
    flow = cut.flow(torch.tensor([3.0, -1.5]).view(1, 2, 1, 1).expand(1, 2, 32, 48))
    assert flow[0, :, 5, 5].tolist() == pytest.approx([4.0, -2.0])
    moved = origin[0, :, 10 - 2, 20 + 4] - origin[0, :, 10, 20]
    assert moved.tolist() == pytest.approx([3.0, -1.5])


def test_measured_against_truth_by_hand() -> None:
    pairs = shifted_pairs(2)
    network = UniMatch(TINY).eval()
    figures = measure(network, pairs, [0, 1])
    with torch.inference_mode():
        first, second = (torch.from_numpy(pairs.images[[k]]).permute(0, 3, 1, 2) for k in (0, 1))
        flow = network(first, second).forward[0].numpy()
    error = np.linalg.norm(flow - [[[-3]], [[0]]], axis=0)[:, 3:]
    alone = measure(network, pairs, [0])
    assert alone["epe"] == pytest.approx(error.mean(), rel=1e-5)
    assert alone["fl_all"] == pytest.approx((error > 3).mean(), abs=1e-6)
    assert figures["zero_epe"] == 3.0
    without = measure(network, replace(pairs, flow=None), [0])
    assert "epe" not in without
    assert without["round_trip"] == alone["round_trip"]


def settings(**changes: object) -> AdaptSettings:
    return replace(AdaptSettings(steps=4, learning_rate=1e-3, every=2, held_out=4, margin=0.3), **changes)


def taught_wrong(pairs: FramePairs) -> UniMatch:
    """A network that was taught, with labels, that the picture moves 2 pixels where it moves 3."""
    torch.manual_seed(1)
    network = UniMatch(TINY).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    first, second = (torch.from_numpy(pairs.images[pairs.pairs[:, k]]).permute(0, 3, 1, 2) for k in (0, 1))
    wrong = torch.tensor([-2.0, 0.0]).view(1, 2, 1, 1)
    signed = torch.cat([wrong.expand(len(pairs), -1, -1, -1), -wrong.expand(len(pairs), -1, -1, -1)])
    for _ in range(80):
        loss = torch.stack([(answer - signed).abs().mean() for answer in network(first, second, steps=True).steps])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return network


def test_pictures_alone_put_a_wrong_motion_right(tmp_path: Path) -> None:
    pairs = shifted_pairs(4)
    chosen = settings(steps=60, learning_rate=2e-4, every=60, held_out=0, tolerance=1.0)
    history = adapt(taught_wrong(pairs), pairs, chosen, tmp_path)
    assert [m["step"] for m in history] == [0, 60]
    assert 0.8 < history[0]["epe"] < 1.5
    assert history[-1]["epe"] < 0.75 * history[0]["epe"]
    assert history[-1]["census"] < history[0]["census"]
    kept = load_network(tmp_path / "adapted.pth")
    assert measure(kept, pairs, range(4))["epe"] == pytest.approx(history[-1]["epe"], rel=1e-4)
    assert json.loads((tmp_path / "history.json").read_text())["measurements"] == history


def test_self_supervision_teaches_only_what_the_student_lacks() -> None:
    torch.manual_seed(0)
    network = UniMatch(TINY)
    pairs = shifted_pairs(1)
    first, second = (torch.from_numpy(pairs.images[[k]]).permute(0, 3, 1, 2).float() for k in (0, 1))

    def loss(progress: float, margin: float) -> float:
        random = torch.Generator().manual_seed(1)
        chosen = settings(tolerance=16.0, teacher=1.0, teacher_from=0.5, margin=margin)
        return unsupervised_loss(network, first, second, chosen, progress, random).item()

    # Nothing before its time, and nothing from a student that sees what its teacher sees.
    assert loss(0.5, 0.3) == loss(0.0, 0.3)
    assert loss(1.0, 0.3) > loss(0.5, 0.3)
    assert loss(1.0, 0.0) == pytest.approx(loss(0.5, 0.0), abs=1e-5)


def test_the_teacher_is_a_given() -> None:
    student = torch.zeros(1, 2, 2, 2, requires_grad=True)
    teacher = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).clone().requires_grad_()
    counts = torch.tensor([[True, False], [False, True]]).view(1, 1, 2, 2)
    loss = teacher_loss(student, teacher, counts)
    loss.backward()
    assert loss.item() == pytest.approx(5.0)
    assert teacher.grad is None
    assert student.grad is not None
    torch.testing.assert_close(student.grad[0, :, 0, 0], torch.tensor([-0.3, -0.4]))
    assert (student.grad[0, :, 0, 1] == 0).all()


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    def run(folder: Path, stop: Callable[[], bool] = lambda: False, resume: bool = False) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = UniMatch(TINY)
        adapt(network, shifted_pairs(), settings(teacher_from=0.0), folder, resume=resume, stop=stop)
        return network.state_dict()

    whole = run(tmp_path / "whole")
    steps = iter([False, False, True])
    run(tmp_path / "parts", stop=lambda: next(steps))
    assert torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["step"] == 3
    again = run(tmp_path / "parts", resume=True)
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)
    histories = [json.loads((tmp_path / p / "history.json").read_text())["measurements"] for p in ("whole", "parts")]
    assert histories[0] == histories[1]
    with pytest.raises(PairsError, match="other learning_rate"):
        adapt(UniMatch(TINY), shifted_pairs(), settings(teacher_from=0.0, learning_rate=1.0), tmp_path / "parts", True)


def test_a_run_goes_on_from_its_own_weights_alone(tmp_path: Path) -> None:
    def run(network: UniMatch, folder: Path, steps: int = 2) -> None:
        adapt(network, shifted_pairs(), settings(), folder, resume=True, stop=lambda: steps == 1)

    def fresh(seed: int, variant: Variant = TINY) -> UniMatch:
        torch.manual_seed(seed)
        return UniMatch(variant)

    run(fresh(0), tmp_path, steps=1)
    for other in (fresh(1), fresh(0, replace(TINY, layers=2))):
        with pytest.raises(PairsError, match=r"state\.pt: is of a run that began with other weights"):
            run(other, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["start"]  # as earlier versions wrote it
    torch.save(state, tmp_path / "state.pt")
    run(fresh(0), tmp_path)


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    adapt(UniMatch(TINY), shifted_pairs(), settings(), tmp_path)
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 8
    for content in (b"", whole[: len(whole) // 2], b"\x80\x02nonsense", bytes(changed)):
        path.write_bytes(content)
        with pytest.raises(PairsError, match=r"state\.pt: a damaged state.*with --weights \S+adapted\.pth"):
            adapt(UniMatch(TINY), shifted_pairs(), settings(), tmp_path, resume=True)


def test_what_is_measured_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.adapt import loop

    trained, measured = [], []
    original = loop._batch
    monkeypatch.setattr(loop, "_batch", lambda p, chosen, *rest: trained.extend(chosen) or original(p, chosen, *rest))
    monkeypatch.setattr(loop, "measure", lambda n, p, chosen, *rest: measured.extend(chosen) or {})
    adapt(UniMatch(TINY), shifted_pairs(8), settings(steps=8, batch=2), tmp_path)
    assert set(measured) == {2, 6}
    assert len(set(trained)) > 3
    assert not set(trained) & set(measured)


def test_pairs_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="multiples of 16"):
        adapt(UniMatch(TINY), shifted_pairs(4, (24, 48)), settings(), tmp_path)
    with pytest.raises(PairsError, match="none to train on"):
        adapt(UniMatch(TINY), shifted_pairs(1), settings(held_out=1), tmp_path)
    with pytest.raises(PairsError, match="no whole folder"):
        FramePairs.open(tmp_path / "nothing")
    folder = replace(shifted_pairs(4), pairs=np.array([[0, 9]]), flow=None).save(tmp_path / "wrong")
    with pytest.raises(PairsError, match="do not belong together"):
        FramePairs.open(folder)
    with pytest.raises(PairsError, match=r"flow\.npy: 4 rows were given where 1 were said"):
        replace(shifted_pairs(4), pairs=np.array([[0, 1]])).save(tmp_path / "other")
    folder = shifted_pairs(4).save(tmp_path / "other")
    np.save(folder / "pairs.npy", np.array([[0, 1]]))
    with pytest.raises(PairsError, match=r"flow\.npy: shape"):
        FramePairs.open(folder)
    for name, value in {"steps": 0, "smooth_order": 3, "margin": 1.0}.items():
        with pytest.raises(ValueError, match=name):
            settings(**{name: value})


def test_pairs_from_a_log(cues_config: Callable[..., CuesConfig], kitti_log: Path, tmp_path: Path) -> None:
    config = cues_config()
    log = open_log(config)
    images = ImageCache(1 << 20)
    pairs = collect_pairs(log, ["00", "01"], images, 16, CollectSettings(max_width=96), tmp_path / "keyframes")
    # Four keyframes of a scene make three pairs; 192x64 becomes 96x32.
    assert (len(pairs), pairs.size, pairs.flow) == (6, (32, 96), None)
    assert pairs.pairs.tolist() == [[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 7]]
    raw = cv2.imread(str(kitti_log / "sequences" / "00" / "image_2" / "000002.png"))[..., ::-1]
    np.testing.assert_array_equal(pairs.images[1], cv2.resize(raw, (96, 32), interpolation=cv2.INTER_AREA))
    every = CollectSettings(between="frames", limit=5)
    assert len(collect_pairs(log, ["00"], images, 16, every, tmp_path / "frames")) == 5
    with pytest.raises(PairsError, match="no pairs of images in 0 scenes"):
        collect_pairs(log, [], images, 16, CollectSettings(), tmp_path / "none")


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_network(UniMatch(TINY), tmp_path / "tiny.pth")


def test_from_a_configuration_to_a_checkpoint(
    cues_config: Callable[..., CuesConfig], tiny_weights: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    out = tmp_path / "adapted"
    values = {"steps": 2, "every": 1, "max_width": 96, "held_out": 3}
    done = fine_tune(cues_config(), str(tiny_weights), out, ("00",), "cpu", values, tell=lines.append)
    assert done.finished
    assert [m["step"] for m in done.history] == [0, 1, 2]
    assert "epe" not in done.history[0]
    assert done.history[0]["census"] > 0
    assert any("3 pairs of 32x96, no truth" in line for line in lines)
    changed = [
        not torch.equal(a, b) for a, b in zip(
            load_network(done.checkpoint).parameters(), load_network(tiny_weights).parameters(), strict=True
        )
    ]  # fmt: skip
    assert all(changed)
    with pytest.raises(ConfigError, match="holds a run already"):
        fine_tune(cues_config(), str(tiny_weights), out, ("00",), "cpu", values)
    again = fine_tune(cues_config(), str(tiny_weights), out, ("00",), "cpu", values, resume=True, tell=lines.append)
    assert again.history == done.history
    assert sum("reading pairs" in line for line in lines) == 1


def test_a_damaged_starting_point_is_refused(
    cues_config: Callable[..., CuesConfig], tiny_weights: Path, tmp_path: Path
) -> None:
    content = bytearray(tiny_weights.read_bytes())
    with zipfile.ZipFile(tiny_weights) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    # Beyond the member's header and the padding that aligns its numbers.
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 8
    tiny_weights.write_bytes(content)
    load_network(tiny_weights)  # reading it notices nothing
    with pytest.raises(WeightsError, match="is damaged"):
        fine_tune(cues_config(), str(tiny_weights), tmp_path / "out", ("00",), "cpu", {"steps": 1, "max_width": 96})


def test_settings_that_do_not_exist_are_told() -> None:
    collect, loop = settings_of({"limit": 7, "learning_rate": 1e-3})
    assert (collect.limit, loop.learning_rate) == (7, 1e-3)
    with pytest.raises(ConfigError, match=r"no setting 'lerning_rate'.*did you mean 'learning_rate'"):
        settings_of({"lerning_rate": 1})
    with pytest.raises(ConfigError, match=r"steps = 'many'"):
        settings_of({"steps": "many"})
    with pytest.raises(ConfigError, match="steps = 0: expected 1 or more"):
        settings_of({"steps": 0})
    for key, value in {"limit": 0, "max_width": -3, "held_out": -10, "clip": 0, "learning_rate": -1e-5}.items():
        with pytest.raises(ConfigError, match=f"adapt: settings = .* {key} = {value:g}: expected "):
            settings_of({key: value})


def test_the_command(cues_config: Callable[..., CuesConfig], tiny_weights: Path, tmp_path: Path) -> None:
    import yaml
    from typer.testing import CliRunner

    from occflow import app

    path = tmp_path / "cues.yaml"
    path.write_text(yaml.safe_dump(cues_config().model_dump(mode="json")))
    arguments = ["adapt", str(path), "--weights", str(tiny_weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--set", "steps=1", "--set", "max_width=96", "--scenes", "01"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "adapted.pth").is_file()
    assert "next: occflow cues" in done.output
    wrong = CliRunner().invoke(app, [*arguments, "--set", "stepps=1"])
    assert wrong.exit_code == 2
