"""Where each image cell was one keyframe earlier, against an optical flow cue (not in the paper)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.averages import masked_mean


def match_costs(
    logits: Float[Tensor, "views cells there"],
    total: Float[Tensor, "views cells"],
    place: Float[Tensor, "views cells 2"],
    size: tuple[int, int],
) -> Float[Tensor, "views cells"]:
    """Cross-entropy of each cell's place in an image of `size` (rows, columns) cells, in nats.

    A place between the centres of four cells counts for each by nearness; one nearer to the border than half a cell for
    the border's. A worked case: even logits over 12 cells cost ln 12 = 2.485 wherever the place is.

    Args:
        total: logsumexp of the logits.
        place: column and row in cells, cell i covering [i, i+1); anything, NaN included, where the cost is not used.
    """
    rows, columns = size
    x = (place[..., 0] - 0.5).nan_to_num().clamp(0, columns - 1)
    y = (place[..., 1] - 0.5).nan_to_num().clamp(0, rows - 1)
    left, upper = x.floor().clamp_max(max(columns - 2, 0)), y.floor().clamp_max(max(rows - 2, 0))
    corners = [(down, across) for down in range(min(rows, 2)) for across in range(min(columns, 2))]
    shares = [(1 - (x - left - across).abs()) * (1 - (y - upper - down).abs()) for down, across in corners]
    cells = [(upper + down) * columns + left + across for down, across in corners]
    found = logits.gather(-1, torch.stack(cells, dim=-1).long())
    return total - (found * torch.stack(shares, dim=-1)).sum(dim=-1)


def match_loss(
    costs: Float[Tensor, "*cells"], known: Bool[Tensor, "*cells"], movable: Bool[Tensor, "*cells"]
) -> Float[Tensor, ""]:
    """Mean cost of the known cells that stand still, and half of that of those on movable things.

    Both are means of their own: what moves has few of the cells, and is what is asked for.
    """
    return masked_mean(costs, known & ~movable) + 0.5 * masked_mean(costs, known & movable)
