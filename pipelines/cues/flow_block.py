"""A block of a flow slot while an extractor fills it: its arrays, its figures, and why camera-frames have no flow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from eval.labels import figure, flow_figures, photometric_figures, summarise
from geometry.cameras import in_image
from pipelines.cues.base import BlockContext, CueBlock
from pipelines.cues.blank import NOTE, unknown_field
from pipelines.cues.flow_field import empty_flow, endpoints, pack_flow, unpack_flow
from pipelines.cues.flow_targets import Aim, Target
from pipelines.cues.protocols import FlowField
from pipelines.cues.resize import resize_image
from pipelines.cues.static_flow import static_flow_between
from pipelines.cues.truth import camera_truth


class FlowBlock:
    """One slot's arrays, see storage.schema.CUES, empty at first. A camera-frame is (keyframe of the block, camera)."""

    def __init__(self, context: BlockContext, slot: str) -> None:
        self._context, self._slot = context, slot
        self._arrays = empty_flow(slot, context.stop - context.start, len(context.cameras), context.sizes.render)
        self._figures: list[dict[str, Any]] = []
        self._reasons: dict[str, int] = {}

    def targets(self, aim: Aim, *, backwards: bool = False) -> Iterator[tuple[int, int, Target]]:
        """Every camera-frame that has a target, with it; the block then tells the target, and of the others why not."""
        order = range(self._context.stop - self._context.start)
        for i in reversed(order) if backwards else order:
            for c, channel in enumerate(self._context.cameras):
                target = aim(self._context.start + i, channel)
                if isinstance(target, str):
                    self._reasons[target] = self._reasons.get(target, 0) + 1
                    continue
                self._array("target_frame")[i, c] = target.frame
                self._array("target_sweep")[i, c] = target.sweep
                yield i, c, target

    def put(self, i: int, c: int, target: Target, field: FlowField, **figures: int) -> None:
        """Store a flow on the render grid, and count how good it is; `figures` are added up beside."""
        flow, confidence, out_of_range = pack_flow(field)
        self._array("flow")[i, c] = flow
        self._array("confidence")[i, c] = confidence
        self.count({"out_of_range": out_of_range, **figures})
        t, channel = self._context.start + i, self._context.cameras[c]
        self.count(pair_figures(self._context, self._slot, t, channel, target, unpack_flow(flow)))

    def put_blank(self, i: int, c: int, target: Target, **figures: int) -> None:
        """Store that nothing is known, because the first or last image of the film shows nothing."""
        self._reasons[NOTE] = self._reasons.get(NOTE, 0) + 1
        self.put(i, c, target, unknown_field(self._context.sizes.render), **figures)

    def count(self, figures: dict[str, Any]) -> None:
        """Add to the block's figures (see `eval.labels.summarise`)."""
        self._figures.append(figures)

    def finished(self) -> CueBlock:
        """What the extractor returns."""
        notes = [f"{reason} ({count} camera-frames)" for reason, count in self._reasons.items()]
        return CueBlock(self._arrays, summarise(self._figures), notes)

    def _array(self, name: str) -> np.ndarray:
        return self._arrays[f"flow/{self._slot}/{name}"]


def pair_figures(
    context: BlockContext,
    slot: str,
    t: int,
    channel: str,
    target: Target,
    flow: Float[np.ndarray, "2 height width"],
) -> dict[str, Any]:
    """Figures of one camera-frame; `against_truth` where the truth at hand has something to say about this slot."""
    first, last = target.film[0], target.film[-1]
    ends = [resize_image(context.load_image(image), context.sizes.render_transform(image)) for image in (first, last)]
    known = ~np.isnan(flow[0])
    figures: dict[str, Any] = {
        "camera_frames": 1,
        "valid": figure(known.sum(), known.size),
        **photometric_figures(ends[0], ends[1], flow),
    }
    truth = camera_truth(context, t, channel)
    if slot == "next" and "flow_next" in truth:
        figures["against_truth"] = flow_figures(flow, truth["flow_next"], truth.get("moving"))
    elif "depth" in truth and "moving" in truth:
        # No true flow into a drawn frame, but what stands still moves as depth and poses say.
        static = static_flow_between(first, last, truth["depth"], context.sizes)
        # What leaves the image on the way has no correspondence that could be covered.
        static[:, truth["moving"] | ~in_image(endpoints(static), *static.shape[1:])] = np.nan
        still = flow_figures(flow, static)
        figures["against_truth"] = {"static_epe": still["epe"], "static_coverage": still["coverage"]}
    return figures
