"""DIS optical flow (Kroeger et al. 2016, OpenCV's implementation), checked forward against backward, as flow cues."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.cues.flow import label_flow
from pipelines.cues.flow_field import checked
from pipelines.cues.neighbours import DrawRule, aim_slot
from pipelines.cues.protocols import FlowField, PairFlow
from pipelines.cues.ranges import check_numbers


@dataclass(frozen=True)
class DisSettings:
    """Parameters of DIS, by its authors' names, and of the forward-backward check (pixels of the working image).

    finest_scale: pyramid level at which patches stop being matched (0 = full resolution). A pixel is kept where the
    round trip misses by less than `tolerance + relative * length`.
    """

    finest_scale: int = 0
    patch_size: int = 8
    patch_stride: int = 4
    descent_iterations: int = 16
    refinement_iterations: int = 5
    tolerance: float = 1.0
    relative: float = 0.02

    def __post_init__(self) -> None:
        # OpenCV divides by the patch's sizes and reads beyond its pyramid: the process would die without a word.
        whole = {"patch_size": 1, "patch_stride": 1, "descent_iterations": 1}
        check_numbers(self, least=whole, above_zero=("tolerance",))


@dataclass(frozen=True)
class DisPairFlow:
    """DIS on the grey images of a pair; dense, never NaN."""

    settings: DisSettings = DisSettings()

    def __call__(
        self,
        first: UInt8[np.ndarray, "height width 3"],
        second: UInt8[np.ndarray, "height width 3"],
        guess: Float[np.ndarray, "2 height width"] | None = None,
    ) -> Float[np.ndarray, "2 height width"]:
        """See PairFlow. `guess` (no NaN) is where the search starts, zero flow by default."""
        # Made per call: the object keeps buffers and must not be shared by threads.
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        dis.setFinestScale(self.settings.finest_scale)
        dis.setPatchSize(self.settings.patch_size)
        dis.setPatchStride(self.settings.patch_stride)
        dis.setGradientDescentIterations(self.settings.descent_iterations)
        dis.setVariationalRefinementIterations(self.settings.refinement_iterations)
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)]
        start = np.zeros((2, *grey[0].shape), np.float32) if guess is None else guess
        flow = dis.calc(grey[0], grey[1], np.moveaxis(start, 0, -1).astype(np.float32, order="C"))
        return np.ascontiguousarray(np.moveaxis(flow, -1, 0))


@dataclass(frozen=True)
class CheckedPair:
    """A pair model as a path model: first image against last, both ways, kept where the two agree."""

    model: PairFlow
    tolerance: float
    relative: float

    def __call__(self, film: Sequence[UInt8[np.ndarray, "height width 3"]]) -> FlowField:
        """See PathFlow; the images between are not looked at."""
        first, last = film[0], film[-1]
        return checked(self.model(first, last), self.model(last, first), self.tolerance, self.relative)


@dataclass(frozen=True)
class DisFlowCue:
    """Flow to the next or previous keyframe of video-rate data, or to the drawn auxiliary frame of any data.

    Attributes:
        slot: which flow slot is written; `draw` matters for "aux" only.
        max_width: images are shrunk to this many columns before DIS sees them.
        threads: OpenCV's own thread count.
    """

    slot: Literal["next", "prev", "aux"] = "next"
    max_width: int = 1280
    dis: DisSettings = field(default_factory=DisSettings)
    draw: DrawRule = field(default_factory=DrawRule)
    threads: int = 1
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_numbers(self, least={"max_width": 1}, free=("threads",))

    @property
    def name(self) -> str:
        """flow_next, flow_prev or flow_aux."""
        return f"flow_{self.slot}"

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=2)

    def licence(self) -> str:
        """OpenCV's; no weights."""
        return "Apache-2.0"

    def extract(self, context: BlockContext) -> CueBlock:
        """The four arrays of the slot, see storage.schema.CUES."""
        aim = aim_slot(context.scene, self.slot, self.draw, context.sweep_slots)
        model = CheckedPair(DisPairFlow(self.dis), self.dis.tolerance, self.dis.relative)
        return label_flow(context, self.slot, model, aim, self.max_width, self.threads)
