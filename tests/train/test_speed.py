"""Compiled blocks and reduced products: the same result within what rounding allows, and no switch left behind."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model import backbone
from model.backbone import ConvNeXtBlock, DropPath
from model.config import BackboneConfig, ModelConfig
from model.network import OccFlow
from train.batch import collate
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.loop import train
from train.module import StageModule
from train.speed import Precision, compile_blocks, products
from train.trainer import trainer_options

# The compiler asks every tensor for its gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")

GPU = torch.cuda.is_available()
on_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
DEVICE = torch.device("cuda" if GPU else "cpu")


@pytest.fixture(autouse=True)
def traceable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler cannot look through the annotation checks that tests put around every function."""
    for part in (ConvNeXtBlock, DropPath):
        monkeypatch.setattr(part, "forward", inspect.unwrap(part.forward))
    monkeypatch.setattr(backbone, "_normalise_rows", inspect.unwrap(backbone._normalise_rows))


def network() -> OccFlow:
    """A demo's network with a small ConvNeXt, whose LayerScale lets something through."""
    small = BackboneConfig(dims=(16, 24, 32, 40), depths=(1, 2, 2, 1), layer_scale=0.5)
    torch.manual_seed(0)
    return OccFlow(ModelConfig.demo().model_copy(update={"backbone": small})).to(DEVICE)


def levels_and_gradients(model: OccFlow, dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
    """Features of two images, with and without gradients wanted, and the gradient of every weight of the backbone."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    model.zero_grad()
    with torch.autocast(DEVICE.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        with torch.no_grad():
            quiet = model.backbone(images)
        found = model.backbone(images)
        torch.stack([level.float().square().mean() for level in found]).sum().backward()
    gradients = [parameter.grad for parameter in model.backbone.parameters() if parameter.grad is not None]
    return [*(level.detach().float() for level in found), *(level.float() for level in quiet)], gradients


def assert_close(one: list[Tensor], other: list[Tensor], share: float) -> None:
    """Within `share` of each tensor's largest entry."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= share * b.abs().max()


def test_compiled_blocks_give_the_same() -> None:
    """Traced and cut into forward and backward as for a GPU, with torch's own kernels in place of new ones."""
    plain = levels_and_gradients(network(), None)
    model = network()
    assert compile_blocks(model, backend="aot_eager") == 6
    compiled = levels_and_gradients(model, None)
    for one, other in zip(compiled, plain, strict=True):
        assert_close(one, other, 1e-5)
    assert set(model.state_dict()) == set(network().state_dict()), "checkpoints keep their names"


@on_gpu
@pytest.mark.parametrize(("dtype", "share"), [(None, 1e-4), (torch.bfloat16, 4e-2)])
def test_kernels_made_by_the_compiler_give_the_same(dtype: torch.dtype | None, share: float) -> None:
    plain = levels_and_gradients(network(), dtype)
    model = network()
    compile_blocks(model)
    for one, other in zip(levels_and_gradients(model, dtype), plain, strict=True):
        assert_close(one, other, share)


@pytest.mark.parametrize("precision", ["tf32", "bf16-mixed", "16-mixed", "32-true"])
def test_switches_are_put_back(precision: Precision) -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    with products(precision):
        assert [switch.allow_tf32 for switch in switches] == [precision != "32-true"] * 2
    assert [switch.allow_tf32 for switch in switches] == before


@on_gpu
def test_reduced_products_are_reduced_and_no_more() -> None:
    a, b = (torch.randn(256, 256, device=DEVICE) for _ in range(2))
    exact = a.double() @ b.double()
    errors = {}
    for precision in ("32-true", "tf32"):
        with products(precision):
            errors[precision] = float(((a @ b) - exact).abs().max() / exact.abs().max())
    assert errors["32-true"] < 1e-5 < errors["tf32"] < 2e-3


@pytest.mark.parametrize("stage", [1, 2])
def test_mixed_precision_takes_the_same_step(tiny_config: Callable[..., TrainConfig], stage: int) -> None:
    """Rendering, losses and geometry are not rounded: every loss is the same to two thousandths, and every part of the
    network is sent the same way."""
    config = tiny_config()
    batch = collate([KeyframeDataset(config, stage, [("a", 1)], 2**24)[0, 0]]).to(DEVICE)
    numbers, gradients = [], []
    for mixed in (False, True):
        torch.manual_seed(0)
        module = StageModule(config, stage, OccFlow(config.model).to(DEVICE), total_steps=10)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=mixed):
            loss = module.training_step(batch, 0)
        loss.backward()
        numbers.append(module.numbers)
        gradients.append({name: p.grad for name, p in module.network.named_parameters() if p.grad is not None})
    assert numbers[1] == pytest.approx(numbers[0], rel=2e-3, abs=1e-4)
    assert numbers[1] != numbers[0], "nothing was rounded: this test is idle"
    assert gradients[0].keys() == gradients[1].keys()
    for part in ("backbone", "pyramid", "tpv", "fusion", "refine", "sdf_head", *(["flow_head"] if stage == 2 else [])):
        names = [name for name in gradients[0] if name.startswith(part)]
        exact, rounded = (torch.cat([found[name].flatten() for name in names]) for found in gradients)
        assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.98, part
        # Of five seeds, the backbone's differed by 1 to 10 % on a CPU, in either direction; this one by 10.
        assert float(rounded.norm()) == pytest.approx(float(exact.norm()), rel=0.15)


EVERYTHING = {
    "model": {
        "depth_lift": {"bins": 8, "context": 2, "width": 8},
        "pixel_motion": {"cell": 4, "width": 16, "context": 2, "neighbours": 1},
        "fusion": {"history": 1, "heads": 4, "points": 1},
        "heads": {"movable": True, "flow_waves": 3},
    },
    "data": {"backward_cue": "prev", "weigh_by_confidence": True, "future_frames": 1},
    "rays": {"lidar_reach": 1, "raised": 0.4, "still_raised": 0.5},
    "loss": dict.fromkeys(
        ("surface", "free_space", "lidar_spread", "pixel_depth", "pixel_match", "pixel_place", "pixel_motion")
        + ("lifted_flow", "lifted_still", "instance_flow", "splat"),
        1.0,
    ),
}
"""What is off by default, switched on."""


def test_mixed_precision_teaches_from_the_same_places(tiny_config: Callable[..., TrainConfig]) -> None:
    """With all that is off by default: a cue, a match or a spot that poses in 8 bits would miss is not missed, and no
    term changes by more than what the network's own rounding makes of it."""
    config = tiny_config(**EVERYTHING)
    batch = collate([KeyframeDataset(config, 2, [("a", 1)], 2**24)[0, 0]]).to(DEVICE)
    numbers = []
    for mixed in (False, True):
        torch.manual_seed(0)
        module = StageModule(config, 2, OccFlow(config.model).to(DEVICE), total_steps=10)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=mixed):
            module.training_step(batch, 0)
        numbers.append({name: float(number) for name, number in module.numbers.items()})
    exact, rounded = numbers
    counts = {name: number for name, number in exact.items() if name.startswith("rays/")}
    assert {"rays/pixel_match_cells", "rays/pixel_place_cells", "rays/splat_moving"} <= counts.keys()
    assert {name: rounded[name] for name in counts} == counts
    assert rounded == pytest.approx(exact, rel=2e-2, abs=2e-2)


def test_trainer_knows_every_precision(tiny_config: Callable[..., TrainConfig]) -> None:
    for precision in ("32-true", "tf32", "bf16-mixed", "16-mixed"):
        config = tiny_config(run={"precision": precision})
        assert trainer_options(config)["precision"] == ("32-true" if precision == "tf32" else precision)


def test_a_compiled_run_is_the_same_run(
    tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `run.compile` to losses, checkpoints and the averaged network."""
    asked = []
    monkeypatch.setattr("train.loop.compile_blocks", lambda model: asked.append(compile_blocks(model, "aot_eager")))
    changes = {"stage1": {"max_steps": 2}, "stage2": {"max_steps": 1}, "optimiser": {"ema": 0.9}}
    convnext = {"kind": "convnext", "layer_scale": 0.5}
    losses = []
    for compiled in (False, True):
        config = tiny_config(run={"compile": compiled}, model={"backbone": convnext}, **changes)
        config = config.model_copy(update={"out": config.out.with_name(f"run-{compiled}")})
        result = train(config)
        assert result.finished
        assert (result.checkpoint / "model.safetensors").is_file()
        losses.append([loss for stage in result.stages for loss in stage.losses])
    assert asked == [sum(config.model.backbone.depths)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
