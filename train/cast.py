"""Rays cast through the fields, laid out per camera image, with the light that passes everything accounted for."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.grid import VoxelGrid
from model.fields import Fields
from model.render import RayRender, Renderer
from train.batch import Batch
from train.losses.averages import MIN_WEIGHT
from train.rays import RayGrid, Rays, camera_rays


@dataclass
class CameraCast:
    """Rendered rays of n = batch x cameras images; rays in the row-major order of `grid`.

    Samples include the far one where the configuration has it: it carries the light that passes every other sample
    and stands at the exit of the volume. Without it rays that hold hardly any light have no range and are not usable.
    """

    grid: RayGrid
    size: tuple[int, int]
    pixels: Float[Tensor, "rays 2"]
    colours: Float[Tensor, "n 3 rows columns"]
    met: Bool[Tensor, "n rays"]
    """Rays of a camera with an image that meet the volume, whatever they hold."""
    usable: Bool[Tensor, "n rays"]
    """Of these, those that have a range."""
    weights: Float[Tensor, "n rays samples"]
    distances: Float[Tensor, "n rays samples"]
    points: Float[Tensor, "n rays samples 3"]
    flow: Float[Tensor, "n rays samples 2"] | None
    range: Float[Tensor, "n rays"]
    depth: Float[Tensor, "n rays"]
    surface: Float[Tensor, "n rays 1 3"]
    sdf: Float[Tensor, "n rays in_volume"]

    def image(self, per_ray: Tensor) -> Tensor:
        """(n, rays, ...) as (n, rows, columns, ...)."""
        return per_ray.unflatten(1, (self.grid.rows, self.grid.columns))

    def pick(self, images: Tensor) -> Tensor:
        """Values (n, ..., rays) of (batch, cameras, ..., h, w) at the rays' pixels."""
        return self.grid.pick(images.flatten(0, 1)).flatten(-2)

    def held(self) -> Float[Tensor, "n rays"]:
        """Share of each ray's light that ends inside the volume, 0 to 1."""
        return self.weights[..., : self.sdf.shape[-1]].sum(dim=-1)

    def rendered_flow(self) -> Float[Tensor, "n rays 2"]:
        """Object flow of eq. 14, metres per keyframe interval."""
        assert self.flow is not None, "rendered without flow"
        return (self.weights[..., None] * self.flow).sum(dim=-2)


def cast_camera_rays(
    fields: Fields,
    renderer: Renderer,
    batch: Batch,
    grid: RayGrid,
    *,
    jitter: Float[Tensor, "batch rays"],
    step: int,
    with_flow: bool,
    far_sample: bool,
) -> CameraCast:
    """Render the grid's rays of every camera of the current keyframe (eqs. 13-14). Missing cameras are not usable."""
    pixels = grid.pixels(batch.K.device)
    rays = camera_rays(batch.K, batch.ref_from_cam, pixels)
    render = renderer(fields, rays.origins, rays.directions, with_flow=with_flow, step=step, jitter=jitter)
    weights, distances, points, flow = render.weights, render.distances, render.points, render.flow
    if far_sample:
        weights, distances, points, flow = _append_far(render, rays, fields.grid)
    ranges = mean_range(weights, distances)
    n_rays = len(pixels)

    def views(value: Tensor) -> Tensor:
        return rearrange(value, "b (c r) ... -> (b c) r ...", r=n_rays)

    surface = rays.origins + ranges[..., None] * rays.directions
    there = batch.camera_valid.flatten()[:, None]
    return CameraCast(
        grid=grid,
        size=(batch.images.shape[-2], batch.images.shape[-1]),
        pixels=pixels,
        colours=grid.pick(batch.images.flatten(0, 1)).float() / 255,
        met=views(render.valid) & there,
        usable=views(_ranged(render, far_sample)) & there,
        weights=views(weights),
        distances=views(distances),
        points=views(points),
        flow=None if flow is None else views(flow),
        range=views(ranges),
        depth=views(ranges * rays.depth_per_metre),
        surface=views(surface)[:, :, None],
        sdf=views(render.sdf),
    )


@dataclass
class RangeCast:
    """Rendered LiDAR rays; samples include the far one where the configuration has it."""

    range: Float[Tensor, "batch rays"]
    weights: Float[Tensor, "batch rays samples"]
    distances: Float[Tensor, "batch rays samples"]
    met: Bool[Tensor, "batch rays"]
    """Rays that meet the volume, whatever they hold."""
    ranged: Bool[Tensor, "batch rays"]
    """Of these, those that hold enough light for a range: without the far sample not all do."""
    sdf: Float[Tensor, "batch rays inside"]
    """Signed distance at the samples inside the volume: all but the far one, metres."""


def cast_ranges(
    fields: Fields, renderer: Renderer, rays: Rays, *, jitter: Float[Tensor, "batch rays"], step: int, far_sample: bool
) -> RangeCast:
    """Render LiDAR rays: ranges in metres along the ray."""
    render = renderer(fields, rays.origins, rays.directions, with_flow=False, step=step, jitter=jitter)
    weights, distances = render.weights, render.distances
    if far_sample:
        weights, distances, _, _ = _append_far(render, rays, fields.grid)
    ranged = _ranged(render, far_sample)
    return RangeCast(mean_range(weights, distances), weights, distances, render.valid, ranged, render.sdf)


def mean_range(
    weights: Float[Tensor, "b rays samples"], distances: Float[Tensor, "b rays samples"]
) -> Float[Tensor, "b rays"]:
    """Σ w d / Σ w, metres; 0 where no sample has weight."""
    return (weights * distances).sum(dim=-1) / weights.sum(dim=-1).clamp_min(1e-6)


def _ranged(render: RayRender, far_sample: bool) -> Bool[Tensor, "b rays"]:
    """Rays whose samples hold enough light to say how far they go; with the far sample all that meet the volume."""
    return render.valid if far_sample else render.valid & (render.opacity > MIN_WEIGHT)


def _append_far(render: RayRender, rays: Rays, grid: VoxelGrid) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Weights, distances, points and flow with one more sample at the exit: what no sample held, standing still."""
    exit_distance = grid.exit_distance(rays.origins, rays.directions)
    rest = ((1 - render.opacity) * render.valid).clamp_min(0)
    far_point = rays.origins + exit_distance[..., None] * rays.directions
    weights = torch.cat([render.weights, rest[..., None]], dim=-1)
    distances = torch.cat([render.distances, exit_distance[..., None]], dim=-1)
    points = torch.cat([render.points, far_point[:, :, None]], dim=-2)
    flow = None
    if render.flow is not None:
        flow = torch.nn.functional.pad(render.flow, (0, 0, 0, 1))
    return weights, distances, points, flow
