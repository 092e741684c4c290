"""The CVPR 2024 occupancy-and-flow challenge's submission form: class, distance and flow per ray, distances in float16.

One gzipped pickle of {"results": {token: {"pcd_cls", "pcd_dist", "pcd_flow"}}, ...}; rays in the order of
`eval.rays.ray_directions`, origin by origin. The official ground truth of the rays has the same form.
"""

import gzip
import importlib
import io
import pickle
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, UInt8

from eval.protocols import OPENOCC_CLASSES
from eval.raycast import Hits
from eval.rules import EvaluationError

FREE = len(OPENOCC_CLASSES) - 1
_FIELDS = ("method", "team", "authors", "e-mail", "institution / company", "country / region")
_ARRAY_PARTS = {"_reconstruct": "multiarray", "scalar": "multiarray", "_frombuffer": "numeric"}
"""What a pickled array names besides its type; numpy 1 and 2 keep these in packages of different names."""


@dataclass(frozen=True)
class RayPrediction:
    """Where the rays of one keyframe end: class 0..16 (16: nowhere), metres, velocity in m/s."""

    category: UInt8[np.ndarray, "rays"]
    distance: Float16[np.ndarray, "rays"]
    flow: Float16[np.ndarray, "rays 2"]


def ray_prediction(
    hits: Hits, semantics: UInt8[np.ndarray, "x y z"], flow: np.ndarray, free: int = FREE
) -> RayPrediction:
    """The form's rows of one keyframe. A miss is free, ends where it leaves the grid and has no velocity."""
    missed = hits.voxel < 0
    category = np.where(missed, free, semantics.reshape(-1)[hits.voxel]).astype(np.uint8)
    velocity = np.where(missed[:, None], 0.0, flow.reshape(-1, 2)[hits.voxel])
    return RayPrediction(category, hits.distance.astype(np.float16), velocity.astype(np.float16))


def write_submission(
    path: Path, rays: Iterable[tuple[str, RayPrediction]], about: Mapping[str, Any] | None = None, level: int = 9
) -> int:
    """Write the form; whole or not at all. Returns the number of keyframes.

    All is held in memory first, as the form is one object: about 0.8 MB a keyframe of eight origins.

    Args:
        rays: token of a keyframe and its rays.
        about: `method`, `team`, `authors` (a list), `e-mail`, `institution / company`, `country / region`.
        level: of gzip.
    """
    results = {token: {"pcd_cls": one.category, "pcd_dist": one.distance, "pcd_flow": one.flow} for token, one in rays}
    head = {name: [""] if name == "authors" else "" for name in _FIELDS} | dict(about or {})
    temporary = path.with_name(f".{path.name}.part")
    try:
        with gzip.GzipFile(temporary, "wb", compresslevel=level) as file:
            pickle.dump({**head, "results": results}, file, protocol=4)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(results)


class _Unpickler(pickle.Unpickler):
    """Plain types and numpy arrays only: a pickle from elsewhere may otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        root, _, rest = module.partition(".")
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "_codecs" and name == "encode":
            return importlib.import_module("_codecs").encode
        if root == "numpy" and name in _ARRAY_PARTS and rest.split(".")[0] in ("core", "_core"):
            package = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"
            return getattr(importlib.import_module(f"{package}.{_ARRAY_PARTS[name]}"), name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which has no place in this form")


def read_submission(path: Path) -> dict[str, RayPrediction]:
    """The rays by token, of a submission or of the official ground truth; gzipped or not. Runs nothing from the file.

    Raises:
        EvaluationError: no such file, something else than the form, or an array of the wrong shape, type or range.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            # All of it first: the checksum stands behind the place where a pickle ends.
            data = gzip.decompress(data)
        found = _Unpickler(io.BytesIO(data)).load()
    except (OSError, zlib.error) as error:
        raise EvaluationError(f"{path}: cannot read this submission ({error}); restore the file") from error
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: this is no submission ({error}); write it anew") from error
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, dict) or not results:
        raise EvaluationError(f"{path}: no 'results' by token; expected the challenge's form (docs/metrics.md)")
    return {str(token): _checked(path, str(token), row) for token, row in results.items()}


def _checked(path: Path, token: str, row: Any) -> RayPrediction:
    arrays = row if isinstance(row, dict) else {}
    category, distance, flow = (arrays.get(name) for name in ("pcd_cls", "pcd_dist", "pcd_flow"))
    if not (isinstance(category, np.ndarray) and isinstance(distance, np.ndarray) and isinstance(flow, np.ndarray)):
        raise EvaluationError(f"{path}: {token}: expected arrays pcd_cls, pcd_dist and pcd_flow, found {list(arrays)}")
    n = category.size
    if category.shape != (n,) or distance.shape != (n,) or flow.shape != (n, 2):
        raise EvaluationError(
            f"{path}: {token}: shapes {category.shape}, {distance.shape}, {flow.shape} of class, distance and flow; "
            "expected (n,), (n,), (n, 2)"
        )
    if category.dtype.kind not in "iu" or distance.dtype.kind != "f" or flow.dtype.kind != "f":
        raise EvaluationError(
            f"{path}: {token}: types {category.dtype}, {distance.dtype}, {flow.dtype}; expected uint8, float16, float16"
        )
    if n and (int(category.min()) < 0 or int(category.max()) > FREE):
        raise EvaluationError(
            f"{path}: {token}: class {int(category.min())} to {int(category.max())}, expected 0..{FREE}"
        )
    if not (np.isfinite(distance).all() and np.isfinite(flow).all()):
        raise EvaluationError(f"{path}: {token}: a distance or a flow is not finite")
    return RayPrediction(category.astype(np.uint8), distance.astype(np.float16), flow.astype(np.float16))
