"""From a network and a store to occupancy and velocity per keyframe, on the grid that truth is given on."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from eval.protocols import UNKNOWN
from geometry.grid import KITTI_GRID, NUSCENES_GRID, VoxelGrid
from model.fields import Fields, FrameInput
from model.lifted import Lifted
from model.network import OccFlow
from storage.queue import queue_arrays, queue_keyframes, queue_poses
from storage.reader import StoreReader
from storage.whole_file import whole_file

FREE = 16


@dataclass(frozen=True)
class Prediction:
    """What a network says about one keyframe, in its ego frame.

    occupied: bool (X, Y, Z). flow: float32 (X, Y, Z, 2), horizontal object velocity in m/s, everywhere (also in free
    voxels). sdf: float32 (X, Y, Z) metres, or None for predictions that have
    none. inside: where the network's own box covers this grid, None: everywhere. fields: the network's own output, for
    rendering. semantics: class per voxel in the truth's indices, of systems that predict classes. has_flow: False for a
    system that predicts no velocity, whose `flow` is zero. interval_s: seconds that a network's displacement was
    divided by to give `flow`; None where velocities came as such.
    """

    occupied: Bool[np.ndarray, "x y z"]
    flow: Float32[np.ndarray, "x y z 2"]
    sdf: Float32[np.ndarray, "x y z"] | None = None
    inside: Bool[np.ndarray, "x y z"] | None = None
    fields: Fields | None = None
    semantics: UInt8[np.ndarray, "x y z"] | None = None
    has_flow: bool = True
    interval_s: float | None = None

    def occupied_at(self, threshold: float) -> Bool[np.ndarray, "x y z"]:
        """Occupancy at another threshold, metres. Raises ValueError without sdf."""
        if self.sdf is None:
            raise ValueError("this prediction has no sdf: it is occupied where it is, at no other threshold")
        inside = np.ones(self.sdf.shape, dtype=bool) if self.inside is None else self.inside
        return occupy(self.sdf, inside, threshold)


def evaluation_grid(model_grid: VoxelGrid, truth: Any | None = None) -> VoxelGrid:
    """The grid of the truth store's attributes `occupancy_grid`, else the data set's that the model's box is.

    Falls back on the model's own grid where neither is known.
    """
    if truth is not None:
        lower, upper, shape = (truth[key] for key in ("lower", "upper", "shape"))
        return VoxelGrid(tuple(lower), tuple(upper), tuple(int(n) for n in shape))  # type: ignore[arg-type]
    for grid in (NUSCENES_GRID, KITTI_GRID):
        if np.allclose((grid.lower, grid.upper), (model_grid.lower, model_grid.upper)):
            return grid
    return model_grid


def frame_input(arrays: dict[str, np.ndarray], device: torch.device | str = "cpu") -> FrameInput:
    """A batch of one from `storage.queue.queue_arrays`."""
    names = ("images", "K", "ref_from_cam", "current_from_ref", "camera_valid")
    return FrameInput(*(torch.from_numpy(arrays[name])[None].to(device) for name in names))


def on_grid(
    fields: Fields, grid: VoxelGrid
) -> tuple[Float32[np.ndarray, "x y z"], Float32[np.ndarray, "x y z 2"], Bool[np.ndarray, "x y z"]]:
    """SDF (metres) and flow (metres per keyframe interval) at the centres of another grid, and where that lies inside
    the fields' own box. Trilinear; first batch element."""
    if fields.grid == grid:
        inside = np.ones(grid.shape, dtype=bool)
        return _numpy(fields.sdf[0]), _numpy(fields.flow[0]), inside
    centres = torch.from_numpy(grid.centres()).to(fields.sdf)
    sdf, flow = fields.sdf_at(centres[None])[0], fields.flow_at(centres[None])[0]
    return _numpy(sdf), _numpy(flow), _numpy(fields.grid.contains(centres)).astype(bool)


def occupy(
    sdf: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], threshold: float
) -> Bool[np.ndarray, "x y z"]:
    """Occupied where sdf <= threshold (metres) inside the predicted box; a voxel whose sdf is nan is free."""
    return (sdf <= threshold) & inside


class Predictor:
    """Runs a network over the keyframes of a store.

    Args:
        model: in any mode; it is put into evaluation mode.
        reader: the cue store; only images, calibration and poses are read.
        grid: of the output; default as `evaluation_grid` says.
        threshold: occupied where sdf <= this many metres; default the model's `occupancy_threshold`.
        reuse: keep the volumes of the last queue, so that in time order every keyframe's images are encoded once.
            False: encode the whole queue at every keyframe, as training does; the results agree to rounding.

    keyframes, seconds: how many `predict` has answered, and in how long, reading included.
    """

    def __init__(
        self,
        model: OccFlow,
        reader: StoreReader,
        grid: VoxelGrid | None = None,
        threshold: float | None = None,
        *,
        reuse: bool = True,
    ) -> None:
        self.model, self.reader = model.eval(), reader
        self.grid = grid or evaluation_grid(model.config.grid.build())
        self.threshold = model.config.occupancy_threshold if threshold is None else threshold
        self.device = next(model.parameters()).device
        fusion = model.config.fusion
        self.queue_length = 1 if fusion.kind == "none" else fusion.history + 1
        self.reuse = reuse and self.queue_length > 1
        self.keyframes, self.seconds = 0, 0.0
        self._lifted: dict[tuple[str, int], Lifted] = {}

    @property
    def rate(self) -> float:
        """Keyframes per second so far; 0 before the first."""
        return self.keyframes / self.seconds if self.seconds else 0.0

    @torch.no_grad()
    def fields(self, scene: str, t: int) -> Fields:
        """The network's output at keyframe `t`. Raises CueMissing without images."""
        source, table = self.reader.scene(scene), self.reader.scene(scene).table
        queue = queue_keyframes(t, self.queue_length)
        if not self.reuse or not 0 <= t < table.length or not table.camera_valid[queue].any():
            return self.model(frame_input(queue_arrays(source, t, self.queue_length), self.device))
        # What this queue does not need goes first: never more volumes than a queue is long.
        self._lifted = {(scene, k): self._lifted[scene, k] for k in queue if (scene, k) in self._lifted}
        for k in queue:
            if (scene, k) not in self._lifted:
                self._lifted[scene, k] = self._lift(scene, k)
        current_from_ref = torch.from_numpy(queue_poses(table, t, self.queue_length)["current_from_ref"])
        return self.model.decode([self._lifted[scene, k] for k in queue], current_from_ref[None].to(self.device))

    def _lift(self, scene: str, k: int) -> Lifted:
        """Keyframe `k` alone, in its own ego frame; black where no camera has an image, as in a longer queue."""
        source = self.reader.scene(scene)
        if source.table.camera_valid[k].any():
            arrays = queue_arrays(source, k, 1)
        else:
            arrays = queue_poses(source.table, k, 1)
            shape = (*arrays["camera_valid"].shape, 3, *self.reader.attributes.network_size)
            arrays["images"] = np.zeros(shape, dtype=np.uint8)
        lifted = self.model.lift(frame_input(arrays, self.device))
        # Only depth-aware lifting reads the images' finest level again.
        return lifted if self.model.depth_lift is not None else lifted._replace(finest=lifted.finest[..., :0, :0])

    def predict(self, scene: str, t: int) -> Prediction:
        """Occupancy and velocity at keyframe `t`."""
        started = time.perf_counter()
        fields = self.fields(scene, t)
        sdf, flow, inside = on_grid(fields, self.grid)
        self.keyframes, self.seconds = self.keyframes + 1, self.seconds + time.perf_counter() - started
        interval_s = self.reader.attributes.keyframe_interval_s
        velocity = (flow / interval_s).astype(np.float32)
        occupied = occupy(sdf, inside, self.threshold)
        return Prediction(occupied, velocity, sdf, inside, fields, interval_s=interval_s)

    def run(self, scene: str, out: Path) -> Iterator[Path]:
        """Predict every keyframe of a scene and save it; yields each file once it is complete on disk.

        A keyframe whose own and earlier images are all missing is skipped.
        """
        table = self.reader.scene(scene).table
        for t in range(table.length):
            first = max(0, t - self.queue_length + 1)
            if table.camera_valid[first : t + 1].any():
                yield save_prediction(self.predict(scene, t), self.grid, self.threshold, out / scene / table.tokens[t])


def save_prediction(prediction: Prediction, grid: VoxelGrid, threshold: float, folder: Path) -> Path:
    """Write `labels.npz` in OpenOcc's layout plus what the network adds; whole or not at all.

    Keys: semantics u8 (X, Y, Z), 16 = free, 255 = occupied, class unknown; flow f16 (X, Y, Z, 2) m/s, zero in free
    voxels; occupancy u8; sdf f16 metres where there is one; threshold, lower, upper in metres; interval_s, the seconds
    that the network's displacement was divided by to give flow.
    """
    arrays: dict[str, Any] = {
        "semantics": np.where(prediction.occupied, UNKNOWN, FREE).astype(np.uint8),
        "flow": np.where(prediction.occupied[..., None], prediction.flow, 0).astype(np.float16),
        "occupancy": prediction.occupied.astype(np.uint8),
        "threshold": np.float32(threshold),
        "lower": np.array(grid.lower, dtype=np.float32),
        "upper": np.array(grid.upper, dtype=np.float32),
    }
    if prediction.sdf is not None:
        arrays["sdf"] = prediction.sdf.astype(np.float16)
    if prediction.interval_s is not None:
        arrays["interval_s"] = np.float64(prediction.interval_s)
    path = folder / "labels.npz"
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    return path


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
