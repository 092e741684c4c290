"""From what a text-conditioned detector says of every token to boxes with a prompt and a score."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from pipelines.cues.grounded_sam.boxes import clip_boxes
from pipelines.cues.grounded_sam.prompts import Caption, Prompts, match_prompts
from pipelines.cues.grounded_sam.records import Detections
from pipelines.cues.ranges import check_numbers


@dataclass(frozen=True)
class DetectionRule:
    """When a box counts as found.

    Attributes:
        score: least score of a prompt's best word; upstream's box threshold (its Grounded-SAM demo has 0.3).
        class_scores: another threshold for some classes, by class name.
        word: least score of every word of a prompt; upstream's text threshold.
        joint: all prompts in one caption; else one pass for each class.
        shortest, longest: pixels of the image's edges in the model; None as the weights' folder says (800, 1333).
    """

    score: float = 0.3
    class_scores: dict[str, float] = field(default_factory=dict)
    word: float = 0.25
    joint: bool = True
    shortest: int | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self, least={"shortest": 1, "longest": 1}, shares=("score", "word"))
        for name, score in self.class_scores.items():
            if not 0 <= score <= 1:
                raise ValueError(f"class_scores.{name} = {score:g}: expected 0 to 1")

    def least(self, prompts: Prompts, classes: Sequence[str]) -> Float[np.ndarray, " prompts"]:
        """Threshold of each prompt. ValueError for a class that the data set has not."""
        for name in self.class_scores:
            if name not in classes:
                raise ValueError(f"class_scores: {name!r} is not a class of this data set: {', '.join(classes)}")
        return np.array([self.class_scores.get(classes[kind], self.score) for kind in prompts.classes])


@dataclass(frozen=True)
class TokenScores:
    """What a detector says of one image and caption: score of every token for every query, and the queries' boxes.

    scores: (queries, tokens) in [0, 1]. boxes: (queries, 4) as centre x, centre y, width, height, shares of the image.
    """

    scores: Float[np.ndarray, "queries tokens"]
    boxes: Float[np.ndarray, "queries 4"]


def read_boxes(
    told: TokenScores,
    caption: Caption,
    words: Sequence[Sequence[Sequence[int]]],
    least: Float[np.ndarray, " prompts"],
    rule: DetectionRule,
    size: tuple[int, int],
) -> Detections:
    """Detections of one image of `size` (height, width); `least` is by prompt, of all prompts."""
    kept, place, score = match_prompts(told.scores, words, least[list(caption.prompts)], rule.word)
    centre, extent = told.boxes[kept, :2], told.boxes[kept, 2:]
    scale = np.array([size[1], size[0], size[1], size[0]], np.float64)
    boxes, valid = clip_boxes(np.concatenate([centre - extent / 2, centre + extent / 2], axis=1) * scale, size)
    found = Detections(boxes, score, np.asarray(caption.prompts, np.int64)[place])
    return found.take(np.flatnonzero(valid))
