"""One stage of training as a Lightning module; `training_step` is the method in a paragraph."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.fields import Fields
from model.network import OccFlow
from train.batch import Batch
from train.cast import CameraCast, cast_camera_rays
from train.coarse import halved
from train.config import TrainConfig
from train.losses.averages import masked_mean
from train.losses.dynamic import Motion
from train.losses.photometric import lowest, photometric_loss
from train.losses.regularise import hessian
from train.losses.total import LossTerms, read_back
from train.motion_terms import add_motion, add_pixel_motion
from train.rays import beside, draw_ray_grid
from train.schedule import build_optimiser, rate_factor, set_rates, temperature_bound
from train.stage import Stage
from train.supervise import (
    compare_with,
    eikonal_everywhere,
    everything_free,
    everything_static,
    matter_behind,
    matter_on_jittered_grid,
    separate_motion,
    smooth_depth,
)
from train.supervise_lidar import supervise_pixel_depth, supervise_ranges
from train.watch import Watch


class StageModule(pl.LightningModule, Stage):
    """Trains a network through one stage.

    Everything random in a step is seeded from (seed, stage, step, rank): the rays, samples and jitter by a generator of
    the step's own, the network's dropout by torch's global one. What a sample draws (neighbours, LiDAR returns) is
    seeded from (seed, stage, draw). `fixed_seed` takes the place of all that, for measurements that are compared with
    each other.
    `keyframes` says which keyframes a step of this process holds.
    """

    def __init__(self, config: TrainConfig, stage: int, network: OccFlow, total_steps: int) -> None:
        super().__init__()
        Stage.__init__(self, config, stage, total_steps)
        self.network = network
        self.skipped = 0
        self.watch = Watch(config.optimiser.max_skipped)
        self.keyframes: Callable[[int], list[tuple[str, int]]] = lambda step: []
        self.fixed_seed: int | None = None
        self._numbers: dict[str, float] = {}
        self._unread: dict[str, Tensor | float] = {}
        self.totals: list[float] = []
        self.optimiser_state: dict | None = None
        # Where nothing is measured about motion its head would get no gradient at all.
        network.flow_head.requires_grad_(stage == 2)
        if network.pixel_motion_head is not None:
            network.pixel_motion_head.requires_grad_(stage == 2)
        if network.movable_head is not None:
            network.movable_head.requires_grad_(stage == 2)
        network.renderer.temperature.freeze(stage == 2 and config.ablation.two_stage)

    def training_step(self, batch: Batch, index: int) -> Float[Tensor, ""]:
        """One step of the method: predict the fields, render them, see what moves, compare with every cue (eq. 12)."""
        loss, generator, terms = self.config.loss, self._generator(), LossTerms()
        if self.images_only:
            return self._image_step(batch, terms)

        # From three keyframes to the fields of geometry and motion, and along camera rays to images (eqs. 1-7, 13).
        fields = self.network(batch.frames, motion=self.stage == 2)
        cast = self._cast(fields, batch, generator)

        # What moves: rays whose flow cue disagrees with depth and ego-motion, on movable things (eq. 10).
        motion = self._motion(cast, batch)

        self._add_photometric(terms, cast, motion, batch)
        if self.stage == 2:
            splats = self._generator(purpose=2)
            add_motion(terms, fields, cast, motion, batch, self.network, self.config, splats)
        if batch.return_points is not None:
            self._add_returns(terms, fields, batch, generator)

        # A signed distance field, smooth, with matter only where something was seen (eq. 15 and B.6).
        samples = loss.eikonal_samples
        terms.add("eikonal", eikonal_everywhere(fields, cast, samples, generator), loss.eikonal)
        terms.add("hessian", hessian(fields.sdf, fields.grid.voxel_size), loss.hessian)
        terms.add("smooth_depth", smooth_depth(cast), loss.smooth_depth)
        terms.add("sparsity_grid", matter_on_jittered_grid(fields, generator), loss.sparsity_grid)
        terms.add("sparsity_hidden", matter_behind(cast, loss), loss.sparsity_hidden)

        total = terms.total()
        self._record(terms, total)
        self._record_cast(cast, motion)
        return total

    def _add_photometric(self, terms: LossTerms, cast: CameraCast, motion: Motion, batch: Batch) -> None:
        """Reprojection into an earlier and a later image (eq. 8); the earlier one judges static rays only, and so do
        images further on, which see what is hidden in the later one."""
        loss = self.config.loss
        earlier_rays = motion.static if self._disentangled else cast.usable
        earlier = compare_with(cast, batch.earlier, motion, earlier_rays)
        later = compare_with(cast, batch.later, motion, cast.usable)
        further = [compare_with(cast, view, motion, earlier_rays) for view in batch.further_views()]
        photo = photometric_loss([earlier, lowest([later, *further])], loss.neighbours, loss.automask)
        terms.add(
            "photometric", photo.loss, loss.photometric,
            compared=photo.rays, dropped=photo.dropped, stationary=photo.stationary,
        )  # fmt: skip

    def _add_returns(self, terms: LossTerms, fields: Fields, batch: Batch, generator: torch.Generator) -> None:
        """Rays to returns, cast from where they were measured."""
        loss, far = self.config.loss, self.config.rays.far_sample
        rays = supervise_ranges(
            fields, self.network.renderer, batch, loss,
            step=self.anneal_step, far_sample=far, generator=generator,
        )  # fmt: skip
        terms.add("lidar", rays.ranges, loss.lidar, returns=rays.returns)
        terms.add("lidar_spread", rays.spread, loss.lidar * loss.lidar_spread)
        terms.add("free_space", rays.free, loss.free_space)
        terms.add("surface", rays.surface, loss.surface)
        if fields.pixel_depth is not None and loss.pixel_depth:
            terms.add("pixel_depth", supervise_pixel_depth(fields.pixel_depth, batch), loss.pixel_depth)

    def _image_step(self, batch: Batch, terms: LossTerms) -> Float[Tensor, ""]:
        """A step of a stage's first part: what the current images alone say of depth, without a volume."""
        frames = halved(batch.frames) if self.progress < self.settings.coarse_share else batch.frames
        if self.stage == 2 and self.network.pixel_motion_head is not None:
            predicted, motion = self.network.pixel_motion(frames)
            add_pixel_motion(terms, motion, batch, self.config)
        else:
            predicted = self.network.pixel_depth(frames)
        terms.add("pixel_depth", supervise_pixel_depth(predicted, batch), self.config.loss.pixel_depth)
        total = terms.total()
        self._record(terms, total)
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW by part, continued where a checkpoint left it."""
        optimiser = build_optimiser(
            self.network.named_parameters(),
            self.settings,
            self.config.optimiser,
            scaled=self.config.run.precision == "16-mixed",
        )
        if self.optimiser_state is not None:
            optimiser.load_state_dict(self.optimiser_state)
            self.optimiser_state = None
        return optimiser

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rates, and seed what the network itself draws (dropout)."""
        torch.manual_seed(self._seed(0))
        set_rates(self.optimizers(), rate_factor(self.settings, self.step, self.progress))  # type: ignore[arg-type]
        start = self.config.model.render.temperature_v
        self.network.renderer.temperature.keep_above(temperature_bound(self.settings, start, self.progress))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip; a step whose gradient is not finite changes nothing and is counted (see `Watch`)."""
        trained = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
        # The one moment of a step at which the host waits for a GPU: it reads the verdict and all numbers together.
        self._unread["optimiser/gradient_norm"] = norm
        if math.isfinite(self.numbers["optimiser/gradient_norm"]):
            torch.nn.utils.clip_grads_with_norm_(trained, self.config.optimiser.clip, norm)
            self.watch.good_step()
        else:
            self.skipped += 1
            where = f"stage {self.stage}, step {self.step}"
            self.watch.bad_step(where, self.numbers, self.keyframes(self.step), self.network.named_parameters())
            optimizer.zero_grad(set_to_none=True)
        self.numbers["optimiser/skipped"] = float(self.skipped)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and count it before any callback can save: a checkpoint must not repeat it."""
        whole = not self.images_only
        super().optimizer_step(*args, **kwargs)
        self.step += 1
        self.whole_steps += whole

    @property
    def numbers(self) -> dict[str, float]:
        """What is logged of the last step, by name; the first look after a step reads it from the device."""
        if self._unread:
            read = read_back(self._unread)
            self._unread = {}
            self._numbers |= read
            self.totals += [read["loss/total"]] if "loss/total" in read else []
        return self._numbers

    @numbers.setter
    def numbers(self, numbers: dict[str, float]) -> None:
        self._numbers, self._unread = numbers, {}

    @property
    def _disentangled(self) -> bool:
        return self.stage == 1 or self.config.ablation.dynamic_disentanglement

    def _seed(self, purpose: int) -> int:
        if self.fixed_seed is not None:
            return self.fixed_seed + purpose
        key = [self.config.seed, self.stage, self.step, self.global_rank, purpose]
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1

    def _generator(self, purpose: int = 1) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(purpose))

    def _cast(self, fields: Fields, batch: Batch, generator: torch.Generator) -> CameraCast:
        rays = self.config.rays
        size = (batch.images.shape[-2], batch.images.shape[-1])
        grid = draw_ray_grid(size, rays.grid, rays.strides, generator)
        count = batch.K.shape[1] * rays.grid[0] * rays.grid[1]
        jitter = beside(torch.rand(len(batch.K), count, generator=generator), batch.K)
        return cast_camera_rays(
            fields, self.network.renderer, batch, grid,
            jitter=jitter, step=self.anneal_step, with_flow=self.stage == 2, far_sample=rays.far_sample,
        )  # fmt: skip

    def _motion(self, cast: CameraCast, batch: Batch) -> Motion:
        if self.stage == 1:
            return everything_static(cast)
        if not self._disentangled:
            return everything_free(cast)
        loss = self.config.loss
        return separate_motion(cast, batch, loss.dynamic_pixels * cast.size[1] / loss.reference_width)

    def _record(self, terms: LossTerms, total: Tensor) -> None:
        self._unread = terms.log() | {"loss/total": total.detach()}

    def _record_cast(self, cast: CameraCast, motion: Motion) -> None:
        self._unread |= {
            "rays/usable": cast.usable.sum(),
            "rays/dynamic": motion.dynamic.sum(),
            "render/inv_s": self.network.renderer.temperature().detach(),
            "render/mean_depth": masked_mean(cast.depth.detach(), cast.usable),
            # Of all that cameras see: rays that hold nothing are what an empty volume is told by.
            "render/opacity": masked_mean(cast.held().detach(), cast.met),
        }
