"""One keyframe of a store as an inspection reads it: images, flow, masks, LiDAR and truth, each read once and only
where it is asked for."""

from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from eval.inspection.ego_motion import Camera, MotionFit, StaticFlow, camera_at, fit_motion, seen_points, static_flow
from eval.inspection.lidar_checks import depth_edges, edge_strength
from storage.reader import FlowCue, LidarCue, SceneReader
from storage.schema import StoreAttributes
from storage.truth import PairedTruth

LEAST_POINTS = 30
"""LiDAR points from which on a residual is judged."""


class Keyframe:
    """A keyframe of a scene; what all its cameras share."""

    def __init__(
        self, scene: SceneReader, attributes: StoreAttributes, t: int, truth: PairedTruth | None = None
    ) -> None:
        self.scene, self.attributes, self.t, self.truth = scene, attributes, t, truth
        self.table = scene.table
        self.scale = attributes.render_size[1] / attributes.network_size[1]
        self.factor = round(1 / self.scale)
        self._cameras: dict[int, View] = {}

    def has(self, cue: str, t: int | None = None) -> bool:
        """Whether a cue is committed at this keyframe, or at keyframe `t`."""
        return self.scene.has(cue, self.t if t is None else t)

    @cached_property
    def points(self) -> Float[np.ndarray, "n 3"] | None:
        """LiDAR points in the ego frame, metres; None where there are none."""
        if self.sweep is None:
            return None
        points = self.sweep.points[:, :3].astype(np.float64)
        points = points[np.isfinite(points).all(axis=1)]
        return points if len(points) else None

    @cached_property
    def sweep(self) -> LidarCue | None:
        """The sweep as it is stored; None where it is not committed."""
        return self.scene.lidar(self.t) if self.has("lidar") else None

    @cached_property
    def origin(self) -> Float[np.ndarray, "3"]:
        """The LiDAR's position in the ego frame, metres; needs `points`."""
        assert self.sweep is not None
        return np.nan_to_num(self.sweep.origin.astype(np.float64))

    @cached_property
    def edges(self) -> Float[np.ndarray, "k 3"]:
        """Silhouettes of near things, ego frame, metres; needs `points`."""
        assert self.points is not None
        return depth_edges(self.points, self.origin)

    def cameras(self) -> list["View"]:
        """Cameras with an image in the table at this keyframe."""
        return [self.camera(int(c)) for c in np.flatnonzero(self.table.camera_valid[self.t])]

    def close(self) -> None:
        """Let go of the cameras. They and the keyframe hold each other: the images of both would stay in memory until
        the next garbage collection."""
        self._cameras.clear()

    def camera(self, c: int) -> "View":
        """One camera."""
        if c not in self._cameras:
            self._cameras[c] = View(self, c)
        return self._cameras[c]


class View:
    """One camera at a keyframe. Everything at render size, in render pixels."""

    def __init__(self, keyframe: Keyframe, c: int) -> None:
        self.keyframe, self.c = keyframe, c
        self.scene, self.t = keyframe.scene, keyframe.t
        self.size = keyframe.attributes.render_size

    @cached_property
    def image(self) -> UInt8[np.ndarray, "h w 3"] | None:
        """The image, None where it is not committed."""
        return self._image(self.t)

    @cached_property
    def strength(self) -> Float[np.ndarray, "h w"]:
        """Sideways edge strength of the image, which must be there."""
        assert self.image is not None
        return edge_strength(self.image)

    @cached_property
    def next_image(self) -> UInt8[np.ndarray, "h w 3"] | None:
        """The same camera's image at the next keyframe."""
        t = self.t + 1
        there = t < self.scene.length and bool(self.scene.table.camera_valid[t][self.c])
        return self._image(t) if there else None

    def _image(self, t: int) -> UInt8[np.ndarray, "h w 3"] | None:
        if not self.scene.has("images", t):
            return None
        image, f = self.scene.image(t, self.c), self.keyframe.factor
        if f == 1:
            return image
        height, width = self.size
        blocks = image.reshape(height, f, width, f, 3).astype(np.uint32).sum(axis=(1, 3))
        return (blocks // (f * f)).astype(np.uint8)

    @cached_property
    def cue(self) -> FlowCue | None:
        """The flow to the next keyframe, None where there is none or no target."""
        if not self.keyframe.has("flow_next"):
            return None
        cue = self.scene.flow("next", self.t, self.c)
        return cue if cue.target_frame == self.t + 1 and cue.target_sweep == -1 else None

    @cached_property
    def flow(self) -> Float[np.ndarray, "2 h w"] | None:
        """Its pixels, nan where there is none."""
        return None if self.cue is None else self.cue.pixels()[0]

    @cached_property
    def backward(self) -> Float[np.ndarray, "2 h w"] | None:
        """The next keyframe's flow back to this one."""
        t = self.t + 1
        if t >= self.scene.length or not self.scene.has("flow_prev", t):
            return None
        cue = self.scene.flow("prev", t, self.c)
        return cue.pixels()[0] if cue.target_frame == self.t and cue.target_sweep == -1 else None

    @cached_property
    def masks(self) -> Integer[np.ndarray, "h w"] | None:
        """Instance ids, 0 for background; None without the cue."""
        return self._masks(self.t)

    @cached_property
    def next_masks(self) -> Integer[np.ndarray, "h w"] | None:
        """The same at the next keyframe."""
        return self._masks(self.t + 1) if self.t + 1 < self.scene.length else None

    def _masks(self, t: int) -> Integer[np.ndarray, "h w"] | None:
        f = self.keyframe.factor
        return self.scene.masks(t, self.c)[f // 2 :: f, f // 2 :: f] if self.scene.has("masks", t) else None

    @cached_property
    def camera(self) -> Camera:
        """Pose and K now."""
        return camera_at(self.scene.table, self.t, self.t, self.c, self.keyframe.scale)

    @cached_property
    def seen(self) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Pixels and camera z (metres) of the LiDAR points that the image shows; needs the keyframe's points."""
        assert self.keyframe.points is not None
        return seen_points(self.keyframe.points, self.camera, self.size)[:2]

    @cached_property
    def static(self) -> StaticFlow | None:
        """What LiDAR and ego-motion say about the flow; None where either image or the sweep is missing."""
        points, t = self.keyframe.points, self.t + 1
        if points is None or self.flow is None or not self.scene.table.camera_valid[t][self.c]:
            return None
        following = camera_at(self.scene.table, self.t, t, self.c, self.keyframe.scale)
        return static_flow(points, self.camera, following, self.size)

    def at(self, layer: np.ndarray, uv: Float[np.ndarray, "n 2"]) -> np.ndarray:
        """Values of a layer (..., h, w) at the pixels that hold the positions."""
        return layer[..., np.floor(uv[:, 1]).astype(int), np.floor(uv[:, 0]).astype(int)]

    @cached_property
    def residual(self) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]] | None:
        """Flow less static flow at `static`'s points (px, nan without flow), and which of them are judged: outside
        masks, with a flow."""
        if self.static is None or self.flow is None:
            return None
        residual = self.at(self.flow, self.static.uv).T - self.static.flow
        judged = np.isfinite(residual).all(axis=1)
        if self.masks is not None:
            judged &= self.at(self.masks, self.static.uv) == 0
        return residual, judged

    @cached_property
    def fit(self) -> MotionFit | None:
        """The motion that explains the judged residuals best; None with fewer than `LEAST_POINTS`."""
        if self.residual is None or self.static is None or self.residual[1].sum() < LEAST_POINTS:
            return None
        residual, judged = self.residual
        K = camera_at(self.scene.table, self.t, self.t + 1, self.c, self.keyframe.scale).K
        return fit_motion(residual[judged], self.static.there[judged], K)

    @cached_property
    def truth(self) -> dict[str, np.ndarray] | None:
        """Exact depth, instances and flow, where the truth store has them."""
        source = self.keyframe.truth
        if source is None or not source.has("camera", self.t):
            return None
        return source.camera(self.t, self.c)

    @cached_property
    def true_masks(self) -> tuple[Integer[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """Instances, 0 for none, and what of the scene moves; needs truth."""
        assert self.truth is not None
        f = self.keyframe.factor
        instance, moving = (self.truth[key][f // 2 :: f, f // 2 :: f] for key in ("instance", "moving"))
        return instance, moving > 0
