"""What goes into the network and what comes out of it: the camera queue, and the fields of geometry and motion."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.lookup import look_up, use_compiled
from geometry.warp import sample_volume
from model.pixel_depth import PixelDepth
from model.pixel_motion import PixelMotion


class FrameInput(NamedTuple):
    """A queue of keyframes, oldest first, the current one last; B batch, Q queue, C cameras.

    Every pose is relative: no global coordinate enters the network, so that float32 keeps millimetres and the result
    does not depend on where on Earth the car is.
    """

    images: Shaped[Tensor, "b q c 3 h w"]
    """uint8, or float in [0, 1], RGB."""
    K: Float[Tensor, "b q c 3 3"]
    """Camera matrices at the resolution of `images`, pixels."""
    ref_from_cam: Float[Tensor, "b q c 4 4"]
    """The queue frame's own ego frame (LiDAR time) from each camera at its own trigger time."""
    current_from_ref: Float[Tensor, "b q 4 4"]
    """The current ego frame from the queue frame's ego frame; identity for the last."""
    camera_valid: Bool[Tensor, "b q c"]
    """False where the camera has no image at that frame; its other entries may then be anything, NaN included."""


@dataclass(frozen=True)
class Fields:
    """Fields at voxel centres in the current ego frame: `sdf` (B, X, Y, Z) in metres, positive in free space, and
    `flow` (B, X, Y, Z, 2): horizontal object motion (vx, vy), ego-motion removed, metres per keyframe interval.
    `pixel_depth`: what the images alone say of depth, where the network has depth-aware lifting. `features`: what was
    decoded, where the network has a decoder that is asked later (`OccFlow.movable`). `pixel_motion`: what the images
    alone say of motion, where the network compares them."""

    sdf: Float[Tensor, "b x y z"]
    flow: Float[Tensor, "b x y z 2"]
    grid: VoxelGrid
    pixel_depth: PixelDepth | None = None
    features: Float[Tensor, "b x y z ch"] | None = None
    pixel_motion: PixelMotion | None = None

    def sdf_at(self, points: Float[Tensor, "b *n 3"]) -> Float[Tensor, "b *n"]:
        """Trilinear signed distance, metres, at points in metres; beyond the outermost centres the border's value."""
        return sample_field(self.sdf[:, None], points, self.grid)[:, 0]

    def flow_at(self, points: Float[Tensor, "b *n 3"]) -> Float[Tensor, "b *n 2"]:
        """Trilinear flow, metres per keyframe interval, at points in metres."""
        return sample_field(self.flow.movedim(-1, 1), points, self.grid).movedim(1, -1)

    def sdf_gradient(self) -> Float[Tensor, "b 3 x y z"]:
        """Gradient of the SDF grid by central differences (one-sided at the border), metres per metre: the
        pre-computed gradient field of eq. 15. An axis of a single voxel has gradient zero."""
        parts = []
        for axis, (size, count) in enumerate(zip(self.grid.voxel_size, self.grid.shape, strict=True), start=1):
            if count == 1:
                parts.append(torch.zeros_like(self.sdf))
            else:
                parts.append(torch.gradient(self.sdf, spacing=size, dim=axis)[0])
        return torch.stack(parts, dim=1)

    def detach(self) -> "Fields":
        """The same fields outside the graph."""
        return Fields(self.sdf.detach(), self.flow.detach(), self.grid)


def sample_field(
    volume: Float[Tensor, "b ch x y z"], points: Float[Tensor, "b *n 3"], grid: VoxelGrid
) -> Float[Tensor, "b ch *n"]:
    """`geometry.warp.sample_volume` with border padding, using every core on a CPU: compiled where that can be.

    Where not, grid_sample runs one thread per batch element, so a batch of one is spread: the volume is expanded (not
    copied) and the points are cut into as many parts as there are threads.
    """
    if use_compiled(volume, points):
        return look_up(volume, points, grid)
    parts = torch.get_num_threads()
    spatial = points.shape[1:-1]
    total = spatial.numel()
    if points.device.type != "cpu" or parts == 1 or len(points) > 1 or total < 4096 * parts:
        return sample_volume(volume, points, grid)
    flat = points.reshape(total, 3)
    spare = -total % parts
    flat = torch.nn.functional.pad(flat, (0, 0, 0, spare)).reshape(parts, -1, 3)
    out = sample_volume(volume.expand(parts, -1, -1, -1, -1), flat, grid)
    return out.movedim(1, 0).reshape(1, volume.shape[1], -1)[..., :total].reshape(1, volume.shape[1], *spatial)
