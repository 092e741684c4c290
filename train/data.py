"""Keyframes as training samples: read from the store, drawn from seeds, re-centred on the current ego pose."""

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from geometry.cameras import scale_intrinsics
from model.fields import FrameInput
from storage.queue import queue_keyframes
from storage.reader import StoreReader
from storage.schema import MASK_TABLE_ROWS, StoreAttributes
from train.batch import Batch, FlowTarget, View, collate, stack
from train.config import TrainConfig
from train.frames import SINGLE_USE, ByteCache, CachedScene, average_blocks, render_factor
from train.mirror import mirrored
from train.neighbours import KEYFRAME, Neighbour, draw_neighbour, view_geometry
from train.order import EpochOrder
from train.points import PointCues
from train.sampler import StepSampler
from train.selection import Exclusion, image_step_cues, marked_frames, needed_cues, reads_backward_flow


class KeyframeDataset(Dataset[Batch]):
    """Samples by (draw, frame): `frame` indexes `frames`, `draw` seeds everything that is drawn. A share of them, given
    as `mirrored`, is seen in a mirror.

    Draws below `image_draws` are for steps that look at the keyframe's images alone, and in the second stage at those
    of the keyframe before where the network compares them: they hold no other images, no other keyframe's returns, and
    no cue that such a step does not learn from. Most of a sample's time goes into these.

    The store is opened by whichever process reads first, so the data set pickles into spawned workers.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: int,
        frames: list[tuple[str, int]],
        cache_bytes: int,
        mirrored: float = 0.0,
        image_draws: int = 0,
    ) -> None:
        self.config, self.stage, self.frames, self.mirrored = config, stage, frames, mirrored
        self.image_draws = image_draws
        self._cues = needed_cues(config, stage)
        self._image_cues = image_step_cues(config, stage)
        self._queue = config.model.fusion.history + 1
        self._image_queue = min(self._queue, 2 if stage == 2 and config.model.pixel_motion.cell else 1)
        self._cache_bytes = cache_bytes
        self._excluded = Exclusion(config.data.held_out, marked_frames(config).frames)
        self._points = PointCues(config, self._cues, self._excluded, self._flow, self._movable)
        self._reader: StoreReader | None = None
        self._scenes: dict[str, CachedScene] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_reader": None, "_scenes": {}}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        draw, frame = key
        name, t = self.frames[frame]
        rng = np.random.default_rng([self.config.seed, self.stage, draw])
        sample = self._sample(self._scene(name), t, rng, images_alone=draw < self.image_draws)
        # Drawn last: what a draw is seen with does not depend on whether runs have mirrors.
        return mirrored(sample) if self.mirrored and rng.random() < self.mirrored else sample

    def _scene(self, name: str) -> CachedScene:
        if self._reader is None:
            self._reader = StoreReader(self.config.store)
            self._cache = ByteCache(self._cache_bytes)
            self._factor = render_factor(self._reader)
        if name not in self._scenes:
            # Where near keyframes are drawn together, what no other sample reads would push out what others do.
            once = SINGLE_USE if self.config.data.locality.block else frozenset[str]()
            self._scenes[name] = CachedScene(
                self._reader.scene(name), self._cache, self._factor, self._attributes.render_size, once
            )
        return self._scenes[name]

    def _sample(self, scene: CachedScene, t: int, rng: np.random.Generator, images_alone: bool) -> Batch:
        cues, length = (self._image_cues, self._image_queue) if images_alone else (self._cues, self._queue)
        self._fetch(scene, t, cues, length)
        queue = scene.queue(t, length)
        valid = queue["camera_valid"][-1]
        returns = self._points.returns(scene, t, rng, own_alone=images_alone)
        earlier, later, further = (None, None, []) if images_alone else self._beside(scene, t, rng)
        view = self._geometry if images_alone else self._view
        images = torch.from_numpy(average_blocks(queue["images"][-1], self._factor))
        # Losses compare with flow in the second stage alone; points that are triangulated from it are worked out once.
        next_cue = self._flow(scene, "next", t, valid) if self.stage == 2 and "flow_next" in cues else None
        back_slot = self.config.data.backward_cue if reads_backward_flow(self.config, self.stage) else None
        batch = Batch(
            frames=FrameInput(**{key: torch.from_numpy(value) for key, value in queue.items()}),
            images=images,
            K=torch.from_numpy(scale_intrinsics(queue["K"][-1], 1 / self._factor, 1 / self._factor)),
            ref_from_cam=torch.from_numpy(queue["ref_from_cam"][-1]),
            camera_valid=torch.from_numpy(valid),
            earlier=view(scene, t, earlier),
            later=view(scene, t, later),
            flow_next=next_cue,
            flow_back=self._flow(scene, back_slot, t, valid) if back_slot is not None else None,
            movable=self._movable(scene, t, valid) if "masks" in cues else None,
            return_points=None if returns is None else returns.points,
            return_valid=None if returns is None else returns.valid,
            return_own=None if returns is None else returns.own,
            return_origins=None if returns is None else returns.origins,
            further=stack([self._view(scene, t, one) for one in further]) if further else None,
        )
        if "masks" in cues and (self.config.loss.instance_flow or self.config.data.weigh_by_confidence):
            batch.instances, batch.mask_score = self._instances(scene, t, valid)
        if self.stage == 2:
            self._points.add_moving(scene, t, batch, rng)
            self._points.add_still(scene, t, batch, rng)
            self._points.add_adjacent(scene, t, batch, rng)
        return batch

    def _beside(
        self, scene: CachedScene, t: int, rng: np.random.Generator
    ) -> tuple[Neighbour | None, Neighbour | None, list[Neighbour | None]]:
        """The earlier image, the later one, and those further on, that the sample is compared with."""
        earlier, later = self._neighbour(scene, t, "earlier", rng), self._later(scene, t, rng)
        self._fetch_neighbours(scene, earlier, later)
        further = self._further(scene, t, later, rng) if self.config.data.future_frames else []
        return earlier, later, further

    def _fetch(self, scene: CachedScene, t: int, needed: tuple[str, ...], length: int) -> None:
        """Ask for all that is certain to be read of a sample with a queue of so many keyframes, before the first of it
        is decoded."""
        queue = set(queue_keyframes(t, length))
        wanted = [("images", "image", k) for k in queue]
        kinds = {"masks": "movable", "lidar": "lidar"}
        cues = (cue for cue in needed if cue not in ("images", "sweeps"))
        scene.prefetch([*wanted, *((cue, kinds.get(cue, cue.removeprefix("flow_")), t) for cue in cues)])

    def _fetch_neighbours(self, scene: CachedScene, *drawn: Neighbour | None) -> None:
        """The same for the images beside, once they are drawn."""
        there = [n for n in drawn if n is not None]
        keyframes = [("images", "render", n.t) for n in there if n.sweep == KEYFRAME]
        scene.prefetch([*keyframes, *(("sweeps", "sweep", n.t, n.sweep) for n in there if n.sweep != KEYFRAME)])

    def _usable(self, scene: CachedScene, neighbour: Neighbour) -> bool:
        cue = "images" if neighbour.sweep == KEYFRAME else "sweeps"
        return not self._excluded(scene.name, neighbour.t) and scene.has(cue, neighbour.t)

    def _neighbour(
        self,
        scene: CachedScene,
        t: int,
        direction: str,
        rng: np.random.Generator,
        passed_over: tuple[Neighbour | None, ...] = (),
    ) -> Neighbour | None:
        def usable(neighbour: Neighbour) -> bool:
            return neighbour not in passed_over and self._usable(scene, neighbour)

        return draw_neighbour(scene.table, t, direction, self.config.data.neighbour, usable, rng)  # type: ignore[arg-type]

    def _later(self, scene: CachedScene, t: int, rng: np.random.Generator) -> Neighbour | None:
        """Stage 1: drawn. Stage 2: the next keyframe, where the flow cue ends."""
        if self.stage == 1:
            return self._neighbour(scene, t, "later", rng)
        return self._keyframe(scene, t + 1)

    def _further(
        self, scene: CachedScene, t: int, later: Neighbour | None, rng: np.random.Generator
    ) -> list[Neighbour | None]:
        """`data.future_frames` images after the later one, None where there are fewer. Stage 1: drawn by the same rule,
        each once. Stage 2: the keyframes that follow."""
        taken, count = [later], self.config.data.future_frames
        if self.stage == 1:
            for _ in range(count):
                taken.append(self._neighbour(scene, t, "later", rng, passed_over=tuple(taken)))
        else:
            taken += [self._keyframe(scene, t + 2 + k) for k in range(count)]
        self._fetch_neighbours(scene, *taken[1:])
        return taken[1:]

    def _keyframe(self, scene: CachedScene, t: int) -> Neighbour | None:
        """The images of a keyframe, None where they may not or cannot be used."""
        neighbour = Neighbour(t)
        return neighbour if t < scene.table.length and self._usable(scene, neighbour) else None

    def _view(self, scene: CachedScene, t: int, neighbour: Neighbour | None) -> View:
        view = self._geometry(scene, t, neighbour)
        if neighbour is None or neighbour.sweep == KEYFRAME:
            k = t if neighbour is None else neighbour.t
            view.images = self._stack(view.valid.numpy(), lambda c: scene.render_image(k, c))
        else:
            view.images = self._stack(view.valid.numpy(), lambda c: scene.sweep_image(neighbour.t, neighbour.sweep, c))
        return view

    def _geometry(self, scene: CachedScene, t: int, neighbour: Neighbour | None) -> View:
        interval = self._attributes.keyframe_interval_s
        view = view_geometry(scene.table, t, neighbour, 1 / self._factor, interval)
        return View(**{key: torch.from_numpy(value) for key, value in vars(view).items()})

    @property
    def _attributes(self) -> StoreAttributes:
        assert self._reader is not None
        return self._reader.attributes

    def _stack(self, valid: np.ndarray, read: Callable[[int], np.ndarray]) -> torch.Tensor:
        """Images (C, 3, h, w) at render size, black where the camera is missing."""
        images = np.zeros((len(valid), 3, *self._attributes.render_size), dtype=np.uint8)
        for c in np.flatnonzero(valid):
            images[c] = read(int(c))
        return torch.from_numpy(images)

    def _movable(self, scene: CachedScene, t: int, valid: np.ndarray) -> torch.Tensor:
        movable = np.zeros((len(valid), *self._attributes.render_size), dtype=bool)
        for c in np.flatnonzero(valid):
            movable[c] = scene.movable(t, int(c), self.config.data.min_mask_score)
        return torch.from_numpy(movable)

    def _instances(self, scene: CachedScene, t: int, valid: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Numbers of the movable things in each camera's image, and their scores where the run weighs by them."""
        instances = np.zeros((len(valid), *self._attributes.render_size), dtype=np.uint8)
        scores = np.ones((len(valid), MASK_TABLE_ROWS + 1), dtype=np.float32)
        for c in np.flatnonzero(valid):
            instances[c], scores[c] = scene.numbered(t, int(c), self.config.data.min_mask_score)
        weighed = self.config.data.weigh_by_confidence
        return torch.from_numpy(instances), torch.from_numpy(scores) if weighed else None

    def _flow(self, scene: CachedScene, slot: str, t: int, valid: np.ndarray) -> FlowTarget:
        """The slot's cue. Each camera's target may be another image: geometry is gathered camera by camera."""
        size = self._attributes.render_size
        flow = np.zeros((len(valid), 2, *size), dtype=np.int16)
        known = np.zeros((len(valid), *size), dtype=bool)
        confidence = np.zeros((len(valid), *size), dtype=np.uint8)
        targets: dict[Neighbour | None, list[int]] = {None: []}
        for c in range(len(valid)):
            target = None
            if valid[c]:
                cue = scene.flow(slot, t, c, self.config.data.min_flow_confidence)
                target = Neighbour(cue.target_frame, cue.target_sweep) if cue.target_frame >= 0 else None
                if target is not None and self._excluded(scene.name, target.t):
                    target = None
                if target is not None:
                    flow[c], known[c], confidence[c] = cue.flow, cue.known, cue.confidence
            targets.setdefault(target, []).append(c)
        view = self._geometry(scene, t, None)
        for target, cameras in targets.items():
            if target is not None:
                there = self._geometry(scene, t, target)
                for name in ("cam_from_ref", "K", "interval", "valid"):
                    getattr(view, name)[cameras] = getattr(there, name)[cameras]
        flow[~known[:, None].repeat(2, axis=1)] = 0
        return FlowTarget(
            flow=torch.from_numpy(flow),
            known=torch.from_numpy(known),
            view=view,
            confidence=torch.from_numpy(confidence) if self.config.data.weigh_by_confidence else None,
        )


def build_loader(
    config: TrainConfig,
    stage: int,
    frames: list[tuple[str, int]],
    steps: int,
    first: int = 0,
    rank: int = 0,
    world: int = 1,
    image_draws: int = 0,
) -> DataLoader[Batch]:
    """Batches of `steps` steps from draw `first` on, as `StepSampler` deals them out; `image_draws` as for
    `KeyframeDataset`.

    Workers start by spawn: a forked one would share the store's open files.
    """
    workers = config.data.workers
    share = (config.stage1 if stage == 1 else config.stage2).mirrored
    cache_bytes = config.data.cache_mb * 2**20 // max(1, workers)
    dataset = KeyframeDataset(config, stage, frames, cache_bytes, share, image_draws)
    order = EpochOrder(frames, config.seed, stage, config.data.locality)
    sampler = StepSampler(order, config.run.batch, steps, first, rank, world)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=False,
        pin_memory=torch.cuda.is_available() and config.run.accelerator != "cpu",
    )
