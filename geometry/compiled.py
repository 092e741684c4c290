"""Plain loops over arrays as machine code, by numba where it is installed: loaded at the first use, kept on disk."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any


def installed() -> bool:
    """Whether numba can be imported."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def compile_loops(function: Callable[..., Any], liberties: Sequence[str] = ()) -> Callable[..., Any]:
    """`function`, compiled when it is first called with types that are new; it runs without the interpreter's lock.

    Compiled code is kept beside the source, else in the user's cache folder, and made anew when the source's file
    changes. What a function calls from another file does not count as a change.

    Args:
        liberties: LLVM's fast-math flags that sums and products may use; none by default.

    Raises:
        ImportError: numba is not installed.
    """
    import numba

    # In tests the shape checker wraps every function; numba wants the bare one.
    plain = inspect.unwrap(function)
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(liberties)}
    try:
        return numba.njit(cache=True, **options)(plain)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return numba.njit(**options)(plain)
