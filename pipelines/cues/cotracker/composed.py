"""Flow of all pixels of 2 Hz data: one cue's tracks inside the masks, another's flow outside. Backend `composed`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Int16, UInt8, UInt16

from eval.labels import figure, summarise
from pipelines.config import json_digest
from pipelines.cues.base import BlockContext, CueBlock, CueExtractor, loads_model, needs_gpu
from pipelines.cues.cotracker.queries import render_mask
from pipelines.cues.flow_block import pair_figures
from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.flow_targets import Target, aim_keyframe
from storage.schema import FLOW_INSIDE, FLOW_OUTSIDE, INVALID_FLOW, NO_FLOW

VERSION = 2


def flow_sources(flow: Int16[np.ndarray, "2 h w"], instance: UInt16[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
    """Which part each pixel of a composed flow is from: schema.NO_FLOW, FLOW_OUTSIDE or FLOW_INSIDE.

    Args:
        flow: as stored, on the render grid.
        instance: `masks/instance` of the same keyframe and camera, on the network grid.
    """
    inside = render_mask(instance, (flow.shape[1], flow.shape[2])) > 0
    known = (flow != INVALID_FLOW).all(axis=0)
    return np.where(known, np.where(inside, FLOW_INSIDE, FLOW_OUTSIDE), NO_FLOW).astype(np.uint8)


@dataclass(frozen=True)
class ComposedFlowCue:
    """Two backends of the same cue, each asked for the whole block; a pixel in a mask takes `inside` and no other.

    Where `inside` knows nothing of a pixel in a mask it stays unknown: flow across an object's pixels from a model that
    sees two frames half a second apart is what the tracks are there to replace.

    Attributes:
        slot: which flow slot is written.
        inside: backend and parameters inside the masks.
        outside: the same outside.
    """

    slot: Literal["next", "prev"] = "next"
    inside: dict[str, Any] = field(default_factory=lambda: {"backend": "cotracker"})
    outside: dict[str, Any] = field(default_factory=lambda: {"backend": "dis"})

    def __post_init__(self) -> None:
        for key in ("inside", "outside"):
            backend = getattr(self, key).get("backend")
            if backend is None or backend == "composed":
                raise ValueError(f"{key}.backend = {backend!r}: expected another backend of {self.name}")
        _ = self.parts

    @cached_property
    def parts(self) -> dict[str, CueExtractor]:
        """The two extractors, by the name of their field."""
        from pipelines.registry import build_backend

        return {key: build_backend(self.name, getattr(self, key), self.slot) for key in ("inside", "outside")}

    @property
    def name(self) -> str:
        """flow_next or flow_prev."""
        return f"flow_{self.slot}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The masks, and what the parts are made from."""
        return tuple(dict.fromkeys(["masks", *(need for part in self.parts.values() for need in part.needs)]))

    @property
    def needs_gpu(self) -> bool:
        """Whether a part asks for one."""
        return any(needs_gpu(part) for part in self.parts.values())

    @property
    def loads_model(self) -> bool:
        """Whether a part does."""
        return any(loads_model(part) for part in self.parts.values())

    @property
    def weights_digest(self) -> str:
        """Of the parts' weights; empty where neither has any."""
        digests = {key: getattr(part, "weights_digest", "") for key, part in self.parts.items()}
        found = [digest for digest in digests.values() if digest]
        return json_digest(digests) if len(found) > 1 else "".join(found)

    def config_digest(self) -> str:
        """See CueExtractor."""
        return json_digest(
            [type(self).__name__, VERSION, {key: part.config_digest() for key, part in self.parts.items()}]
        )

    def licence(self) -> str:
        """Of both parts."""
        return " AND ".join(dict.fromkeys(part.licence() for part in self.parts.values()))

    def extract(self, context: BlockContext) -> CueBlock:
        """The arrays of the slot, see storage.schema.CUES, `source` among them."""
        blocks = {key: part.extract(context) for key, part in self.parts.items()}
        inside, outside = blocks["inside"].arrays, blocks["outside"].arrays
        masks = context.upstream("masks")["masks/instance"]
        arrays = {name: array.copy() for name, array in outside.items()}
        flow, trust, source = (f"flow/{self.slot}/{name}" for name in ("flow", "confidence", "source"))
        arrays[source] = np.full(arrays[trust].shape, NO_FLOW, np.uint8)
        figures: list[Mapping[str, Any]] = []
        aim = aim_keyframe(context.scene, self.slot)
        for i, c in np.ndindex(masks.shape[:2]):
            target = aim(context.start + i, context.cameras[c])
            if isinstance(target, str):
                continue
            own = render_mask(masks[i, c], context.sizes.render) > 0
            arrays[flow][i, c] = np.where(own, inside[flow][i, c], outside[flow][i, c])
            arrays[trust][i, c] = np.where(own, inside[trust][i, c], outside[trust][i, c])
            arrays[source][i, c] = flow_sources(arrays[flow][i, c], masks[i, c])
            figures.append(self._figures(context, i, c, target, arrays[flow][i, c], arrays[source][i, c]))
        legend = (
            f"source {FLOW_INSIDE}: {self.inside['backend']}, inside masks; {FLOW_OUTSIDE}: {self.outside['backend']}"
        )
        notes = list(dict.fromkeys([legend, *(note for block in blocks.values() for note in block.notes)]))
        return CueBlock(arrays, summarise(figures), notes)

    def _figures(
        self,
        context: BlockContext,
        i: int,
        c: int,
        target: Target,
        flow: Int16[np.ndarray, "2 h w"],
        sources: UInt8[np.ndarray, "h w"],
    ) -> dict[str, Any]:
        shares = {
            "inside": figure((sources == FLOW_INSIDE).sum(), sources.size),
            "outside": figure((sources == FLOW_OUTSIDE).sum(), sources.size),
        }
        channel = context.cameras[c]
        return pair_figures(context, self.slot, context.start + i, channel, target, unpack_flow(flow)) | {
            "sources": shares
        }
