"""The whole network: from a queue of multi-camera keyframes to the fields of geometry and motion (eq. 1)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.backbone import ConvNeXt
from model.config import ModelConfig
from model.depth_lift import DepthLift
from model.fields import Fields, FrameInput
from model.fpn import FeaturePyramid
from model.fusion import TemporalFusion
from model.heads import FlowHead, MovableHead, SDFHead
from model.pixel_depth import PixelDepth
from model.refine import Refine
from model.render import Renderer
from model.residual import ResidualBackbone
from model.tpv import TPVEncoder
from model.visibility import CameraRig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

__all__ = ["Fields", "FrameInput", "OccFlow"]


class OccFlow(nn.Module):
    """Occupancy (as a signed distance field) and occupancy flow from cameras alone."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid.build()
        cells = self.grid.coarsen(config.tpv.factor)
        backbone = ConvNeXt if config.backbone.kind == "convnext" else ResidualBackbone
        self.backbone = backbone(config.backbone)
        self.pyramid = FeaturePyramid(config.backbone.dims, config.fpn_dim)
        self.tpv = TPVEncoder(config.tpv, cells, config.fpn_dim, kernel=config.attention)
        self.depth_lift: DepthLift | None = None
        if config.depth_lift.bins:
            self.depth_lift = DepthLift(config.depth_lift, config.fpn_dim, config.refine.channels, self.grid)
        self.fusion = TemporalFusion(config.fusion, config.tpv.dim, cells, kernel=config.attention)
        self.refine = Refine(config.refine, config.tpv.dim, config.tpv.factor)
        self.sdf_head = SDFHead(config.heads, config.refine.channels, self.grid)
        self.flow_head = FlowHead(config.heads, config.refine.channels, self.grid)
        self.renderer = Renderer(config.render)
        # Last: without it every other part starts from the same numbers.
        self.movable_head = MovableHead(config.heads, config.refine.channels) if config.heads.movable else None
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN, device="cpu")[:, None, None], persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD, device="cpu")[:, None, None], persistent=False)

    def forward(self, frames: FrameInput) -> Fields:
        """Fields at the current keyframe, in its ego frame.

        A volume is lifted from each keyframe's cameras; the past volumes are aligned to the current ego frame and
        fused with the current one; the result is refined, brought to the output voxels and decoded.
        """
        return self.decode(*self.lift_queue(frames), frames.current_from_ref)

    def decode(
        self,
        volumes: list[Float[Tensor, "b x y z dim"]],
        finest: Float[Tensor, "views dim _h _w"],
        rig: CameraRig,
        current_from_ref: Float[Tensor, "b q 4 4"],
    ) -> Fields:
        """Fields from what `lift_queue` gives, or `lift` gave for each keyframe earlier: fusion, refinement, heads."""
        refined = self.refine(self.fusion(volumes, current_from_ref))
        pixel_depth = None
        if self.depth_lift is not None:
            lifted, pixel_depth = self.depth_lift(finest, rig)
            refined = self.depth_lift.add(refined, lifted)
        # Under autocast the decoders answer in half precision, in which a distance of 30 m has steps of 0.125 m.
        sdf, flow = (head(refined).to(self.image_mean.dtype) for head in (self.sdf_head, self.flow_head))
        features = refined if self.movable_head is not None else None
        return Fields(sdf=sdf, flow=flow, grid=self.grid, pixel_depth=pixel_depth, features=features)

    def movable(self, fields: Fields) -> Float[Tensor, "b x y z"] | None:
        """Logits of what could move, of fields that this network gave; None where it has no such decoder."""
        if self.movable_head is None or fields.features is None:
            return None
        return self.movable_head(fields.features).to(fields.sdf.dtype)

    def pixel_depth(self, frames: FrameInput) -> PixelDepth:
        """Depths that the current keyframe's images suggest, cell by cell, without building the volume.

        Raises:
            ValueError: the network has no depth-aware lifting.
        """
        if self.depth_lift is None:
            raise ValueError("this network predicts no depth per pixel; set model.depth_lift.bins")
        levels, rig = self.look(_keyframes(frames, frames.images.shape[1] - 1, frames.images.shape[1]))
        return self.depth_lift.head(levels[0], rig)[0]

    def lift_queue(
        self, frames: FrameInput
    ) -> tuple[list[Float[Tensor, "b x y z dim"]], Float[Tensor, "views dim _h _w"], CameraRig]:
        """A volume per keyframe, oldest first, each in its own ego frame; the past ones carry no gradient. Besides, the
        finest image level of the current keyframe's cameras and where they are."""
        queue = frames.images.shape[1]
        first = 0 if self.config.fusion.kind != "none" else queue - 1
        past: list[Tensor] = []
        if queue - first > 1:
            with torch.no_grad():
                together, _, _ = self.lift(_keyframes(frames, first, queue - 1))
                past = list(together.unflatten(0, (-1, queue - 1 - first)).unbind(dim=1))
        current, finest, rig = self.lift(_keyframes(frames, queue - 1, queue))
        return [*past, current], finest, rig

    def lift(
        self, frames: FrameInput
    ) -> tuple[Float[Tensor, "n x y z dim"], Float[Tensor, "views dim _h _w"], CameraRig]:
        """Volumes of all keyframes of all samples, n = batch x queue: backbone, pyramid, TPV encoder; the pyramid's
        finest level; the cameras."""
        levels, rig = self.look(frames)
        return self.tpv(levels, rig), levels[0], rig

    def look(self, frames: FrameInput) -> tuple[list[Float[Tensor, "views dim _h _w"]], CameraRig]:
        """Features of all images of all keyframes (frame-major views), finest first, and the cameras."""
        valid = frames.camera_valid.flatten(0, 1)
        images = self.normalise(frames.images.flatten(0, 1), valid)
        rig = CameraRig.build(
            frames.K.flatten(0, 1), frames.ref_from_cam.flatten(0, 1), valid, (images.shape[-2], images.shape[-1])
        )
        return self.pyramid(self.backbone(images.flatten(0, 1))), rig

    def normalise(self, images: Tensor, valid: Tensor) -> Float[Tensor, "n cams 3 h w"]:
        """Images (n, cams, 3, H, W) to zero mean and unit deviation (ImageNet's); missing cameras become zero."""
        scaled = images.to(self.image_mean.dtype)
        if not images.is_floating_point():
            scaled = scaled / 255
        normalised = (scaled - self.image_mean) / self.image_std
        return torch.where(valid[:, :, None, None, None], normalised, torch.zeros_like(normalised))


def _keyframes(frames: FrameInput, start: int, stop: int) -> FrameInput:
    """The keyframes start..stop of every queue."""
    return FrameInput(*(entry[:, start:stop] for entry in frames))
