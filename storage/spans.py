"""`scene`, `scene:t` and `scene:first-last`: how keyframes are named in configurations and on the command line."""

import fnmatch
import re
from dataclasses import dataclass

from storage.errors import StoreError

_ENTRY = re.compile(r"(?P<scene>.+?)(:(?P<first>\d+)(-(?P<last>\d+))?)?", re.DOTALL)
_TO_THE_END = 10**9


@dataclass(frozen=True)
class Span:
    """Keyframes `first` to `last`, both included, of the scenes that a name or shell pattern matches."""

    scene: str
    first: int = 0
    last: int = _TO_THE_END

    def __contains__(self, frame: tuple[str, int]) -> bool:
        """Whether (scene, keyframe) is in it."""
        scene, t = frame
        return self.first <= t <= self.last and fnmatch.fnmatchcase(scene, self.scene)

    def keyframes(self, length: int) -> range:
        """Those that a scene of so many keyframes has."""
        return range(self.first, min(self.last + 1, length))


def parse_span(entry: str) -> Span:
    """The keyframes that an entry names. Raises StoreError for an empty one, or a last keyframe before the first."""
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise StoreError(f"{entry!r} names no keyframes; expected scene, scene:t or scene:first-last")
    if match["first"] is None:
        return Span(match["scene"])
    first = int(match["first"])
    last = int(match["last"] or first)
    if last < first:
        raise StoreError(f"{entry!r}: keyframe {last} comes before {first}; expected scene:first-last")
    return Span(match["scene"], first, last)
