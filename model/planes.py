"""The three planes of the TPV representation: their order, their pillars, and how a query of one refers to the others.

Plane p spans axes (p, p + 1) and its normal is axis p + 2, all modulo 3: xy (the ground plane), yz, zx. The order is
cyclic, so "the next plane" of a query (a, b) is read at (b, normal) and "the previous" at (normal, a), for all three.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from geometry.grid import VoxelGrid


def plane_axes(plane: int) -> tuple[int, int, int]:
    """First axis, second axis and normal (0 x, 1 y, 2 z) of plane 0..2."""
    return plane % 3, (plane + 1) % 3, (plane + 2) % 3


def plane_shape(grid: VoxelGrid, plane: int) -> tuple[int, int]:
    """Cells along the plane's two axes."""
    first, second, _ = plane_axes(plane)
    return grid.shape[first], grid.shape[second]


def cell_centres(shape: tuple[int, int]) -> Float[Tensor, "queries 2"]:
    """Centres of a plane's cells as fractions 0..1 of its extent, in the order of its queries."""
    first, second = (torch.arange(n, device="cpu") + 0.5 for n in shape)
    grids = torch.meshgrid(first / shape[0], second / shape[1], indexing="ij")
    return torch.stack(grids, dim=-1).reshape(-1, 2)


def pillars(grid: VoxelGrid, plane: int, anchors: int) -> Float[Tensor, "queries anchors 3"]:
    """Anchor points in metres: for each cell of the plane, `anchors` points spread evenly along the plane's normal."""
    first, second, normal = plane_axes(plane)
    cells = cell_centres(plane_shape(grid, plane))
    along = (torch.arange(anchors, device="cpu") + 0.5) / anchors
    fractions = torch.zeros(len(cells), anchors, 3, device="cpu")
    fractions[..., first] = cells[:, None, 0]
    fractions[..., second] = cells[:, None, 1]
    fractions[..., normal] = along
    lower = torch.tensor(grid.lower, device="cpu")
    return lower + fractions * (torch.tensor(grid.upper, device="cpu") - lower)


def hybrid_references(grid: VoxelGrid, plane: int, points: int) -> Float[Tensor, "3 points 2 queries"]:
    """Where a query of `plane` looks on its own, the next and the previous plane, as (u, v) in -1..1.

    u runs along a plane's second axis and v along its first. On the own plane all points start at the query's cell; on
    the others they spread evenly along the normal of the query's plane.
    """
    cells = cell_centres(plane_shape(grid, plane))
    first = cells[:, None, 0].expand(-1, points)
    second = cells[:, None, 1].expand(-1, points)
    normal = ((torch.arange(points, device="cpu") + 0.5) / points).expand(len(cells), -1)
    own = torch.stack([second, first], dim=-1)
    following = torch.stack([normal, second], dim=-1)
    previous = torch.stack([first, normal], dim=-1)
    return rearrange([own, following, previous], "level q p xy -> level p xy q") * 2 - 1


def position_waves(grid: VoxelGrid, plane: int, dim: int) -> Float[Tensor, "queries dim"]:
    """Where learned queries start: random long waves over the plane, about one period across it, amplitude 1.

    Neighbouring cells start alike, so that what is learned at one place holds nearby at once; from independent noise
    every cell has to learn by itself. On the ground plane every other channel is a wave over the distance from the car,
    the one coordinate that all cameras share. The same for every run and seed.
    """
    generator = torch.Generator(device="cpu").manual_seed(plane)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu")

    phases = cell_centres(plane_shape(grid, plane)) @ draw(2, dim)
    if plane == 0:
        ground = pillars(grid, plane, anchors=1)[:, 0, :2]
        extent = max(upper - lower for lower, upper in zip(grid.lower[:2], grid.upper[:2], strict=True))
        phases[:, ::2] = ground.norm(dim=-1, keepdim=True) * (2 / extent) @ draw(1, dim)[:, ::2]
    return torch.sin(2 * math.pi * (phases + torch.rand(dim, generator=generator, device="cpu")))


def to_map(tokens: Float[Tensor, "b queries dim"], shape: tuple[int, int]) -> Float[Tensor, "b dim first second"]:
    """A plane's queries as an image."""
    return rearrange(tokens, "b (first second) d -> b d first second", first=shape[0])


def to_volume(
    tokens: list[Float[Tensor, "b _queries dim"]], shape: tuple[int, int, int]
) -> Float[Tensor, "b x y z dim"]:
    """Sum of the planes, each repeated along its normal; channels last."""
    x, y, z = shape
    ground = rearrange(tokens[0], "b (x y) d -> b x y 1 d", x=x)
    side = rearrange(tokens[1], "b (y z) d -> b 1 y z d", y=y)
    front = rearrange(tokens[2], "b (z x) d -> b x 1 z d", z=z)
    return ground + (side + front)
