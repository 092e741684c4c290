"""Which rays a step casts, and where the samples along them land in another camera image."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.cameras import camera_directions, in_image, project
from geometry.transforms import rotate_vectors, transform_points


@dataclass(frozen=True)
class RayGrid:
    """A strided sub-grid of an image's pixels, row-major: SSIM and smoothness need rays that have neighbours."""

    top: int
    left: int
    stride: int
    rows: int
    columns: int

    def pick(self, image: Tensor) -> Tensor:
        """Values (..., rows, columns) of an image (..., height, width) at the grid's pixels."""
        bottom, right = self.top + (self.rows - 1) * self.stride + 1, self.left + (self.columns - 1) * self.stride + 1
        return image[..., self.top : bottom : self.stride, self.left : right : self.stride]

    def pixels(self, device: torch.device | None = None) -> Float[Tensor, "rays 2"]:
        """Pixel centres (u, v), float32."""
        v = self.top + self.stride * torch.arange(self.rows, device=device) + 0.5
        u = self.left + self.stride * torch.arange(self.columns, device=device) + 0.5
        vv, uu = torch.meshgrid(v, u, indexing="ij")
        return torch.stack([uu, vv], dim=-1).reshape(-1, 2).float()


def beside(drawn: Tensor, like: Tensor, *, keep_dtype: bool = False) -> Tensor:
    """Random numbers drawn on the host, on the device and (unless `keep_dtype`) in the dtype of `like`.

    From page-locked memory, because the host waits for the whole GPU before it copies from any other.
    """
    dtype = drawn.dtype if keep_dtype else like.dtype
    if like.device.type == "cuda":
        drawn = drawn.pin_memory()
    return drawn.to(like.device, dtype, non_blocking=True)


def draw_ray_grid(
    render_size: tuple[int, int], shape: tuple[int, int], strides: tuple[int, int], generator: torch.Generator
) -> RayGrid:
    """A grid of `shape` (rows, columns) rays at a stride drawn from `strides` (lowest, highest) and an offset to fit.

    All cameras of a step share it. Strides that do not fit the image are not drawn.

    Raises:
        ValueError: not even the lowest stride fits.
    """
    (height, width), (rows, columns) = render_size, shape
    lowest, highest = strides
    fits = [s for s in range(lowest, highest + 1) if (rows - 1) * s < height and (columns - 1) * s < width]
    if not fits:
        raise ValueError(
            f"rays.grid {shape} at a stride of {lowest} needs {(rows - 1) * lowest + 1}x{(columns - 1) * lowest + 1} "
            f"pixels, but the store's render size is {height}x{width}: lower rays.grid or rays.strides"
        )

    def draw(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    stride = fits[draw(len(fits))]
    top = draw(height - (rows - 1) * stride)
    left = draw(width - (columns - 1) * stride)
    return RayGrid(top=top, left=left, stride=stride, rows=rows, columns=columns)


@dataclass
class Rays:
    """Rays in the reference ego frame: origins, unit directions, and camera-z depth per metre along the ray."""

    origins: Float[Tensor, "batch rays 3"]
    directions: Float[Tensor, "batch rays 3"]
    depth_per_metre: Float[Tensor, "batch rays"]


def camera_rays(
    K: Float[Tensor, "batch cameras 3 3"],
    ref_from_cam: Float[Tensor, "batch cameras 4 4"],
    pixels: Float[Tensor, "rays 2"],
) -> Rays:
    """The rays through `pixels` of every camera; rays = cameras x pixels, camera-major. K in those pixels' units."""
    batch, cameras = K.shape[:2]
    along = camera_directions(K, pixels.expand(batch, cameras, -1, -1))
    # Pixel directions have z = 1, so a metre along the ray is 1 / length metres of depth.
    length = torch.linalg.vector_norm(along, dim=-1)
    directions = rotate_vectors(ref_from_cam, along / length[..., None])
    origins = ref_from_cam[..., None, :3, 3].expand_as(directions)
    return Rays(
        origins=rearrange(origins, "b c r xyz -> b (c r) xyz"),
        directions=rearrange(directions, "b c r xyz -> b (c r) xyz"),
        depth_per_metre=rearrange(1 / length, "b c r -> b (c r)"),
    )


def lidar_rays(points: Float[Tensor, "batch rays 3"], origins: Float[Tensor, "batch rays 3"]) -> tuple[Rays, Tensor]:
    """Rays from where the LiDAR was to its returns, in the ego frame, and the measured ranges (batch, rays) in metres.

    A return at the sensor itself gets an arbitrary direction and range zero. `depth_per_metre` is one: range, not
    depth, is what LiDAR measures.
    """
    offset = points - origins
    ranges = torch.linalg.vector_norm(offset, dim=-1)
    forward = torch.nn.functional.pad(torch.ones_like(offset[..., :1]), (0, 2))
    directions = torch.where(ranges[..., None] > 0, offset / ranges.clamp_min(1e-6)[..., None], forward)
    return Rays(origins, directions, torch.ones_like(ranges)), ranges


@dataclass
class Landing:
    """Where samples land in another camera: pixels (meaningless unless in_front), in front of it, inside its image."""

    uv: Float[Tensor, "n rays samples 2"]
    in_front: Bool[Tensor, "n rays samples"]
    in_view: Bool[Tensor, "n rays samples"]


def land(
    points: Float[Tensor, "n rays samples 3"],
    cam_from_ref: Float[Tensor, "n 4 4"],
    K: Float[Tensor, "n 3 3"],
    size: tuple[int, int],
    motion: Float[Tensor, "n rays samples 2"] | None = None,
) -> Landing:
    """Project samples, moved by `motion`, into another camera: K T⁻¹ T_t^{t'} (x_i + f_i) of eqs. 8-9.

    Args:
        points: samples in the reference ego frame, metres.
        cam_from_ref: that other camera (at its own time) from the reference ego frame.
        K: its intrinsics, in pixels of `size` (height, width).
        motion: horizontal displacement (x, y) of each sample until the other image's time, metres; None: static.
    """
    n, rays, samples, _ = points.shape
    if motion is not None:
        points = points + torch.nn.functional.pad(motion, (0, 1))
    uv, _, in_front = project(K, transform_points(cam_from_ref, points.reshape(n, rays * samples, 3)))
    uv = uv.reshape(n, rays, samples, 2)
    in_front = in_front.reshape(n, rays, samples)
    return Landing(uv=uv, in_front=in_front, in_view=in_front & in_image(uv, *size))
