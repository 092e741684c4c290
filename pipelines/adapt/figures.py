"""How good a flow network is on pairs: against truth where there is some, else by what the images themselves tell."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from pipelines.adapt.losses import census_difference
from pipelines.adapt.pairs import FramePairs
from pipelines.cues.unimatch.inference import CheckRule, Precision, flow_both_ways, occlusion, round_trip
from pipelines.cues.unimatch.matching import warp
from pipelines.cues.unimatch.network import UniMatch


@torch.inference_mode()
def measure(
    network: UniMatch, pairs: FramePairs, chosen: Sequence[int], precision: Precision = "float32", batch: int = 1
) -> dict[str, float]:
    """Figures pooled over the chosen pairs; one is left out where nothing could be measured.

    Returns:
        census: census difference (0..49) of the first image and the second warped back. Over all pixels, as are the
            next two: a figure over what passes the check gets worse when more passes.
        warp, identity: mean absolute colour difference (0..1), with and without warping.
        round_trip: px that going there and back misses, where it stays in the image. occluded: share of all pixels.
        epe, zero_epe, fl_all: against truth, if there is any: px, px of zero flow, share beyond 3 px and 5 %.
    """
    device = network.mean.device
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(name: str, values: torch.Tensor, mask: torch.Tensor) -> None:
        sums[name][0] += torch.where(mask, values, 0.0).sum(dtype=torch.float64).item()
        sums[name][1] += mask.sum().item()

    for start in range(0, len(chosen), batch):
        index = np.asarray(chosen[start : start + batch])
        first, second = (
            torch.from_numpy(pairs.images[pairs.pairs[index, k]]).to(device).permute(0, 3, 1, 2) for k in (0, 1)
        )
        forward, backward = flow_both_ways(network, first, second, precision=precision)
        first, second = first / 255, second / 255
        hidden = occlusion(forward, backward)
        seen = warp(second, forward, padding="border")
        every = torch.ones_like(hidden)
        add("census", census_difference(first, seen)[:, 0], every)
        add("warp", (first - seen).abs().mean(1), every)
        add("identity", (first - second).abs().mean(1), every)
        miss, _ = round_trip(forward, backward, CheckRule())
        add("round_trip", miss, miss.isfinite())
        add("occluded", hidden.float(), every)
        if pairs.flow is not None:
            truth = torch.from_numpy(np.array(pairs.flow[index])).to(device)
            known = truth.isfinite().all(1)
            error, length = (forward - truth).norm(dim=1), truth.norm(dim=1)
            add("epe", error, known)
            add("zero_epe", length, known)
            add("fl_all", ((error > 3) & (error > 0.05 * length)).float(), known)
    return {name: total / count for name, (total, count) in sums.items() if count}
