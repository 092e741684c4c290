"""The fused kernel against plain PyTorch: values, gradients, masks, cameras, half precision.

On a CPU by Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/model/test_fused.py` where triton is installed (it is
no dependency). That the compiled kernel is right only a GPU can say; there the same tests run it.
"""

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from model.attention import deformable_attention, softmax_over_samples
from model.config import ModelConfig, RefineConfig
from model.fields import FrameInput
from model.fused import FlatMaps, fused_attention, use_fused
from model.network import OccFlow

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HERE = importlib.util.find_spec("triton") is not None and (
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
)
# Triton's interpreter of 3.6 reads single numbers out of arrays in a way that numpy has begun to warn of.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
needs_triton = pytest.mark.skipif(not HERE, reason="needs triton and a GPU, or triton and TRITON_INTERPRET=1")

SIZES = ((4, 7), (2, 3), (1, 2))
FRAMES, CAMERAS, HEADS, DIM, POINTS, QUERIES = 2, 3, 2, 5, 3, 37


def case(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two frames of three cameras; samples inside, on the border, far outside; queries seen by none, one or several."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    views, levels = FRAMES * CAMERAS, len(SIZES)
    seen = torch.rand(views, POINTS, QUERIES, generator=generator) > 0.6
    seen[:, :, :5] = False
    seen[0, :, 5:9] = True
    references = draw(views, levels, POINTS, 2, QUERIES)
    references[:, :, :, :, 7] = 1e9
    references[~seen[:, None, :, None].expand_as(references)] *= 1e4  # meaningless where it is not seen
    cells = sum(h * w for h, w in SIZES)
    return {
        "values": draw(views, cells, HEADS * DIM).to(DEVICE, dtype),
        "references": references.to(DEVICE),
        "offsets": draw(FRAMES, HEADS, levels, POINTS, 2, QUERIES).to(DEVICE, dtype),
        "logits": (3 * draw(FRAMES, HEADS, levels, POINTS, QUERIES)).to(DEVICE, dtype),
        "seen": seen.to(DEVICE),
        "gradient": draw(views, QUERIES, HEADS * DIM).to(DEVICE),
    }


def plain(values: Tensor, references: Tensor, offsets: Tensor, logits: Tensor, seen: Tensor | None) -> Tensor:
    """The same by `deformable_attention`, level by level, in the dtype of the inputs."""
    cameras = len(values) // len(offsets)
    flat = values.split([h * w for h, w in SIZES], dim=1)
    maps = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(flat, SIZES, strict=True)]
    offsets, logits = (x.repeat_interleave(cameras, dim=0) for x in (offsets, logits))
    return deformable_attention(maps, references.to(values), offsets, softmax_over_samples(logits, seen))


def leaves(inputs: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [inputs[name].detach().to(dtype).requires_grad_() for name in ("values", "offsets", "logits")]


@needs_triton
@pytest.mark.parametrize("masked", [True, False])
def test_equals_plain_attention_forward_and_backward(masked: bool) -> None:
    inputs = case()
    seen = inputs["seen"] if masked else None
    mine, theirs = leaves(inputs, torch.float32), leaves(inputs, torch.float64)
    out = fused_attention(FlatMaps(mine[0], SIZES), inputs["references"], mine[1], mine[2], seen)
    expected = plain(theirs[0], inputs["references"], theirs[1], theirs[2], seen)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert out.abs().max() > 0.5
    if masked:
        assert (out[:, :5] == 0).all(), "a query that no camera sees gets nothing"
    gradients = torch.autograd.grad(out, mine, inputs["gradient"])
    wanted = torch.autograd.grad(expected, theirs, inputs["gradient"].double())
    for name, one, other in zip(("values", "offsets", "logits"), gradients, wanted, strict=True):
        assert other.abs().max() > 0.1, name
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@needs_triton
def test_references_in_pixels_are_those_across_the_maps() -> None:
    """Levels of strides 4, 8, 16 whose last cells reach past the image; one reference for all levels."""
    inputs = case()
    extents = tuple(
        (width * stride, height * stride) for (height, width), stride in zip(SIZES, (4, 8, 16), strict=True)
    )
    pixels = inputs["references"][:, :1] * 6 + 10
    across = pixels * (2 / torch.tensor(extents, device=DEVICE)[:, None, :, None]) - 1
    maps, rest = FlatMaps(inputs["values"], SIZES), (inputs["offsets"], inputs["logits"], inputs["seen"])
    out = fused_attention(maps, pixels, *rest, extents=extents)
    torch.testing.assert_close(out, fused_attention(maps, across, *rest), atol=1e-4, rtol=1e-4)


@needs_triton
def test_half_precision_in_single_precision_sums() -> None:
    """bfloat16 inputs are read as they are and summed in float32: the result is that of the same numbers in float64."""
    inputs = case(torch.bfloat16)
    mine, theirs = leaves(inputs, torch.bfloat16), leaves(inputs, torch.float64)
    out = fused_attention(FlatMaps(mine[0], SIZES), inputs["references"], mine[1], mine[2], inputs["seen"])
    expected = plain(theirs[0], inputs["references"], theirs[1], theirs[2], inputs["seen"])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(out, mine, inputs["gradient"])
    wanted = torch.autograd.grad(expected, theirs, inputs["gradient"].double())
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, atol=1e-2, rtol=1e-2)


@needs_triton
def test_places_that_are_no_numbers_read_nothing() -> None:
    inputs = case()
    inputs["references"][0, :, :, :, 5] = torch.nan
    inputs["references"][0, :, :, :, 6] = torch.inf
    out = fused_attention(
        FlatMaps(inputs["values"], SIZES), inputs["references"], inputs["offsets"], inputs["logits"], inputs["seen"]
    )
    assert (out[0, 5:7] == 0).all()
    assert torch.isfinite(out).all()


def test_who_asks_for_triton_where_it_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not use_fused("auto", torch.zeros(1))
    assert not use_fused("plain", torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"model\.attention.*(CUDA|not installed).*'auto' or 'plain'"):
        use_fused("triton", torch.zeros(1))


def test_same_bits_every_time_are_not_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward pass adds up in any order."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    on_gpu = torch.zeros(1, device="meta")
    monkeypatch.setattr(torch.Tensor, "device", property(lambda tensor: torch.device("cuda")))
    assert use_fused("auto", on_gpu)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not use_fused("auto", on_gpu)
    assert use_fused("triton", on_gpu), "who asks for it gets it"


def test_references_are_constants() -> None:
    references = torch.zeros(1, 1, 1, 2, 1, requires_grad=True)
    maps = FlatMaps.join([torch.zeros(1, 2, 3, 3)])
    with pytest.raises(ValueError, match="detach"):
        fused_attention(maps, references, torch.zeros(1, 1, 1, 1, 2, 1), torch.zeros(1, 1, 1, 1, 1))


def test_maps_are_joined_row_by_row() -> None:
    level = torch.arange(12.0).reshape(1, 2, 2, 3)
    maps = FlatMaps.join([level, level[:, :, :1, :1]])
    assert maps.sizes == ((2, 3), (1, 1))
    assert maps.values[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert maps.values[0, :, 1].tolist() == [6, 7, 8, 9, 10, 11, 6]


@needs_triton
def test_the_whole_network_is_the_same_with_it(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    """Fields, and the gradients of every parameter, of both ways; history, fusion and a missing camera included."""
    if tiny_config.depth_lift.bins:
        pytest.skip("the same attention as in the paper's parts")
    frames = tiny_frames._replace(camera_valid=tiny_frames.camera_valid.clone())
    frames.camera_valid[0, 1, 1] = False
    frames = FrameInput(*(part.to(DEVICE) for part in frames))
    frames = FrameInput(*(part[:, 1:] for part in frames))
    small = {"layers": 1, "self_points": 1, "ground_anchors": 2, "side_anchors": 2}
    config = tiny_config.model_copy(
        update={
            "grid": tiny_config.grid.model_copy(update={"voxel": 1.0}),
            "tpv": tiny_config.tpv.model_copy(update=small),
            "refine": RefineConfig(channels=8, multipliers=(1,), blocks=(1,), strides=(1,)),
            "fusion": tiny_config.fusion.model_copy(update={"history": 1, "points": 1}),
        }
    )
    torch.manual_seed(1)
    start = OccFlow(config).state_dict()
    found = {}
    for kernel in ("plain", "triton"):
        network = OccFlow(config.model_copy(update={"attention": kernel})).to(DEVICE)
        network.load_state_dict({k: v + 0.02 * torch.sin(torch.arange(v.numel())).view_as(v) for k, v in start.items()})
        fields = network(frames)
        (fields.sdf.square().mean() + fields.flow.square().mean()).backward()
        found[kernel] = {"sdf": fields.sdf.detach(), "flow": fields.flow.detach()} | {
            name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
        }
    assert found["plain"].keys() == found["triton"].keys()
    assert found["plain"]["tpv.layers.0.image.0.sampling.weight"].abs().max() > 0
    for name, expected in found["plain"].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            found["triton"][name], expected, atol=1e-3 * scale + 1e-7, rtol=1e-3, msg=lambda t, n=name: f"{n}: {t}"
        )
