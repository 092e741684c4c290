"""Flow cues: which frame each keyframe's flow ends in, and a flow model's answers as the arrays of a store slot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import Float

from eval.labels import figure, flow_figures, photometric_figures, summarise
from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.cues.flow_field import empty_flow, flow_onto_render, pack_flow, unpack_flow
from pipelines.cues.protocols import FlowField, PathFlow
from pipelines.cues.resize import resize_image, shrink, working_size
from pipelines.cues.static_flow import static_flow_between
from pipelines.cues.truth import camera_truth
from pipelines.datasets.records import CameraImage, Frame, Scene


@dataclass(frozen=True)
class Target:
    """Where a keyframe's flow ends: keyframe `frame`, or sweep slot `sweep` after it (-1: the keyframe itself).

    film: the camera's images from the labelled keyframe to the target, in the order of travel.
    """

    frame: int
    sweep: int
    film: tuple[CameraImage, ...]


Aim = Callable[[int, str], Target | str]
"""From (keyframe index, channel) to the target, or to the reason why there is none."""


def _image(frame: Frame, channel: str) -> list[CameraImage]:
    return [frame.images[channel]] if channel in frame.images else []


def aim_next(scene: Scene) -> Aim:
    """The next keyframe, through the sweeps between."""
    keyframes = scene.keyframes
    between = [scene.sweeps_after(t) for t in range(len(keyframes))]

    def aim(t: int, channel: str) -> Target | str:
        if len(keyframes) == 1:
            return "flow impossible: the scene has a single frame"
        if t + 1 == len(keyframes):
            return "no next keyframe: last of the scene"
        ends = _image(keyframes[t], channel), _image(keyframes[t + 1], channel)
        if not all(ends):
            return "the camera has no image at this or the next keyframe"
        sweeps = [image for frame in between[t] for image in _image(frame, channel)]
        return Target(t + 1, -1, (*ends[0], *sweeps, *ends[1]))

    return aim


def aim_previous(scene: Scene) -> Aim:
    """The previous keyframe, back through the sweeps between."""
    forward = aim_next(scene)

    def aim(t: int, channel: str) -> Target | str:
        if len(scene.keyframes) == 1:
            return "flow impossible: the scene has a single frame"
        if t == 0:
            return "no previous keyframe: first of the scene"
        found = forward(t - 1, channel)
        if isinstance(found, str):
            return "the camera has no image at this or the previous keyframe"
        return Target(t - 1, -1, found.film[::-1])

    return aim


def label_flow(context: BlockContext, slot: str, model: PathFlow, aim: Aim, max_width: int, threads: int) -> CueBlock:
    """Run `model` on every keyframe and camera of the block and write the answers into flow slot `slot`.

    Images are shrunk to at most `max_width` columns for the model; its flow is then resampled onto the render grid.
    `threads` sets OpenCV's own (process-wide) thread count; 1 suits runs of several units side by side.
    """
    cv2.setNumThreads(threads)
    arrays = empty_flow(slot, context.stop - context.start, len(context.cameras), context.sizes.render)
    reasons: dict[str, int] = {}
    figures: list[dict[str, Any]] = []
    # Flow to the previous keyframe goes through the block from its end: run beside flow to the next one it meets that
    # halfway, and each finds the other half made (two_way_cache).
    order = range(context.stop - context.start)
    for i in reversed(order) if slot == "prev" else order:
        for c, channel in enumerate(context.cameras):
            target = aim(context.start + i, channel)
            if isinstance(target, str):
                reasons[target] = reasons.get(target, 0) + 1
                continue
            flow, confidence, out_of_range = pack_flow(flow_along(context, model, target, max_width))
            arrays[f"flow/{slot}/flow"][i, c] = flow
            arrays[f"flow/{slot}/confidence"][i, c] = confidence
            arrays[f"flow/{slot}/target_frame"][i, c] = target.frame
            arrays[f"flow/{slot}/target_sweep"][i, c] = target.sweep
            figures.append({"out_of_range": out_of_range})
            figures.append(pair_figures(context, slot, context.start + i, channel, target, unpack_flow(flow)))
    notes = [f"{reason} ({count} camera-frames)" for reason, count in reasons.items()]
    return CueBlock(arrays, summarise(figures), notes)


def flow_along(context: BlockContext, model: PathFlow, target: Target, max_width: int) -> FlowField:
    first = target.film[0]
    size = working_size(first.height, first.width, max_width)
    field = model([shrink(context.load_image(image), size) for image in target.film])
    return flow_onto_render(field, (first.height, first.width), context.sizes.render_transform(first))


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
        static[:, truth["moving"]] = np.nan
        still = flow_figures(flow, static)
        figures["against_truth"] = {"static_epe": still["epe"], "static_coverage": still["coverage"]}
    return figures


@dataclass(frozen=True)
class FilmFlowCue:
    """A flow cue to the next or previous keyframe; a backend adds its parameters and its `model`.

    Attributes:
        slot: which flow slot is written.
        max_width: images are shrunk to this many columns first.
        threads: OpenCV's own thread count.
    """

    slot: Literal["next", "prev"] = "next"
    max_width: int = 1280
    threads: int = 1
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """flow_next or flow_prev."""
        return f"flow_{self.slot}"

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        """OpenCV's; no weights."""
        return "Apache-2.0"

    def model(self) -> PathFlow:
        """What labels a film."""
        raise NotImplementedError

    def extract(self, context: BlockContext) -> CueBlock:
        """The four arrays of the slot, see storage.schema.CUES."""
        aim = aim_next(context.scene) if self.slot == "next" else aim_previous(context.scene)
        return label_flow(context, self.slot, self.model(), aim, self.max_width, self.threads)
