"""What one training step is given: tensors of one or several keyframes, and nothing that is ground truth."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int16, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from model.fields import FrameInput
from model.visibility import CameraRig
from train.handover import Form, Parcel, Shelf, Slot, shared_memory


class _Tensors:
    """Moves and stacks dataclasses of tensors, dataclasses and None."""

    def map(self, change: Any) -> Any:
        """A copy with `change` applied to every tensor."""
        return type(self)(**{f.name: _map(getattr(self, f.name), change) for f in dataclasses.fields(self)})  # type: ignore[arg-type]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """A copy on another device."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Any:
        """A copy in page-locked memory."""
        return self.map(lambda tensor: tensor.pin_memory())


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _Tensors):
        return value.map(change)
    if isinstance(value, FrameInput):
        return FrameInput(*(change(tensor) for tensor in value))
    return value


@dataclass
class View(_Tensors):
    """One neighbour of every camera image; geometry as in neighbours.ViewGeometry, images at render size.

    `images` is None for a flow target, which is only projected into.
    """

    cam_from_ref: Float[Tensor, "*batch cameras 4 4"]
    K: Float[Tensor, "*batch cameras 3 3"]
    interval: Float[Tensor, "*batch cameras"]
    valid: Bool[Tensor, "*batch cameras"]
    images: UInt8[Tensor, "*batch cameras 3 h w"] | None = None


@dataclass
class FlowTarget(_Tensors):
    """An optical flow cue on the current render grid: int16 in 1/64 pixel, where it is known, and where it ends.

    `confidence`, 255 = sure, is None where the run does not weigh by it.
    """

    flow: Int16[Tensor, "*batch cameras 2 h w"]
    known: Bool[Tensor, "*batch cameras h w"]
    view: View
    confidence: UInt8[Tensor, "*batch cameras h w"] | None = None


@dataclass
class Adjacent(_Tensors):
    """What the keyframe after the current one knows, for `loss.splat`: its movable masks at render size, in which
    cameras there are any, and a draw of its LiDAR returns (False: padding) in the current ego frame, metres, where they
    were at its time."""

    movable: Bool[Tensor, "*batch cameras h w"]
    masked: Bool[Tensor, "*batch cameras"]
    points: Float[Tensor, "*batch returns 3"]
    valid: Bool[Tensor, "*batch returns"]


@dataclass
class Batch(_Tensors):
    """Keyframes and their cues. Ego frame at LiDAR time of the current keyframe; metres; render pixels.

    frames: what the network sees. images, K, ref_from_cam, camera_valid: the current keyframe's cameras at render size.
    earlier, later: photometric neighbours. flow_next, flow_back: flow cues, None when the run does not use them.
    movable: things that could move, None when not used. return_points, return_origins: the returns drawn for this step
    and from where each was measured; return_valid: False for padding; return_own: False for those of other keyframes.
    None for runs that have none. moving_points, moving_motion, moving_weight, moving_valid: spots on movable things and
    their motion by `lifted_flow`; still_points, still_valid: spots of the keyframe's returns on anything else. None
    where not used. instances: which movable thing of its camera a pixel shows, from 1 on, 0 for none; mask_score: what
    each counts, 0..1, that of none being 1. adjacent: cues of the keyframe that `later` looks from. further: images
    after `later`, in views with one axis more, before that of cameras. None where not used.
    """

    frames: FrameInput
    images: UInt8[Tensor, "*batch cameras 3 h w"]
    K: Float[Tensor, "*batch cameras 3 3"]
    ref_from_cam: Float[Tensor, "*batch cameras 4 4"]
    camera_valid: Bool[Tensor, "*batch cameras"]
    earlier: View
    later: View
    flow_next: FlowTarget | None
    flow_back: FlowTarget | None
    movable: Bool[Tensor, "*batch cameras h w"] | None
    return_points: Float[Tensor, "*batch returns 3"] | None
    return_valid: Bool[Tensor, "*batch returns"] | None
    return_own: Bool[Tensor, "*batch returns"] | None
    return_origins: Float[Tensor, "*batch returns 3"] | None
    moving_points: Float[Tensor, "*batch moving 3"] | None = None
    moving_motion: Float[Tensor, "*batch moving 2"] | None = None
    moving_weight: Float[Tensor, "*batch moving 2 2"] | None = None
    moving_valid: Bool[Tensor, "*batch moving"] | None = None
    still_points: Float[Tensor, "*batch still 3"] | None = None
    still_valid: Bool[Tensor, "*batch still"] | None = None
    adjacent: Adjacent | None = None
    instances: UInt8[Tensor, "*batch cameras h w"] | None = None
    mask_score: Float[Tensor, "*batch cameras rows"] | None = None
    further: View | None = None

    def rig(self) -> CameraRig:
        """The current keyframe's cameras, of a batch of samples, at render size."""
        size = (self.images.shape[-2], self.images.shape[-1])
        return CameraRig.build(self.K, self.ref_from_cam, self.camera_valid, size)

    def further_views(self) -> list[View]:
        """The views of `further`, of a batch of samples, nearest in time first."""
        if self.further is None:
            return []
        return [self.further.map(lambda tensor, k=k: tensor[:, k]) for k in range(self.further.K.shape[1])]


def collate(samples: Sequence[Any]) -> Any:
    """Samples stacked along a new first axis; in a loader's worker as a parcel, which arrives as the same batch."""
    return stack(samples) if get_worker_info() is None else pack(samples)


def stack(samples: Sequence[Any]) -> Any:
    """Samples stacked along a new first axis."""
    first = samples[0]
    if isinstance(first, Tensor):
        return torch.stack(list(samples))
    if isinstance(first, FrameInput):
        return FrameInput(*(stack(parts) for parts in zip(*samples, strict=True)))
    if isinstance(first, _Tensors):
        parts = {f.name: stack([getattr(s, f.name) for s in samples]) for f in dataclasses.fields(first)}  # type: ignore[arg-type]
        return type(first)(**parts)
    return first


def pack(samples: Sequence[Any]) -> Parcel:
    """As `stack`, in shared memory; what it pickles to is the batch, whose tensors lie there."""
    shelf = Shelf()
    form = _form(samples[0], shelf, len(samples))
    memory = shared_memory(shelf.size)
    _fill(form, samples, memory)
    return Parcel(memory, form, unpack)


def unpack(memory: Tensor, form: Any) -> Any:
    """The batch that a parcel holds."""
    if isinstance(form, Slot):
        return form.view(memory)
    if isinstance(form, Form):
        return form.kind(**{name: unpack(memory, part) for name, part in form.parts.items()})
    return form


def _form(value: Any, shelf: Shelf, count: int) -> Any:
    """A sample with a slot for `count` of each tensor, and a Form for each object that has fields."""
    if isinstance(value, Tensor):
        return shelf.place(value.dtype, (count, *value.shape))
    names: tuple[str, ...] = value._fields if isinstance(value, FrameInput) else ()
    if isinstance(value, _Tensors):
        names = tuple(f.name for f in dataclasses.fields(value))  # type: ignore[arg-type]
    return Form(type(value), {n: _form(getattr(value, n), shelf, count) for n in names}) if names else value


def _fill(form: Any, samples: Sequence[Any], memory: Tensor) -> None:
    if isinstance(form, Slot):
        torch.stack(list(samples), out=form.view(memory))
    elif isinstance(form, Form):
        for name, part in form.parts.items():
            _fill(part, [getattr(sample, name) for sample in samples], memory)
