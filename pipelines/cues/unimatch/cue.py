"""UniMatch as flow cues: batches of image pairs, both ways in one pass, checked there and back."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import ClassVar, Literal

import cv2

from pipelines.config import json_digest
from pipelines.cues.base import BlockContext, CueBlock
from pipelines.cues.blank import seen_film
from pipelines.cues.flow_block import FlowBlock
from pipelines.cues.flow_field import flow_onto_render
from pipelines.cues.flow_targets import Target
from pipelines.cues.model_flow import ModelFlow
from pipelines.cues.neighbours import DrawRule, aim_slot
from pipelines.cues.ranges import check_numbers
from pipelines.cues.resize import shrink, working_size
from pipelines.cues.unimatch.inference import CheckRule, Precision
from pipelines.cues.unimatch.pairs import Pair, PairMatcher
from pipelines.cues.unimatch.weights import LICENCE

VERSION = 2


@dataclass(frozen=True)
class UniMatchFlowCue(ModelFlow):
    """Flow to the next or previous keyframe of video-rate data, or to the drawn auxiliary frame of any data.

    Attributes:
        slot: which flow slot is written; `draw` matters for "aux" only.
        weights: a checkpoint file, or a name of `occflow weights list`.
        device: "cpu", "cuda", "cuda:1"; "auto" takes a GPU where there is one, but does not ask for one.
        precision: of convolutions and attention; matching stays in float32.
        batch: image pairs at once.
        max_width: images are shrunk to this many columns first.
        size: (height, width) at which the network looks, or None: the next multiple of its step.
        least_width: without `size`, images with a shorter long side are seen enlarged to this many pixels (see
            `inference.looking_size`); 0: as upstream does, whatever their size.
        check: when a pixel is kept.
    """

    slot: Literal["next", "prev", "aux"] = "next"
    weights: str = "gmflow-scale2-regrefine6-mixdata"
    device: str = "auto"
    precision: Precision = "float32"
    batch: int = 4
    max_width: int = 1280
    size: tuple[int, int] | None = None
    least_width: int = 576
    check: CheckRule = field(default_factory=CheckRule)
    draw: DrawRule = field(default_factory=DrawRule)
    needs: ClassVar[tuple[str, ...]] = ()
    loads_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self, least={"batch": 1, "max_width": 1})

    def config_digest(self) -> str:
        """Of all that changes the flow: where it is computed, how many at once and where the file lies do not."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("weights", "device", "batch")}
        return json_digest([type(self).__name__, VERSION, kept, self.weights_digest])

    def licence(self) -> str:
        """Of upstream's code and weights."""
        return LICENCE

    def extract(self, context: BlockContext) -> CueBlock:
        """The four arrays of the slot, see storage.schema.CUES. Raises WeightsError before a frame is read."""
        matcher = PairMatcher.load(self.weights, self.device, self.precision, self.size, self.least_width, self.check)
        cv2.setNumThreads(1)
        block = FlowBlock(context, self.slot)
        remaining = self._pairs(context, block)
        while part := list(islice(remaining, self.batch)):
            answers = matcher([pair for *_, pair in part])
            for (i, c, target, _), found in zip(part, answers, strict=True):
                first = target.film[0]
                transform = context.sizes.render_transform(first)
                block.put(i, c, target, flow_onto_render(found, (first.height, first.width), transform))
        return block.finished()

    def _pairs(self, context: BlockContext, block: FlowBlock) -> Iterator[tuple[int, int, Target, Pair]]:
        """Every camera-frame whose two images show something, with them; of the others the block hears at once."""
        aim = aim_slot(context.scene, self.slot, self.draw, context.sweep_slots)
        # From the end for "prev": what "next" left last is still kept.
        for i, c, target in block.targets(aim, backwards=self.slot == "prev"):
            size = working_size(target.film[0].height, target.film[0].width, self.max_width)
            first, last = (shrink(context.load_image(image), size) for image in (target.film[0], target.film[-1]))
            if seen_film([first, last]) is None:
                block.put_blank(i, c, target)
            else:
                yield i, c, target, (first, last)
