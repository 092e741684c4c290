"""Pieces of the UniMatch network against slow loops, its files, and what inference makes of its answers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.cues.flow_field import checked
from pipelines.cues.unimatch.inference import (
    CheckRule,
    confidence,
    fitting_size,
    flow_both_ways,
    looking_size,
    occlusion,
)
from pipelines.cues.unimatch.matching import (
    Propagation,
    match_global,
    match_local,
    upsample_convex,
    warp,
    window_correlation,
)
from pipelines.cues.unimatch.network import UniMatch, save_network
from pipelines.cues.unimatch.transformer import shifted_mask, to_windows, window_position
from pipelines.cues.unimatch.variants import SCALE1, SCALE2, SCALE2_REFINE6, Variant
from pipelines.cues.unimatch.weights import load_network
from pipelines.weights import WeightsError

TINY = Variant("tiny", scales=1, splits=(2,), widths=(8, 8, 8), channels=16, layers=2)
TINY2 = Variant("tiny2", scales=2, splits=(2, 8), widths=(8, 8, 8), channels=16, layers=2)


def features(seed: int, height: int = 4, width: int = 6, channels: int = 8, count: int = 2) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def images(height: int, width: int, count: int = 1) -> tuple[Tensor, Tensor]:
    first = 255 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))
    return first, first.roll((1, 2), (-2, -1))


def test_parameters_are_as_many_as_published() -> None:
    # The model zoo: 4.7, 4.7 and 7.4 million.
    counts = [sum(p.numel() for p in UniMatch(v).parameters()) / 1e6 for v in (SCALE1, SCALE2, SCALE2_REFINE6)]
    assert [round(count, 1) for count in counts] == [4.7, 4.7, 7.4]


def test_global_matching_by_loops() -> None:
    first, second = features(1), features(2)
    flow = match_global(first, second)
    for v, u in ((0, 0), (2, 5), (3, 1)):
        score = [(first[1, :, v, u] @ second[1, :, y, x] / 8**0.5).item() for y in range(4) for x in range(6)]
        weight = np.exp(score) / np.exp(score).sum()
        place = np.array([(x, y) for y in range(4) for x in range(6)])
        np.testing.assert_allclose(flow[1, :, v, u], weight @ place - (u, v), atol=1e-5)


def test_sharp_features_find_a_shift_of_the_image() -> None:
    first = 40 * torch.nn.functional.normalize(features(3, 8, 12, 32), dim=1)
    second = first.roll((1, -2), (-2, -1))
    for flow in (match_global(first, second), match_local(first, second, 4)):
        assert (flow[:, :, 1:-1, 2:-2] - torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1)).abs().max() < 0.1


def test_window_correlation_by_loops() -> None:
    first, second = features(1), features(2)
    flow = features(3, channels=2)
    found = window_correlation(first, second, flow, radius=1)
    padded = torch.nn.functional.pad(second, (9, 9, 9, 9))
    for v, u in ((0, 0), (3, 4)):
        for k, (dy, dx) in enumerate((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
            x, y = (u + dx + flow[0, 0, v, u]).item() + 9, (v + dy + flow[0, 1, v, u]).item() + 9
            x0, y0, value = int(x), int(y), torch.zeros(8)
            for iy, ix in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(x - x0 - ix)) * (1 - abs(y - y0 - iy))
                value = value + weight * padded[0, :, y0 + iy, x0 + ix]
            expected = (first[0, :, v, u] @ value) / 8**0.5
            assert found[0, k, v, u].item() == pytest.approx(expected.item(), abs=1e-4)


def test_local_matching_never_looks_outside() -> None:
    found = match_local(features(1), features(2), radius=4)
    u = torch.arange(6.0).view(1, 6) + found[:, 0]
    v = torch.arange(4.0).view(4, 1) + found[:, 1]
    assert u.min() >= 0
    assert u.max() <= 5
    assert v.min() >= 0
    assert v.max() <= 3


def test_shifted_windows_do_not_see_across_the_border() -> None:
    mask = shifted_mask(8, 12, 2, torch.device("cpu"))
    # Where a shifted map's places come from in the image; windows may join only what the image has side by side.
    place = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")).float()
    rolled = to_windows(place.roll((-2, -3), (1, 2))[None], 2)[0]
    far = ((rolled[:, :, None] - rolled[:, None, :]).abs() >= torch.tensor([4, 6])).any(-1)
    torch.testing.assert_close(mask, torch.where(far, -100.0, 0.0))


def test_positions_repeat_in_every_window() -> None:
    position = window_position(8, 12, 16, 2, torch.device("cpu"))
    assert position.shape == (16, 8, 12)
    torch.testing.assert_close(position[:, :4, :6], position[:, 4:, 6:])
    # Half the channels for rows: row 1 of 4 has angle 2 pi / 4 (1 + 1e-6 / 4) at period 1, so sine 1, cosine 0.
    torch.testing.assert_close(position[:2, 0, 0], torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)
    assert (position[:8, :, :1] == position[:8]).all()
    assert (position[8:, :1] == position[8:]).all()


@pytest.mark.parametrize("radius", [None, 1])
def test_propagation_by_loops(radius: int | None) -> None:
    torch.manual_seed(1)
    module = Propagation(8)
    torch.nn.init.normal_(module.k_proj.bias)
    x, flow = features(4), features(5, channels=2)
    found = module(x, flow, radius)
    tokens = x[0].flatten(1).T
    query = module.q_proj(tokens)
    key = module.k_proj(query if radius is None else tokens)
    for v, u in ((0, 0), (2, 3)):
        score, value = [], []
        reach = [(y, x) for y in range(4) for x in range(6)] if radius is None else [
            (v + dy, u + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
        ]  # fmt: skip
        for y, x_ in reach:
            inside = 0 <= y < 4 and 0 <= x_ < 6
            score.append((query[v * 6 + u] @ key[y * 6 + x_] / 8**0.5) if inside else torch.tensor(0.0))
            value.append(flow[0, :, y, x_] if inside else torch.zeros(2))
        expected = torch.stack(score).softmax(0) @ torch.stack(value)
        torch.testing.assert_close(found[0, :, v, u], expected, atol=1e-5, rtol=1e-5)


def test_convex_upsampling_picks_and_scales() -> None:
    flow = features(6, 3, 4, channels=2, count=1)
    weights = torch.full((1, 9 * 4, 3, 4), -100.0)
    weights[:, 4 * 4 : 5 * 4] = 100.0  # the middle of the nine, for all four fine pixels
    expected = 2 * flow.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(upsample_convex(flow, weights, 2), expected)
    weights = torch.zeros(1, 9 * 4, 3, 4)
    weights[:, 5 * 4 + 1] = 100.0  # its right neighbour, for the fine pixel at top right
    torch.testing.assert_close(upsample_convex(flow, weights, 2)[:, :, ::2, 1:-1:2], 2 * flow[..., 1:])


def test_the_two_ways_belong_together() -> None:
    torch.manual_seed(0)
    first, second = images(32, 64, 2)
    for variant in (TINY, TINY2):
        network = UniMatch(variant).eval()
        there, back = network(first, second), network(second, first)
        torch.testing.assert_close(there.forward, back.backward, atol=1e-3, rtol=0)
        torch.testing.assert_close(there.backward, back.forward, atol=1e-3, rtol=0)


def test_the_size_at_which_small_pictures_are_seen() -> None:
    assert looking_size(376, 1241, 32, 576) == fitting_size(376, 1241, 32) == (384, 1248)
    assert looking_size(96, 320, 32, 576) == (192, 576)  # 172.8 rows
    assert looking_size(320, 96, 32, 576) == (192, 576), "tall pictures are laid on their side first"
    assert looking_size(64, 176, 16, 0) == (64, 176)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        UniMatch(TINY)(*images(32, 40))
    with pytest.raises(ValueError, match="multiples of 32"):
        UniMatch(TINY2)(*images(48, 64))


def test_a_tall_pair_is_a_wide_pair_turned() -> None:
    torch.manual_seed(0)
    network = UniMatch(TINY).eval()
    first, second = images(33, 50)
    wide = flow_both_ways(network, first, second)
    tall = flow_both_ways(network, first.mT, second.mT)
    for a, b in zip(wide, tall, strict=True):
        torch.testing.assert_close(a, b.mT.flip(1))


def test_confidence_is_that_of_the_numpy_check() -> None:
    v, u = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    forward = torch.stack([2 + torch.sin(v / 3), torch.cos(u / 4)])[None]
    backward = -forward + 0.4 * torch.sin(u * v)
    rule = CheckRule(tolerance=1.0, relative=0.0)
    found = confidence(forward, backward, rule)[0].numpy()
    expected = checked(forward[0].numpy(), backward[0].numpy(), 1.0, 0.0).confidence
    # OpenCV samples at 1/32 of a pixel.
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert 0.1 < (found == 0).mean() < 0.9
    np.testing.assert_array_equal(occlusion(forward, backward, rule)[0].numpy()[found > 0], False)


def test_what_returns_is_trusted_and_what_leaves_is_not() -> None:
    forward = torch.zeros(1, 2, 6, 10)
    forward[:, 0] = 3.0
    trust = confidence(forward, -forward)[0]
    assert (trust[:, :7] == 1).all()
    assert (trust[:, 7:] == 0).all()
    torch.testing.assert_close(
        warp(torch.arange(10.0).expand(1, 1, 6, 10), forward)[0, 0, 0, :7], torch.arange(3.0, 10)
    )


def test_half_precision_stays_near() -> None:
    torch.manual_seed(0)
    network = UniMatch(TINY).eval()
    first, second = images(64, 96)
    exact = flow_both_ways(network, first, second)[0]
    half = flow_both_ways(network, first, second, precision="bfloat16")[0]
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().mean() < 0.2 * exact.abs().mean()  # random weights


def test_files_round_trip(tmp_path: Path) -> None:
    for variant in (SCALE2, TINY):
        torch.manual_seed(1)
        network = UniMatch(variant)
        loaded = load_network(save_network(network, tmp_path / "a.pth"))
        assert loaded.variant == variant
        assert not loaded.training
        for name, value in network.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_the_published_form_is_read(tmp_path: Path) -> None:
    state = UniMatch(SCALE2_REFINE6).state_dict()
    left_over = {"upsampler.0.bias": torch.zeros(256)}
    torch.save({"model": state | left_over, "optimizer": {"step": 1}, "step": 7}, tmp_path / "a.pth")
    assert load_network(tmp_path / "a.pth").variant == SCALE2_REFINE6


@pytest.mark.parametrize("name", ["flownet.pkl", "flownet.pth", "flownet.safetensors"])
def test_parameters_alone_are_read_too(name: str, tmp_path: Path) -> None:
    state = UniMatch(SCALE2).state_dict()
    (save_file if name.endswith(".safetensors") else torch.save)(state, tmp_path / name)
    loaded = load_network(tmp_path / name)
    assert loaded.variant == SCALE2
    torch.testing.assert_close(loaded.state_dict()["backbone.conv2.bias"], state["backbone.conv2.bias"])


def _without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {"model": {k: v for k, v in state.items() if k != name}}


def _with(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {"model": state | {name: value}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: {"state_dict": state}, "expected the parameters under 'model', found state_dict"),
        (lambda state: {"weight": torch.zeros(1)}, r"missing: \d+ \(backbone"),
        (lambda state: [1, 2], "found list"),
        (_without("transformer.layers.5.self_attn.merge.weight"), r"missing: 1 \(transformer.layers.5.self_attn.merge"),
        (_with("extra.weight", torch.zeros(1)), r"unknown: 1 \(extra.weight\)"),
        (_with("backbone.conv2.bias", torch.zeros(64)), r"backbone.conv2.bias \(64,\) instead of \(128,\)"),
        (_with("backbone.conv2.bias", torch.full((128,), torch.nan)), r"not finite: 1 \(backbone.conv2.bias\)"),
        (lambda state: {"model": state, "variant": {"name": "x"}}, "'variant' is not one of this version"),
    ],
)
def test_files_that_do_not_fit(content: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "gmflow-wrong.pth"
    torch.save(content(UniMatch(SCALE1).state_dict()), path)
    with pytest.raises(WeightsError, match=message) as raised:
        load_network(path)
    assert str(path) in str(raised.value)


def test_damaged_files(tmp_path: Path) -> None:
    whole = save_network(UniMatch(TINY), tmp_path / "a.pth").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "page": b"<html>not found</html>"}.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}.pth"):
            load_network(tmp_path / f"{name}.pth")
