"""Ground truth as a data set has it, copied into the truth store's layout; never an input of a cue."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from geometry.cameras import ImageTransform
from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.cues.flow_field import onto_grid, pack_flow
from pipelines.cues.protocols import FlowField
from pipelines.datasets.records import LabelledBox, SceneTruth
from pipelines.datasets.truth import leads_to_next
from storage.schema import BOX_FIELDS, BOX_ROWS, INVALID_FLOW, UNKNOWN_CLASS

DEPTH_STEP_LOG = 0.05
"""Neighbouring depths that differ by more than 5 % lie on different surfaces and are not averaged."""
FLOW_STEP_PX = 1.0
"""Neighbouring flows that differ by more, in render pixels, belong to different things and are not averaged."""


def truth_cues(truth: SceneTruth | None) -> tuple[str, ...]:
    """The truth cues that a scene has something of; none without truth."""
    return () if truth is None else getattr(truth, "cues", ("occupancy", "camera"))


def nearest_onto(values: np.ndarray, transform: ImageTransform) -> np.ndarray:
    """Labels (H, W) of the raw image at the pixel centres of the transformed image, each from its nearest pixel."""
    u = (np.arange(transform.width) + 0.5 + transform.left) / transform.scale
    v = (np.arange(transform.height) + 0.5 + transform.top) / transform.scale
    columns = np.clip(np.floor(u), 0, values.shape[1] - 1).astype(np.int64)
    rows = np.clip(np.floor(v), 0, values.shape[0] - 1).astype(np.int64)
    return values[rows[:, None], columns[None]]


def camera_truth(context: BlockContext, t: int, channel: str, network: bool = False) -> dict[str, Any]:
    """What is known of the image of one camera at keyframe `t`, on the render (or network) grid; empty without truth.

    Keys where known: depth f32 (h, w) m, NaN = unknown; flow_next f32 (2, h, w) in pixels of that grid, NaN = none;
    instance u16; moving bool.
    """
    frame = context.scene.keyframes[t]
    image = frame.images.get(channel)
    raw = context.truth.camera(frame.token, channel) if context.truth is not None and image is not None else None
    if raw is None or image is None or context.truth is None:
        return {}
    transform = context.sizes.transform(image) if network else context.sizes.render_transform(image)
    size = (image.height, image.width)
    known: dict[str, Any] = {}
    if "depth" in raw:
        # In logarithms the tolerance is relative; inf (sky) stays inf.
        with np.errstate(divide="ignore", invalid="ignore"):
            log_depth = np.log(raw["depth"].astype(np.float32))
        known["depth"] = np.exp(onto_grid(log_depth[None], size, transform, DEPTH_STEP_LOG)[0])
    if "flow_next" in raw and leads_to_next(context.truth, context.scene, t):
        scaled = raw["flow_next"].astype(np.float32) * np.float32(transform.scale)
        known["flow_next"] = onto_grid(scaled, size, transform, FLOW_STEP_PX)
    if "instance" in raw:
        known["instance"] = nearest_onto(raw["instance"], transform)
    if "moving" in raw:
        known["moving"] = nearest_onto(raw["moving"], transform) > 0
    return known


class _Truth:
    """What all truth has in common: it is made of the data set alone."""

    needs: ClassVar[tuple[str, ...]] = ()

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        """Truth stays under the data set's own licence."""
        return "as the data set"


@dataclass(frozen=True)
class OccupancyTruth(_Truth):
    """Occupancy and its flow as the data set has them. `shape` (X, Y, Z) is used where a whole block has none."""

    shape: tuple[int, int, int] = (200, 200, 16)
    name: ClassVar[str] = "occupancy"

    def extract(self, context: BlockContext) -> CueBlock:
        """`occupancy/semantics` (T, X, Y, Z) u8, `occupancy/flow` (T, X, Y, Z, 2) m/s, `occupancy/valid` (T,)."""
        frames = context.scene.keyframes[context.start : context.stop]
        read = [None if context.truth is None else context.truth.occupancy(frame.token) for frame in frames]
        shape = next((item[0].shape for item in read if item is not None), self.shape)
        semantics = np.full((len(frames), *shape), 255, np.uint8)
        flow = np.zeros((len(frames), *shape, 2), np.float32)
        valid = np.zeros(len(frames), np.uint8)
        without_flow = 0
        for i, item in enumerate(read):
            if item is None:
                continue
            semantics[i], valid[i] = item[0], 1
            if item[1] is None:
                without_flow += 1
            else:
                flow[i] = item[1]
        notes = []
        if not valid.all():
            notes.append(f"no occupancy truth at {int((valid == 0).sum())} of {len(frames)} keyframes")
        if without_flow:
            notes.append(f"occupancy truth without flow at {without_flow} keyframes: its flow is stored as zero")
        arrays: dict[str, np.ndarray] = {
            "occupancy/semantics": semantics,
            "occupancy/flow": flow,
            "occupancy/valid": valid,
        }
        return CueBlock(arrays, {"keyframes": int(valid.sum())}, notes)


@dataclass(frozen=True)
class CameraTruth(_Truth):
    """Exact depth, instances, moving pixels and flow per camera image, on the grids of the cues."""

    name: ClassVar[str] = "camera"

    def extract(self, context: BlockContext) -> CueBlock:
        """The arrays of storage.schema.TRUTH["camera"]; `camera/valid` is 0 where an image has no truth.

        True flow that ends in another frame than the next keyframe is left out, and a note says so.
        """
        count, cameras = context.stop - context.start, len(context.cameras)
        network, render = context.sizes.network, context.sizes.render
        arrays: dict[str, np.ndarray] = {
            "camera/depth": np.full((count, cameras, *render), np.nan, np.float32),
            "camera/instance": np.zeros((count, cameras, *network), np.uint16),
            "camera/moving": np.zeros((count, cameras, *network), np.uint8),
            "camera/flow_next": np.full((count, cameras, 2, *render), INVALID_FLOW, np.int16),
            "camera/valid": np.zeros((count, cameras), np.uint8),
        }
        elsewhere = 0
        for i in range(count):
            for c, channel in enumerate(context.cameras):
                on_render = camera_truth(context, context.start + i, channel)
                on_network = camera_truth(context, context.start + i, channel, network=True)
                if not on_render:
                    continue
                arrays["camera/valid"][i, c] = 1
                elsewhere += _ends_elsewhere(context, context.start + i)
                if "depth" in on_render:
                    arrays["camera/depth"][i, c] = on_render["depth"]
                if "flow_next" in on_render:
                    flow = on_render["flow_next"]
                    known = (~np.isnan(flow[0])).astype(np.float32)
                    arrays["camera/flow_next"][i, c] = pack_flow(FlowField(flow, known))[0]
                for key in ("instance", "moving"):
                    if key in on_network:
                        arrays[f"camera/{key}"][i, c] = on_network[key]
        notes = [f"no true flow at {elsewhere} camera-frames: the log's does not end in the next keyframe"]
        return CueBlock(arrays, {"camera_frames": int(arrays["camera/valid"].sum())}, notes if elsewhere else [])


def _ends_elsewhere(context: BlockContext, t: int) -> bool:
    """Whether there is a next keyframe, and true flow does not lead there."""
    following = t + 1 < len(context.scene.keyframes)
    return following and context.truth is not None and not leads_to_next(context.truth, context.scene, t)


@dataclass(frozen=True)
class BoxTruth(_Truth):
    """Labelled boxes of objects with their velocities, in each keyframe's ego frame."""

    name: ClassVar[str] = "boxes"

    def extract(self, context: BlockContext) -> CueBlock:
        """`boxes/table` (T, BOX_ROWS, 12) by `BOX_FIELDS`, `boxes/count` (T,), -1 where a keyframe is not labelled.

        Of more boxes than there are rows the nearest are kept, and a note says so.
        """
        frames = context.scene.keyframes[context.start : context.stop]
        read = getattr(context.truth, "boxes", None)
        table = np.zeros((len(frames), BOX_ROWS, len(BOX_FIELDS)), np.float32)
        count, notes, moving = np.full(len(frames), -1, np.int32), [], 0
        for i, frame in enumerate(frames):
            found = None if read is None else read(frame.token)
            if found is None:
                continue
            rows = np.array([box_row(box, context.classes) for box in found]).reshape(-1, len(BOX_FIELDS))
            if len(rows) > BOX_ROWS:
                notes.append(f"{frame.token}: {len(rows)} boxes, the {BOX_ROWS} nearest are kept")
                rows = rows[np.argsort(np.hypot(*rows[:, 2:4].T), kind="stable")[:BOX_ROWS]]
            count[i], table[i, : len(rows)] = len(rows), rows
            moving += int(np.isfinite(rows[:, BOX_FIELDS.index("vx")]).sum())
        if (count < 0).any():
            notes.append(f"no boxes labelled at {int((count < 0).sum())} of {len(frames)} keyframes")
        quality = {"boxes": int(count.clip(0).sum()), "with_velocity": moving}
        return CueBlock({"boxes/table": table, "boxes/count": count}, quality, notes)


def box_row(box: LabelledBox, classes: tuple[str, ...]) -> list[float]:
    """A box by `storage.schema.BOX_FIELDS`."""
    forward, place = box.ego_from_box[:3, 0], box.ego_from_box[:3, 3]
    velocity = (np.nan, np.nan) if box.velocity is None else box.velocity
    category = classes.index(box.category) if box.category in classes else UNKNOWN_CLASS
    yaw, seconds = np.arctan2(forward[1], forward[0]), np.nan if box.seconds is None else box.seconds
    return [box.track, category, *place, *box.size, yaw, *velocity, seconds]
