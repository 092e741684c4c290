"""Instance ids that go on over a whole scene: the blocks of the masks, labelled apart, joined at their borders.

Reads what is committed (masks, and flow_next where a block ends) and commits the cue `instances`, block after block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int64

from pipelines.config import json_digest
from pipelines.cues.base import ImageSizes
from pipelines.cues.instance_links import Linker, LinkRule
from pipelines.cues.instances import on_render
from storage.commit import Provenance
from storage.layout import UnitId
from storage.reader import SceneReader, StoreReader
from storage.schema import MASK_TABLE_FIELDS, MASK_TABLE_ROWS
from storage.store import CueStore

VERSION = 1
NAME = "instances"
ARRAY = "instances/linked"
_ID, _CLASS, _LINKED = (MASK_TABLE_FIELDS.index(name) for name in ("id", "class", "linked"))


def link_scene(store: CueStore, scene: str, rule: LinkRule | None = None) -> int:
    """Commit `instances` for the blocks of a scene, up to the first whose masks are not committed.

    Nothing is written anew that is current: a block's ids hang on the masks and flows of all blocks before it.

    Returns:
        How many tracks go on over a border of two blocks, all cameras together, in the blocks that were written now.

    Raises:
        StoreError: from the store; CueMissing without the scene's init unit.
    """
    rule = rule or LinkRule()
    blocks = list(_blocks(store, scene, rule))
    if all(store.is_current(block.unit, block.mark) for block in blocks):
        return 0
    reader, joined = StoreReader(store.path).scene(scene), 0
    cameras = [_Camera(reader, c, store, rule) for c in range(len(store.attributes.cameras))]
    for block in blocks:
        linked = np.zeros((len(block.frames), len(cameras), MASK_TABLE_ROWS), np.int32)
        entered = "flow_next" in block.upstream
        met = [camera.go_on(block.frames, linked[:, c], entered) for c, camera in enumerate(cameras)]
        if store.is_current(block.unit, block.mark):
            continue
        joined += sum(met)
        first = block.unit.block == 0
        notes = [] if entered or first else ["no flow_next before this block: no id goes on into it"]
        provenance = Provenance(
            block.mark, upstream=block.upstream, licence=block.licence, notes=notes, quality={"joined": sum(met)}
        )
        store.commit_block(block.unit, {ARRAY: linked}, provenance)
    return joined


@dataclass(frozen=True)
class _Block:
    """A block whose masks are committed, and what its ids hang on: `mark` covers it and all blocks before."""

    unit: UnitId
    frames: range
    mark: str
    upstream: dict[str, str]
    licence: str


def _blocks(store: CueStore, scene: str, rule: LinkRule) -> Iterator[_Block]:
    """The blocks of a scene up to the first without masks; reads records alone."""
    marks = [json_digest([VERSION, asdict(rule)])]
    for block, frames in enumerate(store.blocks(scene)):
        masks = store.record(UnitId("masks", scene, block))
        if masks is None:
            return
        upstream = {"masks": masks.fingerprint}
        before, own = (store.record(UnitId("flow_next", scene, k)) if k >= 0 else None for k in (block - 1, block))
        if before is not None:
            upstream["flow_next"] = before.fingerprint
        # The block's own flow carries what is found again after its first keyframe.
        marks.append(json_digest([upstream, own and own.fingerprint]))
        yield _Block(UnitId(NAME, scene, block), frames, json_digest(marks), upstream, masks.provenance.licence)


@dataclass
class _Camera:
    """One camera of a scene, block after block. `last` is the largest id so far."""

    reader: SceneReader
    camera: int
    store: CueStore
    rule: LinkRule
    last: int = 0

    def __post_init__(self) -> None:
        # The scene's ids of the tracks in the block before, by their id in that block.
        self.names: dict[int, int] = {}

    def go_on(self, frames: range, out: np.ndarray, flows: bool) -> int:
        """Fill in the scene's ids of a block's table rows (frames, M); how many tracks are older than the block."""
        tables = [self.reader.mask_table(t, self.camera) for t in frames]
        tracks = [int(track) for table in tables for track in table[:, _LINKED]]
        older = self._met(frames, tables) if flows else {}
        names = dict(older)
        for track in dict.fromkeys(tracks):
            if track and track not in names:
                self.last += 1
                names[track] = self.last
        for i, table in enumerate(tables):
            out[i, : len(table)] = [names.get(int(track), 0) for track in table[:, _LINKED]]
        self.names = names
        return len(older)

    def _met(self, frames: range, tables: Sequence[Float[np.ndarray, "m fields"]]) -> dict[int, int]:
        """The scene's ids of those tracks of the block that continue one of the block before.

        The last keyframes before the border are followed anew, for what was missed in the very last; so are the first
        ones after it, for what is found again there.
        """
        linker = Linker(self.rule)
        for t in range(max(0, frames.start - 1 - self.rule.patience), frames.start):
            table = self.reader.mask_table(t, self.camera)
            known = np.array([self.names.get(int(track), 0) for track in table[:, _LINKED]], np.int64)
            self._step(linker, t, table, known)
        met: dict[int, int] = {}
        for t in frames[: 1 + self.rule.patience]:
            table = tables[t - frames.start]
            # Negative, so that a track that begins here is told from one that was carried here.
            new = -table[:, _LINKED].astype(np.int64)
            found = self._step(linker, t, table, new)
            for track, name in zip(-new, found, strict=True):
                if name > 0 and track not in met and name not in met.values():
                    met[int(track)] = int(name)
        return met

    def _step(
        self, linker: Linker, t: int, table: Float[np.ndarray, "m fields"], names: Int64[np.ndarray, " m"]
    ) -> Int64[np.ndarray, " m"]:
        attributes = self.store.attributes
        sizes = ImageSizes(attributes.network_size, attributes.render_size)
        labels = on_render(self.reader.masks(t, self.camera), table[:, _ID], sizes)
        flow = None
        if linker.carried and self.reader.has("flow_next", t - 1):
            cue = self.reader.flow("next", t - 1, self.camera)
            flow = cue.pixels()[0] if cue.target_frame == t else None
        return linker.step(labels, names, table[:, _CLASS].astype(np.int64), flow)
