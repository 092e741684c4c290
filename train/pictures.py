"""Pictures of a run in TensorBoard: every camera of a keyframe, and below it the depth rendered from the prediction."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from geometry.cameras import scale_intrinsics
from model.fields import FrameInput
from model.render import render_view
from train.batch import Batch
from train.module import StageModule
from train.validate import measuring

ROWS = 64
"""Height of a camera's picture at most: 6 cameras at 64x176 are 68,000 rays, fewer than ten training steps cast."""
NEAR_M, FAR_M = 1.0, 60.0
_RAMP = np.array([[255, 246, 190], [250, 150, 80], [190, 50, 100], [80, 20, 110], [10, 6, 30]], dtype=np.float64)
"""Near to far."""


class Painter(pl.Callback):
    """Draws the first keyframe of `batch`, or of the step's own, every `picture_every` steps, on the first process."""

    def __init__(self, picture_every: int, batch: Batch | None = None) -> None:
        self.picture_every, self.batch = picture_every, batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Draw where it is time."""
        assert isinstance(pl_module, StageModule)
        due = self.picture_every and pl_module.step % self.picture_every == 0
        if not due or not trainer.is_global_zero or trainer.logger is None:
            return
        shown = batch if self.batch is None else self.batch.to(pl_module.device)
        with measuring(pl_module), trainer.precision_plugin.train_step_context():
            picture = draw(pl_module, shown)
        writer: Any = trainer.logger.experiment  # type: ignore[attr-defined]
        writer.add_image(f"stage{pl_module.stage}/depth", picture, pl_module.step, dataformats="HWC")


def draw(module: StageModule, batch: Batch) -> UInt8[np.ndarray, "h w 3"]:
    """Images above, depth below, cameras from left to right; a missing camera is black."""
    first = FrameInput(*(part[:1] for part in batch.frames))
    fields = module.network(first)
    height, width = batch.images.shape[-2:]
    shrink = max(1, -(-height // ROWS))
    size = (height // shrink, width // shrink)
    columns = []
    for c in range(batch.images.shape[1]):
        image = batch.images[0, c][:, ::shrink, ::shrink][:, : size[0], : size[1]]
        depth = torch.zeros(size)
        if bool(batch.camera_valid[0, c]):
            K = scale_intrinsics(batch.K[0, c], 1 / shrink, 1 / shrink)
            depth = render_view(module.network.renderer, fields, K, batch.ref_from_cam[0, c], size).depth
        columns.append(np.concatenate([image.permute(1, 2, 0).cpu().numpy(), depth_colours(depth)]))
    return np.concatenate(columns, axis=1)


def depth_colours(depth: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of camera z in metres on a logarithmic scale from 1 m (bright) to 60 m (dark); black where nothing is."""
    metres = depth.float().cpu().numpy()
    place = np.log(np.clip(metres, NEAR_M, FAR_M) / NEAR_M) / np.log(FAR_M / NEAR_M) * (len(_RAMP) - 1)
    colours = np.stack([np.interp(place, np.arange(len(_RAMP)), _RAMP[:, k]) for k in range(3)], axis=-1)
    return np.where((metres > 0)[..., None], colours, 0).round().astype(np.uint8)
