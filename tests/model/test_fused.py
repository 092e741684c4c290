"""The fused kernels against plain PyTorch: values, gradients, masks, cameras, half precision.

The CPU's runs wherever numba is. Triton's on a CPU by its interpreter: `TRITON_INTERPRET=1 pytest
tests/model/test_fused.py` where triton is installed (it is no dependency). That the compiled kernel is right only a GPU
can say; there the same tests run it.
"""

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from geometry.compiled import installed
from model.attention import deformable_attention, softmax_over_samples
from model.config import ModelConfig, RefineConfig
from model.fields import FrameInput
from model.fused import FlatMaps, Kernel, fused_attention, use_fused
from model.network import OccFlow

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
TRITON = importlib.util.find_spec("triton") is not None and (
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
)
# Triton's interpreter of 3.6 reads single numbers out of arrays in a way that numpy has begun to warn of.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
both_kernels = pytest.mark.parametrize(
    ("kernel", "device"),
    [
        pytest.param(
            "triton",
            GPU,
            marks=pytest.mark.skipif(not TRITON, reason="needs triton and a GPU, or triton and TRITON_INTERPRET=1"),
        ),
        pytest.param("numba", CPU, marks=pytest.mark.skipif(not installed(), reason="needs numba")),
    ],
)

SIZES = ((4, 7), (2, 3), (1, 2))
FRAMES, CAMERAS, HEADS, DIM, POINTS, QUERIES = 2, 3, 2, 5, 3, 37


def case(dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> dict[str, Tensor]:
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
        "values": draw(views, cells, HEADS * DIM).to(device, dtype),
        "references": references.to(device),
        "offsets": draw(FRAMES, HEADS, levels, POINTS, 2, QUERIES).to(device, dtype),
        "logits": (3 * draw(FRAMES, HEADS, levels, POINTS, QUERIES)).to(device, dtype),
        "seen": seen.to(device),
        "gradient": draw(views, QUERIES, HEADS * DIM).to(device),
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


@both_kernels
@pytest.mark.parametrize("masked", [True, False])
def test_equals_plain_attention_forward_and_backward(kernel: Kernel, device: torch.device, masked: bool) -> None:
    inputs = case(device=device)
    seen = inputs["seen"] if masked else None
    mine, theirs = leaves(inputs, torch.float32), leaves(inputs, torch.float64)
    out = fused_attention(FlatMaps(mine[0], SIZES), inputs["references"], mine[1], mine[2], seen, kernel=kernel)
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


@both_kernels
def test_training_after_inference_mode(kernel: Kernel, device: torch.device) -> None:
    """What is kept between calls must not be a tensor of inference mode, which no backward pass may keep."""
    values = torch.randn(1, 15, HEADS * DIM, device=device, requires_grad=True)  # of a size that no other test has
    references = torch.zeros(1, 1, 1, 2, 4, device=device)
    offsets = torch.zeros(1, HEADS, 1, 1, 2, 4, device=device)
    logits = torch.zeros(1, HEADS, 1, 1, 4, device=device)

    def read() -> Tensor:
        return fused_attention(FlatMaps(values, ((3, 5),)), references, offsets, logits, kernel=kernel)

    with torch.inference_mode():
        read()
    read().sum().backward()
    assert values.grad is not None
    assert values.grad.any()


@both_kernels
def test_references_in_pixels_are_those_across_the_maps(kernel: Kernel, device: torch.device) -> None:
    """Levels of strides 4, 8, 16 whose last cells reach past the image; one reference for all levels."""
    inputs = case(device=device)
    extents = tuple(
        (width * stride, height * stride) for (height, width), stride in zip(SIZES, (4, 8, 16), strict=True)
    )
    pixels = inputs["references"][:, :1] * 6 + 10
    across = pixels * (2 / torch.tensor(extents, device=device)[:, None, :, None]) - 1
    maps, rest = FlatMaps(inputs["values"], SIZES), (inputs["offsets"], inputs["logits"], inputs["seen"])
    out = fused_attention(maps, pixels, *rest, extents=extents, kernel=kernel)
    torch.testing.assert_close(out, fused_attention(maps, across, *rest, kernel=kernel), atol=1e-4, rtol=1e-4)


@both_kernels
def test_a_sample_between_four_cells_by_hand(kernel: Kernel, device: torch.device) -> None:
    """A map of 1, 2 over 3, 4: its centre is 2.5, half a cell to the right 3, and a whole one half of that. Both
    derivatives are the differences of the cells beside; half outside, the one along u is minus the column inside."""
    maps = FlatMaps(torch.tensor([1.0, 2, 3, 4], device=device)[None, :, None].requires_grad_(), ((2, 2),))
    references = torch.zeros(1, 1, 1, 2, 3, device=device)
    offsets = torch.tensor([[0.25, 0.5, 1.0], [0.0, 0.0, 0.0]], device=device)[None, None, None, None].requires_grad_()
    logits = torch.randn(1, 1, 1, 1, 3, device=device, requires_grad=True)
    out = fused_attention(maps, references, offsets, logits, kernel=kernel)
    assert out.flatten().tolist() == pytest.approx([2.75, 3.0, 1.5])
    d_values, d_offsets, d_logits = torch.autograd.grad(out[0, ::2].sum(), (maps.values, offsets, logits))
    assert d_values.flatten().tolist() == pytest.approx([0.125, 0.375 + 0.25, 0.125, 0.375 + 0.25])
    assert d_offsets.flatten().tolist() == pytest.approx([1.0, 0.0, -3.0, 2.0, 0.0, 1.0])
    assert d_logits.flatten().tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


@both_kernels
def test_a_frame_s_cameras_can_be_added_up(kernel: Kernel, device: torch.device) -> None:
    inputs = case(device=device)
    rest = [inputs[name] for name in ("references", "seen")]
    found = []
    for together in (False, True):
        mine = leaves(inputs, torch.float32)
        maps = FlatMaps(mine[0], SIZES)
        out = fused_attention(maps, rest[0], mine[1], mine[2], rest[1], kernel=kernel, add_cameras=together)
        out = out if together else out.unflatten(0, (FRAMES, CAMERAS)).sum(dim=1)
        found.append((out, *torch.autograd.grad(out, mine, inputs["gradient"][:FRAMES])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@both_kernels
def test_half_precision_in_single_precision_sums(kernel: Kernel, device: torch.device) -> None:
    """bfloat16 inputs are read as they are and summed in float32: the result is that of the same numbers in float64."""
    inputs = case(torch.bfloat16, device)
    mine, theirs = leaves(inputs, torch.bfloat16), leaves(inputs, torch.float64)
    maps = FlatMaps(mine[0], SIZES)
    out = fused_attention(maps, inputs["references"], mine[1], mine[2], inputs["seen"], kernel=kernel)
    expected = plain(theirs[0], inputs["references"], theirs[1], theirs[2], inputs["seen"])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(out, mine, inputs["gradient"])
    wanted = torch.autograd.grad(expected, theirs, inputs["gradient"].double())
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, atol=1e-2, rtol=1e-2)


@both_kernels
def test_places_that_are_no_numbers_read_nothing(kernel: Kernel, device: torch.device) -> None:
    inputs = case(device=device)
    inputs["references"][0, :, :, :, 5] = torch.nan
    inputs["references"][0, :, :, :, 6] = torch.inf
    inputs["offsets"][0, :, :, :, :, 10] = torch.nan
    inputs["offsets"][0, :, :, :, :, 11] = 1e30
    mine = leaves(inputs, torch.float32)
    out = fused_attention(
        FlatMaps(mine[0], SIZES), inputs["references"], mine[1], mine[2], inputs["seen"], kernel=kernel
    )
    assert (out[:CAMERAS, 10:12] == 0).all()
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(out.sum(), mine))
    assert (out[0, 5:7] == 0).all()
    assert torch.isfinite(out).all()


def test_who_asks_for_triton_where_it_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
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


@both_kernels
def test_the_whole_network_is_the_same_with_it(
    kernel: Kernel, device: torch.device, tiny_config: ModelConfig, tiny_frames: FrameInput
) -> None:
    """Fields, and the gradients of every parameter, of both ways; history, fusion and a missing camera included."""
    if tiny_config.depth_lift.bins:
        pytest.skip("the same attention as in the paper's parts")
    frames = tiny_frames._replace(camera_valid=tiny_frames.camera_valid.clone())
    frames.camera_valid[0, 1, 1] = False
    frames = FrameInput(*(part.to(device) for part in frames))
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
    for way in ("plain", kernel):
        network = OccFlow(config.model_copy(update={"attention": way})).to(device)
        network.load_state_dict({k: v + 0.02 * torch.sin(torch.arange(v.numel())).view_as(v) for k, v in start.items()})
        fields = network(frames)
        (fields.sdf.square().mean() + fields.flow.square().mean()).backward()
        found[way] = {"sdf": fields.sdf.detach(), "flow": fields.flow.detach()} | {
            name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
        }
    assert found["plain"].keys() == found[kernel].keys()
    assert found["plain"]["tpv.layers.0.image.0.sampling.weight"].abs().max() > 0
    for name, expected in found["plain"].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            found[kernel][name], expected, atol=1e-3 * scale + 1e-7, rtol=1e-3, msg=lambda t, n=name: f"{n}: {t}"
        )
