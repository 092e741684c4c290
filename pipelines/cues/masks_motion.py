"""Masks of what moves, found without weights. What could move but stands is not found, and classes stay unknown.

Backend `motion_lidar` has depth and emptied places from LiDAR; `motion_epipolar` has none, for camera-only runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import Float, Int32, UInt16

from eval.labels import mask_figures, static_flow_figures, summarise
from geometry.transforms import invert
from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.cues.flow import flow_along
from pipelines.cues.flow_chain import ChainedDis
from pipelines.cues.flow_dis import DisSettings
from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.flow_targets import aim_next
from pipelines.cues.instance_links import LinkRule
from pipelines.cues.instances import InstanceTable
from pipelines.cues.lidar import cam_from_ego_at
from pipelines.cues.lidar_depth import DepthRule, depth_bounds, ground_plane, height_above
from pipelines.cues.lidar_things import ThingRule, clearest, emptied, find_things, seen_through
from pipelines.cues.motion_regions import RegionRule, grow, refine
from pipelines.cues.motion_residual import Motion, MotionRule, unexplained
from pipelines.cues.motion_witnesses import Witness, own_witness, stored_witnesses
from pipelines.cues.moving_things import moving_regions, thing_strengths
from pipelines.cues.ranges import check_numbers
from pipelines.cues.resize import resize_image
from pipelines.cues.road_bounds import RoadRule, road_bounds
from pipelines.cues.static_flow import static_flow_between
from pipelines.cues.truth import camera_truth
from pipelines.datasets.records import CameraImage

NO_ROOM = "instances left out: more than the table has rows"


@dataclass
class Found:
    """Moving regions of one camera image on its render grid, 1..n in the order of `strengths` (thresholds exceeded).

    flow, still: for figures, a flow of the image and what depth and ego-motion say it is where nothing moves (pixels).
    """

    labels: Int32[np.ndarray, "h w"]
    strengths: list[float]
    motion: Motion
    still: Float[np.ndarray, "2 h w"] | None = None
    flow: Float[np.ndarray, "2 h w"] | None = None


@dataclass(frozen=True)
class MotionMasks:
    """What both backends share.

    Attributes:
        flows: the flow cues that testify; more of them cover more and err less. An own DIS flow replaces them where
            none has a target. Where flow_next is not among them, an own chained one links instances over time.
        motion, regions, dis, link: see the rules.
        max_width: images are shrunk to this many columns for an own flow.
        threads: OpenCV's own thread count.
    """

    flows: tuple[str, ...] = ("flow_next",)
    motion: MotionRule = field(default_factory=MotionRule)
    regions: RegionRule = field(default_factory=RegionRule)
    dis: DisSettings = field(default_factory=DisSettings)
    link: LinkRule = field(default_factory=LinkRule)
    max_width: int = 1280
    threads: int = 1
    name: ClassVar[str] = "masks"
    without: ClassVar[dict[str, str]] = {
        flow: f"leave {flow} out of masks.flows ([] takes an own DIS flow to the image beside)"
        for flow in ("flow_next", "flow_prev")
    }

    def __post_init__(self) -> None:
        check_numbers(self, least={"max_width": 1}, free=("threads",))

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=3)

    def licence(self) -> str:
        """OpenCV's; no weights."""
        return "Apache-2.0"

    def extract(self, context: BlockContext) -> CueBlock:
        """`masks/instance` (T, C, H, W) and `masks/table`, see storage.schema.CUES; ids are unique in the block."""
        cv2.setNumThreads(self.threads)
        count = context.stop - context.start
        out = InstanceTable((count, len(context.cameras)), context.sizes.network)
        figures: list[dict[str, Any]] = []
        notes: dict[str, int] = {}
        for i in range(count):
            seen = self._seen(context, i, notes)
            for c, found in self._find(context, i, seen).items():
                image = _image(context, i, c)
                labels, scores = self._outlined(context, image, found)
                if out.add(i, c, labels, scores):
                    notes[NO_ROOM] = notes.get(NO_ROOM, 0) + 1
                figures.append(_figures(context, i, c, out.instance[i, c], found))
        out.link(self.link, context.sizes, partial(self._flow_into, context, out.table))
        lines = [f"{line} ({times} camera-frames)" for line, times in notes.items()]
        return CueBlock({"masks/instance": out.instance, "masks/table": out.table}, summarise(figures), lines)

    def _seen(self, context: BlockContext, i: int, notes: dict[str, int]) -> dict[int, list[Witness]]:
        """Flows of each camera that has an image at keyframe i of the block."""
        seen: dict[int, list[Witness]] = {}
        for c, channel in enumerate(context.cameras):
            if channel not in context.scene.keyframes[context.start + i].images:
                line = "the camera has no image: no masks"
            else:
                seen[c] = stored_witnesses(context, self.flows, i, c)
                if seen[c]:
                    continue
                seen[c] = own_witness(context, i, c, self.dis, self.max_width)
                line = "no flow cue has a target: own DIS flow to the image beside" if seen[c] else "no flow at all"
            notes[line] = notes.get(line, 0) + 1
        return seen

    def _find(self, context: BlockContext, i: int, seen: dict[int, list[Witness]]) -> dict[int, Found]:
        raise NotImplementedError

    def _flow_into(self, context: BlockContext, table: np.ndarray, i: int, c: int) -> Float[np.ndarray, "2 h w"] | None:
        """Flow of keyframe i - 1 of the block that ends in keyframe i, render pixels; None where nothing is linked."""
        if "flow_next" in self.flows:
            return unpack_flow(context.upstream("flow_next")["flow/next/flow"][i - 1, c])
        ids = table[:, c, :, 0]
        if not (ids[:i].any() and ids[i:].any()):
            return None  # an own flow takes time, and no instance could go on along this one
        target = aim_next(context.scene)(context.start + i - 1, context.cameras[c])
        if isinstance(target, str):
            return None
        return flow_along(context, ChainedDis(self.dis), target, self.max_width).flow

    def _outlined(
        self, context: BlockContext, image: CameraImage, found: Found
    ) -> tuple[Int32[np.ndarray, "H W"], list[float]]:
        """The regions on the network grid, fitted to its edges, and a score for each: strength / (1 + strength)."""
        factor = context.sizes.network[0] // context.sizes.render[0]
        labels = found.labels.repeat(factor, 0).repeat(factor, 1)
        scores = [value / (1.0 + value) for value in found.strengths]
        if self.regions.refine_band > 0 and found.strengths:
            strength = found.motion.strength.repeat(factor, 0).repeat(factor, 1)
            pixels = resize_image(context.load_image(image), context.sizes.transform(image))
            labels = refine(labels, strength, pixels, self.regions)
        return labels, scores


@dataclass(frozen=True)
class LidarMotionMasks(MotionMasks):
    """Things in the LiDAR sweep that left their place or whose flow depth and ego-motion do not explain."""

    depth: DepthRule = field(default_factory=DepthRule)
    things: ThingRule = field(default_factory=ThingRule)

    @property
    def needs(self) -> tuple[str, ...]:
        """lidar and the flows."""
        return ("lidar", *self.flows)

    def _find(self, context: BlockContext, i: int, seen: dict[int, list[Witness]]) -> dict[int, Found]:
        lidar = context.upstream("lidar")
        points = _points(lidar, i)
        ground = ground_plane(points)
        things = find_things(points, height_above(points, ground), self.things)
        shown, motions, still = {}, {}, {}
        for c, flows in seen.items():
            image, frame = _image(context, i, c), context.scene.keyframes[context.start + i]
            transform = context.sizes.render_transform(image)
            pixels, K = resize_image(context.load_image(image), transform), transform.intrinsics(image.K)
            depth, index = depth_bounds(points, ground, cam_from_ego_at(image, frame), K, pixels, self.depth)
            motions[c] = unexplained(image, [(flow, depth) for flow in flows], context.sizes, self.motion)
            shown[c] = np.append(things, 0)[index]
            if flows:
                still[c] = static_flow_between(image, flows[0].target, 1.0 / depth.inverse, context.sizes)
        empty = clearest(
            [emptied(points, things, verdict, self.things) for verdict in self._verdicts(context, i, points)]
        )
        strengths = thing_strengths(list(shown.values()), list(motions.values()), empty, self.things.least_share)
        found = {}
        for c, flows in seen.items():
            labels, kept = moving_regions(shown[c], strengths, self.regions.least_area)
            found[c] = Found(labels, kept, motions[c], still.get(c), flows[0].flow if flows else None)
        return found

    def _verdicts(
        self, context: BlockContext, i: int, points: Float[np.ndarray, "n 3"]
    ) -> list[Float[np.ndarray, " n"]]:
        """What the sweeps of the keyframes before and after, as far as they are in the block, say of each point."""
        lidar, keyframes = context.upstream("lidar"), context.scene.keyframes[context.start : context.stop]
        verdicts = [np.full(len(points), np.nan)]
        for j in (i - 1, i + 1):
            if 0 <= j < len(keyframes):
                moved = invert(keyframes[j].global_from_ego) @ keyframes[i].global_from_ego
                origin = lidar["lidar/origin"][j].astype(np.float64)
                verdicts.append(seen_through(points, moved, _points(lidar, j), origin, self.things))
        return verdicts


@dataclass(frozen=True)
class EpipolarMotionMasks(MotionMasks):
    """Regions whose flow ego-motion and a flat road do not explain; no LiDAR upstream.

    A still point's flow ends on its epipolar line, not beyond the road and not nearer than what it stands on; what
    moves along the line within those bounds is not found.
    """

    road: RoadRule = field(default_factory=RoadRule)

    @property
    def needs(self) -> tuple[str, ...]:
        """The flows."""
        return self.flows

    def _find(self, context: BlockContext, i: int, seen: dict[int, list[Witness]]) -> dict[int, Found]:
        found = {}
        for c, flows in seen.items():
            if not flows:
                continue
            image = _image(context, i, c)
            depths = [(w, road_bounds(image, w, context.sizes, self.road)) for w in flows]
            motion = unexplained(image, depths, context.sizes, self.motion)
            labels = grow(motion.strength, motion.vector, depths[0][1].inverse, self.regions)
            strengths = [float(np.nanmedian(motion.strength[labels == k + 1])) for k in range(int(labels.max()))]
            found[c] = Found(labels, strengths, motion)
        return found


def _image(context: BlockContext, i: int, c: int) -> CameraImage:
    return context.scene.keyframes[context.start + i].images[context.cameras[c]]


def _points(lidar: Mapping[str, np.ndarray], i: int) -> Float[np.ndarray, "n 3"]:
    return lidar["lidar/points"][i, : int(lidar["lidar/count"][i]), :3].astype(np.float64)


def _figures(
    context: BlockContext, i: int, c: int, instance: UInt16[np.ndarray, "H W"], found: Found
) -> dict[str, Any]:
    truth = camera_truth(context, context.start + i, context.cameras[c], network=True)
    figures: dict[str, Any] = {"camera_frames": 1, "instances": len(np.unique(instance[instance > 0]))}
    if found.still is not None and found.flow is not None:
        factor = context.sizes.network[0] // context.sizes.render[0]
        masked = instance[factor // 2 :: factor, factor // 2 :: factor].ravel() > 0
        figures |= static_flow_figures(found.flow.reshape(2, -1).T, found.still.reshape(2, -1).T, masked)
    if "moving" in truth and "instance" in truth:
        figures["against_truth"] = mask_figures(instance, truth["instance"], truth["moving"])
    return figures
