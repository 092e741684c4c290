"""What keeps the fields plausible without data: eikonal (eq. 15), Hessian, edge-aware smoothness, sparsity."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.averages import masked_mean


def eikonal(gradient: Float[Tensor, "*points 3"]) -> Float[Tensor, ""]:
    """Eq. 15: mean of (1 - |∇S|)². The norm's slope at zero is taken as zero."""
    squared = (gradient * gradient).sum(dim=-1)
    norm = (squared + 1e-12).sqrt()
    return ((1 - norm) ** 2).mean()


def hessian(sdf: Float[Tensor, "batch x y z"], voxel: tuple[float, float, float]) -> Float[Tensor, ""]:
    """Mean absolute second difference of the SDF grid, all nine entries, in change of slope per voxel.

    Entry (a, b) is the second difference along axes a and b divided by sqrt(v_a v_b), v the voxel's edges in metres:
    a crease between two unit slopes counts 2 at any resolution. Second differences along one axis use the three
    neighbours, mixed ones the four corners of the 3x3 neighbourhood; the border is left out. Zero for grids with
    fewer than three voxels on any axis.
    """
    if min(sdf.shape[1:]) < 3:
        return sdf.sum() * 0.0
    total = sdf.new_zeros(())
    for a in range(3):
        along = _shift(sdf, a, 1) - 2 * _shift(sdf, a, 0) + _shift(sdf, a, -1)
        total = total + along.abs().mean() / voxel[a]
        for b in range(a + 1, 3):
            mixed = (_corner(sdf, a, b, 1, 1) - _corner(sdf, a, b, 1, -1)) / 4
            mixed = mixed - (_corner(sdf, a, b, -1, 1) - _corner(sdf, a, b, -1, -1)) / 4
            total = total + 2 * mixed.abs().mean() / (voxel[a] * voxel[b]) ** 0.5
    return total / 9


def _interior(size: int, offset: int) -> slice:
    return slice(1 + offset, size - 1 + offset)


def _shift(sdf: Tensor, axis: int, offset: int) -> Tensor:
    offsets = [offset if d == axis else 0 for d in range(3)]
    return sdf[(slice(None), *(_interior(n, o) for n, o in zip(sdf.shape[1:], offsets, strict=True)))]


def _corner(sdf: Tensor, a: int, b: int, offset_a: int, offset_b: int) -> Tensor:
    offsets = [offset_a if d == a else offset_b if d == b else 0 for d in range(3)]
    return sdf[(slice(None), *(_interior(n, o) for n, o in zip(sdf.shape[1:], offsets, strict=True)))]


def edge_aware_smoothness(
    values: Float[Tensor, "n channels rows columns"],
    image: Float[Tensor, "n 3 rows columns"],
    valid: Bool[Tensor, "n rows columns"],
) -> Float[Tensor, ""]:
    """Mean of |∂v| exp(-|∂I|) between neighbouring valid rays, along both axes of the ray grid, summed.

    |∂I| is the mean over colours in [0, 1]; channels of `values` are summed.
    """
    image = torch.nan_to_num(image)
    values = torch.where(valid[:, None], values, torch.zeros_like(values))
    across = masked_mean(
        _edge_weighted(values[..., 1:] - values[..., :-1], image[..., 1:] - image[..., :-1]),
        valid[..., 1:] & valid[..., :-1],
    )
    down = masked_mean(
        _edge_weighted(values[..., 1:, :] - values[..., :-1, :], image[..., 1:, :] - image[..., :-1, :]),
        valid[..., 1:, :] & valid[..., :-1, :],
    )
    return across + down


def _edge_weighted(value_step: Tensor, image_step: Tensor) -> Tensor:
    return value_step.abs().sum(dim=1) * torch.exp(-image_step.abs().mean(dim=1))


def normalised_disparity(
    depth: Float[Tensor, "n rows columns"], valid: Bool[Tensor, "n rows columns"]
) -> Float[Tensor, "n 1 rows columns"]:
    """1/depth divided by its mean over each image's valid rays (so that a shrinking scene is not smoother).

    Depth in metres; below 0.1 m it counts as 0.1 m. Zero where invalid.
    """
    disparity = torch.where(valid, 1 / depth.clamp_min(0.1), torch.zeros_like(depth))
    mean = disparity.sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp_min(1)
    return (disparity / mean.clamp_min(1e-6)[:, None, None])[:, None]


def matter(sdf: Float[Tensor, "*points"]) -> Float[Tensor, ""]:
    """Sparsity: mean of relu(-sdf), how deep inside matter the points are on average, metres."""
    return torch.relu(-sdf).mean()


def hidden_matter(
    sdf: Float[Tensor, "*rays samples"],
    distances: Float[Tensor, "*rays samples"],
    surface: Float[Tensor, "*rays"],
    valid: Bool[Tensor, "*rays"],
    margin: float = 3.0,
) -> Float[Tensor, ""]:
    """Sparsity behind surfaces: mean of relu(-sdf) over samples more than `margin` metres behind the rendered range."""
    behind = (distances > surface.detach()[..., None] + margin) & valid[..., None]
    return masked_mean(torch.relu(-sdf), behind)
