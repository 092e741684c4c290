"""CoTracker 2, 2.1 and 3 (offline) of Karaev et al. through the package `cotracker`, which the user installs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from pipelines.config import ConfigError
from pipelines.cues.cotracker.packages import COTRACKER
from pipelines.cues.devices import loaded_once
from pipelines.cues.grounded_sam.originals import package
from pipelines.weights import WeightsError, load_checkpoint

NOTICE = (
    "CoTracker is CC-BY-NC-4.0, code and weights: labels made with it, and what is trained on them, are not for "
    "commercial use"
)
ITERATIONS = 6
"""Updates of a track, as upstream's predictor makes."""
SUPPORT = 6
"""Upstream's predictor adds SUPPORT x SUPPORT points over the whole image, which steady the tracks asked for."""
OFFLINE_WINDOW = 60
"""Frames of the time embedding of the published CoTracker 3 offline files; the online ones have 16."""


@dataclass(frozen=True)
class Tracked:
    """Where the points of a film's first image are in its last one, (u, v) as asked, and how sure, in [0, 1]."""

    ends: Float[np.ndarray, "n 2"]
    visible: Float[np.ndarray, " n"]


class PointTracker(Protocol):
    """Follows given points through a film (CoTracker, AllTracker)."""

    def __call__(
        self, film: Sequence[UInt8[np.ndarray, "height width 3"]], points: Float[np.ndarray, "n 2"]
    ) -> Tracked:
        """Points (u, v) of `film[0]`, pixel centres at whole numbers, in `film[-1]`; one point or more."""
        ...


@dataclass(frozen=True)
class CoTracker:
    """A PointTracker around the package's network.

    The images are stretched to the network's own size and the tracks back, as upstream's predictor does; its threshold
    on visibility is left out. CoTracker 3 also says how sure it is of a place: visibility is multiplied by that, as
    upstream's online predictor does.

    Attributes:
        network: CoTracker2 or CoTrackerThreeOffline.
        size: (height, width) at which it looks.
        chunk_bytes: about the memory that the points of one pass may take; more points are asked about in turns.
    """

    network: Any
    size: tuple[int, int]
    chunk_bytes: int

    BYTES = 130_000
    """Of one point in one frame, by what the process grew by (docs/cues_cotracker.md)."""

    @torch.inference_mode()
    def __call__(
        self, film: Sequence[UInt8[np.ndarray, "height width 3"]], points: Float[np.ndarray, "n 2"]
    ) -> Tracked:
        """See PointTracker."""
        device = next(self.network.parameters()).device
        height, width = film[0].shape[:2]
        # Given half a window or less, CoTracker 2 looks at nothing and answers 0: the last image fills the window up.
        fill = max(0, self._window - len(film))
        images = torch.from_numpy(np.stack([*film, *[film[-1]] * fill])).to(device).permute(0, 3, 1, 2).float()
        video = F.interpolate(images, self.size, mode="bilinear", align_corners=True)[None]
        scale = torch.tensor([_ratio(self.size[1], width), _ratio(self.size[0], height)], device=device)
        places = torch.from_numpy(np.asarray(points, np.float32)).to(device) * scale
        support = _support_grid(self.size).to(device)
        ends, visible = [], []
        for part in places.split(self.chunk(len(images), len(places))):
            asked = F.pad(torch.cat([part, support]), (1, 0))[None]  # frame 0 before u and v
            tracks, sight, *more = self.network(video=video, queries=asked, iters=ITERATIONS)
            if isinstance(more[0], torch.Tensor):
                sight = sight * more[0]
            ends.append(tracks[0, len(film) - 1, : len(part)] / scale)
            visible.append(sight[0, len(film) - 1, : len(part)])
        return Tracked(torch.cat(ends).cpu().numpy(), torch.cat(visible).float().clamp(0, 1).cpu().numpy())

    @cached_property
    def _window(self) -> int:
        """Frames that the network needs at least."""
        return int(self.network.window_len) if is_v2(self.network.state_dict()) else 2

    def chunk(self, frames: int, points: int) -> int:
        """Points of one pass: equal parts, each within `chunk_bytes`."""
        most = max(1, self.chunk_bytes // (self.BYTES * frames))
        parts = -(-points // most)
        return max(1, -(-points // max(1, parts)))


def _ratio(to: int, of: int) -> float:
    """Between pixel centres at the two ends."""
    return (to - 1) / max(1, of - 1)


def _support_grid(size: tuple[int, int]) -> Float[torch.Tensor, "points 2"]:
    """Points (u, v) in even rows and columns over the image, a 64th of its width away from its edges."""
    height, width = size
    margin = width / 64
    v, u = torch.meshgrid(
        torch.linspace(margin, height - margin, SUPPORT), torch.linspace(margin, width - margin, SUPPORT), indexing="ij"
    )
    return torch.stack([u.flatten(), v.flatten()], dim=-1)


def is_v2(state: Mapping[str, Any]) -> bool:
    """Whether parameters are CoTracker 2's (2.1's), by their names."""
    return "pos_emb" in state


def build_network(path: Path) -> Any:
    """The package's network for a checkpoint, its parameters loaded and frozen, on the CPU.

    The file holds the parameters, or has them under "model"; which version they are is read off their names.

    Raises:
        WeightsError: no package, or no whole checkpoint of CoTracker 2, 2.1 or 3 offline.
    """
    with torch.random.fork_rng(devices=[]):  # the package seeds PyTorch's random numbers when it is imported
        builder = package("cotracker.models.build_cotracker", COTRACKER.install)
        state: Any = load_checkpoint(path)
        state = state.get("model", state) if isinstance(state, dict) else state
        v2, window = _version(path, state)
        try:
            network = builder.build_cotracker(checkpoint=None, offline=True, window_len=window, v2=v2)
        except TypeError as error:
            raise WeightsError(
                f"the package cotracker here is not version 3.0 ({error}): {COTRACKER.install}"
            ) from None
    return fitted(network, state, path, "package cotracker")


def fitted(network: Any, state: Mapping[str, Any], path: Path, origin: str) -> Any:
    """A network with its parameters loaded key for key and frozen. WeightsError where they do not fit."""
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: does not fit the network of the {origin}: {told}") from None
    return network.eval().requires_grad_(False)


def _version(path: Path, state: Any) -> tuple[bool, int]:
    """Whether a checkpoint is of CoTracker 2, and the frames of its time embedding."""
    wanted = "expected cotracker2.pth, cotracker2v1.pth or scaled_offline.pth (`occflow weights list`)"
    time = state.get("time_emb") if isinstance(state, Mapping) else None
    if not isinstance(time, torch.Tensor) or time.ndim != 3:
        raise WeightsError(f"{path}: not a checkpoint of CoTracker 2 or 3, it has no time_emb; {wanted}")
    v2, window = is_v2(state), int(time.shape[1])
    if not v2 and window < OFFLINE_WINDOW:
        raise WeightsError(f"{path}: a time embedding of {window} frames is CoTracker 3's online model; {wanted}")
    return v2, window


def load_cotracker(
    path: Path, digest: str, device: torch.device, size: tuple[int, int] | None, memory: int
) -> CoTracker:
    """A tracker from a checkpoint; the network is loaded once per process, and its licence is told then.

    Args:
        path: the checkpoint.
        digest: notices a file that was replaced.
        device: where it runs.
        size: (height, width) at which the network looks; None is its own.
        memory: bytes, see CoTracker.

    Raises:
        WeightsError: see build_network.
        ConfigError: a size that the network cannot take.
    """
    network = _network(path, digest, device)
    own = tuple(int(side) for side in network.model_resolution)
    if size is not None and size != own and is_v2(network.state_dict()):
        raise ConfigError(f"size = {list(size)}: CoTracker 2 looks at {list(own)} only; leave it out")
    if size is not None and any(side < 64 or side % 4 for side in size):
        raise ConfigError(f"size = {list(size)}: expected multiples of 4, 64 or more")
    return CoTracker(network, size or (own[0], own[1]), memory)


@loaded_once
def _network(path: Path, digest: str, device: torch.device) -> Any:
    network = build_network(path).to(device)
    logging.getLogger(__name__).warning(NOTICE)
    return network
