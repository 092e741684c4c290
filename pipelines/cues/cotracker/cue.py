"""Flow inside masks by a point tracker, keyframe to keyframe through the sweeps: backends `cotracker`, `alltracker`."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import UInt16

from eval.labels import figure
from geometry.cameras import in_image
from pipelines.config import json_digest
from pipelines.cues.base import BlockContext, CueBlock
from pipelines.cues.blank import seen_film, unknown_field
from pipelines.cues.cotracker.packages import ALLTRACKER, COTRACKER, TrackerPackage
from pipelines.cues.cotracker.queries import ask, fill, mask_onto, render_mask
from pipelines.cues.devices import pick_device
from pipelines.cues.flow_block import FlowBlock
from pipelines.cues.flow_field import flow_onto_render
from pipelines.cues.flow_targets import Target, aim_keyframe
from pipelines.cues.model_flow import ModelFlow
from pipelines.cues.protocols import FlowField
from pipelines.cues.ranges import check_numbers
from pipelines.cues.resize import shrink, working_size
from pipelines.weights import locate, weights_digest

if TYPE_CHECKING:
    from pipelines.cues.cotracker.tracker import PointTracker

VERSION = 2


@dataclass(frozen=True)
class TrackedFlowCue(ModelFlow):
    """What the backends share: one query per instance and cell inside the masks, tracks made dense again there.

    Attributes:
        slot: which flow slot is written; each follows its own film, so both ways are both cues.
        weights: a checkpoint file, or a name of `occflow weights list`.
        device: "cpu", "cuda", "cuda:1"; "auto" takes a GPU where there is one, but does not ask for one.
        stride: pixels of the working image from query to query.
        max_width: images are shrunk to this many columns for the queries.
        least_visibility: a track less visible at its end says nothing.
        check_back: also follow the ends back home; trust falls to 0 where they miss by `tolerance` pixels + `relative`
            of the length. Takes twice the time.
        reach, colour: how far a track speaks for the pixels around it, see spread_tracks.
        threads: OpenCV's own thread count.
    """

    slot: Literal["next", "prev"] = "next"
    weights: str = ""
    device: str = "auto"
    stride: int = 3
    max_width: int = 1024
    least_visibility: float = 0.5
    check_back: bool = False
    tolerance: float = 1.5
    relative: float = 0.03
    reach: float = 5.0
    colour: float = 12.0
    threads: int = 1
    needs: ClassVar[tuple[str, ...]] = ("masks",)
    loads_model: ClassVar[bool] = True
    package: ClassVar[TrackerPackage]

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"stride": 1, "max_width": 1, "memory_mb": 1},
            above_zero=("tolerance", "reach", "colour"),
            below_one=("least_visibility",),
            free=("threads",),
        )

    def config_digest(self) -> str:
        """Of all that changes the flow; where it is computed and where the file lies do not.

        Raises:
            WeightsError: the package or the checkpoint is not here.
        """
        self.package.check()
        kept = {k: v for k, v in asdict(self).items() if k not in ("weights", "device", "threads")}
        return json_digest([type(self).__name__, VERSION, kept, self.weights_digest])

    def tracker(self) -> "PointTracker":
        """The loaded model."""
        raise NotImplementedError

    def licence(self) -> str:
        """Of upstream's code and weights."""
        return self.package.licence

    def extract(self, context: BlockContext) -> CueBlock:
        """The four arrays of the slot, see storage.schema.CUES. Raises WeightsError before a frame is read."""
        tracker = self.tracker()
        cv2.setNumThreads(self.threads)
        masks = context.upstream("masks")["masks/instance"]
        block = FlowBlock(context, self.slot)
        for i, c, target in block.targets(aim_keyframe(context.scene, self.slot)):
            if not masks[i, c].any():
                block.count({"camera_frames": 1, "without_masks": 1, "valid": _share(0, context)})
                continue
            found = self._along(context, tracker, target, masks[i, c])
            if found is None:
                block.put_blank(i, c, target, queries=0)
            else:
                block.put(i, c, target, found[0], queries=found[1])
        return block.finished()

    def _along(
        self, context: BlockContext, tracker: "PointTracker", target: Target, masks: UInt16[np.ndarray, "H W"]
    ) -> tuple[FlowField, int] | None:
        """Flow on the render grid inside the masks of the network grid, and how many points were followed.

        None where the first or last image of the film shows nothing.
        """
        first = target.film[0]
        raw = first.height, first.width
        size = working_size(*raw, self.max_width)
        instance = mask_onto(masks, raw, context.sizes.transform(first), size)
        queries = ask(instance, self.stride)
        if not len(queries):
            return unknown_field(context.sizes.render), 0
        film = seen_film([shrink(context.load_image(image), size) for image in target.film])
        if film is None:
            return None
        points = queries.points.astype(np.float32)
        found = tracker(film, points)
        trust = np.where(found.visible >= self.least_visibility, found.visible, 0.0).astype(np.float32)
        trust[~in_image(found.ends + 0.5, *size)] = 0.0
        if self.check_back:
            trust *= self._returns(tracker, film, points, found.ends, trust > 0)
        dense = fill(film[0], instance, queries, found.ends - points, trust, self.stride, self.reach, self.colour)
        out = flow_onto_render(dense, raw, context.sizes.render_transform(first))
        # Resampling reaches a pixel beyond the masks.
        inside = render_mask(masks, context.sizes.render) > 0
        return FlowField(np.where(inside, out.flow, np.nan), np.where(inside, out.confidence, 0.0)), len(queries)

    def _returns(
        self, tracker: "PointTracker", film: list[np.ndarray], points: np.ndarray, ends: np.ndarray, alive: np.ndarray
    ) -> np.ndarray:
        """1 where a track followed back ends where it began, falling to 0 at the tolerance."""
        out = np.zeros(len(points), np.float32)
        if alive.any():
            home = tracker(film[::-1], ends[alive]).ends
            miss = np.linalg.norm(home - points[alive], axis=1)
            length = np.linalg.norm(ends[alive] - points[alive], axis=1)
            out[alive] = np.maximum(0.0, 1.0 - miss / (self.tolerance + self.relative * length))
        return out


def _share(count: int, context: BlockContext) -> dict[str, Any]:
    return figure(count, context.sizes.render[0] * context.sizes.render[1])


@dataclass(frozen=True)
class CoTrackerFlowCue(TrackedFlowCue):
    """CoTracker 2, 2.1 or 3 offline, as the checkpoint is.

    Attributes:
        size: (height, width) at which the network looks; None: its own, 384x512. CoTracker 3 only.
        memory_mb: about what the points of one pass may take. Points of one pass are tracked jointly, so this changes
            the result a little.
    """

    weights: str = "cotracker3-offline"
    size: tuple[int, int] | None = None
    memory_mb: int = 2048
    package: ClassVar[TrackerPackage] = COTRACKER

    def tracker(self) -> "PointTracker":
        """See TrackedFlowCue."""
        from pipelines.cues.cotracker.tracker import load_cotracker

        self.package.check()
        path = locate(self.weights)
        digest = weights_digest(path)
        return load_cotracker(path, digest, pick_device(self.device), self.size, self.memory_mb << 20)


@dataclass(frozen=True)
class AllTrackerFlowCue(TrackedFlowCue):
    """AllTracker, which follows every pixel: each one inside the masks is asked about."""

    weights: str = "alltracker-full"
    stride: int = 1
    reach: float = 1.5
    package: ClassVar[TrackerPackage] = ALLTRACKER

    def tracker(self) -> "PointTracker":
        """See TrackedFlowCue."""
        from pipelines.cues.cotracker.alltracker import load_alltracker

        self.package.check()
        path = locate(self.weights)
        return load_alltracker(path, weights_digest(path), pick_device(self.device))
