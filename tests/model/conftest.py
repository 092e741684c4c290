"""A tiny network and a tiny rig, shared by the tests of this room."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.config import (
    BackboneConfig,
    DepthLiftConfig,
    FusionConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PixelMotionConfig,
    RefineConfig,
    RenderConfig,
    TPVConfig,
)
from model.fields import FrameInput


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=["paper", "from_nothing"])
def tiny_config(request: pytest.FixtureRequest) -> ModelConfig:
    """The paper's parts, and those that small networks start from nothing with."""
    config = ModelConfig(
        grid=GridConfig(lower=(-4.0, -4.0, -1.0), upper=(4.0, 4.0, 3.0), voxel=0.5),
        backbone=BackboneConfig(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), layer_scale=1.0),
        fpn_dim=8,
        tpv=TPVConfig(
            dim=8, ffn_dim=8, heads=2, layers=2, self_points=2, ground_anchors=2, side_anchors=3, dropout=0.0
        ),
        fusion=FusionConfig(heads=2, points=2),
        refine=RefineConfig(channels=8, blocks=(1, 1, 1)),
        heads=HeadConfig(hidden=8),
        render=RenderConfig(samples=16),
    )
    if request.param == "paper":
        return config
    backbone = config.backbone.model_copy(update={"kind": "residual", "dims": (8, 8, 8, 8)})
    lift, motion = DepthLiftConfig(bins=8, context=2), PixelMotionConfig(cell=4, width=8, context=2)
    return config.model_copy(update={"backbone": backbone, "depth_lift": lift, "pixel_motion": motion})


@pytest.fixture
def look() -> Callable[..., torch.Tensor]:
    """Pose of a level camera at `position` that looks along `yaw` radians, as ego_from_cam."""

    def build(yaw: float, position: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> torch.Tensor:
        forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
        pose[:3, 3] = position
        return torch.as_tensor(pose, dtype=torch.float32)

    return build


@pytest.fixture
def tiny_frames(look: Callable[..., torch.Tensor]) -> FrameInput:
    """Three keyframes of three cameras that look all around; the car drives 0.8 m per keyframe and turns a little."""
    queue, cameras, height, width = 3, 3, 32, 64
    K = torch.tensor([[20.0, 0, 32.0], [0, 20.0, 16.0], [0, 0, 1]])
    poses = torch.stack([look(2 * np.pi * c / cameras) for c in range(cameras)])
    current = torch.eye(4).repeat(1, queue, 1, 1)
    for q in range(queue - 1):
        back = queue - 1 - q
        angle = -0.05 * back
        current[0, q, :2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        current[0, q, 0, 3] = -0.8 * back
    return FrameInput(
        images=torch.randint(0, 256, (1, queue, cameras, 3, height, width), dtype=torch.uint8),
        K=K.repeat(1, queue, cameras, 1, 1),
        ref_from_cam=poses.repeat(1, queue, 1, 1, 1),
        current_from_ref=current,
        camera_valid=torch.ones(1, queue, cameras, dtype=torch.bool),
    )
