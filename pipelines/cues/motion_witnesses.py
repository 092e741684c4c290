"""The flows that testify to motion in one image: flow cues, or a short one of our own where no cue has a target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pipelines.cues.base import BlockContext
from pipelines.cues.flow import flow_along
from pipelines.cues.flow_dis import CheckedPair, DisPairFlow, DisSettings
from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.flow_targets import Target
from pipelines.datasets.records import CameraImage, Scene


@dataclass(frozen=True)
class Witness:
    """A flow of one keyframe's image, render pixels (NaN unknown), and the image it ends in."""

    flow: Float[np.ndarray, "2 height width"]
    target: CameraImage


def stored_witnesses(context: BlockContext, cues: Sequence[str], i: int, c: int) -> list[Witness]:
    """Those of the flow cues that have a target for keyframe `start + i` and camera c, as they were committed."""
    found = []
    for cue in cues:
        arrays, path = context.upstream(cue), f"flow/{cue.removeprefix('flow_')}"
        frame, sweep = int(arrays[f"{path}/target_frame"][i, c]), int(arrays[f"{path}/target_sweep"][i, c])
        if frame >= 0:
            stored = context.scene.keyframes[frame] if sweep < 0 else context.scene.sweeps_after(frame)[sweep]
            flow = unpack_flow(arrays[f"{path}/flow"][i, c])
            found.append(Witness(flow, stored.images[context.cameras[c]]))
    return found


def own_witness(context: BlockContext, i: int, c: int, dis: DisSettings, max_width: int) -> list[Witness]:
    """Checked DIS flow to the camera's image just before a keyframe, or just after, sweep or keyframe; [] if alone."""
    channel = context.cameras[c]
    model = CheckedPair(DisPairFlow(dis), dis.tolerance, dis.relative)
    found = []
    for film in films_beside(context.scene, context.start + i, channel)[:1]:
        field = flow_along(context, model, Target(-1, -1, film), max_width)
        found.append(Witness(field.flow, film[-1]))
    return found


def films_beside(scene: Scene, t: int, channel: str) -> list[tuple[CameraImage, CameraImage]]:
    """(keyframe image, image just before) and (keyframe image, image just after), where there is such an image."""
    position = [k for k, frame in enumerate(scene.frames) if frame.is_keyframe][t]
    own = scene.frames[position].images[channel]
    earlier = [f.images[channel] for f in scene.frames[:position] if channel in f.images]
    later = [f.images[channel] for f in scene.frames[position + 1 :] if channel in f.images]
    return [(own, beside) for beside in (*earlier[-1:], *later[:1])]
