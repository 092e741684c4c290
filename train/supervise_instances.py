"""What the mask cue says of one step's rays: which of them lie on one thing, and so move as one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from storage.schema import MASK_TABLE_ROWS
from train.batch import Batch
from train.cast import CameraCast
from train.confidence import mask_weights
from train.losses.averages import valid_weights
from train.losses.instance_flow import rigid_motion_loss
from train.things import rays_on_things


def supervise_instances(cast: CameraCast, batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """How far the flow on each instance is from one rigid horizontal motion, metres per interval, and on how many rays.

    An instance is one camera's: the same thing in two images is two. Of a ray counts what its light meets inside the
    volume (its far sample stands still and lies on nothing), and as much as that is. The rendering weights are kept
    out of the graph: geometry is not bent so that its motion fits.
    """
    assert cast.flow is not None
    assert batch.instances is not None
    inside = cast.sdf.shape[-1]
    weights = cast.weights[..., :inside].detach()
    shares, kept = valid_weights(weights, torch.ones_like(weights, dtype=torch.bool))
    flow = (shares[..., None] * cast.flow[..., :inside, :]).sum(dim=-2)
    places = (shares[..., None] * cast.points[..., :inside, :2]).sum(dim=-2).detach()
    distance = (shares * cast.distances[..., :inside]).sum(dim=-1).detach()
    finite = torch.isfinite(flow).all(dim=-1) & torch.isfinite(places).all(dim=-1) & torch.isfinite(distance)
    things = cast.pick(batch.instances).long()
    wanted = cast.usable & kept & finite & (things > 0)
    # Instances of all cameras on one list; 0 stays what lies on none.
    camera = torch.arange(len(things), device=things.device)[:, None]
    things = torch.where(wanted, things + camera * MASK_TABLE_ROWS, torch.zeros_like(things)).flatten()
    count = cast.usable.shape[0] * MASK_TABLE_ROWS + 1
    flow, places = (torch.where(wanted[..., None], v, torch.zeros_like(v)).flatten(0, 1) for v in (flow, places))
    distance = torch.where(wanted, distance, torch.zeros_like(distance)).flatten()
    things = torch.where(rays_on_things(distance, things, count), things, torch.zeros_like(things))
    counts = weights.sum(dim=-1)
    if batch.mask_score is not None:
        counts = counts * mask_weights(cast, batch)
    return rigid_motion_loss(places, flow, counts.flatten(), things, count)
