"""Where a tracker is asked, and what it answers made dense again, instance by instance."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int64, Shaped, UInt8, UInt16

from geometry.cameras import ImageTransform, pixel_centres
from pipelines.cues.flow_field import limited
from pipelines.cues.protocols import FlowField
from pipelines.cues.spread import spread_tracks


@dataclass(frozen=True)
class Queries:
    """Points of an image that a tracker is asked about, those of an instance next to each other.

    points: pixels (u, v) of the image, whole numbers: OpenCV's and the trackers' way to count pixel centres.
    instance: whose pixel it is. cell: (row, column) of the grid cell that it speaks for.
    """

    points: Int64[np.ndarray, "n 2"]
    instance: Int64[np.ndarray, " n"]
    cell: Int64[np.ndarray, "n 2"]

    def __len__(self) -> int:
        return len(self.points)


def mask_onto(
    instance: UInt16[np.ndarray, "H W"], raw_size: tuple[int, int], network: ImageTransform, size: tuple[int, int]
) -> UInt16[np.ndarray, "height width"]:
    """Instances of the network grid at the pixel centres of the raw image shrunk to `size`; 0 beyond that grid.

    Args:
        instance: 0 = nothing.
        raw_size: (height, width) of the raw image.
        network: raw to network image.
        size: (height, width) wanted.
    """
    raw = pixel_centres(*size) * np.array([raw_size[1] / size[1], raw_size[0] / size[0]])
    place = np.floor(raw * network.scale - np.array([network.left, network.top])).astype(np.int64)
    height, width = instance.shape
    inside = ((place >= 0) & (place < [width, height])).all(axis=-1)
    place[~inside] = 0
    return np.where(inside, instance[place[..., 1], place[..., 0]], 0).astype(np.uint16)


def render_mask(instance: UInt16[np.ndarray, "H W"], render: tuple[int, int]) -> UInt16[np.ndarray, "h w"]:
    """Instances of the network grid at the pixels in the middle of the render grid's."""
    factor = instance.shape[0] // render[0]
    return instance[factor // 2 :: factor, factor // 2 :: factor]


def ask(instance: UInt16[np.ndarray, "height width"], stride: int) -> Queries:
    """One query for each instance in each cell of `stride` pixels: at its pixel nearest to the cell's middle.

    So the smallest instance is asked about, and no query lies on what is behind it.
    """
    rows, columns = np.nonzero(instance)
    ids = instance[rows, columns].astype(np.int64)
    cell = np.stack([rows // stride, columns // stride], axis=1)
    middle = (stride - 1) // 2
    away = (rows - cell[:, 0] * stride - middle) ** 2 + (columns - cell[:, 1] * stride - middle) ** 2
    order = np.lexsort([away, cell[:, 1], cell[:, 0], ids])
    key = np.column_stack([ids, cell])[order]
    first = np.ones(len(key), bool)
    first[1:] = (key[1:] != key[:-1]).any(axis=1)
    chosen = order[first]
    return Queries(np.stack([columns, rows], axis=1)[chosen].astype(np.int64), ids[chosen], cell[chosen])


def fill(
    image: UInt8[np.ndarray, "height width 3"],
    instance: UInt16[np.ndarray, "height width"],
    queries: Queries,
    motion: Float[np.ndarray, "n 2"],
    trust: Float[np.ndarray, " n"],
    stride: int,
    reach: float,
    colour: float,
) -> FlowField:
    """Tracks spread over the pixels of their own instance, see spread_tracks; unknown outside masks.

    Args:
        image: the one that the queries are in, RGB.
        instance: as it was given to `ask`, with the same `stride`.
        motion: of each query, pixels.
        trust: in [0, 1]; 0 says nothing.
        reach, colour: see spread_tracks.
    """
    flow = np.full((2, *instance.shape), np.nan, np.float32)
    confidence = np.zeros(instance.shape, np.float32)
    for name, asked in _runs(queries.instance):
        own = instance == name
        low, high = queries.cell[asked].min(axis=0), queries.cell[asked].max(axis=0) + 1
        cut = tuple(slice(int(a) * stride, int(b) * stride) for a, b in zip(low, high, strict=True))
        grid = queries.cell[asked] - low
        moved = np.zeros((2, *(high - low)), np.float32)
        moved[:, grid[:, 0], grid[:, 1]] = motion[asked].T
        trusted = np.zeros(tuple(high - low), np.float32)
        trusted[grid[:, 0], grid[:, 1]] = trust[asked]
        part = image[cut].copy()
        # spread_tracks compares with the colour at a cell's middle; where that is no pixel of this instance, the
        # query's own colour stands there. It changes no pixel that is written below.
        middle = np.minimum(grid * stride + (stride - 1) // 2, np.array(part.shape[:2]) - 1)
        u, v = queries.points[asked].T
        part[middle[:, 0], middle[:, 1]] = image[v, u]
        spread = spread_tracks(part, moved, trusted, stride, reach, colour)
        flow[(slice(None), *cut)] = np.where(own[cut], spread.flow, flow[(slice(None), *cut)])
        confidence[cut] = np.where(own[cut], spread.confidence, confidence[cut])
    return limited(flow, confidence)


def _runs(names: Shaped[np.ndarray, " n"]) -> Iterator[tuple[int, slice]]:
    """Each value and where it stands, of values that stand together."""
    edges = [0, *(np.flatnonzero(np.diff(names)) + 1), len(names)] if len(names) else []
    for start, stop in pairwise(edges):
        yield int(names[start]), slice(int(start), int(stop))
