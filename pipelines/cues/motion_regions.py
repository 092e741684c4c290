"""Connected regions of one image that move: grown in image, depth and motion, small ones dropped, refined to edges."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipelines.cues.ranges import check_numbers


@dataclass(frozen=True)
class RegionRule:
    """What makes a region. Lengths in pixels are shares of the image width, so that they follow the render size.

    joined_depth: neighbours whose depths differ by a larger share are not joined. joined_motion: nor are those whose
    unexplained motions differ by more than this share of the longer one, or `joined_px`. least_area: smallest region,
    as a share of the image's area. least_strength: of a region's upper quartile, in units of the threshold.
    refine_band: how far from its first outline a region may move when it is fitted to image edges; 0 leaves it.
    """

    joined_depth: float = 0.12
    joined_motion: float = 0.5
    joined_px: float = 0.008
    least_area: float = 0.001
    least_strength: float = 1.5
    refine_band: float = 0.015

    def __post_init__(self) -> None:
        check_numbers(self)


def grow(
    strength: Float[np.ndarray, "height width"],
    vector: Float[np.ndarray, "2 height width"],
    inverse: Float[np.ndarray, "height width"],
    rule: RegionRule,
) -> Int32[np.ndarray, "height width"]:
    """Regions 1..n of pixels that move, 0 elsewhere, larger ones first.

    Args:
        strength: unexplained motion in units of its threshold; NaN = unknown.
        vector: unexplained motion, pixels.
        inverse: 1 / depth in 1/m (NaN joins nothing to its neighbours by depth).
    """
    height, width = strength.shape
    moves = np.nan_to_num(strength) > 1.0
    labels = _components(moves, vector, inverse, rule)
    out = np.zeros((height, width), np.int32)
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    found = 0
    for index in ids[np.argsort(-counts)]:
        region = labels == index
        if region.sum() < max(4, rule.least_area * region.size):
            continue
        if np.quantile(strength[region], 0.75) < rule.least_strength:
            continue
        found += 1
        out[region] = found
    return out


def _components(
    moves: Bool[np.ndarray, "height width"],
    vector: Float[np.ndarray, "2 height width"],
    inverse: Float[np.ndarray, "height width"],
    rule: RegionRule,
) -> Int32[np.ndarray, "height width"]:
    """Components of moving pixels over edges that cross neither a step in depth nor one in motion."""
    height, width = moves.shape
    length = np.linalg.norm(vector, axis=0)
    number = np.arange(height * width).reshape(height, width)
    rows, columns = [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        b = (slice(dy, height), slice(max(0, dx), width + min(0, dx)))
        with np.errstate(invalid="ignore", divide="ignore"):
            step = np.abs(np.log(inverse[a] / inverse[b]))
            apart = np.linalg.norm(vector[:, *a] - vector[:, *b], axis=0)
            longer = np.maximum(length[a], length[b])
            together = apart <= np.maximum(rule.joined_px * width, rule.joined_motion * longer)
            together &= ~(step > rule.joined_depth)
        edge = moves[a] & moves[b] & together
        rows.append(number[a][edge])
        columns.append(number[b][edge])
    i, j = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(i), bool), (i, j)), shape=(height * width, height * width))
    _, labels = connected_components(graph, directed=False)
    return np.where(moves, labels.reshape(height, width) + 1, 0).astype(np.int32)


def refine(
    labels: Int32[np.ndarray, "height width"],
    strength: Float[np.ndarray, "height width"],
    image: UInt8[np.ndarray, "height width 3"],
    rule: RegionRule,
) -> Int32[np.ndarray, "height width"]:
    """Each region's outline moved to image edges nearby (GrabCut, Rother et al. 2004), within a band around it."""
    band = max(1, round(rule.refine_band * labels.shape[1]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    out = np.zeros_like(labels)
    for index in range(int(labels.max()), 0, -1):
        region = cv2.morphologyEx((labels == index).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
        rows, columns = np.nonzero(cv2.dilate(region, kernel))
        window = (
            slice(max(0, rows.min() - 2 * band), rows.max() + 1 + 2 * band),
            slice(max(0, columns.min() - 2 * band), columns.max() + 1 + 2 * band),
        )
        fitted = _cut(region[window], strength[window], image[window], kernel)
        out[window][fitted] = index
    return out


def _cut(
    region: UInt8[np.ndarray, "height width"],
    strength: Float[np.ndarray, "height width"],
    image: UInt8[np.ndarray, "height width 3"],
    kernel: UInt8[np.ndarray, "k k"],
) -> Bool[np.ndarray, "height width"]:
    """GrabCut in one window: sure inside the eroded region, sure outside the dilated one and where nothing moves."""
    outer, inner = cv2.dilate(region, kernel), cv2.erode(region, kernel)
    trimap = np.where(region > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[outer == 0] = cv2.GC_BGD
    with np.errstate(invalid="ignore"):
        trimap[(strength < 0.5) & (region == 0)] = cv2.GC_BGD
    trimap[inner > 0] = cv2.GC_FGD
    sure = [(trimap == value).any() for value in (cv2.GC_BGD, cv2.GC_FGD)]
    if not all(sure):
        return region > 0
    cv2.setRNGSeed(0)
    bgr = np.ascontiguousarray(image[..., ::-1])
    cv2.grabCut(bgr, trimap, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK)
    fitted = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    return fitted if 0.5 * (region > 0).sum() < fitted.sum() < 2.0 * (region > 0).sum() else region > 0
