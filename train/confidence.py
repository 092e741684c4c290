"""How much a ray counts by the measured confidence of the cues it is compared with (`data.weigh_by_confidence`)."""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from train.batch import Batch, FlowTarget
from train.cast import CameraCast

SURE = 255
"""Stored confidence of a flow cue that is sure."""


def flow_weights(cast: CameraCast, target: FlowTarget) -> Float[Tensor, "n rays"]:
    """The flow cue's confidence at the rays' pixels, 0..1: 1 everywhere where the run does not weigh."""
    if target.confidence is None:
        return torch.ones_like(cast.range)
    return cast.pick(target.confidence).to(cast.range.dtype) / SURE


def mask_weights(cast: CameraCast, batch: Batch) -> Float[Tensor, "n rays"]:
    """The score of the instance on which each ray lies, 0..1: 1 off instances, and where the run does not weigh."""
    if batch.mask_score is None or batch.instances is None:
        return torch.ones_like(cast.range)
    return batch.mask_score.flatten(0, 1).gather(1, cast.pick(batch.instances).long())


def pixel_weights(target: FlowTarget, c: int) -> Float32[np.ndarray, "h w"] | None:
    """The cue's confidence at one camera's pixels, 0..1; None where the run does not weigh."""
    if target.confidence is None:
        return None
    return target.confidence[c].numpy().astype(np.float32) / SURE
