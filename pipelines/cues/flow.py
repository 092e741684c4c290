"""Flow cues: a flow model's answers along the film of every keyframe and camera as the arrays of a store slot."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import cv2

from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.cues.blank import seen_film, unknown_field
from pipelines.cues.flow_block import FlowBlock
from pipelines.cues.flow_field import flow_onto_render
from pipelines.cues.flow_targets import Aim, Target, aim_keyframe
from pipelines.cues.protocols import FlowField, PathFlow
from pipelines.cues.ranges import check_numbers
from pipelines.cues.resize import shrink, working_size


def label_flow(context: BlockContext, slot: str, model: PathFlow, aim: Aim, max_width: int, threads: int) -> CueBlock:
    """Run `model` on every keyframe and camera of the block and write the answers into flow slot `slot`.

    Images are shrunk to at most `max_width` columns for the model; its flow is then resampled onto the render grid.
    `threads` sets OpenCV's own (process-wide) thread count; 1 suits runs of several units side by side.
    A film whose first or last image shows nothing has no flow, and a note says so.
    """
    cv2.setNumThreads(threads)
    block = FlowBlock(context, slot)
    # Flow to the previous keyframe goes through the block from its end: run beside flow to the next one it meets that
    # halfway, and each finds the other half made (two_way_cache).
    for i, c, target in block.targets(aim, backwards=slot == "prev"):
        field = _answer(context, model, target, max_width)
        if field is None:
            block.put_blank(i, c, target)
        else:
            block.put(i, c, target, field)
    return block.finished()


def flow_along(context: BlockContext, model: PathFlow, target: Target, max_width: int) -> FlowField:
    """One film's flow on the render grid, images shrunk to `max_width` columns; unknown where an end shows nothing."""
    field = _answer(context, model, target, max_width)
    return unknown_field(context.sizes.render) if field is None else field


def _answer(context: BlockContext, model: PathFlow, target: Target, max_width: int) -> FlowField | None:
    first = target.film[0]
    size = working_size(first.height, first.width, max_width)
    film = seen_film([shrink(context.load_image(image), size) for image in target.film])
    if film is None:
        return None
    return flow_onto_render(model(film), (first.height, first.width), context.sizes.render_transform(first))


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

    def __post_init__(self) -> None:
        check_numbers(self, least={"max_width": 1}, free=("threads",))

    @property
    def name(self) -> str:
        """flow_next or flow_prev."""
        return f"flow_{self.slot}"

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=2)

    def licence(self) -> str:
        """OpenCV's; no weights."""
        return "Apache-2.0"

    def model(self) -> PathFlow:
        """What labels a film."""
        raise NotImplementedError

    def extract(self, context: BlockContext) -> CueBlock:
        """The four arrays of the slot, see storage.schema.CUES."""
        aim = aim_keyframe(context.scene, self.slot)
        return label_flow(context, self.slot, self.model(), aim, self.max_width, self.threads)
