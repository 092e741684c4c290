"""A sample as a mirror shows it: left and right exchanged, in images, cues and geometry alike.

A street in a mirror is a street. Where there are few scenes to learn from, that makes twice as many of them. The ego
frame is mirrored at its y = 0, each camera at its x = 0, so that mirrored images are images of a camera again.
Traffic then keeps to the other side.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from train.batch import Adjacent, Batch, FlowTarget, View

Signs = tuple[float, ...]
_CAMERA: Signs = (-1.0, 1.0, 1.0, 1.0)
_EGO: Signs = (1.0, -1.0, 1.0, 1.0)


def mirrored(batch: Batch) -> Batch:
    """The mirrored sample or batch; twice mirrored it is what it was."""
    frames, width = batch.frames, batch.images.shape[-1]
    return replace(
        batch,
        frames=frames._replace(
            images=frames.images.flip(-1),
            K=_intrinsics(frames.K, frames.images.shape[-1]),
            ref_from_cam=_matrix(frames.ref_from_cam, _EGO, _CAMERA),
            current_from_ref=_matrix(frames.current_from_ref, _EGO, _EGO),
        ),
        images=batch.images.flip(-1),
        K=_intrinsics(batch.K, width),
        ref_from_cam=_matrix(batch.ref_from_cam, _EGO, _CAMERA),
        earlier=_view(batch.earlier, width),
        later=_view(batch.later, width),
        flow_next=None if batch.flow_next is None else _flow(batch.flow_next, width),
        flow_back=None if batch.flow_back is None else _flow(batch.flow_back, width),
        movable=_image(batch.movable),
        return_points=_vectors(batch.return_points),
        return_origins=_vectors(batch.return_origins),
        moving_points=_vectors(batch.moving_points),
        moving_motion=_vectors(batch.moving_motion),
        moving_weight=None if batch.moving_weight is None else _matrix(batch.moving_weight, _EGO[:2], _EGO[:2]),
        still_points=_vectors(batch.still_points),
        adjacent=None if batch.adjacent is None else _adjacent(batch.adjacent),
        instances=_image(batch.instances),
        further=None if batch.further is None else _view(batch.further, width),
    )


def _image(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.flip(-1)


def _vectors(vectors: Tensor | None) -> Tensor | None:
    """Points (x, y, z) or motions (x, y) of the ego frame."""
    return None if vectors is None else _turned(vectors)


def _turned(vectors: Tensor) -> Tensor:
    return vectors * torch.tensor(_EGO[: vectors.shape[-1]]).to(vectors)


def _matrix(matrix: Float[Tensor, "*n k k"], to: Signs, of: Signs) -> Float[Tensor, "*n k k"]:
    """A pose or a quadratic form: `to` mirrors what it gives, `of` what it is given."""
    return matrix * torch.outer(torch.tensor(to), torch.tensor(of)).to(matrix)


def _intrinsics(K: Float[Tensor, "*n 3 3"], width: int) -> Float[Tensor, "*n 3 3"]:
    """Pixel centres lie at +0.5, so u becomes width - u."""
    K = K.clone()
    K[..., 0, 1] *= -1
    K[..., 0, 2] = width - K[..., 0, 2]
    return K


def _view(view: View, width: int) -> View:
    return replace(
        view,
        cam_from_ref=_matrix(view.cam_from_ref, _CAMERA, _EGO),
        K=_intrinsics(view.K, width),
        images=_image(view.images),
    )


def _flow(target: FlowTarget, width: int) -> FlowTarget:
    flow = target.flow.flip(-1)
    flow[..., 0, :, :] *= -1
    return replace(
        target,
        flow=flow,
        known=target.known.flip(-1),
        view=_view(target.view, width),
        confidence=_image(target.confidence),
    )


def _adjacent(adjacent: Adjacent) -> Adjacent:
    return replace(adjacent, movable=adjacent.movable.flip(-1), points=_turned(adjacent.points))
