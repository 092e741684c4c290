"""Compiles the renderer ahead of its first use, by writing the smallest log there is: `python -m pipelines.synth`."""

import tempfile
from pathlib import Path

from pipelines.synth import write_log
from pipelines.synth.config import SynthConfig


def main() -> None:
    """Render a log of a few pixels and forget it; numba keeps what it compiled beside the sources."""
    tiny = SynthConfig(scenes=1, keyframes=2, width=32, height=18, cameras=("CAM_FRONT",), lidar_azimuths=8)
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder) / "log", tiny)


if __name__ == "__main__":
    main()
