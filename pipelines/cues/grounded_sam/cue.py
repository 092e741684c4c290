"""The masks cue from prompted models: backends `grounded_sam` and `sam3`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt16

from eval.labels import figure, mask_figures, summarise
from pipelines.config import ConfigError, json_digest
from pipelines.cues.base import BlockContext, CueBlock
from pipelines.cues.flow import flow_along
from pipelines.cues.flow_chain import ChainedDis
from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.flow_targets import aim_next
from pipelines.cues.grounded_sam.boxes import TileRule
from pipelines.cues.grounded_sam.choice import Model, build_detector, build_segmenter
from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.finder import BoxRule, GroundedSam
from pipelines.cues.grounded_sam.own_car import OwnCar, check_cameras, check_own_car, own_car_digests, own_car_mask
from pipelines.cues.grounded_sam.prompts import DEFAULT_PROMPTS, Prompts
from pipelines.cues.grounded_sam.records import Candidates, MaskFinder
from pipelines.cues.grounded_sam.regions import Instances, MaskRule, sort_out
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.views import view, view_factor
from pipelines.cues.instance_links import LinkRule
from pipelines.cues.instances import InstanceTable
from pipelines.cues.ranges import check_numbers
from pipelines.cues.resize import resize_image
from pipelines.cues.truth import camera_truth
from pipelines.datasets.records import CameraImage
from pipelines.weights import weights_digest

VERSION = 2
_RUNTIME_ONLY = ("device", "images", "boxes")


@dataclass(frozen=True)
class PromptedMasks:
    """What the backends share.

    Attributes:
        prompts: words for each class, by class name; classes of the data set that are not named are not looked for.
        boxes, masks, link: see the rules.
        own_car: by camera, the fixed mask of the own car; only cameras that the log has.
        link_flow: what carries instances to the next keyframe: "flow_next", the stored cue (which is then made first);
            "dis_chain", a flow of its own through the sweeps; "none", no links.
        max_width: the models see the network's field of view at a whole multiple of its size, the largest that has at
            most this many columns and does not enlarge the raw image.
        runtime: device, precision, batches.
        threads: OpenCV's own thread count.
    """

    prompts: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_PROMPTS))
    boxes: BoxRule = field(default_factory=BoxRule)
    masks: MaskRule = field(default_factory=MaskRule)
    own_car: dict[str, OwnCar] = field(default_factory=dict)
    link: LinkRule = field(default_factory=LinkRule)
    link_flow: Literal["flow_next", "dis_chain", "none"] = "flow_next"
    max_width: int = 1600
    runtime: Runtime = field(default_factory=Runtime)
    threads: int = 1
    name: ClassVar[str] = "masks"
    loads_model: ClassVar[bool] = True
    without: ClassVar[dict[str, str]] = {
        "flow_next": "set masks.link_flow to dis_chain (links by a flow of its own) or to none (no links)"
    }

    def __post_init__(self) -> None:
        check_numbers(self, least={"max_width": 1}, free=("least_quality", "threads"))
        for name, model in self.models.items():
            # A group that is given in part does not take the rest from the default one.
            if not model.weights.strip():
                raise ValueError(f"{name}.weights is not given: name them beside the rest (`occflow weights list`)")

    @property
    def needs(self) -> tuple[str, ...]:
        """The flow that links, if it is a cue."""
        return ("flow_next",) if self.link_flow == "flow_next" else ()

    @property
    def needs_gpu(self) -> bool:
        """True where the device is named so; "auto" runs anywhere."""
        return self.runtime.device.startswith("cuda")

    @property
    def models(self) -> dict[str, Model]:
        """The models by the field that names them."""
        raise NotImplementedError

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 over the digests of all weights, which are checked to be whole. Raises WeightsError."""
        digests = [weights_digest(path) for model in self.models.values() for path in model.paths]
        return digests[0] if len(digests) == 1 else json_digest(digests)

    def config_digest(self) -> str:
        """See CueExtractor. Of the weights the content counts, not where they lie; device and batches do not count."""
        check_own_car(self.own_car)
        fields = asdict(self)
        for key in _RUNTIME_ONLY:
            del fields["runtime"][key]
        for key, model in self.models.items():
            fields[key] = model.kind
        fields["own_car"] = own_car_digests(self.own_car)
        del fields["threads"]
        return json_digest([type(self).__name__, VERSION, fields, self.weights_digest])

    def build(self, prompts: Prompts, classes: Sequence[str]) -> MaskFinder:
        """Load the models."""
        raise NotImplementedError

    def finder(self, classes: Sequence[str]) -> MaskFinder:
        """The models for a data set's classes, loaded once."""
        kept: dict[tuple[str, ...], MaskFinder] = self.__dict__.setdefault("_finders", {})
        key = tuple(classes)
        if key not in kept:
            try:
                kept[key] = self.build(Prompts.of(self.prompts, key), key)
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"cue 'masks': {error}") from None
        return kept[key]

    def extract(self, context: BlockContext) -> CueBlock:
        """`masks/instance` (T, C, H, W) and `masks/table`, see storage.schema.CUES; ids are unique in the block."""
        check_cameras(self.own_car, context.cameras)
        cv2.setNumThreads(self.threads)
        shape = (context.stop - context.start, len(context.cameras))
        out = InstanceTable(shape, context.sizes.network)
        notes: dict[str, int] = {}
        here = []
        for i, c in np.ndindex(shape):
            if context.cameras[c] in context.scene.keyframes[context.start + i].images:
                here.append((i, c))
            else:
                line = "the camera has no image: no masks"
                notes[line] = notes.get(line, 0) + 1
        figures: list[dict[str, Any]] = []
        for start in range(0, len(here), self.runtime.images):
            batch = here[start : start + self.runtime.images]
            for (i, c), found in zip(batch, self._find(context, batch), strict=True):
                left_out = out.add(i, c, found.labels, found.scores.tolist(), found.classes.tolist())
                if left_out:
                    line = "instances left out: more than the table has rows"
                    notes[line] = notes.get(line, 0) + 1
                figures.append(_figures(context, i, c, out.instance[i, c], found))
        out.link(self.link, context.sizes, partial(self._flow_into, context))
        lines = [f"{line} ({count} camera-frames)" for line, count in notes.items()]
        return CueBlock({"masks/instance": out.instance, "masks/table": out.table}, summarise(figures), lines)

    def _find(self, context: BlockContext, batch: Sequence[tuple[int, int]]) -> list[Instances]:
        """Instances of some camera-frames of the block, on the network grid."""
        images = [_image(context, i, c) for i, c in batch]
        finder = self.finder(context.classes)
        out: list[Instances | None] = [None] * len(batch)
        # Cameras may differ in raw size and thus in how much finer than the network they can be seen.
        factors = [view_factor(context.sizes, image, self.max_width) for image in images]
        for factor in sorted(set(factors)):
            alike = [k for k, own in enumerate(factors) if own == factor]
            pixels = [
                resize_image(context.load_image(images[k]), view(context.sizes, images[k], factor)) for k in alike
            ]
            for k, found in zip(alike, finder(pixels, context.sizes.network), strict=True):
                out[k] = self._sorted(context, images[k], found)
        return [found for found in out if found is not None]

    def _sorted(self, context: BlockContext, image: CameraImage, found: Candidates) -> Instances:
        own = self.own_car.get(image.channel)
        hidden = None
        if own is not None:
            hidden = own_car_mask(image.channel, own, (image.height, image.width), context.sizes.transform(image))
        return sort_out(found, self.masks, hidden)

    def _flow_into(self, context: BlockContext, i: int, c: int) -> Float[np.ndarray, "2 h w"] | None:
        """Flow of keyframe i - 1 of the block that ends in keyframe i, render pixels; None where nothing is linked."""
        if self.link_flow == "none":
            return None
        if self.link_flow == "flow_next":
            stored = context.upstream("flow_next")
            aimed = stored["flow/next/target_frame"][i - 1, c] == context.start + i
            return unpack_flow(stored["flow/next/flow"][i - 1, c]) if aimed else None
        target = aim_next(context.scene)(context.start + i - 1, context.cameras[c])
        return None if isinstance(target, str) else flow_along(context, ChainedDis(), target, self.max_width).flow


@dataclass(frozen=True)
class GroundedSamMasks(PromptedMasks):
    """GroundingDINO's boxes, SAM's or SAM 2's masks."""

    detector: Model = field(default_factory=lambda: Model(weights="grounding-dino-tiny"))
    segmenter: Model = field(default_factory=lambda: Model(weights="sam-vit-huge"))
    detection: DetectionRule = field(default_factory=DetectionRule)
    tiles: TileRule = field(default_factory=TileRule)
    least_quality: float = 0.0

    def __post_init__(self) -> None:
        for name, model, other in (
            ("detector", self.detector, "groundingdino"),
            ("segmenter", self.segmenter, "segment_anything"),
        ):
            if model.kind not in ("transformers", other):
                raise ValueError(f"{name}.kind = {model.kind!r}: expected transformers or {other}")
        if not self.least_quality <= 1:
            raise ValueError(f"least_quality = {self.least_quality:g}: expected 1 or less")
        super().__post_init__()

    @property
    def models(self) -> dict[str, Model]:
        """See PromptedMasks."""
        return {"detector": self.detector, "segmenter": self.segmenter}

    def licence(self) -> str:
        """Of both models' code and weights; who brings other weights brings their licence."""
        return "Apache-2.0"

    def build(self, prompts: Prompts, classes: Sequence[str]) -> MaskFinder:
        """See PromptedMasks."""
        least = self.detection.least(prompts, classes)
        detector = build_detector(self.detector, prompts, least, self.detection, self.runtime)
        segmenter = build_segmenter(self.segmenter, self.runtime)
        return GroundedSam(detector, segmenter, prompts, self.boxes, self.tiles, self.least_quality)


@dataclass(frozen=True)
class Sam3Masks(PromptedMasks):
    """SAM 3, which finds and outlines at once, noun by noun; of `detection` it takes the scores."""

    model: Model = field(default_factory=lambda: Model(weights="sam3"))
    detection: DetectionRule = field(default_factory=DetectionRule)

    @property
    def models(self) -> dict[str, Model]:
        """See PromptedMasks."""
        return {"model": self.model}

    def licence(self) -> str:
        """Of the weights."""
        return "SAM License"

    def build(self, prompts: Prompts, classes: Sequence[str]) -> MaskFinder:
        """See PromptedMasks."""
        from pipelines.cues.grounded_sam.sam3 import Sam3

        return Sam3(self.model.path, prompts, self.detection.least(prompts, classes), self.boxes, self.runtime)


def _image(context: BlockContext, i: int, c: int) -> CameraImage:
    return context.scene.keyframes[context.start + i].images[context.cameras[c]]


def _figures(
    context: BlockContext, i: int, c: int, instance: UInt16[np.ndarray, "H W"], found: Instances
) -> dict[str, Any]:
    """Counts of one camera-frame; against truth, all movable things count, whether they move or not."""
    names = [context.classes[kind] for kind in found.classes]
    figures: dict[str, Any] = {
        "camera_frames": 1,
        "instances": len(names),
        "score": figure(found.scores.sum(), len(names)),
        "by_class": {name: names.count(name) for name in dict.fromkeys(names)},
    }
    truth = camera_truth(context, context.start + i, context.cameras[c], network=True)
    if "instance" in truth:
        figures["against_truth"] = mask_figures(instance, truth["instance"], truth["instance"] > 0)
    return figures
