"""The queue of keyframes a network sees at once, as plain arrays, for the trainer and the evaluator alike."""

from typing import Protocol

import numpy as np

from storage.schema import SceneTable


class QueueScene(Protocol):
    """What of a scene's reader the queue needs."""

    @property
    def table(self) -> SceneTable:
        """Poses and calibration."""
        ...

    def image(self, t: int, c: int) -> np.ndarray:
        """Network-size RGB, uint8 (H, W, 3)."""
        ...


def _inverse(dst_from_src: np.ndarray) -> np.ndarray:
    """Inverse of rigid transforms (..., 4, 4), float64."""
    out = np.zeros_like(dst_from_src)
    rotation_t = dst_from_src[..., :3, :3].swapaxes(-1, -2)
    out[..., :3, :3] = rotation_t
    out[..., :3, 3:] = -rotation_t @ dst_from_src[..., :3, 3:]
    out[..., 3, 3] = 1.0
    return out


def put_planes(image: np.ndarray, out: np.ndarray) -> None:
    """Write an image (H, W, 3), uint8, into contiguous planes (3, H, W)."""
    try:
        import cv2
    except ImportError:
        out[:] = image.transpose(2, 0, 1)
        return
    cv2.split(image, list(out))  # a tenth of what numpy's transposed copy costs


def queue_keyframes(t: int, length: int) -> list[int]:
    """Keyframe indices of the queue that ends in `t`, oldest first; keyframe 0 stands in for missing history."""
    return [max(0, k) for k in range(t - length + 1, t + 1)]


def queue_poses(table: SceneTable, t: int, length: int) -> dict[str, np.ndarray]:
    """The geometry of a queue: all of `queue_arrays` but the images."""
    if not 0 <= t < table.length:
        raise IndexError(f"keyframe {t} of a scene of {table.length} keyframes")
    if length < 1:
        raise ValueError(f"a queue holds at least the current keyframe, got length {length}")
    frames = queue_keyframes(t, length)
    valid = np.asarray(table.camera_valid[frames], dtype=bool)
    ego_from_global = _inverse(np.asarray(table.global_from_ego, dtype=np.float64)[frames])
    camera_pose = np.asarray(table.camera_global_from_ego, dtype=np.float64)[frames]
    # Products stay in float64: global translations reach 1e6 m, where float32 resolves 6 cm.
    ref_from_cam = ego_from_global[:, None] @ camera_pose @ np.asarray(table.ego_from_cam, dtype=np.float64)[frames]
    current_from_ref = ego_from_global[-1] @ np.asarray(table.global_from_ego, dtype=np.float64)[frames]
    current_from_ref[[k == t for k in frames]] = np.eye(4)
    K = np.where(valid[..., None, None], table.K[frames], np.eye(3))
    ref_from_cam = np.where(valid[..., None, None], ref_from_cam, np.eye(4))
    return {
        "K": K.astype(np.float32),
        "ref_from_cam": ref_from_cam.astype(np.float32),
        "current_from_ref": current_from_ref.astype(np.float32),
        "camera_valid": valid,
    }


def queue_arrays(scene: QueueScene, t: int, length: int) -> dict[str, np.ndarray]:
    """Images and geometry of keyframes t-length+1..t (Q = length), oldest first; keyframe 0 repeats before the start.

    A camera that is missing (`camera_valid` False) has a black image, an identity K and an identity pose: finite, and
    to be ignored by its flag.

    Returns:
        images uint8 (Q, C, 3, H, W) RGB; K float32 (Q, C, 3, 3), network pixels; ref_from_cam float32 (Q, C, 4, 4),
        from the camera (at its own time) to the ego frame of its own keyframe at LiDAR time; current_from_ref float32
        (Q, 4, 4), from that ego frame to keyframe t's; camera_valid bool (Q, C). Metres.

    Raises:
        IndexError: t is not a keyframe of the scene.
        ValueError: length < 1, or no camera is valid in the whole queue.
        CueMissing: an image of the queue is not committed (from the reader).
    """
    arrays = queue_poses(scene.table, t, length)
    frames, valid = queue_keyframes(t, length), arrays["camera_valid"]
    decoded: dict[int, dict[int, np.ndarray]] = {
        k: {int(c): scene.image(k, int(c)) for c in np.flatnonzero(valid[q])} for q, k in enumerate(frames)
    }
    shapes = {image.shape for row in decoded.values() for image in row.values()}
    if len(shapes) != 1:
        found = "no camera is valid" if not shapes else f"images of different sizes {sorted(shapes)}"
        raise ValueError(
            f"keyframes {sorted(decoded)} of {scene.table.tokens[t]!r}'s queue: {found}; expected one size"
        )
    height, width, _ = shapes.pop()
    images = np.zeros((length, valid.shape[1], 3, height, width), dtype=np.uint8)
    for q, k in enumerate(frames):
        for c, image in decoded[k].items():
            put_planes(image, images[q, c])
    return {"images": images, **arrays}
