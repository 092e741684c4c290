"""Running the installed command in a process of its own, from a folder of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHIM = "import sys; sys.argv[0] = 'occflow'; from occflow import app; app()"
"""What the installed console script does, for environments that have the tree on the path only."""


@pytest.fixture
def occflow_process(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """A function that starts `occflow ARGS` in an empty working folder (`cwd`) and a session of its own."""

    def start(*arguments: object, cwd: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
        folder = cwd or tmp_path / "work"
        folder.mkdir(exist_ok=True)
        private = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "OCCFLOW"))}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", SHIM, *(str(argument) for argument in arguments)],
            cwd=folder,
            env=inherited | {"PYTHONPATH": str(ROOT)} | private | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def occflow(
    occflow_process: Callable[..., "subprocess.Popen[str]"],
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """A function that runs `occflow ARGS` to its end (five minutes at most: a busy machine takes its time)."""

    def run(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        process = occflow_process(*arguments, **options)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run


@pytest.fixture
def config_file(kitti_log: Path) -> Path:
    """A configuration file of the miniature log; its store is `store.zarr` beside the log."""
    values = {
        "dataset": {"kind": "semantic_kitti", "root": str(kitti_log), "options": {"keyframe_every": 2}},
        "store": str(kitti_log.parent / "store.zarr"),
        "sizes": {"network": [32, 96], "render": [16, 48]},
        "keyframe_interval_s": 0.2,
        "block_keyframes": 1,
        "cues": {"images": {}, "sweeps": {}, "lidar": {}, "flow_next": {"backend": "dis"}},
        "runner": {"workers": 2},
        "inspect": 0,
    }
    path = kitti_log.parent / "cues.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def long_config_file(config_file: Path) -> Path:
    """The miniature log's configuration with a cue that is made from another one, and scenes four times as long."""
    for folder in (config_file.parent / "log" / "sequences").iterdir():
        for part in ("image_2", "velodyne"):
            files = sorted((folder / part).iterdir())
            for copy in range(1, 4):
                for t, path in enumerate(files, copy * len(files)):
                    shutil.copy(path, path.with_name(f"{t:06d}{path.suffix}"))
        length = 4 * len(files)
        (folder / "poses.txt").write_text("".join(f"1 0 0 0 0 1 0 0 0 0 1 {t}\n" for t in range(length)))
        (folder / "times.txt").write_text("".join(f"{0.1 * t:.6f}\n" for t in range(length)))
    values = yaml.safe_load(config_file.read_text())
    values["cues"]["masks"] = {"backend": "motion_lidar", "flows": ["flow_next"]}
    config_file.write_text(yaml.safe_dump(values))
    return config_file
