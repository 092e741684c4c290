"""Which keyframes of a store are looked at."""

import random
from collections.abc import Iterator

from eval.inspection.settings import InspectionSettings
from eval.rules import EvaluationError
from storage.reader import StoreReader


def chosen_scenes(reader: StoreReader, settings: InspectionSettings) -> list[str]:
    """The scenes asked for, all without a wish. Raises EvaluationError for one that the store does not hold."""
    there = reader.scenes()
    unknown = sorted(set(settings.scenes) - set(there))
    if unknown:
        raise EvaluationError(f"{reader.path}: no scene {unknown[0]!r}; it has {', '.join(there[:8]) or 'none'}")
    if not there:
        raise EvaluationError(f"{reader.path}: no scene is committed; run `occflow cues`")
    return list(settings.scenes) or there


def sample_keyframes(lengths: dict[str, int], settings: InspectionSettings) -> list[tuple[str, int]]:
    """`settings.sample` keyframes drawn evenly without replacement, or all; in the order of the scenes.

    Args:
        lengths: keyframes by scene.
    """
    total = sum(lengths.values())
    if settings.every or total <= settings.sample:
        return [(scene, t) for scene, length in lengths.items() for t in range(length)]
    drawn = sorted(random.Random(settings.seed).sample(range(total), settings.sample))
    return list(_places(lengths, drawn))


def _places(lengths: dict[str, int], drawn: list[int]) -> Iterator[tuple[str, int]]:
    """Scene and keyframe of rising indices into all keyframes laid end to end."""
    first, wanted = 0, iter(drawn)
    index = next(wanted, None)
    for scene, length in lengths.items():
        while index is not None and index < first + length:
            yield scene, index - first
            index = next(wanted, None)
        first += length
