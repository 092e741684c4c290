"""How keyframes are named: scene, scene:t, scene:first-last."""

import pytest

from storage.errors import StoreError
from storage.spans import Span, parse_span


@pytest.mark.parametrize(
    ("entry", "frames"),
    [
        ("scene-0061", [0, 1, 2, 3, 4]),  # the minus of a name is none of a range
        ("scene-0061:3", [3]),
        ("scene-0061:1-3", [1, 2, 3]),
        ("scene-0061:3-99", [3, 4]),
        ("scene-0061:7", []),
    ],
)
def test_keyframes_of_a_scene_of_five(entry: str, frames: list[int]) -> None:
    span = parse_span(entry)
    assert span.scene == "scene-0061"
    assert list(span.keyframes(5)) == frames
    assert [t for t in range(5) if ("scene-0061", t) in span] == frames
    assert ("scene-006", 3) not in span


def test_names_may_be_patterns_and_hold_colons() -> None:
    assert ("scene-7", 2) in parse_span("scene-*:2")
    assert ("scene-7", 1) not in parse_span("scene-*:2")
    assert parse_span("night:rain:4") == Span("night:rain", 4, 4)
    assert parse_span("night:rain") == Span("night:rain")


@pytest.mark.parametrize(("entry", "words"), [("", "names no keyframes"), ("a:5-3", "3 comes before 5")])
def test_what_names_nothing(entry: str, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        parse_span(entry)
