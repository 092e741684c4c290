"""The second stage's terms: optical flow, what else tells motion, and the calm of what stands."""

import torch

from model.fields import Fields
from model.network import OccFlow
from model.pixel_motion import PixelMotion
from train.batch import Batch
from train.cast import CameraCast
from train.config import TrainConfig
from train.losses.dynamic import Motion
from train.losses.total import LossTerms
from train.supervise import calm_static, smooth_flow, supervise_flow
from train.supervise_instances import supervise_instances
from train.supervise_lidar import supervise_lifted_flow, supervise_still
from train.supervise_pixel_motion import supervise_match, supervise_pixel_motion, supervise_places
from train.supervise_splat import supervise_splat


def add_motion(
    terms: LossTerms,
    fields: Fields,
    cast: CameraCast,
    motion: Motion,
    batch: Batch,
    network: OccFlow,
    config: TrainConfig,
    generator: torch.Generator,
) -> None:
    """All of them, each with its weight; `generator` draws what is splatted."""
    loss = config.loss
    if config.ablation.flow_supervision:
        flow = supervise_flow(cast, batch, motion, config)
        terms.add(
            "flow", flow.total, loss.flow,
            static=flow.static_rays, dynamic=flow.dynamic_rays, dropped=flow.dropped, gamma=flow.gamma,
        )  # fmt: skip
    if batch.moving_points is not None:
        lifted, spots = supervise_lifted_flow(fields, batch)
        terms.add("lifted_flow", lifted, loss.lifted_flow, spots=spots)
    if batch.still_points is not None:
        terms.add("lifted_still", supervise_still(fields, batch), loss.lifted_still)
    if fields.pixel_motion is not None:
        add_pixel_motion(terms, fields.pixel_motion, batch, config)
    if batch.instances is not None and loss.instance_flow:
        rigid, on_instances = supervise_instances(cast, batch)
        terms.add("instance_flow", rigid, loss.instance_flow, instances=on_instances)
    if loss.splat:
        splats = supervise_splat(fields, network, batch, cast, config, generator)
        for name, (value, weight) in splats.values.items():
            terms.add(f"splat_{name}", value, loss.splat * weight)
        terms.counts |= {f"splat_{name}": count for name, count in splats.counts.items()}
    terms.add("dreg", calm_static(cast, motion, loss), loss.dreg)
    terms.add("smooth_flow", smooth_flow(cast), loss.smooth_flow)


def add_pixel_motion(terms: LossTerms, motion: PixelMotion, batch: Batch, config: TrainConfig) -> None:
    """Where image cells were one keyframe earlier, and how they moved."""
    loss = config.loss
    if not config.ablation.flow_supervision:
        return
    if batch.flow_back is not None and loss.pixel_match:
        match, cells = supervise_match(motion, batch)
        terms.add("pixel_match", match, loss.pixel_match, cells=cells)
    if loss.pixel_place:
        places, cells = supervise_places(motion, batch)
        terms.add("pixel_place", places, loss.pixel_place, cells=cells)
    if loss.pixel_motion:
        terms.add("pixel_motion", supervise_pixel_motion(motion, batch, loss), loss.pixel_motion)
