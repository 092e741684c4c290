"""The whole network: from a queue of multi-camera keyframes to the fields of geometry and motion (eq. 1)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.backbone import ConvNeXt
from model.config import ModelConfig
from model.depth_lift import DepthLift
from model.earlier_images import DepthMap, Look
from model.fields import Fields, FrameInput
from model.fpn import FeaturePyramid
from model.fusion import TemporalFusion
from model.heads import FlowHead, MovableHead, SDFHead
from model.lifted import Lifted
from model.pixel_depth import PixelDepth
from model.pixel_motion import PixelMotion, PixelMotionHead
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
        carried = 2 + config.pixel_motion.context if config.pixel_motion.cell else 0
        self.flow_head = FlowHead(config.heads, config.refine.channels, self.grid, carried)
        self.renderer = Renderer(config.render)
        # Last: without it every other part starts from the same numbers.
        self.movable_head = MovableHead(config.heads, config.refine.channels) if config.heads.movable else None
        self.pixel_motion_head: PixelMotionHead | None = None
        if config.pixel_motion.cell:
            self.pixel_motion_head = PixelMotionHead(config.pixel_motion, config.fpn_dim)
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN, device="cpu")[:, None, None], persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD, device="cpu")[:, None, None], persistent=False)

    def forward(self, frames: FrameInput, *, motion: bool = True) -> Fields:
        """Fields at the current keyframe, in its ego frame.

        A volume is lifted from each keyframe's cameras; the past volumes are aligned to the current ego frame and
        fused with the current one; the result is refined, brought to the output voxels and decoded.

        Args:
            motion: False leaves the flow zero, and out what nothing but the flow needs.
        """
        return self.decode(self.lift_queue(frames, motion=motion), frames.current_from_ref, motion=motion)

    def decode(self, queue: list[Lifted], current_from_ref: Float[Tensor, "b q 4 4"], *, motion: bool = True) -> Fields:
        """Fields from what `lift_queue` gives, or `lift` gave for each keyframe earlier: fusion, refinement, heads."""
        now = queue[-1]
        refined = self.refine(self.fusion([lifted.volume for lifted in queue], current_from_ref))
        pixel_depth, pixel_motion, carried = None, None, None
        if self.depth_lift is not None:
            pixel_depth, context = self.depth_lift.head(now.finest, now.rig)
            if motion and self.pixel_motion_head is not None:
                pixel_motion = self._compare(queue, current_from_ref, pixel_depth)
                carried = torch.cat([pixel_motion.motion, pixel_motion.context], dim=1)
            lifted, carried = self.depth_lift.tell(pixel_depth, context, now.rig, carried)
            refined = self.depth_lift.add(refined, lifted)
        # Under autocast the decoders answer in half precision, in which a distance of 30 m has steps of 0.125 m.
        sdf = self.sdf_head(refined).to(self.image_mean.dtype)
        flow = self.flow_head(refined, carried).to(sdf) if motion else sdf.new_zeros(*sdf.shape, 2)
        features = refined if self.movable_head is not None else None
        return Fields(sdf, flow, self.grid, pixel_depth, features, pixel_motion)

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

    def pixel_motion(self, frames: FrameInput) -> tuple[PixelDepth, PixelMotion]:
        """The same, and what the current keyframe's images suggest of motion beside the one before.

        Raises:
            ValueError: the network compares no images.
        """
        if self.depth_lift is None or self.pixel_motion_head is None:
            raise ValueError("this network predicts no motion per pixel; set model.pixel_motion.cell")
        queue = frames.images.shape[1]
        with torch.no_grad():
            before = self._look(_keyframes(frames, max(0, queue - 2), max(1, queue - 1)))
        # Both of a pair learn what makes them alike; it costs little, for only the descriptors' own layers do.
        then = self._described(*before)
        now = self._described(*self._look(_keyframes(frames, queue - 1, queue)))
        pixel_depth = self.depth_lift.head(now.finest, now.rig)[0]
        return pixel_depth, self._compare([then, now], frames.current_from_ref[:, -2:], pixel_depth)

    def _compare(
        self, queue: list[Lifted], current_from_ref: Float[Tensor, "b q 4 4"], predicted: PixelDepth
    ) -> PixelMotion:
        """Motion of the current image cells, from the last two keyframes of the queue."""
        assert self.depth_lift is not None
        assert self.pixel_motion_head is not None
        now, then = queue[-1], queue[max(0, len(queue) - 2)]
        assert now.descriptors is not None
        assert then.descriptors is not None
        size = (now.descriptors.shape[-2], now.descriptors.shape[-1])
        with torch.no_grad():
            earlier = DepthMap.of(self.depth_lift.head(then.finest, then.rig)[0], size)
        return self.pixel_motion_head(
            Look(now.descriptors, DepthMap.of(predicted, size), now.rig),
            Look(then.descriptors, earlier, then.rig),
            current_from_ref[:, max(0, current_from_ref.shape[1] - 2)],
        )

    def lift_queue(self, frames: FrameInput, *, motion: bool = True) -> list[Lifted]:
        """Each keyframe of every queue, oldest first, in its own ego frame; the past ones carry no gradient."""
        queue = frames.images.shape[1]
        first = 0 if self.config.fusion.kind != "none" else queue - 1
        past: list[Lifted] = []
        if queue - first > 1:
            with torch.no_grad():
                past = self.lift(_keyframes(frames, first, queue - 1), motion=motion).split(queue - 1 - first)
        return [*past, self.lift(_keyframes(frames, queue - 1, queue), motion=motion)]

    def lift(self, frames: FrameInput, *, motion: bool = True) -> Lifted:
        """All keyframes of all samples, n = batch x queue: backbone, pyramid, TPV encoder."""
        levels, rig, images = self._look(frames)
        return self._described(levels, rig, images, motion)._replace(volume=self.tpv(levels, rig))

    def _described(
        self,
        levels: list[Float[Tensor, "views dim _h _w"]],
        rig: CameraRig,
        images: Float[Tensor, "views 3 _height _width"],
        motion: bool = True,
    ) -> Lifted:
        """All of it but the volume, which is empty."""
        descriptors = None
        if motion and self.pixel_motion_head is not None:
            descriptors = self.pixel_motion_head.describe(images, levels[0])
        return Lifted(levels[0].new_zeros(len(rig.K), 0, 0, 0, 0), levels[0], rig, descriptors)

    def look(self, frames: FrameInput) -> tuple[list[Float[Tensor, "views dim _h _w"]], CameraRig]:
        """Features of all images of all keyframes (frame-major views), finest first, and the cameras."""
        return self._look(frames)[:2]

    def _look(
        self, frames: FrameInput
    ) -> tuple[list[Float[Tensor, "views dim _h _w"]], CameraRig, Float[Tensor, "views 3 _height _width"]]:
        """The same, and the normalised images."""
        valid = frames.camera_valid.flatten(0, 1)
        images = self.normalise(frames.images.flatten(0, 1), valid)
        rig = CameraRig.build(
            frames.K.flatten(0, 1), frames.ref_from_cam.flatten(0, 1), valid, (images.shape[-2], images.shape[-1])
        )
        flat = images.flatten(0, 1)
        return self.pyramid(self.backbone(flat)), rig, flat

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
