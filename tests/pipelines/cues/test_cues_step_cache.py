"""Films kept by their content: made once, served both ways round, bounded."""

import numpy as np

from pipelines.cues.step_cache import Film, StepCache, Steps


def film(*values: int) -> list[np.ndarray]:
    return [np.full((4, 5, 3), value, np.uint8) for value in values]


def test_a_film_is_made_once_and_serves_both_ways() -> None:
    made = []

    def make(way: Film) -> Steps:
        made.append([int(image[0, 0, 0]) for image in way])
        return [np.full((2, 4, 5), float(image[0, 0, 0])) for image in way[:-1]]

    cache = StepCache(1 << 20)
    for order in ((1, 2, 3), (3, 2, 1)):
        there, back = cache.both_ways(film(*order), "a", make)
        assert [flow[0, 0, 0] for flow in there] == list(order[:-1])
        assert [flow[0, 0, 0] for flow in back] == list(order[:0:-1])
    assert len(made) == 2, "one film, both ways"
    cache.both_ways(film(1, 2, 3), "b", make)
    assert len(made) == 4, "another maker"


def test_the_least_recent_film_goes_first() -> None:
    count = 0

    def make(way: Film) -> Steps:
        nonlocal count
        count += 1
        return [np.zeros((2, 4, 5), np.float32)]

    cache = StepCache(2 * 2 * 160)  # two films of one step each way, 160 bytes a flow
    for value in (1, 2, 3, 3, 1):
        cache.both_ways(film(0, value), "", make)
    assert count == 2 * 4, "the third film threw out the first; the second 3 was kept"
