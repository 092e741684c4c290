"""What is drawn of a keyframe in 3D: returns that rays are cast to, spots that move, spots that stand still."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from geometry.transforms import invert, transform_points
from train.batch import Adjacent, Batch, FlowTarget
from train.config import TrainConfig
from train.frames import CachedScene
from train.lifted_flow import lifted_spots
from train.returns import (
    NEAR_MOTION_M,
    Measured,
    Raised,
    Returns,
    draw_returns,
    draw_with_neighbours,
    drawn_order,
    filled,
    lidar_returns,
    movable_obstacles,
    padded,
    still_returns,
    thinned,
)
from train.selection import triangulation_cues
from train.standing import standing_things
from train.triangulate import triangulated_returns

RAISED_M = 0.4
"""Metres over the ground from which on a spot does not lie on it."""

Targets = Callable[[CachedScene, str, int, np.ndarray], FlowTarget]
"""A flow cue of a keyframe's valid cameras, by scene, slot, keyframe, camera_valid."""
Masks = Callable[[CachedScene, int, np.ndarray], torch.Tensor]
"""Where movable things are in a keyframe's valid cameras, bool (cameras, h, w)."""


class PointCues:
    """Draws from LiDAR, and from points that flow cues give, what the stage's losses ask for.

    `cues`: those that the stage reads (`selection.needed_cues`). `excluded`: keyframes of which nothing may be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        cues: Sequence[str],
        excluded: Callable[[str, int], bool],
        targets: Targets,
        movable: Masks,
    ) -> None:
        self.rays, self.loss, self.score = config.rays, config.loss, config.data.min_mask_score
        self._adjacent = config.loss.splat > 0 and config.splat.adjacent > 0
        self._lidar, self._cues = "lidar" in cues, frozenset(cues)
        self._triangulation_cues = triangulation_cues(config)
        self._excluded, self._targets, self._movable = excluded, targets, movable
        self._grid, self._ground_z = config.model.grid.build(), config.model.depth_lift.ground_z
        over_ground = self._ground_z + RAISED_M
        self._raised, self._still_raised = (
            Raised(share, over_ground) for share in (config.rays.raised, config.rays.still_raised)
        )

    def returns(self, scene: CachedScene, t: int, rng: np.random.Generator, own_alone: bool = False) -> Returns | None:
        """The returns that this draw casts, of the keyframe and of those within `rays.lidar_reach` of it: LiDAR's,
        those that flow cues give (`rays.triangulated`), and the keyframe's on things that stand on the ground
        (`rays.standing`). `own_alone`: without other keyframes', as many of its own as there would be beside them."""
        reach = self.rays.lidar_reach
        near = range(max(0, t - reach), min(scene.table.length, t + reach + 1))
        others = [k for k in near if k != t and not self._excluded(scene.name, k)]
        beside = bool(others) and not own_alone
        obstacles = self._obstacles(scene, t) if beside else np.zeros((0, 3), dtype=np.float32)
        parts: list[Returns] = []

        def draw(measured: Callable[[int], Measured], count: int, needed: Sequence[str]) -> None:
            there = [k for k in others if all(scene.has(cue, k) for cue in needed)]
            own, grid, raised = self.rays.lidar_own, self._grid, self._raised
            if own_alone:
                mine = round(count * own) if there else count
                parts.append(filled(draw_returns(measured(t), grid, mine, rng, raised=raised), count))
                return
            parts.append(
                draw_with_neighbours(measured, scene.table, t, there, obstacles, grid, count, own, rng, raised)
            )

        if self._lidar:
            draw(lambda k: lidar_returns(scene, k, self.score, beside), self.rays.lidar, ("lidar", "masks"))
        if self.rays.triangulated:
            draw(lambda k: self._triangulated(scene, k), self.rays.triangulated, self._triangulation_cues)
        if self.rays.standing:
            parts.append(draw_returns(self._standing(scene, t), self._grid, self.rays.standing, rng))
        return Returns(*(torch.cat(columns) for columns in zip(*parts, strict=True))) if parts else None

    def _obstacles(self, scene: CachedScene, t: int) -> np.ndarray:
        """Where movable things are, as far as the run may know."""
        if self._lidar:
            return movable_obstacles(scene, t, self.score)
        if self.rays.standing:
            return thinned(self._standing(scene, t).points, NEAR_MOTION_M / 2)
        return np.zeros((0, 3), dtype=np.float32)

    def add_moving(self, scene: CachedScene, t: int, batch: Batch, rng: np.random.Generator) -> None:
        """Spots on movable things and their motion, where `loss.lifted_flow` learns from it: by the keyframe's returns,
        or in a camera-only run that triangulates its own by the ground that things stand on."""
        known = {"masks", "flow_next"} <= self._cues and (self._lidar or self.rays.triangulated)
        if not (self.loss.lifted_flow and known) or batch.flow_next is None:
            return
        edge, ground = min(self._grid.voxel_size), None if self._lidar else self._ground_z
        spots = scene.derived("lifted", t, self.score, lambda: lifted_spots(scene, t, self.score, batch, edge, ground))
        drawn, batch.moving_valid = _draw(spots, self.rays.moving, rng)
        batch.moving_points, batch.moving_motion = drawn[:, :3], drawn[:, 3:5]
        batch.moving_weight = drawn[:, 5:].unflatten(1, (2, 2))

    def add_still(self, scene: CachedScene, t: int, batch: Batch, rng: np.random.Generator) -> None:
        """Spots that stand still, one per voxel, where `loss.lifted_still` learns from them."""
        lidar = {"lidar", "masks"} <= self._cues
        if not (self.loss.lifted_still and (lidar or self.rays.triangulated)):
            return

        def make() -> np.ndarray:
            points = still_returns(scene, t, self.score) if lidar else self._triangulated(scene, t).points
            return thinned(points[self._grid.contains(points.astype(np.float64))], min(self._grid.voxel_size))

        spots = scene.derived("still", t, self.score, make)
        batch.still_points, batch.still_valid = _draw(spots, self.rays.still, rng, self._still_raised)

    def add_adjacent(self, scene: CachedScene, t: int, batch: Batch, rng: np.random.Generator) -> None:
        """Masks and returns of the next keyframe, where `loss.splat` compares moved Gaussians with them."""
        if not self._adjacent:
            return
        there = batch.later.valid.numpy()
        masked = there & scene.has("masks", t + 1) if there.any() else there
        size, count = (len(there), *scene.render_size), self.rays.lidar
        movable = self._movable(scene, t + 1, masked) if masked.any() else torch.zeros(size, dtype=torch.bool)
        points, valid = torch.zeros(count, 3), torch.zeros(count, dtype=torch.bool)
        if self._lidar and there.any() and scene.has("lidar", t + 1):
            pose, next_pose = np.asarray(scene.table.global_from_ego[[t, t + 1]], dtype=np.float64)
            measured = scene.lidar(t + 1)[0].astype(np.float64)
            here = transform_points(invert(pose) @ next_pose, measured)
            inside = here[self._grid.contains(here)].astype(np.float32)
            points, valid = _draw(inside, count, rng)
        batch.adjacent = Adjacent(movable, torch.from_numpy(masked), points, valid)

    def _triangulated(self, scene: CachedScene, t: int) -> Measured:
        """Points that the keyframe's flow cues give, worked out once."""

        def make() -> np.ndarray:
            valid = np.asarray(scene.table.camera_valid[t], dtype=bool)
            slots = [cue.removeprefix("flow_") for cue in self._triangulation_cues if cue.startswith("flow_")]
            targets = [self._targets(scene, slot, t, valid) for slot in slots]
            return triangulated_returns(*scene.cameras(t), valid, self._movable(scene, t, valid).numpy(), targets)

        found = scene.derived("triangulated", t, self.score, make)
        return Measured(found[:, :3], found[:, 3:], np.ones(len(found), dtype=bool))

    def _standing(self, scene: CachedScene, t: int) -> Measured:
        """Pixels of movable things that are seen to stand on the ground, as returns of their cameras."""

        def make() -> np.ndarray:
            rows = [np.zeros((0, 6), dtype=np.float32)]
            ego_from_cam, K = scene.cameras(t)
            for c in np.flatnonzero(scene.table.camera_valid[t]):
                things = standing_things(scene.instances(t, int(c), self.score), ego_from_cam[c], K[c], self._ground_z)
                points = things.points(ego_from_cam[c], K[c])
                origins = np.broadcast_to(ego_from_cam[c, :3, 3], points.shape)
                rows.append(np.concatenate([points, origins], axis=1).astype(np.float32))
            return np.concatenate(rows)

        found = scene.derived("standing", t, self.score, make)
        return Measured(found[:, :3], found[:, 3:], np.zeros(len(found), dtype=bool))


def _draw(
    spots: np.ndarray, count: int, rng: np.random.Generator, raised: Raised | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` rows without replacement, zeros where there are fewer, and which are rows."""
    return padded(spots[drawn_order(spots, count, rng, raised)[:count]], count)
