"""Which weights a configuration means, and the code that runs them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.records import Detector, Segmenter
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.weights import locate


@dataclass(frozen=True)
class Model:
    """Weights of one model.

    Attributes:
        kind: the library that runs it: "transformers" from a model folder, or the original package (`segment_anything`,
            `groundingdino`) from its .pth file.
        weights: a path, a name of `occflow weights list`, or a hub id.
        revision: of a hub id.
        download: fetch a hub id that is not here; nothing is fetched otherwise.
        text_encoder: for kind groundingdino: the folder of bert-base-uncased.
    """

    kind: Literal["transformers", "segment_anything", "groundingdino"] = "transformers"
    weights: str = ""
    revision: str | None = None
    download: bool = False
    text_encoder: str = "bert-base-uncased"

    @property
    def path(self) -> Path:
        """Where the weights are. WeightsError if nowhere."""
        return locate(self.weights, self.download, self.revision)

    @property
    def paths(self) -> list[Path]:
        """All that is read."""
        return [self.path, *([locate(self.text_encoder, self.download)] if self.kind == "groundingdino" else [])]


def build_detector(
    model: Model, prompts: Prompts, least: Float[np.ndarray, " prompts"], rule: DetectionRule, runtime: Runtime
) -> Detector:
    """Load a detector. Raises WeightsError."""
    if model.kind == "groundingdino":
        from pipelines.cues.grounded_sam.originals import OriginalGroundingDino

        file, text_encoder = model.paths
        return OriginalGroundingDino(file, text_encoder, prompts, least, rule, runtime)
    from pipelines.cues.grounded_sam.grounding_dino import GroundingDino

    return GroundingDino(model.path, prompts, least, rule, runtime)


def build_segmenter(model: Model, runtime: Runtime) -> Segmenter:
    """Load a segmenter. Raises WeightsError."""
    if model.kind == "segment_anything":
        from pipelines.cues.grounded_sam.originals import sam_from_checkpoint

        return sam_from_checkpoint(model.path, runtime)
    from pipelines.cues.grounded_sam.sam import sam_from_folder

    return sam_from_folder(model.path, runtime)
