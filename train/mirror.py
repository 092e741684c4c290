"""A sample as a mirror shows it: left and right exchanged, in images, cues and geometry alike.

A street in a mirror is a street. Where there are few scenes to learn from, that makes twice as many of them. The ego
frame is mirrored at its y = 0, each camera at its x = 0, so that mirrored images are images of a camera again.
Traffic then keeps to the other side.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from model.fields import FrameInput
from train.batch import Adjacent, Batch, FlowTarget, View

_CAMERA = (-1.0, 1.0, 1.0, 1.0)
_EGO = (1.0, -1.0, 1.0, 1.0)


def mirrored(batch: Batch) -> Batch:
    """The mirrored sample or batch; twice mirrored it is what it was."""
    network_width, width = batch.frames.images.shape[-1], batch.images.shape[-1]
    moving = batch.moving_weight
    return Batch(
        frames=FrameInput(
            images=batch.frames.images.flip(-1),
            K=_intrinsics(batch.frames.K, network_width),
            ref_from_cam=_pose(batch.frames.ref_from_cam, _EGO, _CAMERA),
            current_from_ref=_pose(batch.frames.current_from_ref, _EGO, _EGO),
            camera_valid=batch.frames.camera_valid,
        ),
        images=batch.images.flip(-1),
        K=_intrinsics(batch.K, width),
        ref_from_cam=_pose(batch.ref_from_cam, _EGO, _CAMERA),
        camera_valid=batch.camera_valid,
        earlier=_view(batch.earlier, width),
        later=_view(batch.later, width),
        flow_next=_flow(batch.flow_next, width),
        flow_back=_flow(batch.flow_back, width),
        movable=_image(batch.movable),
        return_points=_vectors(batch.return_points),
        return_valid=batch.return_valid,
        return_own=batch.return_own,
        return_origins=_vectors(batch.return_origins),
        moving_points=_vectors(batch.moving_points),
        moving_motion=_vectors(batch.moving_motion),
        moving_weight=None if moving is None else moving * _signs(moving, _EGO[:2], _EGO[:2]),
        moving_valid=batch.moving_valid,
        still_points=_vectors(batch.still_points),
        still_valid=batch.still_valid,
        adjacent=_adjacent(batch.adjacent),
        instances=_image(batch.instances),
        mask_score=batch.mask_score,
        further=None if batch.further is None else _view(batch.further, width),
    )


def _signs(like: Tensor, rows: tuple[float, ...], columns: tuple[float, ...] = (1.0,)) -> Tensor:
    return torch.outer(torch.tensor(rows), torch.tensor(columns)).to(like)


def _image(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.flip(-1)


def _vectors(vectors: Tensor | None) -> Tensor | None:
    """Points (x, y, z) or motions (x, y) of the ego frame."""
    return None if vectors is None else vectors * _signs(vectors, _EGO[: vectors.shape[-1]])[:, 0]


def _pose(pose: Float[Tensor, "*n 4 4"], to: tuple[float, ...], of: tuple[float, ...]) -> Float[Tensor, "*n 4 4"]:
    return pose * _signs(pose, to, of)


def _intrinsics(K: Float[Tensor, "*n 3 3"], width: int) -> Float[Tensor, "*n 3 3"]:
    """Pixel centres lie at +0.5, so u becomes width - u."""
    K = K.clone()
    K[..., 0, 1] *= -1
    K[..., 0, 2] = width - K[..., 0, 2]
    return K


def _view(view: View, width: int) -> View:
    return View(
        cam_from_ref=_pose(view.cam_from_ref, _CAMERA, _EGO),
        K=_intrinsics(view.K, width),
        interval=view.interval,
        valid=view.valid,
        images=_image(view.images),
    )


def _flow(target: FlowTarget | None, width: int) -> FlowTarget | None:
    if target is None:
        return None
    flow = target.flow.flip(-1)
    flow[..., 0, :, :] *= -1
    return FlowTarget(
        flow=flow,
        known=target.known.flip(-1),
        view=_view(target.view, width),
        confidence=_image(target.confidence),
    )


def _adjacent(adjacent: Adjacent | None) -> Adjacent | None:
    if adjacent is None:
        return None
    return Adjacent(
        movable=adjacent.movable.flip(-1),
        masked=adjacent.masked,
        points=adjacent.points * _signs(adjacent.points, _EGO[:3])[:, 0],
        valid=adjacent.valid,
    )
