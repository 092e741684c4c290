"""The TPV encoder: learned plane queries gather multi-camera, multi-scale image features into a volume (eqs. 2-3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.constants import constant
from geometry.grid import VoxelGrid
from model.attention import (
    deformable_attention,
    init_projection,
    init_sampling,
    sampling_from,
    softmax_over_samples,
)
from model.backbone import STRIDES, LayerNorm2d
from model.config import TPVConfig
from model.fused import FlatMaps, Kernel, fused_attention, use_fused
from model.planes import hybrid_references, pillars, plane_shape, position_waves, to_map, to_volume
from model.visibility import CameraRig, PillarSight, Visibility, project_pillars, see_pillars


class HybridAttention(nn.Module):
    """Cross-view hybrid attention: each query reads its own plane and the two others, at learned offsets (eq. 3)."""

    def __init__(self, config: TPVConfig, grid: VoxelGrid, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.heads, self.points = config.heads, config.self_points
        self.first = 0 if config.own_plane else 1
        self.shapes = [plane_shape(grid, plane) for plane in range(3)]
        maps = 3 - self.first
        self.value = nn.Linear(config.dim, config.dim)
        self.sampling = nn.Linear(config.dim, self.heads * maps * self.points * 3)
        self.output = nn.Linear(config.dim, config.dim)
        for plane in range(3):
            references = hybrid_references(grid, plane, self.points)[self.first :]
            self.register_buffer(f"references_{plane}", references, persistent=False)
        init_sampling(self.sampling, self.heads, maps, self.points)
        init_projection(self.value)
        init_projection(self.output)

    def forward(self, tokens: Float[Tensor, "b all_queries dim"]) -> Float[Tensor, "b all_queries dim"]:
        """The update (without residual) of the queries of all planes, one plane after the other."""
        planes, values = self._cut(tokens), self._cut(self.value(tokens))
        if use_fused(self.kernel, tokens):
            read = [self._one_plane_fused(plane, own, values) for plane, own in enumerate(planes)]
        else:
            maps = [to_map(value, shape) for value, shape in zip(values, self.shapes, strict=True)]
            read = [self._one_plane(plane, own, maps) for plane, own in enumerate(planes)]
        return self.output(torch.cat(read, dim=1))

    def _cut(self, tokens: Float[Tensor, "b all_queries dim"]) -> Sequence[Float[Tensor, "b _queries dim"]]:
        return tokens.split([first * second for first, second in self.shapes], dim=1)

    def _one_plane(
        self, plane: int, tokens: Float[Tensor, "b queries dim"], maps: list[Float[Tensor, "b dim _h _w"]]
    ) -> Float[Tensor, "b queries dim"]:
        order = [(plane + step) % 3 for step in range(self.first, 3)]
        offsets, logits = sampling_from(self.sampling, tokens, self.heads, len(order))
        references = getattr(self, f"references_{plane}")[None]
        values = [maps[other] for other in order]
        return deformable_attention(values, references, offsets, softmax_over_samples(logits))

    def _one_plane_fused(
        self, plane: int, tokens: Float[Tensor, "b queries dim"], values: Sequence[Float[Tensor, "b _queries dim"]]
    ) -> Float[Tensor, "b queries dim"]:
        order = [(plane + step) % 3 for step in range(self.first, 3)]
        offsets, logits = sampling_from(self.sampling, tokens, self.heads, len(order))
        maps = FlatMaps(torch.cat([values[o] for o in order], dim=1), tuple(self.shapes[o] for o in order))
        references = getattr(self, f"references_{plane}")[None]
        return fused_attention(maps, references, offsets, logits, kernel=self.kernel)


class ImageFeatures(NamedTuple):
    """Multi-scale features of n frames x cameras with what is needed to find a pixel in them."""

    levels: list[Tensor]
    """(views, dim, h, w) per level."""
    extents: tuple[tuple[int, int], ...]
    """(width, height) in pixels that the cells of a level cover. It may reach past the image: 176 px at stride 32 are 6
    cells, 192 px."""
    joined: FlatMaps | None = None
    """The same features for the fused kernel, in place of `levels`."""

    @classmethod
    def build(
        cls, levels: list[Float[Tensor, "views dim _h _w"]], strides: Sequence[int], *, join: bool = False
    ) -> "ImageFeatures":
        """Features at the given strides, pixels per cell."""
        sizes = tuple(
            (level.shape[-1] * stride, level.shape[-2] * stride) for level, stride in zip(levels, strides, strict=True)
        )
        return cls([], sizes, FlatMaps.join(levels)) if join else cls(levels, sizes)

    def project(self, value: nn.Linear) -> "ImageFeatures":
        """Every cell through a linear layer."""
        if self.joined is not None:
            return self._replace(joined=self.joined._replace(values=value(self.joined.values)))
        return self._replace(levels=[value(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for level in self.levels])


class ImageAttention(nn.Module):
    """Deformable cross-attention of one plane's queries into the images, at the projected anchors of their pillars.

    An anchor behind or outside a camera gets no weight there. A query's result is the mean over the cameras that see
    at least one of its anchors, and zero if none does.
    """

    def __init__(self, config: TPVConfig, anchors: int, levels: int, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.heads, self.levels, self.anchors = config.heads, levels, anchors
        self.sampling = nn.Linear(config.dim, self.heads * levels * anchors * 3)
        self.output = nn.Linear(config.dim, config.dim)
        init_sampling(self.sampling, self.heads, levels, anchors, reach=0.5, spread=False)
        init_projection(self.output)

    def forward(
        self, tokens: Float[Tensor, "n queries dim"], features: ImageFeatures, sight: Visibility | PillarSight
    ) -> Float[Tensor, "n queries dim"]:
        """The update (without residual) from values already projected to the attention's width."""
        if isinstance(sight, PillarSight):
            return self._fused(tokens, features, sight)
        frames, queries, dim = tokens.shape
        views = len(sight.query)
        frame = torch.arange(views, device=tokens.device) // (views // frames)
        rows = (frame[:, None] * queries + sight.query).flatten()
        gathered = tokens.reshape(-1, dim).index_select(0, rows).view(*sight.query.shape, dim)

        offsets, logits = sampling_from(self.sampling, gathered, self.heads, self.levels)
        weights = softmax_over_samples(logits, sight.seen)
        extents = constant(features.extents, sight.uv)
        references = sight.uv[:, None] * (2 / extents[:, None, :, None]) - 1
        read = deformable_attention(features.levels, references, offsets, weights)

        total = read.new_zeros(frames * queries, dim).index_add(0, rows, read.flatten(0, 1))
        return self.output(total.view(frames, queries, dim) / sight.cameras[..., None])

    def _fused(
        self, tokens: Float[Tensor, "n queries dim"], features: ImageFeatures, sight: PillarSight
    ) -> Float[Tensor, "n queries dim"]:
        """Offsets and logits once per query, not once per camera that sees it; cameras pass over what they do not."""
        assert features.joined is not None
        offsets, logits = sampling_from(self.sampling, tokens, self.heads, self.levels)
        references = sight.uv[:, None]
        total = fused_attention(
            features.joined, references, offsets, logits, sight.seen, features.extents,
            kernel=self.kernel, add_cameras=True,
        )  # fmt: skip
        return self.output(total / sight.cameras[..., None])


class TPVLayer(nn.Module):
    """Hybrid attention, image attention, feed-forward, each behind its own LayerNorm and with its own residual."""

    def __init__(
        self, config: TPVConfig, grid: VoxelGrid, feature_dim: int, levels: int, kernel: Kernel = "auto"
    ) -> None:
        super().__init__()
        anchors = [config.ground_anchors, config.side_anchors, config.side_anchors]
        self.hybrid_norm, self.image_norm, self.ffn_norm = (nn.LayerNorm(config.dim) for _ in range(3))
        self.hybrid = HybridAttention(config, grid, kernel)
        self.value = nn.Linear(feature_dim, config.dim)
        self.image = nn.ModuleList(ImageAttention(config, count, levels, kernel) for count in anchors)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.dropout = nn.Dropout(config.dropout)
        init_projection(self.value)

    def forward(
        self,
        tokens: Float[Tensor, "n all_queries dim"],
        features: ImageFeatures,
        sights: Sequence[Visibility | PillarSight],
    ) -> Float[Tensor, "n all_queries dim"]:
        """One pass of eq. 3 over the queries of the three planes, one plane after the other."""
        tokens = tokens + self.dropout(self.hybrid(self.hybrid_norm(tokens)))
        projected = features.project(self.value)
        planes = self.image_norm(tokens).split([sight.cameras.shape[1] for sight in sights], dim=1)
        seen = [look(own, projected, sight) for look, own, sight in zip(self.image, planes, sights, strict=True)]
        tokens = tokens + self.dropout(torch.cat(seen, dim=1))
        return tokens + self.dropout(self.ffn(self.ffn_norm(tokens)))


class TPVEncoder(nn.Module):
    """Learned queries of three planes, refined layer by layer, then summed into a volume."""

    def __init__(
        self,
        config: TPVConfig,
        grid: VoxelGrid,
        feature_dim: int,
        levels: int = len(STRIDES),
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.kernel: Kernel = kernel
        anchors = [config.ground_anchors, config.side_anchors, config.side_anchors]
        self.queries = nn.ParameterList()
        for plane, count in enumerate(anchors):
            first, second = plane_shape(grid, plane)
            queries = nn.Parameter(torch.empty(first * second, config.dim))
            with torch.no_grad():
                queries.copy_(position_waves(grid, plane, config.dim))
            self.queries.append(queries)
            self.register_buffer(f"pillars_{plane}", pillars(grid, plane, count), persistent=False)
        self.layers = nn.ModuleList(TPVLayer(config, grid, feature_dim, levels, kernel) for _ in range(config.layers))
        # Unbounded features grow in the first steps until the tokens' common part drowns where each of them is.
        self.feature_norms = nn.ModuleList(LayerNorm2d(feature_dim) for _ in range(levels))
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(3))

    def forward(
        self, levels: list[Float[Tensor, "views dim _h _w"]], rig: CameraRig
    ) -> Float[Tensor, "n x y z channels"]:
        """Features of n frames x cameras (frame-major) to a volume per frame, in that frame's own ego coordinates."""
        levels = [norm(level) for norm, level in zip(self.feature_norms, levels, strict=True)]
        fused = use_fused(self.kernel, levels[0])
        features = ImageFeatures.build(levels, STRIDES, join=fused)
        see = project_pillars if fused else see_pillars
        sights = [see(rig, getattr(self, f"pillars_{plane}")) for plane in range(3)]
        tokens = torch.cat(tuple(self.queries)).expand(len(rig.valid), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, features, sights)
        planes = tokens.split([len(queries) for queries in self.queries], dim=1)
        return to_volume([norm(tokens) for norm, tokens in zip(self.norms, planes, strict=True)], self.grid.shape)
