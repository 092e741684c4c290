"""Films kept by their content: made once, served both ways round, bounded."""

import threading

import numpy as np
import pytest

from pipelines.cues.protocols import FlowField
from pipelines.cues.two_way_cache import BothWays, TwoWayCache, film_key


def film(*values: int) -> list[np.ndarray]:
    return [np.full((4, 5, 3), value, np.uint8) for value in values]


def answer(value: float) -> BothWays:
    there, back = (FlowField(np.full((2, 4, 5), v, np.float32), np.ones((4, 5), np.float32)) for v in (value, -value))
    return there, back


def test_a_film_and_its_reverse_have_one_key() -> None:
    (key, turned), (other, other_turned) = film_key(film(1, 2, 3), "a"), film_key(film(3, 2, 1), "a")
    assert key == other
    assert {turned, other_turned} == {True, False}
    assert len({key, film_key(film(1, 2, 3), "b")[0], film_key(film(1, 3, 2), "a")[0]}) == 3
    tall = [image.reshape(5, 4, 3) for image in film(1, 2, 3)]
    assert film_key(tall, "a")[0] != key, "the same bytes in another shape"


def test_what_is_kept_is_not_made_again() -> None:
    cache, made = TwoWayCache(1 << 20), []

    def make() -> BothWays:
        made.append(1)
        return answer(2.0)

    first = cache.once("x", make)
    assert cache.once("x", make) is first
    assert len(made) == 1
    assert cache.get("y") is None


def test_two_threads_make_one_film_once() -> None:
    cache, made, inside = TwoWayCache(1 << 20), [], threading.Event()

    def make() -> BothWays:
        made.append(1)
        inside.wait(5)
        return answer(1.0)

    threads = [threading.Thread(target=cache.once, args=("x", make)) for _ in range(3)]
    for thread in threads:
        thread.start()
    inside.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1


def test_a_failed_film_can_be_made_again() -> None:
    def fail() -> BothWays:
        raise ValueError("no flow")

    cache = TwoWayCache(1 << 20)
    with pytest.raises(ValueError, match="no flow"):
        cache.once("x", fail)
    assert cache.once("x", lambda: answer(1.0))[0].flow[0, 0, 0] == 1.0


def test_the_least_recent_film_goes_first() -> None:
    each = 2 * (2 + 1) * 4 * 5 * 4
    cache = TwoWayCache(2 * each)
    for key in ("a", "b"):
        cache.put(key, answer(1.0))
    assert cache.get("a") is not None
    cache.put("c", answer(1.0))
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
