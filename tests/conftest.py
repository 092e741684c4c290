"""Shape annotations are checked at run time in tests, and only there; and a miniature log that several rooms use."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from pipelines.config import CuesConfig

# As occflow.py does, and as early: torch's threads must not spin on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

install_import_hook(["geometry", "model", "train", "eval"], "beartype.beartype")

FRAMES = 8


@pytest.fixture
def kitti_log(tmp_path: Path) -> Path:
    """Root of a log with sequences 00 and 01."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(5)
    world = cv2.GaussianBlur(rng.integers(0, 256, (64, 192 + 3 * FRAMES), dtype=np.uint8), (0, 0), 1.5)
    for name in ("00", "01"):
        folder = tmp_path / "log" / "sequences" / name
        for part in ("image_2", "velodyne"):
            (folder / part).mkdir(parents=True)
        camera = "100 0 96 0 0 100 32 0 0 0 1 0"
        (folder / "calib.txt").write_text(
            f"P0: {camera}\nP1: {camera}\nP2: {camera}\nP3: {camera}\nTr: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
        )
        (folder / "poses.txt").write_text("".join(f"1 0 0 0 0 1 0 0 0 0 1 {t}\n" for t in range(FRAMES)))
        (folder / "times.txt").write_text("".join(f"{0.1 * t:.6f}\n" for t in range(FRAMES)))
        for t in range(FRAMES):
            cv2.imwrite(str(folder / "image_2" / f"{t:06d}.png"), world[:, 3 * t : 3 * t + 192])
            points = rng.uniform(5, 30, (50 + t, 4)).astype("<f4")
            points.tofile(folder / "velodyne" / f"{t:06d}.bin")
    return tmp_path / "log"


@pytest.fixture
def cues_config(kitti_log: Path) -> "Callable[..., CuesConfig]":
    """A function from keys that differ to a configuration of `kitti_log`: four cues, blocks of three keyframes."""
    from pipelines.config import CuesConfig

    def build(**changes: Any) -> "CuesConfig":
        values: dict[str, Any] = {
            "dataset": {"kind": "semantic_kitti", "root": kitti_log, "options": {"keyframe_every": 2}},
            "store": kitti_log.parent / "store.zarr",
            "sizes": {"network": (32, 96), "render": (16, 48)},
            "keyframe_interval_s": 0.2,
            "block_keyframes": 3,
            "cues": {"images": {}, "sweeps": {}, "lidar": {}, "flow_next": {"backend": "dis"}},
            "runner": {"workers": 2},
            "inspect": 0,
        }
        return CuesConfig.model_validate(values | changes)

    return build
