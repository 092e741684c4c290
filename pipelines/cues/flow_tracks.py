"""Flow along a film by Lucas-Kanade tracks (Lucas and Kanade 1981, pyramidal after Bouguet 2000), made dense again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from geometry.cameras import in_image
from pipelines.cues.flow import FilmFlowCue
from pipelines.cues.flow_field import limited
from pipelines.cues.protocols import FlowField, PathFlow
from pipelines.cues.ranges import check_numbers
from pipelines.cues.spread import spread_tracks


@dataclass(frozen=True)
class TrackSettings:
    """Parameters of the tracks, in pixels of the working image.

    stride: one query every so many pixels, both ways. window, levels: of Lucas-Kanade. least_texture: the smaller
    eigenvalue of a window's gradient matrix (OpenCV's scale) below which it cannot be followed. A track ends at the
    first step whose round trip misses by more than `step_tolerance`; one that the way along the whole film and back
    misses by more than `tolerance + relative * length` is dropped. reach: farthest pixel that a track speaks for.
    colour: difference in colour (0..255) at which its say has fallen to 0.6.
    """

    stride: int = 3
    window: int = 11
    levels: int = 4
    least_texture: float = 1e-4
    step_tolerance: float = 0.7
    tolerance: float = 1.5
    relative: float = 0.03
    reach: float = 5.0
    colour: float = 12.0

    def __post_init__(self) -> None:
        positive = ("step_tolerance", "tolerance", "reach", "colour")
        check_numbers(self, least={"stride": 1, "window": 3}, above_zero=positive)


@dataclass(frozen=True)
class TrackFlow:
    """A PathFlow: a grid of points followed from image to image, each step and the whole way checked."""

    tracks: TrackSettings = TrackSettings()

    def __call__(self, film: Sequence[UInt8[np.ndarray, "height width 3"]]) -> FlowField:
        """See PathFlow. Pixels farther than `reach` from a track that survives stay unknown."""
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in film]
        queries = self._queries(*grey[0].shape)
        ends, alive = self._follow(grey, queries)
        home, returned = self._follow(grey[::-1], ends)
        length = np.linalg.norm(ends - queries, axis=1)
        miss = np.linalg.norm(home - queries, axis=1)
        trust = np.where(alive & returned, 1.0 - miss / (self.tracks.tolerance + self.tracks.relative * length), 0.0)
        grid = self._grid(*grey[0].shape)
        motion = (ends - queries).T.reshape(2, *grid)
        spread = spread_tracks(
            film[0], motion, np.maximum(trust, 0.0).reshape(grid), self.tracks.stride, self.tracks.reach,
            self.tracks.colour,
        )  # fmt: skip
        return limited(spread.flow, spread.confidence)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.tracks.stride), -(-width // self.tracks.stride)

    def _queries(self, height: int, width: int) -> Float[np.ndarray, "n 2"]:
        """Pixel centres of every stride-th column and row, as OpenCV counts (centres on whole numbers)."""
        rows, columns = self._grid(height, width)
        u, v = np.meshgrid(np.arange(columns), np.arange(rows))
        middle = (self.tracks.stride - 1) // 2
        queries = np.stack([u.ravel(), v.ravel()], axis=1) * self.tracks.stride + middle
        return np.minimum(queries, [width - 1, height - 1]).astype(np.float32)

    def _follow(
        self, film: Sequence[UInt8[np.ndarray, "height width"]], start: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
        """Where the points get to in the last image and whether they could be followed all the way."""
        settings = self.tracks
        at, alive = start.astype(np.float32), np.ones(len(start), bool)
        velocity = np.zeros_like(at)
        lk: dict[str, Any] = {
            "winSize": (settings.window, settings.window),
            "maxLevel": settings.levels,
            "minEigThreshold": settings.least_texture,
            "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        }
        for first, second in pairwise(film):
            there, found, _ = cv2.calcOpticalFlowPyrLK(first, second, at, at + velocity, **lk)
            back, returned, _ = cv2.calcOpticalFlowPyrLK(second, first, there, there - velocity, **lk)
            good = (found.ravel() > 0) & (returned.ravel() > 0)
            good &= np.linalg.norm(back - at, axis=1) <= settings.step_tolerance
            good &= in_image(there + 0.5, *first.shape)
            alive &= good
            velocity = np.where(alive[:, None], there - at, 0.0).astype(np.float32)
            at = np.where(alive[:, None], there, at).astype(np.float32)
        return at, alive


@dataclass(frozen=True)
class TracksFlowCue(FilmFlowCue):
    """Flow to the next or previous keyframe by tracks through the sweeps between, backend `tracks`."""

    tracks: TrackSettings = field(default_factory=TrackSettings)

    def model(self) -> PathFlow:
        """See FilmFlowCue."""
        return TrackFlow(self.tracks)
