"""Our UniMatch network against upstream: numbers recorded from its code, and the code itself where it is at hand.

Weights and images are formulas, so that both sides can make them. To record anew, with torch alone (a checkout of
https://github.com/autonomousvision/unimatch; recorded at commit 943a990):

    python tests/pipelines/cues/test_unimatch_parity.py CHECKOUT

The same variable that the slow test reads: UNIMATCH_UPSTREAM=CHECKOUT python -m pytest -m slow <this file>.
"""

import os
import sys
import tempfile
import types
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

RECORDED = Path(__file__).parent / "unimatch_upstream.npz"
UPSTREAM = os.environ.get("UNIMATCH_UPSTREAM", "")
TRAINED = os.environ.get("UNIMATCH_WEIGHTS", "")
"""A trained checkpoint of one of the three."""
SIZE = (64, 96)
ODD_SIZE = (50, 83)
"""No multiple of 16 or 32: upstream's inference stretches it."""
STRIDE = 8
"""Every eighth pixel is recorded."""
SHAPES: dict[str, dict[str, Any]] = {
    "gmflow-scale1": {"num_scales": 1, "upsample_factor": 8, "splits": [2], "refinements": 0},
    "gmflow-scale2": {"num_scales": 2, "upsample_factor": 4, "splits": [2, 8], "refinements": 0},
    "gmflow-scale2-regrefine6": {"num_scales": 2, "upsample_factor": 4, "splits": [2, 8], "refinements": 6},
}
"""As upstream's scripts call the three; told here again, so that a wrong Variant is noticed."""


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1) that depend on name, place and shape only: a hash in 64-bit integers (splitmix64)."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values = (x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    return torch.from_numpy(values.reshape(shape)).float()


def formula_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of variance 1 / fan-in (a quarter for what feeds a softmax, so that rounding is not blown up)."""
    weights = {}
    for name, value in state.items():
        drawn = noise(name, tuple(value.shape))
        if value.dim() == 1:
            weights[name] = 0.1 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            gain = 0.5 if "_proj" in name or name.startswith("backbone.conv2") else 1.0
            weights[name] = drawn * gain * (3 / value[0].numel()) ** 0.5
    return weights


def formula_images(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two uint8 RGB images: cosines of eight wavelengths, the second moved by (2.5, -1.5) pixels."""
    v, u = np.mgrid[:height, :width].astype(np.float64)

    def picture(du: float, dv: float) -> np.ndarray:
        value = np.zeros((height, width, 3))
        for k in range(8):
            for channel in range(3):
                phase = (u - du) * np.cos(2.4 * k) + (v - dv) * np.sin(2.4 * k)
                value[..., channel] += np.cos(phase * 2 * np.pi / (5 + 4 * k) + k * channel)
        return np.clip(128 + 30 * value, 0, 255).round().astype(np.uint8)

    return picture(0, 0), picture(2.5, -1.5)


def formula_flows(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two flows that agree in places only."""
    v, u = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    forward = torch.stack([3 + 2 * torch.sin(v / 9), torch.cos(u / 7)])[None]
    backward = -forward + 0.9 * torch.stack([torch.sin(u / 5) * torch.cos(v / 6), torch.sin(v / 4)])[None]
    return forward, backward


def tensors(height: int, width: int) -> tuple[Tensor, Tensor]:
    first, second = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in formula_images(height, width))
    return first, second


def leaves(height: int, width: int, u: int, v: int) -> tuple[Tensor, Tensor]:
    """RGB of rectangles that cover each other, and the same picture moved by (u, v): edges and corners as in photos."""
    generator, margin = np.random.default_rng(0), 16
    picture = np.zeros((3, height + 2 * margin, width + 2 * margin), np.float32)
    for _ in range(1500):
        y, x = generator.integers(0, picture.shape[1]), generator.integers(0, picture.shape[2])
        h, w = generator.integers(3, 30, 2)
        picture[:, y : y + h, x : x + w] = generator.uniform(0, 255, (3, 1, 1))
    first, second = (
        picture[:, margin - dv : margin - dv + height, margin - du : margin - du + width] for du, dv in ((0, 0), (u, v))
    )
    return torch.from_numpy(first.copy())[None], torch.from_numpy(second.copy())[None]


@contextmanager
def upstream_modules(checkout: str) -> Iterator[types.SimpleNamespace]:
    """The upstream modules that are needed; what they import only for data sets and videos is stubbed."""
    stubs = {
        name: mock.MagicMock() for name in ("dataloader", "dataloader.flow", "dataloader.flow.datasets", "imageio")
    }
    import cv2  # noqa: F401  # upstream imports it too; what is imported below is forgotten, and it bears no second time

    with mock.patch.dict(sys.modules, stubs), mock.patch.object(sys, "path", [checkout, *sys.path]):
        import evaluate_flow  # type: ignore[import-not-found]
        from unimatch.geometry import forward_backward_consistency_check  # type: ignore[import-not-found]
        from unimatch.unimatch import UniMatch  # type: ignore[import-not-found]

        yield types.SimpleNamespace(
            UniMatch=UniMatch, inference=evaluate_flow.inference_flow, check=forward_backward_consistency_check
        )


def upstream_network(
    modules: types.SimpleNamespace, name: str, weights: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network with `weights` (the formula's), and the arguments that upstream's scripts call it with."""
    shape = SHAPES[name]
    network = modules.UniMatch(
        num_scales=shape["num_scales"], upsample_factor=shape["upsample_factor"], reg_refine=shape["refinements"] > 0
    )
    network.load_state_dict(formula_weights(network.state_dict()) if weights is None else weights)
    arguments = {
        "attn_type": "swin",
        "attn_splits_list": shape["splits"],
        "corr_radius_list": [-1, 4][: shape["num_scales"]],
        "prop_radius_list": [-1, 1][: shape["num_scales"]],
        "num_reg_refine": max(1, shape["refinements"]),
        "pred_bidir_flow": True,
    }
    return network, arguments


def upstream_inference(modules: types.SimpleNamespace, name: str, height: int, width: int) -> Tensor:
    """(2, 2, height, width) of upstream's `inference_flow`, forward and backward, through files as it wants them."""
    from PIL import Image

    network, arguments = upstream_network(modules, name)
    factor = 16 if name == "gmflow-scale1" else 32
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for i, image in enumerate(formula_images(height, width)):
            Image.fromarray(image).save(Path(folder) / f"{i}.png")
        modules.inference(
            network, folder, output_path=str(out), padding_factor=factor, save_flo_flow=True, **arguments
        )  # fmt: skip
        flows = [np.fromfile(out / f"0_pred{way}.flo", np.float32, offset=12) for way in ("", "_bwd")]
    return torch.from_numpy(np.stack(flows).reshape(2, height, width, 2)).permute(0, 3, 1, 2)


def upstream_outputs(checkout: str) -> dict[str, np.ndarray]:
    """Everything that is compared, whole."""
    outputs = {}
    with upstream_modules(checkout) as modules, torch.no_grad():
        for name in SHAPES:
            network, arguments = upstream_network(modules, name)
            stages = network.train()(*tensors(*SIZE), **arguments)["flow_preds"]
            outputs |= {f"{name} stage {i}": stage.numpy() for i, stage in enumerate(stages)}
            outputs[f"{name} wide"] = upstream_inference(modules, name, *ODD_SIZE).numpy()
        tall = upstream_inference(modules, "gmflow-scale1", *ODD_SIZE[::-1])
        outputs["gmflow-scale1 tall"] = tall.numpy()
        hidden = modules.check(*formula_flows(*SIZE))
        outputs["occlusion"] = torch.cat(hidden).bool().numpy()
    return outputs


def own_outputs() -> dict[str, np.ndarray]:
    """The same by our network."""
    from pipelines.cues.unimatch.inference import flow_both_ways, occlusion
    from pipelines.cues.unimatch.network import UniMatch
    from pipelines.cues.unimatch.variants import VARIANTS

    outputs = {}
    with torch.no_grad():
        for name in SHAPES:
            network = UniMatch(VARIANTS[name])
            network.load_state_dict(formula_weights(network.state_dict()))
            found = network(*tensors(*SIZE), steps=True)
            outputs |= {f"{name} stage {i}": stage.numpy() for i, stage in enumerate(found.steps)}
            outputs[f"{name} wide"] = torch.cat(flow_both_ways(network, *tensors(*ODD_SIZE))).numpy()
            if name == "gmflow-scale1":
                turned = torch.cat(flow_both_ways(network, *tensors(*ODD_SIZE[::-1])))
                outputs[f"{name} tall"] = turned.flip(1).numpy()  # upstream leaves u and v exchanged
        forward, backward = formula_flows(*SIZE)
        outputs["occlusion"] = torch.cat([occlusion(forward, backward), occlusion(backward, forward)]).numpy()
    return outputs


def sampled(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is recorded: the flows at every eighth pixel, the occlusion packed."""
    kept = {name: value[..., ::STRIDE, ::STRIDE] for name, value in outputs.items() if name != "occlusion"}
    return kept | {"occlusion": np.packbits(outputs["occlusion"])}


def inner_occlusion(packed: np.ndarray) -> np.ndarray:
    """Without the pixels whose flow ends within a pixel of the image's edge: upstream mixes zeros in there."""
    hidden = np.unpackbits(packed)[: 2 * SIZE[0] * SIZE[1]].reshape(2, *SIZE).astype(bool)
    for way, flow in zip(hidden, formula_flows(*SIZE), strict=True):
        v, u = np.mgrid[: SIZE[0], : SIZE[1]] + flow[0].numpy()[::-1]
        way[(np.minimum(u, v) < 0) | (u > SIZE[1] - 1) | (v > SIZE[0] - 1)] = False
    return hidden


@pytest.fixture(scope="module")
def ours() -> dict[str, np.ndarray]:
    return own_outputs()


def test_flow_is_what_upstream_answered(ours: dict[str, np.ndarray]) -> None:
    found = sampled(ours)
    with np.load(RECORDED) as recorded:
        assert set(recorded.files) == set(found)
        for name in recorded.files:
            if name == "occlusion":
                continue
            assert np.abs(recorded[name]).max() > 1.0, f"{name}: numbers so small prove nothing"
            # Rounding alone, as float64 shows (see docs/cues_unimatch.md).
            np.testing.assert_allclose(found[name], recorded[name], atol=2e-3, rtol=0, err_msg=name)


def test_occlusion_is_what_upstream_answered(ours: dict[str, np.ndarray]) -> None:
    with np.load(RECORDED) as recorded:
        expected = inner_occlusion(recorded["occlusion"])
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(inner_occlusion(sampled(ours)["occlusion"]), expected)


@pytest.mark.slow
@pytest.mark.skipif(not UPSTREAM, reason="UNIMATCH_UPSTREAM does not name a checkout of autonomousvision/unimatch")
@pytest.mark.filterwarnings("ignore")
def test_flow_is_what_the_upstream_code_answers(ours: dict[str, np.ndarray]) -> None:
    theirs = upstream_outputs(UPSTREAM)
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        if name != "occlusion":
            np.testing.assert_allclose(ours[name], value, atol=2e-3, rtol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.skipif(not TRAINED, reason="UNIMATCH_WEIGHTS does not name a trained checkpoint")
@pytest.mark.filterwarnings("ignore")
def test_trained_weights_find_the_shift_and_answer_as_in_the_upstream_code() -> None:
    from pipelines.cues.unimatch.inference import flow_both_ways, occlusion
    from pipelines.cues.unimatch.weights import load_network

    network, pair = load_network(Path(TRAINED)), leaves(160, 320, 6, -4)
    with torch.no_grad():
        forward, backward = flow_both_ways(network, *pair)
    miss = (forward - torch.tensor([6.0, -4.0]).view(1, 2, 1, 1)).norm(dim=1)[:, 8:-8, 8:-8]
    assert miss.mean() < 0.5 * (6**2 + 4**2) ** 0.5  # the smallness of the picture costs such networks some pixels
    assert occlusion(forward, backward).float().mean() < 0.2
    if not UPSTREAM:
        pytest.skip("UNIMATCH_UPSTREAM does not name a checkout of autonomousvision/unimatch")
    with upstream_modules(UPSTREAM) as modules, torch.no_grad():
        theirs, arguments = upstream_network(modules, network.variant.name, network.state_dict())
        answer = theirs.eval()(*pair, **arguments)["flow_preds"][-1]
    torch.testing.assert_close(torch.cat([forward, backward]), answer, atol=2e-3, rtol=0)


if __name__ == "__main__":
    np.savez_compressed(RECORDED, **sampled(upstream_outputs(sys.argv[1])))
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes")
