"""Image attention: which cameras and anchors take part, against a loop, and with cameras that are missing."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from geometry.grid import VoxelGrid
from model.attention import deformable_attention, sampling_from
from model.config import TPVConfig
from model.planes import pillars
from model.tpv import ImageAttention, ImageFeatures, TPVEncoder
from model.visibility import CameraRig, see_pillars

GRID = VoxelGrid((-4.0, -4.0, -1.0), (4.0, 4.0, 3.0), (4, 4, 2))
CONFIG = TPVConfig(dim=8, ffn_dim=8, heads=2, layers=2, self_points=2, ground_anchors=2, side_anchors=3, dropout=0.0)
SIZE = (32, 56)
STRIDES = (4, 8, 16, 32)
K = torch.tensor([[20.0, 0, 28.0], [0, 20.0, 16.0], [0, 0, 1]])


def _rig(poses: Tensor, valid: Tensor | None = None) -> CameraRig:
    valid = torch.ones(1, len(poses), dtype=torch.bool) if valid is None else valid
    return CameraRig.build(K.expand(1, len(poses), 3, 3), poses[None], valid, SIZE)


def _levels(cameras: int, dim: int = 8) -> list[Tensor]:
    return [torch.randn(cameras, dim, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in STRIDES]


def test_visibility_equals_a_loop_over_cameras_and_points(look: Callable[..., Tensor]) -> None:
    poses = torch.stack([look(0.0), look(2.0, (0.5, -0.5, 1.2))])
    points = pillars(GRID, 0, anchors=2)
    sight = see_pillars(_rig(poses), points)
    for camera in range(2):
        rows = {}
        for query in range(len(points)):
            seen = []
            for anchor in points[query].double().numpy():
                local = np.linalg.inv(poses[camera].double().numpy()) @ np.append(anchor, 1.0)
                u = 20 * local[0] / local[2] + 28
                v = 20 * local[1] / local[2] + 16
                seen.append(bool(local[2] > 1e-3 and 0 <= u < SIZE[1] and 0 <= v < SIZE[0]))
            if any(seen):
                rows[query] = seen
        used = sight.used[camera]
        found = dict(zip(sight.query[camera][used].tolist(), sight.seen[camera].T[used].tolist(), strict=True))
        assert found == rows
        assert 0 < len(rows) < len(points)


def test_attention_is_the_mean_over_cameras_that_see_each_query(look: Callable[..., Tensor]) -> None:
    poses = torch.stack([look(0.0), look(0.6), look(3.0)])
    points = pillars(GRID, 0, anchors=2)
    sight = see_pillars(_rig(poses), points)
    attention = ImageAttention(CONFIG, anchors=2, levels=4)
    torch.nn.init.normal_(attention.sampling.weight, std=0.3)
    tokens, levels = torch.randn(1, len(points), 8), _levels(3)
    result = attention(tokens, ImageFeatures.build(levels, STRIDES), sight)

    offsets, logits = sampling_from(attention.sampling, tokens, 2, 4)
    seen_by = torch.zeros(len(points))
    for query in range(len(points)):
        parts = []
        for camera in range(3):
            local = torch.linalg.inv(poses[camera]) @ torch.cat([points[query], torch.ones(2, 1)], 1).T
            uv = ((K @ local[:3]) / local[2]).T[:, :2]
            inside = (local[2] > 1e-3) & (uv >= 0).all(1) & (uv < torch.tensor([SIZE[1], SIZE[0]])).all(1)
            if not inside.any():
                continue
            logit = logits[0, ..., query].masked_fill(~inside, -torch.inf)
            weight = torch.softmax(logit.reshape(2, 8), -1).reshape(1, 2, 4, 2, 1)
            sizes = torch.tensor([[x.shape[-1], x.shape[-2]] for x in levels])
            place = (uv / torch.tensor(STRIDES)[:, None, None] / sizes[:, None] * 2 - 1)[None, ..., None]
            maps = [x[camera : camera + 1] for x in levels]
            parts.append(deformable_attention(maps, place, offsets[..., query : query + 1], weight)[0, 0])
        seen_by[query] = len(parts)
        mean = torch.stack(parts).mean(0) if parts else torch.zeros(8)
        torch.testing.assert_close(result[0, query], attention.output(mean), atol=1e-5, rtol=1e-4)
    assert set(seen_by.tolist()) >= {0.0, 1.0, 2.0}, "the rig must cover queries seen by none, one and two cameras"


def test_a_camera_contributes_nothing_to_what_lies_behind_or_beside_it(look: Callable[..., Tensor]) -> None:
    poses = torch.stack([look(0.0), look(np.pi)])
    points = pillars(GRID, 0, anchors=2)
    sight = see_pillars(_rig(poses), points)
    attention = ImageAttention(CONFIG, anchors=2, levels=4)
    tokens, levels = torch.randn(1, len(points), 8), _levels(2)
    before = attention(tokens, ImageFeatures.build(levels, STRIDES), sight)
    for level in levels:
        level[1] += 1e3
    after = attention(tokens, ImageFeatures.build(levels, STRIDES), sight)
    behind_the_second = points[:, 0, 0] > 0
    assert torch.equal(before[0, behind_the_second], after[0, behind_the_second])
    assert not torch.allclose(before, after)


def test_a_camera_that_looks_out_of_the_volume_changes_nothing(look: Callable[..., Tensor]) -> None:
    poses = torch.stack([look(0.0), look(0.0, (4.5, 0.0, 1.0))])
    encoder = TPVEncoder(CONFIG, GRID, feature_dim=8)
    levels = _levels(2)
    before = encoder(levels, _rig(poses))
    disturbed = [level.clone() for level in levels]
    for level in disturbed:
        level[1] = torch.randn_like(level[1]) * 100
    assert torch.equal(encoder(disturbed, _rig(poses)), before)
    alone = encoder([level[:1] for level in levels], _rig(poses[:1]))
    torch.testing.assert_close(alone, before)


def test_missing_cameras_are_as_if_they_were_not_there(look: Callable[..., Tensor]) -> None:
    poses = torch.stack([look(0.0), look(1.0)])
    encoder = TPVEncoder(CONFIG, GRID, feature_dim=8)
    levels = _levels(2)
    alone = encoder([level[:1] for level in levels], _rig(poses[:1]))
    poses[1] = torch.nan
    torch.testing.assert_close(encoder(levels, _rig(poses, torch.tensor([[True, False]]))), alone)
    nothing = encoder(levels, _rig(poses, torch.tensor([[False, False]])))
    assert torch.isfinite(nothing).all()
