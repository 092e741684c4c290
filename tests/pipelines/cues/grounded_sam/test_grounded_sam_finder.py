"""Detector and segmenter put together: tiles, suppression, the own car, quality; with stand-ins for both."""

from collections.abc import Sequence

import numpy as np

from pipelines.cues.grounded_sam.boxes import OwnCarRule, TileRule
from pipelines.cues.grounded_sam.finder import BoxRule, GroundedSam
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.records import Detections, Image

PROMPTS = Prompts(("car", "van", "bus"), (0, 0, 2))
SIZE = (40, 90)


class BrightThings:
    """Finds each level above 100 in the red channel as a box; the level tells prompt (tens) and score (ones).

    Things lower than `least` pixels are too small for it, as far objects are in a whole image.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Sequence[Image]) -> list[Detections]:
        assert len({image.shape for image in images}) == 1
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Detections:
        self.seen.append(image.shape)
        parts = []
        for level in np.unique(image[..., 0]):
            rows, columns = np.nonzero(image[..., 0] == level)
            if level <= 100 or rows.max() + 1 - rows.min() < self.least * image.shape[1] / SIZE[1]:
                continue
            box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], float)
            prompt, score = divmod(int(level) - 100, 10)
            parts.append(Detections(box, np.array([score / 10]), np.array([prompt])))
        return Detections.join(parts)


class Boxes:
    """Masks that are the boxes, on a grid of half the image; the quality is the share of the image's height."""

    def __call__(
        self, images: Sequence[Image], boxes: Sequence[np.ndarray], size: tuple[int, int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        out = []
        for image, own in zip(images, boxes, strict=True):
            masks = np.zeros((len(own), *size), bool)
            for mask, (x0, y0, x1, y1) in zip(masks, (own / 2).astype(int), strict=True):
                mask[y0:y1, x0:x1] = True
            out.append((masks, (own[:, 3] - own[:, 1]) / image.shape[0]))
        return out


def scene(*things: tuple[int, int, int, int, int]) -> np.ndarray:
    image = np.zeros((*SIZE, 3), np.uint8)
    for level, x0, y0, x1, y1 in things:
        image[y0:y1, x0:x1, 0] = level
    return image


CAR = (105, 10, 10, 40, 30)
FAR_VAN = (117, 70, 10, 76, 14)
HOOD = (109, 0, 34, 90, 40)
BUS = (124, 46, 2, 66, 32)


def test_boxes_become_masks_with_class_and_score() -> None:
    finder = GroundedSam(BrightThings(0), Boxes(), PROMPTS)
    found = finder([scene(CAR, BUS, HOOD), scene(), scene(FAR_VAN)], (20, 45))
    first = found[0]
    assert first.classes.tolist() == [0, 2], "best first, and without the hood"
    np.testing.assert_allclose(first.scores, [0.5, 0.4])
    assert first.masks[0].sum() == 15 * 10
    assert first.masks[0, 5:15, 5:20].all()
    assert found[1].masks.shape == (0, 20, 45)
    assert found[2].classes.tolist() == [0]


def test_what_is_small_is_found_on_tiles_and_nothing_twice() -> None:
    image = scene(CAR, FAR_VAN, BUS)
    whole = GroundedSam(BrightThings(6), Boxes(), PROMPTS)([image], (20, 45))[0]
    assert whole.classes.tolist() == [0, 2]
    detector = BrightThings(6)
    tiled = GroundedSam(detector, Boxes(), PROMPTS, tiles=TileRule(columns=2, overlap=0.2))([image, scene()], (20, 45))
    assert detector.seen == [(40, 90, 3)] * 2 + [(40, 50, 3)] * 4
    assert tiled[0].classes.tolist() == [0, 0, 2]
    np.testing.assert_allclose(tiled[0].scores, [0.7, 0.5, 0.4])
    rows, columns = np.nonzero(tiled[0].masks[0])
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (35, 5, 38, 7)
    assert tiled[1].masks.shape == (0, 20, 45)


def test_the_best_of_too_many_and_those_of_quality() -> None:
    image = scene(CAR, FAR_VAN, BUS)
    few = GroundedSam(BrightThings(0), Boxes(), PROMPTS, BoxRule(most=2))([image], (20, 45))[0]
    np.testing.assert_allclose(few.scores, [0.7, 0.5])
    good = GroundedSam(BrightThings(0), Boxes(), PROMPTS, least_quality=0.5)([image], (20, 45))[0]
    np.testing.assert_allclose(good.scores, [0.5, 0.4])


def test_the_own_car_suppresses_nobody() -> None:
    """The hood's box must be gone before suppression: it scores well and may cover a car's box."""
    rule = BoxRule(nms=0.5, own_car=OwnCarRule())
    boxes = np.array([[0, 12, 90, 40], [10, 12, 80, 40]], float)
    found = Detections(boxes, np.array([0.9, 0.5]), np.array([0, 1]))
    assert rule.choose(found, PROMPTS, SIZE).tolist() == [1]
