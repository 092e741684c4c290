"""Flow along a film by chaining DIS from image to image, so that motion too large for one step is met in small ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8

from pipelines.cues.flow import FilmFlowCue
from pipelines.cues.flow_dis import DisPairFlow, DisSettings
from pipelines.cues.flow_field import endpoints, limited, sample_field
from pipelines.cues.protocols import FlowField, PathFlow
from pipelines.cues.ranges import check_numbers
from pipelines.cues.two_way_cache import BothWays, TwoWayCache, film_key

_ANSWERS = TwoWayCache(256 << 20)
"""Shared by the cues of a process: flow_next and flow_prev go along the same films."""


@dataclass(frozen=True)
class ChainSettings:
    """Checks of a chained flow, in pixels of the working image.

    step_tolerance: a pixel is lost at the first step whose own round trip misses by more than this + `relative` of the
        step's length. tolerance: the same for the way along the whole film and back.
    """

    step_tolerance: float = 1.0
    tolerance: float = 2.0
    relative: float = 0.03

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("step_tolerance", "tolerance"))


@dataclass(frozen=True)
class ChainedDis:
    """A PathFlow: DIS between neighbours in the film, added up along the way."""

    dis: DisSettings = field(default_factory=DisSettings)
    chain: ChainSettings = field(default_factory=ChainSettings)

    def __call__(self, film: Sequence[UInt8[np.ndarray, "height width 3"]]) -> FlowField:
        """See PathFlow."""
        key, turned = film_key(film, repr(self))
        ways = _ANSWERS.once(key, lambda: self._both_ways(film[::-1] if turned else film))
        return ways[1 if turned else 0]

    def _both_ways(self, film: Sequence[UInt8[np.ndarray, "height width 3"]]) -> BothWays:
        model = DisPairFlow(self.dis)
        there, back = self._steps(model, film), self._steps(model, film[::-1])[::-1]
        forward, backward = self._follow(there, back), self._follow(back[::-1], there[::-1])
        return self._settled(*forward, backward[0]), self._settled(*backward, forward[0])

    def _settled(
        self,
        flow: Float[np.ndarray, "2 height width"],
        trust: Float[np.ndarray, "height width"],
        home: Float[np.ndarray, "2 height width"],
    ) -> FlowField:
        """The flow where the way along the whole film and back returns."""
        bound = self.chain.tolerance + self.chain.relative * np.linalg.norm(flow, axis=0)
        miss = np.linalg.norm(flow + sample_field(home, endpoints(flow)), axis=0)
        return limited(flow, np.minimum(trust, np.nan_to_num(1.0 - miss / bound, nan=0.0)))

    def _steps(
        self, model: DisPairFlow, film: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> list[Float[np.ndarray, "2 height width"]]:
        """Flow of each image to the next; each starts from the one before, as things move on much as they did."""
        steps: list[np.ndarray] = []
        for first, second in pairwise(film):
            steps.append(model(first, second, steps[-1] if steps else None))
        return steps

    def _follow(
        self, there: Sequence[Float[np.ndarray, "2 height width"]], back: Sequence[Float[np.ndarray, "2 height width"]]
    ) -> tuple[Float[np.ndarray, "2 height width"], Float[np.ndarray, "height width"]]:
        """Sum of the steps along each pixel's path, and the least trust in 0..1 that a step on it deserves."""
        flow = np.zeros_like(there[0])
        trust = np.ones(flow.shape[1:], np.float32)
        for forth, home in zip(there, back, strict=True):
            at = endpoints(flow)
            step = sample_field(forth, at)
            returned = sample_field(home, at + np.moveaxis(step, 0, -1))
            bound = self.chain.step_tolerance + self.chain.relative * np.linalg.norm(step, axis=0)
            miss = np.linalg.norm(step + returned, axis=0)
            trust = np.minimum(trust, np.nan_to_num(1.0 - miss / bound, nan=0.0))
            flow = flow + step
        return flow, np.maximum(trust, 0.0)


@dataclass(frozen=True)
class ChainedDisFlowCue(FilmFlowCue):
    """Flow to the next or previous keyframe through the sweeps between, backend `dis_chain`."""

    dis: DisSettings = field(default_factory=DisSettings)
    chain: ChainSettings = field(default_factory=ChainSettings)

    def model(self) -> PathFlow:
        """See FilmFlowCue."""
        return ChainedDis(self.dis, self.chain)
