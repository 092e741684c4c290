"""Which scenes a split names: the log's own splits.json, else the data set's official list."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.datasets.records import DataError

SEMANTIC_KITTI_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": tuple(f"{i:02d}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10)),
    "val": ("08",),
    "test": tuple(f"{i:02d}" for i in range(11, 22)),
}
"""SemanticKITTI's sequences, as its configuration file divides them."""

_LEFT_OUT = (12, 13, 17)

KITTI_MOT_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": tuple(f"training_{i:04d}" for i in range(21) if i not in _LEFT_OUT),
    "val": tuple(f"testing_{i:04d}" for i in range(15)),
    "training": tuple(f"training_{i:04d}" for i in range(21)),
    "testing": tuple(f"testing_{i:04d}" for i in range(29)),
}
"""`train` and `val` are the split of the Let Occ Flow paper (its supplement): the training sequences less those where
the ego car stands or few objects move, and the first fifteen testing sequences. The others are the data set's parts."""


def own_splits(root: Path) -> dict[str, list[str]] | None:
    """`splits.json` in `root`, {"train": [scene names], "val": [...]}, or None where there is none.

    Raises:
        DataError: the file is not a JSON object of lists of names.
    """
    path = root / "splits.json"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error}); correct it or delete it to use the official splits") from error
    if not isinstance(data, dict) or not all(
        isinstance(names, list) and all(isinstance(n, str) for n in names) for names in data.values()
    ):
        raise DataError(f'{path}: expected {{"train": ["scene", ...], "val": [...]}}; correct or delete it')
    return data


def nuscenes_splits(version: str) -> dict[str, list[str]]:
    """Official nuScenes splits from nuscenes-devkit; for v1.0-mini, train and val are its mini_train and mini_val.

    Raises:
        DataError: nuscenes-devkit is not installed.
    """
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError as error:
        raise DataError(
            "the official nuScenes splits come with nuscenes-devkit, which is not installed: "
            "pip install 'occflow[nuscenes]', or put a splits.json into the data set's folder, or name scenes"
        ) from error
    splits = {name: list(scenes) for name, scenes in create_splits_scenes().items()}
    if version.endswith("mini"):
        splits |= {"train": splits["mini_train"], "val": splits["mini_val"]}
    return splits


def select(present: Sequence[str], splits: Mapping[str, Sequence[str]], split: str) -> list[str]:
    """Scenes of `split` that are present, in the order of `present`. Raises DataError for an unknown split."""
    if split not in splits:
        raise DataError(f"no split '{split}' here; choose one of {', '.join(sorted(splits))}")
    wanted = set(splits[split])
    return [name for name in present if name in wanted]
