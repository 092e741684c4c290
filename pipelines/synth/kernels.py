"""How the renderer's inner loops are compiled, and what keeps their compiled copies on disk up to date."""

import hashlib
from pathlib import Path
from typing import Any

from numba import njit

_HERE = Path(__file__).parent
_STAMP = _HERE / "__pycache__" / "kernels.sha256"

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}

kernel = njit(**{**_OPTIONS, "_nrt": False, "forceinline": True})
"""For functions that make no array. Without numba's reference counts, which took half of the rendering time and made
threads queue for each counter: a row such as `primitives[i]` is then a plain view. And inlined: an array is passed as
a dozen words, a scene's look as a hundred, which took half of the rest."""

allocating_kernel = njit(**_OPTIONS)
"""For functions that make arrays."""


def drop_stale_kernels() -> None:
    """Delete compiled kernels made from other sources than today's.

    numba looks at a kernel's own file only: after a change to a function that it calls from another file, the cached
    copy would go on with the old one. In a folder that cannot be written numba keeps no copies there either.
    """
    digest = hashlib.sha256()
    for path in sorted(_HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    try:
        if _STAMP.exists() and _STAMP.read_text() == digest.hexdigest():
            return
        for index in _STAMP.parent.glob("*.nbi"):
            index.unlink(missing_ok=True)
        _STAMP.parent.mkdir(exist_ok=True)
        _STAMP.write_text(digest.hexdigest())
    except OSError:
        return


drop_stale_kernels()
