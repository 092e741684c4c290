"""Extractors that hold a model, kept by the process: loaded once, whatever units and runs come by."""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

from pipelines.cues.base import CueExtractor, loads_model

KEPT = 4
"""Extractors kept, the least recently used goes first: an extraction has one per cue, and models take memory."""

_kept: OrderedDict[str, tuple[CueExtractor, str, threading.Lock]] = OrderedDict()
"""By class and parameters: the extractor, its config_digest when it came, and whose turn it is."""
_guard = threading.Lock()


@contextmanager
def in_turn(extractor: CueExtractor) -> Iterator[CueExtractor]:
    """The extractor itself; or, if it holds a model, this process's instance of the same parameters, held alone.

    An instance whose weights were replaced since makes room for this one: a process outlives runs.

    Threads take turns at a model: it fills its device by itself, and is not promised to be safe for threads.
    """
    if not loads_model(extractor):
        yield extractor
        return
    key, digest = _key(extractor), extractor.config_digest()
    with _guard:
        kept, known, lock = _kept.get(key, (extractor, "", threading.Lock()))
        if known != digest:
            kept, lock = extractor, threading.Lock()
        _kept[key] = kept, digest, lock
        _kept.move_to_end(key)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    with lock:
        yield kept


def _key(extractor: Any) -> str:
    kind = type(extractor)
    fields = asdict(extractor) if is_dataclass(kind) else vars(extractor)
    return f"{kind.__module__}.{kind.__qualname__} {json.dumps(fields, sort_keys=True, default=repr)}"
