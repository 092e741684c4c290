"""AllTracker of Harley et al. through its repository, which the user puts on the path: dense, and MIT."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from pipelines.config import ConfigError
from pipelines.cues.cotracker.packages import ALLTRACKER
from pipelines.cues.cotracker.tracker import Tracked, fitted
from pipelines.cues.devices import loaded_once
from pipelines.cues.grounded_sam.originals import package
from pipelines.weights import WeightsError, load_checkpoint

ITERATIONS = 4
WINDOW = 16
STEP = 8
"""Image sides are stretched to multiples of this, as upstream's demo does."""
LEAST = 128
"""Pixels of a side below which the coarsest of upstream's five correlation levels would be empty."""


@dataclass(frozen=True)
class AllTracker:
    """A PointTracker around the repository's network, whose dense answer is read at the points.

    Trust is visibility times confidence, as upstream's evaluation takes it.
    """

    network: Any
    device: torch.device

    @torch.inference_mode()
    def __call__(
        self, film: Sequence[UInt8[np.ndarray, "height width 3"]], points: Float[np.ndarray, "n 2"]
    ) -> Tracked:
        """See PointTracker."""
        height, width = film[0].shape[:2]
        size = max(LEAST, height // STEP * STEP), max(LEAST, width // STEP * STEP)
        images = torch.from_numpy(np.stack(film)).permute(0, 3, 1, 2).float()
        video = F.interpolate(images, size, mode="bilinear", align_corners=False)[None]
        # Two images give no axis of time, more give one.
        # Upstream moves images to the current GPU, whichever one the network is on.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            flow, sight, *_ = self.network.forward_sliding(
                video.to(self.device), iters=ITERATIONS, sw=None, is_training=False
            )
        last = torch.cat([flow[:, -1] if flow.ndim == 5 else flow, sight[:, -1] if sight.ndim == 5 else sight], 1)
        scale = torch.tensor([width / size[1], height / size[0]])
        place = (torch.from_numpy(np.asarray(points, np.float32)) + 0.5) / scale
        grid = 2 * place / torch.tensor([size[1], size[0]]) - 1
        read = F.grid_sample(last.float().cpu(), grid[None, None], padding_mode="border", align_corners=False)[0, :, 0]
        ends = points + (read[:2].T * scale).numpy()
        return Tracked(ends.astype(np.float32), (read[2] * read[3]).clamp(0, 1).numpy())


def build_network(path: Path) -> Any:
    """The network for a published checkpoint (full or tiny, by its parameters' names), frozen, on the CPU.

    Raises:
        WeightsError: no repository on the path, or no whole checkpoint of AllTracker.
    """
    nets = package(ALLTRACKER.module, ALLTRACKER.install)
    state: Any = load_checkpoint(path)
    state = state.get("model", state) if isinstance(state, dict) else {}
    if any(name.startswith("cnn.") for name in state):
        settings: dict[str, Any] = {"init_weights": False}
    elif any(name.startswith("fnet.") for name in state):
        settings = {"use_basicencoder": True, "no_split": True}
    else:
        raise WeightsError(f"{path}: not a checkpoint of AllTracker, neither cnn.* nor fnet.* is in it")
    with torch.random.fork_rng(devices=[]):
        return fitted(nets.Net(WINDOW, **settings), state, path, "repository alltracker")


def load_alltracker(path: Path, digest: str, device: torch.device) -> AllTracker:
    """A tracker from a checkpoint; the network is loaded once per process. `digest` notices a file that was replaced.

    Raises:
        WeightsError: see build_network.
        ConfigError: no GPU; upstream's code moves its images to one whatever it is told.
    """
    if device.type != "cuda":
        raise ConfigError(
            "backend alltracker: upstream's code runs on a CUDA GPU only; use backend tracks or cotracker"
        )
    return AllTracker(_network(path, digest, device), device)


@loaded_once
def _network(path: Path, digest: str, device: torch.device) -> Any:
    return build_network(path).to(device)
