"""Differentiable rendering of the fields along rays: samples, weights, depth, flow and opacity (eqs. 13-14)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from geometry.cameras import camera_directions, pixel_centres
from geometry.grid import VoxelGrid
from geometry.transforms import rotate_vectors
from model.config import RenderConfig
from model.fields import Fields, sample_field
from model.opacity import Temperature, log_keep_consecutive, log_keep_gradient, weights_from_log_keep

__all__ = ["RayRender", "Renderer", "Temperature", "ViewRender", "camera_rays", "render_view", "to_camera_depth"]

MIN_OPACITY = 1e-6
"""Smallest Σw that is divided by."""


@dataclass(frozen=True)
class RayRender:
    """R rays per batch element with S samples each, all metres in the current ego frame."""

    weights: Float[Tensor, "b r s"]
    """w_i of eq. 13; zero on invalid rays."""
    distances: Float[Tensor, "b r s"]
    """Distance from the ray's origin to each sample."""
    points: Float[Tensor, "b r s 3"]
    sdf: Float[Tensor, "b r s"]
    """Signed distance at the samples (mean of both ends in the `consecutive` form)."""
    flow: Float[Tensor, "b r s 2"] | None
    """Horizontal motion at the samples, metres per keyframe interval; None unless asked for."""
    valid: Bool[Tensor, "b r"]
    """False for rays without a single sample inside the volume: drop and count them."""
    opacity: Float[Tensor, "b r"]
    """Σw."""

    def average(self, values: Float[Tensor, "b r s"]) -> Float[Tensor, "b r"]:
        """`Σ w v / Σ w`: dividing by the weight sum keeps an empty volume from being free of loss."""
        return (self.weights * values).sum(dim=-1) / self.opacity.clamp_min(MIN_OPACITY)

    def range(self) -> Float[Tensor, "b r"]:
        """Rendered distance along the ray (eq. 14), metres; 0 where opacity is 0."""
        return self.average(self.distances)

    def mean_flow(self) -> Float[Tensor, "b r 2"]:
        """Rendered horizontal motion (eq. 14), metres per keyframe interval."""
        if self.flow is None:
            raise ValueError("these rays were rendered without flow; render them with with_flow=True")
        total = (self.weights[..., None] * self.flow).sum(dim=-2)
        return total / self.opacity.clamp_min(MIN_OPACITY)[..., None]


def sample_edges(
    grid: VoxelGrid,
    origins: Float[Tensor, "b r 3"],
    directions: Float[Tensor, "b r 3"],
    samples: int,
    jitter: Float[Tensor, "b r"] | None = None,
) -> tuple[Float[Tensor, "b r edges"], Bool[Tensor, "b r"]]:
    """Distances of samples + 1 uniform points per ray, from its origin (or entry) to the exit of the volume.

    Args:
        directions: unit length.
        jitter: one number in [0, 1) per ray that shifts all its points by that part of their spacing; None is the
            middle, 0.5.

    Returns:
        Distances, metres, and whether the ray meets the volume at all (a ray of zero length does not).
    """
    near, far = grid.clip(origins, directions)
    length = far - near
    # NaN directions, from a camera matrix that is not one, compare false and so become invalid rays.
    valid = (length > 1e-4) & (directions.norm(dim=-1) > 0.5)
    near = torch.where(valid, near, torch.zeros_like(near))
    length = torch.where(valid, length, torch.zeros_like(length))
    steps = torch.arange(samples + 1, device=origins.device, dtype=origins.dtype)
    shift = torch.full_like(near, 0.5) if jitter is None else jitter
    fractions = (steps + shift[..., None]) / (samples + 1)
    return near[..., None] + fractions * length[..., None], valid


class Renderer(nn.Module):
    """Ray rendering with a learned temperature; `config.alpha` names the form of the opacity."""

    def __init__(self, config: RenderConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = Temperature(config.temperature_v)

    def forward(
        self,
        fields: Fields,
        origins: Float[Tensor, "b r 3"],
        directions: Float[Tensor, "b r 3"],
        *,
        with_flow: bool = True,
        step: int | None = None,
        jitter: Float[Tensor, "b r"] | None = None,
        samples: int | None = None,
    ) -> RayRender:
        """Render camera or LiDAR rays through the fields.

        Args:
            origins, directions: current ego frame, metres; directions of unit length.
            step: training step, which sets the annealing of the `gradient` form; None is fully annealed.
            jitter: see `sample_edges`. Training passes `torch.rand`.
            samples: overrides the configured number.
        """
        count = samples or self.config.samples
        edges, valid = sample_edges(fields.grid, origins, directions, count, jitter)
        distances = (edges[..., 1:] + edges[..., :-1]) / 2
        safe_directions = torch.where(valid[..., None], directions, torch.zeros_like(directions))
        safe_origins = torch.where(valid[..., None], origins, torch.zeros_like(origins))
        points = safe_origins[:, :, None] + distances[..., None] * safe_directions[:, :, None]
        inv_s = self.temperature()
        if self.config.alpha == "consecutive":
            ends = fields.sdf_at(safe_origins[:, :, None] + edges[..., None] * safe_directions[:, :, None])
            sdf = (ends[..., 1:] + ends[..., :-1]) / 2
            log_keep = log_keep_consecutive(ends, inv_s)
        else:
            sdf, slope = self._sdf_and_slope(fields, points, safe_directions)
            log_keep = log_keep_gradient(sdf, slope, edges.diff(dim=-1), inv_s, self._anneal(step))
        weights, left = weights_from_log_keep(log_keep)
        weights = weights * valid[..., None]
        flow = fields.flow_at(points) if with_flow else None
        return RayRender(weights, distances, points, sdf, flow, valid, (1 - left) * valid)

    def _anneal(self, step: int | None) -> float:
        if step is None or self.config.anneal_steps == 0:
            return 1.0
        return min(1.0, step / self.config.anneal_steps)

    @staticmethod
    def _sdf_and_slope(
        fields: Fields, points: Float[Tensor, "b r s 3"], directions: Float[Tensor, "b r 3"]
    ) -> tuple[Float[Tensor, "b r s"], Float[Tensor, "b r s"]]:
        """Signed distance and its derivative along the ray, from one trilinear look-up of four channels."""
        stacked = torch.cat([fields.sdf[:, None], fields.sdf_gradient()], dim=1)
        sampled = sample_field(stacked, points, fields.grid)
        slope = (sampled[:, 1:] * directions.movedim(-1, 1)[..., None]).sum(dim=1)
        return sampled[:, 0], slope


def camera_rays(
    K: Float[Tensor, "*b 3 3"], ego_from_cam: Float[Tensor, "*b 4 4"], uv: Float[Tensor, "*b r 2"]
) -> tuple[Float[Tensor, "*b r 3"], Float[Tensor, "*b r 3"]]:
    """Origins (metres) and unit directions, ego frame, of the rays through continuous pixel positions."""
    directions = rotate_vectors(ego_from_cam, camera_directions(K, uv))
    origins = ego_from_cam[..., None, :3, 3].expand_as(directions)
    return origins, torch.nn.functional.normalize(directions, dim=-1)


def to_camera_depth(
    ranges: Float[Tensor, "*b r"], directions: Float[Tensor, "*b r 3"], ego_from_cam: Float[Tensor, "*b 4 4"]
) -> Float[Tensor, "*b r"]:
    """Camera z (the depth of eqs. 8-10 and of the depth metrics) from distances along unit ego-frame rays."""
    forward = ego_from_cam[..., :3, 2]
    return ranges * (directions * forward[..., None, :]).sum(dim=-1)


@dataclass(frozen=True)
class ViewRender:
    """One camera's rendered images, h x w."""

    depth: Float[Tensor, "h w"]
    """Camera z, metres; 0 where opacity is 0."""
    range: Float[Tensor, "h w"]
    flow: Float[Tensor, "h w 2"]
    """Horizontal object motion, metres per keyframe interval."""
    opacity: Float[Tensor, "h w"]
    valid: Bool[Tensor, "h w"]


@torch.no_grad()
def render_view(
    renderer: Renderer,
    fields: Fields,
    K: Float[Tensor, "3 3"],
    ego_from_cam: Float[Tensor, "4 4"],
    size: tuple[int, int],
    *,
    chunk: int = 8192,
    samples: int | None = None,
) -> ViewRender:
    """Render a whole camera image of `size` (height, width) from fields of batch 1, `chunk` rays at a time.

    K is at that size; `ego_from_cam` leads to the fields' frame. Without gradient.
    """
    if len(fields.sdf) != 1:
        raise ValueError(f"render_view takes fields of batch 1, got batch {len(fields.sdf)}; slice them first")
    height, width = size
    like = fields.sdf
    uv = torch.as_tensor(pixel_centres(height, width), dtype=like.dtype, device=like.device).reshape(-1, 2)
    origins, directions = camera_rays(K.to(like), ego_from_cam.to(like), uv)
    parts = []
    for o, d in zip(origins.split(chunk), directions.split(chunk), strict=True):
        rays = renderer(fields, o[None], d[None], with_flow=True, samples=samples)
        parts.append((rays.range()[0], rays.mean_flow()[0], rays.opacity[0], rays.valid[0]))
    ranges, flow, opacity, valid = (torch.cat(part) for part in zip(*parts, strict=True))
    depth = to_camera_depth(ranges, directions, ego_from_cam.to(like))
    shape = (height, width)
    return ViewRender(
        depth.view(shape), ranges.view(shape), flow.view(*shape, 2), opacity.view(shape), valid.view(shape)
    )
