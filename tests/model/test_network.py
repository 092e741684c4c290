"""The whole network: invariances, missing cameras, gradients, initial states, and every size and variant."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.transforms import invert, yaw_transform
from model.config import (
    BackboneConfig,
    DepthLiftConfig,
    FusionKind,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PixelMotionConfig,
    RefineConfig,
    TPVConfig,
)
from model.fields import FrameInput
from model.heads import FlowHead, lateral_waves
from model.network import OccFlow
from model.pixel_depth import PixelDepthHead
from model.pixel_motion import FASTEST_M
from model.residual import group_norm


def test_fields_have_the_size_of_the_output_grid(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    fields = OccFlow(tiny_config)(tiny_frames)
    assert fields.sdf.shape == (1, 16, 16, 8)
    assert fields.flow.shape == (1, 16, 16, 8, 2)
    assert fields.grid == tiny_config.grid.build()
    assert fields.sdf.dtype == fields.flow.dtype == torch.float32


def test_every_parameter_gets_a_gradient_and_the_past_is_not_differentiated(
    tiny_config: ModelConfig, tiny_frames: FrameInput
) -> None:
    model = OccFlow(tiny_config)
    for name, parameter in model.named_parameters():
        # These start at zero, and hide what feeds them from the first gradient.
        hiding = name.endswith("sampling.weight") or name == "flow_head.believed.2.weight"
        if hiding or (name.startswith("fusion") and name.endswith("output.weight")):
            torch.nn.init.normal_(parameter, std=0.1)
    frames = tiny_frames._replace(images=(tiny_frames.images / 255).requires_grad_())
    fields = model(frames)
    # A plain sum would be blind to whatever a normalisation takes out.
    loss = (fields.sdf * torch.randn_like(fields.sdf)).sum() + (fields.flow * torch.randn_like(fields.flow)).sum()
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert without == ["renderer.temperature.v"]
    assert frames.images.grad is not None
    assert frames.images.grad[:, :-1].abs().sum() == 0
    assert frames.images.grad[:, -1].abs().sum() > 0


def test_autocast_trains_and_keeps_the_fields_in_single_precision(
    tiny_config: ModelConfig, tiny_frames: FrameInput
) -> None:
    model = OccFlow(tiny_config)
    full = model(tiny_frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(tiny_frames)
    assert half.sdf.dtype == half.flow.dtype == torch.float32
    assert not torch.equal(half.sdf, full.sdf)
    torch.testing.assert_close(half.sdf, full.sdf, atol=0.05, rtol=0.05)
    (half.sdf.square().sum() + half.flow.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_bytes_and_unit_floats_are_the_same_image(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    model = OccFlow(tiny_config)
    torch.testing.assert_close(model(tiny_frames._replace(images=tiny_frames.images / 255)).sdf, model(tiny_frames).sdf)


def test_the_order_of_the_cameras_does_not_matter(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    model = OccFlow(tiny_config)
    order = [2, 0, 1]
    images, K, poses, current, valid = tiny_frames
    shuffled = FrameInput(images[:, :, order], K[:, :, order], poses[:, :, order], current, valid[:, :, order])
    a, b = model(tiny_frames), model(shuffled)
    torch.testing.assert_close(a.sdf, b.sdf, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.flow, b.flow, atol=1e-5, rtol=1e-5)


def test_the_origin_of_the_global_frame_does_not_matter(
    tiny_config: ModelConfig, tiny_frames: FrameInput, look: Callable[..., Tensor]
) -> None:
    def from_global(shift: np.ndarray) -> FrameInput:
        ego = [shift @ yaw_transform(0.3 + 0.02 * q, [0.8 * q, 0.1 * q, 0.0]) for q in range(3)]
        cameras = [ego[q] @ look(2.0 * c).double().numpy() for q in range(3) for c in range(3)]
        ref_from_cam = [invert(ego[i // 3]) @ camera for i, camera in enumerate(cameras)]
        return tiny_frames._replace(
            ref_from_cam=torch.as_tensor(np.stack(ref_from_cam)).float().reshape(1, 3, 3, 4, 4),
            current_from_ref=torch.as_tensor(np.stack([invert(ego[2]) @ e for e in ego])).float()[None],
        )

    model = OccFlow(tiny_config)
    near = model(from_global(np.eye(4)))
    far = model(from_global(yaw_transform(2.5, [664_000.0, 3_997_000.0, 120.0])))
    torch.testing.assert_close(near.sdf, far.sdf, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(near.flow, far.flow, atol=1e-4, rtol=1e-4)


def test_a_missing_camera_may_hold_anything(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    model = OccFlow(tiny_config)
    images, K, poses, current, valid = tiny_frames
    without = FrameInput(images[:, :, :2], K[:, :, :2], poses[:, :, :2], current, valid[:, :, :2])
    broken = FrameInput((images / 255).clone(), K.clone(), poses.clone(), current, valid.clone())
    for entry in broken[:3]:
        entry[:, :, 2] = torch.nan
    broken.camera_valid[:, :, 2] = False
    torch.testing.assert_close(model(broken).sdf, model(without).sdf, atol=1e-5, rtol=1e-5)
    nothing = broken._replace(camera_valid=torch.zeros_like(valid))
    fields = model(nothing)
    assert torch.isfinite(fields.sdf).all()
    fields.sdf.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_batched_samples_do_not_see_each_other(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    model = OccFlow(tiny_config)
    other = tiny_frames._replace(images=255 - tiny_frames.images)
    both = model(FrameInput(*(torch.cat(pair) for pair in zip(tiny_frames, other, strict=True))))
    torch.testing.assert_close(both.sdf[:1], model(tiny_frames).sdf, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.flow[1:], model(other).flow, atol=1e-5, rtol=1e-5)


def test_untrained_networks_claim_nothing_unless_asked_to(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    free = OccFlow(tiny_config)(tiny_frames)
    if free.pixel_motion is not None:
        # One that compares images starts by believing half of what its cells say, and they half of what they measure.
        assert free.flow.abs().max() < FASTEST_M / 4 + 0.1
        free = OccFlow(tiny_config.model_copy(update={"pixel_motion": PixelMotionConfig()}))(tiny_frames)
    assert abs(free.sdf.mean().item() - 1.0) < 0.2
    assert free.sdf.min() > 0.1
    assert 0 < free.flow.abs().mean() < 0.1
    ground = tiny_config.model_copy(
        update={"heads": tiny_config.heads.model_copy(update={"sdf_init": "ground", "ground_height": 0.5})}
    )
    sdf = OccFlow(ground)(tiny_frames).sdf.mean(dim=(0, 1, 2))
    heights = torch.tensor([-0.75, -0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
    assert torch.allclose(sdf, heights - 0.5, atol=0.2)


@pytest.mark.parametrize("kind", get_args(FusionKind))
def test_every_fusion_variant_trains(tiny_config: ModelConfig, tiny_frames: FrameInput, kind: str) -> None:
    config = tiny_config.model_copy(update={"fusion": tiny_config.fusion.model_copy(update={"kind": kind})})
    fields = OccFlow(config)(tiny_frames)
    fields.sdf.sum().backward()
    assert torch.isfinite(fields.sdf).all()


def test_equation_3_as_printed_leaves_the_own_plane_out(tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    config = tiny_config.model_copy(update={"tpv": tiny_config.tpv.model_copy(update={"own_plane": False})})
    model = OccFlow(config)
    assert torch.isfinite(model(tiny_frames).sdf).all()
    hybrid = model.tpv.layers[0].hybrid
    tokens = torch.randn(1, 64 + 32 + 32, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(hybrid(tokens)[:, :64].sum(), tokens)
    # Only through the query's own offsets and weights, which start at zero, and never through values.
    assert gradient[:, :64].abs().sum() == 0
    assert gradient[:, 64:].abs().sum() > 0


@pytest.mark.parametrize("size", ["demo", "nuscenes", "semantic_kitti"])
@pytest.mark.parametrize("kind", get_args(FusionKind))
def test_every_size_builds_with_every_fusion(size: str, kind: str) -> None:
    config = getattr(ModelConfig, size)()
    config = config.model_copy(update={"fusion": config.fusion.model_copy(update={"kind": kind})})
    with torch.device("meta"):
        model = OccFlow(config)
    cells = {"demo": (100, 100, 8), "nuscenes": (200, 200, 16), "semantic_kitti": (256, 256, 32)}[size]
    assert model.grid.shape == cells
    assert len(model.tpv.queries[0]) == cells[0] * cells[1] // 4
    if size != "demo":
        assert {p.device.type for p in model.parameters()} == {"meta"}
        tpv = config.tpv
        assert (tpv.dim, tpv.ffn_dim, tpv.heads, tpv.layers, tpv.self_points) == (192, 384, 6, 4, 12)
        assert (tpv.ground_anchors, tpv.side_anchors, config.fusion.heads, config.fusion.points) == (8, 48, 6, 8)
        assert (config.refine.channels, config.refine.blocks, config.refine.strides) == (96, (1, 2, 4), (1, 2, 2))


def test_configurations_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValidationError, match=r"not a multiple of tpv\.heads"):
        TPVConfig(dim=10, heads=4)
    with pytest.raises(ValidationError, match="whole number"):
        ModelConfig(grid=GridConfig(voxel=0.7))
    with pytest.raises(ValidationError, match="cannot be coarsened"):
        ModelConfig(tpv=TPVConfig(factor=3))
    with pytest.raises(ValidationError, match="extra"):
        ModelConfig.model_validate({"backbon": {}})
    with pytest.raises(ValidationError, match=r"refine\.strides \(2, 2, 2\): the first must be 1"):
        RefineConfig(strides=(2, 2, 2))
    with pytest.raises(ValidationError, match=r"depth_lift\.width 100 cannot be cut into 12 groups"):
        DepthLiftConfig(bins=8, width=100)
    with pytest.raises(ValidationError, match=r"backbone\.dims .* 28 cannot be cut into 3 groups"):
        BackboneConfig(kind="residual", dims=(24, 28, 48, 64))
    BackboneConfig(kind="convnext", dims=(24, 28, 48, 64))


def test_every_width_is_built_or_refused() -> None:
    for width in range(1, 60):
        try:
            config = DepthLiftConfig(bins=2, width=width)
        except ValidationError:
            with pytest.raises(ValueError, match="divisible"):
                group_norm(width)
        else:
            PixelDepthHead(config, feature_dim=4)


def test_flow_may_depend_on_the_place_alone() -> None:
    """With `flow_waves` equal features have different flow at different voxels, without them they have not."""
    grid = VoxelGrid((0.0, -4.0, -2.0), (8.0, 4.0, 2.0), (8, 8, 4))
    features = torch.ones(2, 8, 8, 4, 6)
    told = FlowHead(HeadConfig(hidden=8, flow_waves=3, flow_init_std=1.0), 6, grid)(features)
    alone = FlowHead(HeadConfig(hidden=8, flow_init_std=1.0), 6, grid)(features)
    assert told.shape == alone.shape == (2, 8, 8, 4, 2)
    assert torch.allclose(alone, alone[:, :1, :1, :1].expand_as(alone), atol=1e-6)
    assert not torch.allclose(told[:, 0], told[:, -1])
    assert not torch.allclose(told[:, :, 0], told[:, :, -1])
    assert torch.equal(told[0], told[1])


def test_features_say_how_much_of_the_lanes_motion_applies() -> None:
    """All of it at the start, whatever they are; none where the factor's logit is far below zero, twice above."""
    grid = VoxelGrid((0.0, -4.0, -2.0), (8.0, 4.0, 2.0), (8, 8, 4))
    torch.manual_seed(0)
    head = FlowHead(HeadConfig(hidden=8, flow_waves=3, flow_init_std=1.0, flow_scale=3.0), 6, grid)
    assert head.prior is not None
    assert head.applies is not None
    assert head.place is not None
    features = torch.randn(1, 8, 8, 4, 6)
    own, lane = 3 * head.mlp(features), 3 * head.prior(head.place)
    torch.testing.assert_close(head(features), own + lane)
    for bias, share in ((-50.0, 0.0), (50.0, 2.0)):
        torch.nn.init.constant_(head.applies[2].bias, bias)
        torch.testing.assert_close(head(features), own + share * lane)


def test_waves_by_hand() -> None:
    """Eight metres wide: at y = 1 m a quarter of the way from the middle to the side, so a half turn of pi / 2 for the
    second wave, which repeats every 4 m."""
    grid = VoxelGrid((0.0, -4.0, -2.0), (8.0, 4.0, 2.0), (4, 4, 2))
    place = lateral_waves(grid, 2)
    assert place.shape == (4, 4, 2, 7)
    x, y, z, sine, second, cosine, second_cosine = place[3, 2, 1].tolist()
    assert (x, y, z) == pytest.approx((1.5, 0.5, 1.0))
    assert (sine, cosine) == pytest.approx((2**-0.5, 2**-0.5))
    assert (second, second_cosine) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert torch.allclose(place[:, 2, :, 4], place[:, 0, :, 4], atol=1e-6)
