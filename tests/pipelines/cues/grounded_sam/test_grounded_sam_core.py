"""Prompts, boxes, masks and tracks of the Grounded-SAM cue, without any model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cues.grounded_sam.boxes import OwnCarRule, TileRule, box_iou, clip_boxes, nms
from pipelines.cues.grounded_sam.prompts import DEFAULT_PROMPTS, Caption, Prompts, captions, match_prompts
from pipelines.cues.grounded_sam.records import Candidates, Detections
from pipelines.cues.grounded_sam.regions import MaskRule, distinct, sort_out, tidy, window
from pipelines.cues.instance_links import Linker, LinkRule
from pipelines.datasets.truth import MOVABLE_CLASSES

LOOSE = MaskRule(least_region=1, least_hole=0)


def test_default_prompts_are_for_the_movable_classes() -> None:
    prompts = Prompts.of(DEFAULT_PROMPTS, MOVABLE_CLASSES)
    assert set(prompts.classes) == set(range(len(MOVABLE_CLASSES)))
    assert len(set(prompts.texts)) == len(prompts.texts)


def test_prompts_know_their_class() -> None:
    prompts = Prompts.of({"bus": ["Bus", "  double  decker "], "car": ["car", "CAR"]}, ("car", "truck", "bus"))
    assert prompts.texts == ("bus", "double decker", "car")
    assert prompts.class_of(np.array([2, 1])).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"boat": ["boat"]}, "class 'boat' is not one of this data set's: car, bus"),
        ({"car": ["car. van"]}, "prompts.car = 'car. van': a prompt is one or more words"),
        ({"car": ["  "]}, "prompts.car = '  '"),
        ({"car": ["van"], "bus": ["Van"]}, "'van' stands for 'car' and for 'bus'"),
        ({}, "none given"),
        ({"car": []}, "none given"),
    ],
)
def test_prompts_that_cannot_be_used(given: dict[str, list[str]], words: str) -> None:
    with pytest.raises(ValueError, match="prompts") as caught:
        Prompts.of(given, ("car", "bus"))
    assert words in str(caught.value)


def test_a_caption_knows_the_tokens_of_its_words() -> None:
    caption = Caption.of(("car", "construction vehicle", "bus"), (1, 2))
    assert caption.text == "construction vehicle. bus."
    assert [caption.text[a:b] for a, b in caption.words[0]] == ["construction", "vehicle"]
    # As a tokenizer would: [CLS] const ##ruction vehicle . bus . [SEP]
    offsets = [(0, 0), (0, 5), (5, 12), (13, 20), (20, 21), (22, 25), (25, 26), (0, 0)]
    assert caption.word_tokens(offsets) == [[[1, 2], [3]], [[5]]]
    with pytest.raises(ValueError, match=r"no token for 'bus' \(prompt 2 of 2"):
        caption.word_tokens(offsets[:5])


def test_captions_by_class_or_joint() -> None:
    prompts = Prompts.of({"car": ["car", "van"], "bus": ["bus"]}, ("bus", "car"))
    assert [caption.text for caption in captions(prompts, joint=True)] == ["car. van. bus."]
    split = captions(prompts, joint=False)
    assert [(caption.text, caption.prompts) for caption in split] == [("car. van.", (0, 1)), ("bus.", (2,))]


def test_boxes_answer_the_prompt_whose_words_are_all_met() -> None:
    words = [[[1]], [[2, 3], [4]], [[6]]]  # car / construc ##tion vehicle / truck
    least = np.array([0.3, 0.3, 0.5])
    scores = np.zeros((7, 8))
    scores[0, 1] = 0.4  # a car
    scores[1, [1, 4]] = 0.35, 0.9  # "vehicle" alone is no construction vehicle: a car
    scores[2, [1, 3, 4]] = 0.35, 0.6, 0.7  # both words: mean 0.65 beats the car's 0.35
    scores[3, 6] = 0.49  # below the truck's own threshold
    scores[4, [1, 6]] = 0.6, 0.6  # a tie goes to the earlier
    scores[5, [0, 5, 7]] = 0.99  # special tokens count for nothing
    scores[6] = np.nan
    kept, prompt, score = match_prompts(scores, words, least, least_word=0.25)
    assert kept.tolist() == [0, 1, 2, 4]
    assert prompt.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(score, [0.4, 0.35, 0.7, 0.6])


def test_iou_by_hand() -> None:
    boxes = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [10, 10, 10, 12], [0, 0, 4, 2]], float)
    np.testing.assert_allclose(
        box_iou(boxes, boxes),
        [[1, 4 / 28, 0, 0.5], [4 / 28, 1, 0, 0], [0, 0, 0, 0], [0.5, 0, 0, 1]],
    )


def test_suppression_keeps_classes_apart() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10], [50, 0, 60, 10]], float)
    scores = np.array([0.5, 0.9, 0.7, 0.4])
    assert nms(boxes, scores, np.array([0, 0, 1, 0]), 0.7).tolist() == [1, 2, 3]
    assert nms(boxes, scores, np.zeros(4, int), 0.7).tolist() == [1, 3]
    assert nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), 0.7).tolist() == []


@given(st.integers(0, 2**31), st.floats(0.1, 0.9))
def test_suppression_leaves_no_rivals_and_drops_only_rivals(seed: int, most: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 20, (12, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 15, (12, 2))], axis=1)
    scores, groups = rng.uniform(size=12), rng.integers(0, 2, 12)
    kept = nms(boxes, scores, groups, most)
    iou = box_iou(boxes, boxes)
    for i in range(12):
        better = [j for j in kept if scores[j] > scores[i] and groups[j] == groups[i]]
        beaten = any(iou[i, j] > most for j in better)
        assert beaten != (i in kept)


def test_boxes_are_cut_to_the_image() -> None:
    boxes = np.array(
        [[-5, -5, 5, 5], [8, 8, 30, 30], [20, 0, 30, 5], [3, 3, 3, 9], [0, np.nan, 5, 5], [0, 0, np.inf, 1]]
    )
    clipped, valid = clip_boxes(boxes, (10, 12))
    assert valid.tolist() == [True, True, False, False, False, False]
    assert clipped[:2].tolist() == [[0, 0, 5, 5], [8, 8, 12, 10]]


def test_the_own_car_is_the_wide_box_at_the_bottom() -> None:
    boxes = np.array(
        [
            [0, 80, 200, 100],  # the hood
            [5, 85, 195, 99],  # 95 % wide, 1 px above the edge
            [0, 10, 200, 60],  # as wide, but it ends above: a bus
            [0, 60, 120, 100],  # at the bottom, not as wide: a car beside
            [2, 2, 198, 97.9],  # nearly all of the image
        ],
        float,
    )
    assert OwnCarRule().boxes(boxes, (100, 200)).tolist() == [True, True, False, False, True]
    assert not OwnCarRule(width=1.1, area=1.1).boxes(boxes, (100, 200)).any()


@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 0.6), st.integers(40, 90), st.integers(40, 90))
def test_tiles_cover_the_image_and_are_of_one_size(rows: int, columns: int, overlap: float, h: int, w: int) -> None:
    windows = TileRule(rows, columns, overlap).windows((h, w))
    if rows == columns == 1:
        assert windows == []
        return
    assert len(windows) == rows * columns
    assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in windows}) == 1
    covered = np.zeros((h, w), bool)
    for x0, y0, x1, y1 in windows:
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= w
        assert y1 <= h
        covered[y0:y1, x0:x1] = True
    assert covered.all()


def test_what_a_tile_cuts_is_left_to_others() -> None:
    rule = TileRule(rows=1, columns=2, overlap=0.5, border=4)
    windows = rule.windows((40, 90))
    assert windows == [(0, 0, 60, 40), (30, 0, 90, 40)]
    boxes = np.array([[0, 0, 10, 10], [2, 5, 12, 12], [45, 30, 60, 40], [3.5, 5, 12, 12]], float)
    found = rule.whole(Detections(boxes, np.arange(4) / 4, np.arange(4)), windows[1], (40, 90))
    # The right tile's left edge lies inside the image, its other edges are the image's own.
    assert found.boxes.tolist() == [[75, 30, 90, 40]]
    assert found.prompts.tolist() == [2]
    assert rule.whole(Detections(boxes, np.arange(4) / 4, np.arange(4)), windows[0], (40, 90)).prompts.tolist() == [
        0,
        1,
        3,
    ]


def test_tiles_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="rows = 0: expected 1 or more"):
        TileRule(rows=0)


def test_no_detections_join_to_none() -> None:
    joined = Detections.join([])
    assert joined.boxes.shape == (0, 4)
    assert joined.prompts.dtype == np.int64


def rectangles(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (60, 80)) -> np.ndarray:
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def candidates(masks: np.ndarray, scores: list[float], classes: list[int]) -> Candidates:
    return Candidates(masks, np.array(scores, float), np.array(classes, np.int64))


def test_synonyms_of_one_object_become_one() -> None:
    # A car and a van around the same pixels: box suppression within a class would meet this, a truck would slip by.
    masks = rectangles((10, 10, 40, 30), (10, 10, 40, 31), (11, 10, 40, 30))
    found = candidates(masks, [0.5, 0.8, 0.6], [0, 0, 1])
    assert distinct(found, LOOSE).tolist() == [1]


def test_nested_masks_that_box_suppression_misses() -> None:
    whole, part = (10, 10, 50, 40), (15, 15, 30, 25)
    boxes = np.array([whole, part], float)
    assert len(nms(boxes, np.array([0.5, 0.4]), np.zeros(2, int), 0.5)) == 2
    masks = rectangles(whole, part)
    assert distinct(candidates(masks, [0.5, 0.4], [0, 0]), LOOSE).tolist() == [0]
    assert distinct(candidates(masks, [0.4, 0.5], [0, 0]), LOOSE).tolist() == [1]
    assert distinct(candidates(masks, [0.5, 0.4], [0, 7]), LOOSE).tolist() == [0, 1], "a person in a car is one more"


def test_containment_is_measured_on_the_smaller() -> None:
    masks = rectangles((0, 0, 40, 10), (30, 0, 50, 10))  # half of the second lies in the first
    assert len(distinct(candidates(masks, [0.9, 0.8], [0, 0]), LOOSE)) == 2
    rule = MaskRule(containment=0.5, least_region=1, least_hole=0)
    assert len(distinct(candidates(masks, [0.9, 0.8], [0, 0]), rule)) == 1


def test_overlaps_go_to_the_better_scored() -> None:
    masks = rectangles((0, 0, 20, 10), (15, 0, 40, 10))
    out = sort_out(candidates(masks, [0.3, 0.7], [4, 5]), LOOSE)
    assert out.scores.tolist() == [0.7, 0.3]
    assert out.classes.tolist() == [5, 4]
    row = out.labels[5]
    assert row[:45].tolist() == [2] * 15 + [1] * 25 + [0] * 5


def test_what_another_leaves_too_little_of_is_dropped() -> None:
    masks = rectangles((0, 0, 20, 10), (2, 0, 40, 10), (60, 40, 80, 60))
    rule = MaskRule(iou=1.0, containment=1.1, least_region=30, least_hole=0)
    out = sort_out(candidates(masks, [0.3, 0.7, 0.5], [0, 0, 0]), rule)
    assert out.scores.tolist() == [0.7, 0.5]
    assert np.unique(out.labels).tolist() == [0, 1, 2]
    assert (out.labels == 2).sum() == 400, "labels close ranks"


def test_specks_go_and_pinholes_are_filled() -> None:
    mask = rectangles((10, 10, 30, 30), (50, 50, 54, 54))
    joined = mask[0] | mask[1]
    joined[15:18, 15:18] = False  # 9 px
    joined[20:28, 20:28] = False  # 64 px: a real gap
    joined[10:14, 29] = False  # at the rim, no hole
    out = tidy(joined, least_region=17, least_hole=10)
    assert out[15:18, 15:18].all()
    assert not out[20:28, 20:28].any()
    assert not out[50:54, 50:54].any()
    assert not out[10:14, 29].any()
    assert tidy(joined, 16, 0)[50:54, 50:54].all()
    assert not tidy(np.zeros((5, 5), bool), 1, 1).any()
    assert tidy(np.ones((5, 5), bool), 1, 100).all()


def test_a_diagonal_line_is_one_piece_but_a_hole_does_not_leak_through_a_corner() -> None:
    assert tidy(np.eye(8, dtype=bool), least_region=8, least_hole=0).sum() == 8
    ring = np.ones((6, 6), bool)
    ring[2:4, 2:4] = False
    ring[1, 1] = False  # touches the hole by a corner only
    assert tidy(ring, 1, least_hole=5).all()


def test_the_own_car_takes_its_pixels_and_its_boxes() -> None:
    hood = rectangles((0, 50, 80, 60))[0]
    masks = rectangles((0, 49, 80, 60), (10, 30, 40, 55))
    out = sort_out(candidates(masks, [0.9, 0.5], [0, 0]), LOOSE, hood)
    assert out.scores.tolist() == [0.5]
    assert window(out.labels == 1) == (10, 30, 40, 50)
    assert not out.labels[hood].any()


def test_a_filled_hole_does_not_take_own_car_pixels() -> None:
    masks = rectangles((0, 0, 40, 40))
    mirror = rectangles((10, 10, 13, 13))[0]
    out = sort_out(candidates(masks, [0.9], [0]), MaskRule(), mirror)
    assert not out.labels[mirror].any()


def test_nothing_found_is_an_empty_map() -> None:
    for own in (None, np.ones((60, 80), bool)):
        out = sort_out(candidates(np.zeros((0, 60, 80), bool), [], []), MaskRule(), own)
        assert out.labels.shape == (60, 80)
        assert not out.labels.any()
    assert not len(sort_out(candidates(np.zeros((2, 60, 80), bool), [0.5, 0.4], [0, 0]), MaskRule()).scores)


@given(st.integers(0, 2**31))
def test_the_map_agrees_with_a_pixelwise_rule(seed: int) -> None:
    """Without small regions, a pixel shows the best scored of the kept masks that cover it."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((5, 12, 15), bool)
    for mask in masks:
        x, y = rng.integers(0, 12), rng.integers(0, 9)
        mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 10)] = True
    found = candidates(masks, list(rng.permutation(5) / 10 + 0.1), list(rng.integers(0, 2, 5)))
    out = sort_out(found, LOOSE)
    kept = distinct(found, LOOSE)
    score = np.where(masks[kept], found.scores[kept][:, None, None], 0).max(axis=0)
    np.testing.assert_allclose(np.concatenate([[0], out.scores])[out.labels], score)
    for a in kept:
        for b in kept:
            common = (masks[a] & masks[b]).sum()
            if a != b:
                assert common / (masks[a] | masks[b]).sum() <= LOOSE.iou


def shift(u: float, v: float, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.broadcast_to(np.array([u, v], np.float32)[:, None, None], (2, *size)).copy()


def labelled(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    labels = np.zeros((40, 60), np.int32)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        labels[y0:y1, x0:x1] = k + 1
    return labels


def test_an_object_keeps_its_track_and_a_new_one_starts_another() -> None:
    linker = Linker(LinkRule())
    cars = np.array([0, 0])
    assert linker.step(labelled((5, 5, 15, 15), (30, 5, 40, 15)), np.array([1, 2]), cars, None).tolist() == [1, 2]
    # Both move right by 10; the list's order changes.
    now = labelled((40, 5, 50, 15), (15, 5, 25, 15), (0, 30, 8, 38))
    tracks = linker.step(now, np.array([3, 4, 5]), np.zeros(3, int), shift(10, 0))
    assert tracks.tolist() == [2, 1, 5]


def test_without_flow_or_with_another_class_tracks_end() -> None:
    box = labelled((5, 5, 15, 15))
    for flow, kind, expected in [(shift(0, 0), 0, 1), (shift(0, 0), 3, 9), (None, 0, 9), (shift(np.nan, 0), 0, 9)]:
        linker = Linker(LinkRule())
        linker.step(box, np.array([1]), np.array([0]), None)
        assert linker.step(box, np.array([9]), np.array([kind]), flow).tolist() == [expected]
    loose = Linker(LinkRule(same_class=False))
    loose.step(box, np.array([1]), np.array([0]), None)
    assert loose.step(box, np.array([9]), np.array([3]), shift(0, 0)).tolist() == [1]


def test_an_object_missed_once_is_found_again_where_flow_carried_it() -> None:
    for patience, expected in [(0, 7), (1, 1)]:
        linker = Linker(LinkRule(patience=patience))
        nobody, none = np.zeros(0, int), labelled()
        linker.step(labelled((5, 5, 15, 15)), np.array([1]), np.array([0]), None)
        linker.step(none, nobody, nobody, shift(8, 0))
        tracks = linker.step(labelled((21, 5, 31, 15)), np.array([7]), np.array([0]), shift(8, 0))
        assert tracks.tolist() == [expected]
        for _ in range(2):
            linker.step(none, nobody, nobody, shift(0, 0))
        assert linker.carried == []


def test_a_track_goes_to_the_better_overlap_only() -> None:
    linker = Linker(LinkRule(overlap=0.2))
    linker.step(labelled((10, 10, 30, 20)), np.array([1]), np.array([0]), None)
    # Split in two: 14 and 6 columns of the 20.
    tracks = linker.step(labelled((10, 10, 16, 20), (16, 10, 30, 20)), np.array([2, 3]), np.zeros(2, int), shift(0, 0))
    assert tracks.tolist() == [2, 1]


def test_pixels_that_leave_the_image_are_forgotten() -> None:
    linker = Linker(LinkRule())
    linker.step(labelled((50, 5, 60, 15)), np.array([1]), np.array([0]), None)
    tracks = linker.step(labelled((50, 5, 60, 15)), np.array([2]), np.array([0]), shift(30, 0))
    assert tracks.tolist() == [2]
