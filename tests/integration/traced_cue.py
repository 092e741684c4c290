"""Cues of the empty log that write down where and when they run, load a model, and kill their process if asked to; and
a flow of any log that takes its time.

Imported by worker processes, through entry points that `register` writes.
"""

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.cues.flow_dis import DisFlowCue
from storage.schema import MASK_TABLE_FIELDS, MASK_TABLE_ROWS

SIZE = 8
_ENTRY_POINTS = """[occflow.cues]
masks.traced = traced_cue:TracedMasks
flow_aux.traced = traced_cue:TracedFlow
flow_next.slow = traced_cue:SlowFlow
"""


def register(folder: Path) -> str:
    """Write a distribution's entry points into `folder`; the folder of this module, for the path."""
    info = folder / "occflow_traced-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: occflow-traced\nVersion: 0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)
    return str(Path(__file__).resolve().parent)


@dataclass(frozen=True)
class Line:
    """One line of a trace: `what` is "load" or the name of a unit that began."""

    process: int
    cue: str
    what: str


def read(trace: Path) -> list[Line]:
    """All lines so far."""
    lines = [line.split() for line in trace.read_text().splitlines()] if trace.exists() else []
    return [Line(int(process), cue, what) for process, cue, what in lines]


def began(trace: Path) -> Counter[str]:
    """How often each unit was begun."""
    return Counter(f"{line.cue} {line.what}" for line in read(trace) if line.what != "load")


@dataclass(frozen=True)
class _Traced:
    """`deadly` is SCENE-BLOCK of a unit that kills its process, the first `deaths` times it is begun."""

    trace: str
    seconds: float = 0.0
    deadly: str = ""
    deaths: int = 1
    needs: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = ""

    @cached_property
    def model(self) -> object:
        """Loaded on first use."""
        self._write("load")
        return object()

    def _write(self, what: str) -> None:
        with open(self.trace, "a") as file:
            file.write(f"{os.getpid()} {self.name} {what}\n")

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        """See CueExtractor."""
        return "Apache-2.0"

    def _label(self, context: BlockContext) -> tuple[int, int]:
        assert self.model is not None
        unit = f"{context.scene.name}-{context.start}"
        before = began(Path(self.trace))[f"{self.name} {unit}"]
        self._write(unit)
        if unit == self.deadly and before < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return context.stop - context.start, len(context.cameras)


@dataclass(frozen=True)
class TracedMasks(_Traced):
    """No instance anywhere; asks for a GPU unless told not to."""

    gpu: bool = True
    name: ClassVar[str] = "masks"
    loads_model: ClassVar[bool] = True

    @property
    def needs_gpu(self) -> bool:
        """See CueExtractor."""
        return self.gpu

    def extract(self, context: BlockContext) -> CueBlock:
        """See CueExtractor."""
        n, c = self._label(context)
        table = np.zeros((n, c, MASK_TABLE_ROWS, len(MASK_TABLE_FIELDS)), np.float32)
        return CueBlock({"masks/instance": np.zeros((n, c, SIZE, SIZE), np.uint16), "masks/table": table})


@dataclass(frozen=True)
class TracedFlow(_Traced):
    """No flow anywhere, made on a CPU."""

    name: ClassVar[str] = "flow_aux"

    def extract(self, context: BlockContext) -> CueBlock:
        """See CueExtractor."""
        n, c = self._label(context)
        arrays: dict[str, Any] = {
            "flow/aux/flow": np.full((n, c, 2, SIZE, SIZE), -32768, np.int16),
            "flow/aux/confidence": np.zeros((n, c, SIZE, SIZE), np.uint8),
            "flow/aux/target_frame": np.full((n, c), -1, np.int32),
            "flow/aux/target_sweep": np.full((n, c), -1, np.int32),
        }
        return CueBlock(arrays)


@dataclass(frozen=True)
class SlowFlow(DisFlowCue):
    """DIS flow that takes `seconds` longer, for time to be killed in."""

    seconds: float = 0.0

    def extract(self, context: BlockContext) -> CueBlock:
        """See CueExtractor."""
        time.sleep(self.seconds)
        return super().extract(context)
