"""What is made of a keyframe alone, and kept for every queue that it is in."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from model.visibility import CameraRig


class Lifted(NamedTuple):
    """Of n keyframes: the volume, each in its own ego frame; for depth and motion per image cell the finest image
    level, the cameras and the cells' descriptors (None where the network compares no images)."""

    volume: Float[Tensor, "n x y z dim"]
    finest: Float[Tensor, "views dim _h _w"]
    rig: CameraRig
    descriptors: Float[Tensor, "views width _rows _columns"] | None = None

    def split(self, queue: int) -> list["Lifted"]:
        """The keyframes of n / queue queues, place by place: the oldest of each queue first."""
        cameras = self.rig.K.shape[1]
        return [
            Lifted(
                self.volume.unflatten(0, (-1, queue))[:, q],
                self._views(self.finest, queue, cameras, q),
                self._rig(queue, q),
                None if self.descriptors is None else self._views(self.descriptors, queue, cameras, q),
            )
            for q in range(queue)
        ]

    def _rig(self, queue: int, q: int) -> CameraRig:
        K, cam_from_ref, valid = (
            matrix.unflatten(0, (-1, queue))[:, q] for matrix in (self.rig.K, self.rig.cam_from_ref, self.rig.valid)
        )
        return CameraRig(K, cam_from_ref, valid, self.rig.height, self.rig.width)

    @staticmethod
    def _views(x: Tensor, queue: int, cameras: int, q: int) -> Tensor:
        return x.unflatten(0, (-1, queue, cameras))[:, q].flatten(0, 1)
