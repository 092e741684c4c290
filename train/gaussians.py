"""Gaussians decoded from the fields: one per voxel, of which a bounded number is drawn for every camera and step."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geometry.cameras import in_image, project
from geometry.grid import VoxelGrid
from geometry.transforms import transform_points
from model.fields import Fields
from model.splat import NEAR_SCALES
from train.batch import View
from train.loss_settings import SplatConfig
from train.rays import beside

MIN_EXPOSED = 0.05
"""Voxels of which less is exposed are empty, or hidden in matter: no Gaussian."""
MIN_SHARE = 0.05
"""Gaussians that are drawn more rarely are weighed as if they were drawn this often: no draw weighs more than 20."""
MARGIN_WIDTHS = 0.1
"""How far outside the image a centre may fall, image widths: the rim of its ellipse may be inside."""
ROUNDS = 10


@dataclass(frozen=True)
class Drawn:
    """Voxels (flat, in the order of the fields) drawn for each of n = batch x cameras views."""

    index: Int[Tensor, "n g"]
    share: Float[Tensor, "n g"]
    """Probability with which each was drawn, MIN_SHARE..1."""
    real: Bool[Tensor, "n g"]
    """False for padding."""


def opacities(fields: Fields, inv_s: Float[Tensor, ""]) -> Float[Tensor, "b x y z"]:
    """What a voxel's Gaussian takes of the light: 1 - Φ(sdf), the part that the renderer's Φ counts as matter.

    A worked case: inv_s = 10 / m, sdf = 0.1 m: 1 - 1 / (1 + e⁻¹) = 0.269. The temperature is left out of the graph:
    rays alone say how sharp surfaces are.
    """
    return torch.sigmoid(-fields.sdf * inv_s.detach())


@torch.no_grad()
def exposed(opacity: Float[Tensor, "b x y z"]) -> Float[Tensor, "b x y z"]:
    """Opacity times how empty the emptiest of the six neighbours is: matter inside matter cannot be seen.

    What lies beyond the volume counts as matter.
    """
    padded = torch.nn.functional.pad(opacity, (1, 1, 1, 1, 1, 1), value=1.0)
    inner = slice(1, -1)
    beside_it = []
    for step in (slice(0, -2), slice(2, None)):
        beside_it += [padded[:, step, inner, inner], padded[:, inner, step, inner], padded[:, inner, inner, step]]
    return opacity * (1 - torch.stack(beside_it).amin(dim=0))


def inclusion(weights: Float[Tensor, "n v"], count: int) -> Float[Tensor, "n v"]:
    """Probabilities proportional to the weights, cut at 1, that sum to `count`; 1 for all where fewer have a weight.

    A worked case: weights 6, 2, 1, 1 and count 2: the first is certain, the others 0.5, 0.25, 0.25.
    """
    wanted = weights > 0
    certain = wanted & (wanted.sum(dim=1, keepdim=True) <= count)
    chance = certain.to(weights.dtype)
    for _ in range(ROUNDS):
        left = (count - certain.sum(dim=1, keepdim=True)).clamp_min(0)
        rest = torch.where(certain, torch.zeros_like(weights), weights)
        scale = left / rest.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        chance = torch.where(certain, torch.ones_like(weights), rest * scale)
        certain = certain | (chance >= 1)
    return chance.clamp_max(1)


def draw(weights: Float[Tensor, "n v"], uniform: Float[Tensor, " v"], count: int) -> Drawn:
    """`count` of every row without replacement, with the probabilities of `inclusion` (sequential Poisson sampling: the
    lowest of uniform / probability; exact as both numbers grow).

    Args:
        uniform: random numbers in [0, 1), shared by the rows.
    """
    chance = inclusion(weights, count)
    keys = uniform / chance.clamp_min(torch.finfo(chance.dtype).tiny)
    keys = torch.where(chance >= 1, torch.full_like(keys, -1.0), keys)
    keys = torch.where(chance > 0, keys, torch.full_like(keys, torch.inf))
    lowest, index = keys.topk(min(count, keys.shape[1]), dim=1, largest=False)
    real = torch.isfinite(lowest)
    share = torch.where(real, chance.gather(1, index).clamp_min(MIN_SHARE), torch.ones_like(lowest))
    return Drawn(index, share, real)


@torch.no_grad()
def draw_gaussians(
    fields: Fields,
    opacity: Float[Tensor, "b x y z"],
    view: View,
    movable: Bool[Tensor, "n h w"] | None,
    size: tuple[int, int],
    config: SplatConfig,
    generator: torch.Generator,
) -> Drawn:
    """Of every camera's Gaussians up to `config.gaussians`: those in its view, by how much of them is exposed, by how
    rare their kind is (behind the camera's movable mask or not) and by how slow they are.

    Args:
        view: the cameras, and how much later than now they look; the Gaussians are moved until then.
        movable: their masks at render size `size`.
    """
    cameras = view.K.shape[1]
    everything = torch.arange(opacity[0].numel(), device=opacity.device).expand(len(opacity) * cameras, -1)
    points = in_camera(fields, view, everything)
    uv, depth, _ = project(view.K.flatten(0, 1), points)
    near = NEAR_SCALES * scale_of(fields.grid, config)
    seen = (depth > near) & in_image(uv, *size, border=-MARGIN_WIDTHS * size[1]) & view.valid.flatten()[:, None]
    base = exposed(opacity)
    base = torch.where(base > MIN_EXPOSED, base, torch.zeros_like(base))
    weights = torch.where(seen, per_view(base, cameras), torch.zeros_like(depth))
    if movable is not None and config.balance:
        weights = even(weights, behind_mask(uv, movable))
    if config.speed_m:
        speed = torch.linalg.vector_norm(fields.flow, dim=-1)
        weights = weights / (1 + per_view(speed, cameras) / config.speed_m)
    uniform = beside(torch.rand(everything.shape[1], generator=generator), weights)
    return draw(weights, uniform, config.gaussians)


def even(weights: Float[Tensor, "n v"], kind: Bool[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    """Weights divided by how frequent their kind is: both kinds, where both are there, get half of every row."""
    zero = torch.zeros_like(weights)
    ones = torch.where(kind, weights, zero).sum(dim=1, keepdim=True)
    others = torch.where(kind, zero, weights).sum(dim=1, keepdim=True)
    return weights / torch.where(kind, ones, others).clamp_min(torch.finfo(weights.dtype).tiny)


def behind_mask(uv: Float[Tensor, "n v 2"], movable: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n v"]:
    """Whether the pixel that a centre falls into is movable; that of the rim for those outside the image."""
    height, width = movable.shape[-2:]
    u, v = (uv[..., k].clamp(0, last - 1).long() for k, last in ((0, width), (1, height)))
    return movable.flatten(1).gather(1, v * width + u)


def in_camera(fields: Fields, view: View, index: Int[Tensor, "n g"]) -> Float[Tensor, "n g 3"]:
    """Centres of voxels (flat indices) in each view's camera frame, metres, moved by their flow until its time."""
    cameras = view.K.shape[1]
    centres = voxel_centres(fields.grid, fields.sdf)[index]
    flow = pick(fields.flow.flatten(1, 3), index, cameras)
    moved = centres + torch.nn.functional.pad(flow * view.interval.flatten()[:, None, None], (0, 1))
    return transform_points(view.cam_from_ref.flatten(0, 1), moved)


def pick(values: Float[Tensor, "b v k"], index: Int[Tensor, "n g"], cameras: int) -> Float[Tensor, "n g k"]:
    """Values of each view's voxels; n = batch x cameras."""
    wide = index[..., None].expand(*index.shape, values.shape[-1])
    return values.repeat_interleave(cameras, dim=0).gather(1, wide)


def per_view(values: Float[Tensor, "b x y z"], cameras: int) -> Float[Tensor, "n v"]:
    """Values of all voxels for every view."""
    return values.flatten(1).repeat_interleave(cameras, dim=0)


def voxel_centres(grid: VoxelGrid, like: Tensor) -> Float[Tensor, "v 3"]:
    """Centres of all voxels, metres."""
    axes = [
        low + (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * edge
        for low, count, edge in zip(grid.lower, grid.shape, grid.voxel_size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def scale_of(grid: VoxelGrid, config: SplatConfig) -> float:
    """Standard deviation of every Gaussian, metres."""
    return config.scale * min(grid.voxel_size)
