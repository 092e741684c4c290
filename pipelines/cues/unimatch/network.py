"""The whole network: two images in, flow both ways out. Module names are those of the published checkpoints."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipelines.cues.unimatch.encoder import Encoder
from pipelines.cues.unimatch.matching import (
    Propagation,
    match_global,
    match_local,
    upsample_bilinear,
    upsample_convex,
    warp,
    window_correlation,
)
from pipelines.cues.unimatch.refine import UpdateBlock
from pipelines.cues.unimatch.transformer import FeatureTransformer, window_position
from pipelines.cues.unimatch.variants import VARIANTS, Variant
from storage.whole_file import whole_file

MATCH_RADIUS = 4
"""Of local matching and of the regression steps, in pixels of the feature map."""
PROPAGATION_RADIUS = 1
"""Of propagation at the second scale."""


@dataclass(frozen=True)
class TwoWayFlow:
    """Flow of a batch of pairs, float32.

    Attributes:
        forward, backward: (B, 2, H, W) in pixels of the images, first -> second and second -> first.
        coarse: (2B, 2, h, w) the last flow before upsampling, forward pairs first, in its own pixels.
        steps: (2B, 2, H, W) each, what every stage would have answered, for training; empty unless asked for.
    """

    forward: Float[Tensor, "B 2 H W"]
    backward: Float[Tensor, "B 2 H W"]
    coarse: Float[Tensor, "2B 2 h w"]
    steps: tuple[Float[Tensor, "2B 2 H W"], ...] = ()


class UniMatch(nn.Module):
    """GMFlow: features compared globally by attention, at one or two scales, with or without regression after."""

    mean: Tensor
    std: Tensor

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        channels = variant.channels
        self.backbone = Encoder(variant)
        self.transformer = FeatureTransformer(channels, variant.layers)
        self.feature_flow_attn = Propagation(channels)
        if variant.refinements:
            self.refine_proj = nn.Conv2d(channels, 256, 1)
            self.refine = UpdateBlock((2 * MATCH_RADIUS + 1) ** 2, variant.upsampling)
        else:
            self.upsampler = nn.Sequential(
                nn.Conv2d(2 + channels, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 9 * variant.upsampling**2, 1)
            )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(
        self, first: Float[Tensor, "B 3 H W"], second: Float[Tensor, "B 3 H W"], steps: bool = False
    ) -> TwoWayFlow:
        """Flow both ways.

        Args:
            first, second: RGB in 0..255, H and W multiples of `variant.multiple`.
            steps: whether the answers of the earlier stages are wanted too.

        Raises:
            ValueError: a size that is not such a multiple, or two sizes.
        """
        self._check(first, second)
        images = (torch.cat([first, second]).float() / 255 - self.mean) / self.std
        flow: Tensor | None = None
        answers: list[Tensor] = []
        for scale, features in enumerate(self.backbone(images)):
            # Both ways at once: `source` holds first and second images, `target` second and first.
            source = features
            target = torch.cat(features.chunk(2)[::-1])
            factor = self.variant.upsampling * 2 ** (self.variant.scales - 1 - scale)
            informed, flow = self._match(source, target, flow, scale)
            if steps:
                answers.append(upsample_bilinear(flow, factor))
            radius = None if scale == 0 else PROPAGATION_RADIUS
            with torch.autocast(images.device.type, enabled=False):
                flow = self.feature_flow_attn(informed, flow.detach(), radius)
            if steps and (scale < self.variant.scales - 1 or self.variant.refinements):
                answers.append(upsample_bilinear(flow, factor))
        assert flow is not None
        if self.variant.refinements:
            flow, fine = self._regress(informed, source, target, flow, answers if steps else None)
        else:
            fine = upsample_convex(flow, self.upsampler(torch.cat([flow, informed], dim=1)), self.variant.upsampling)
        forward, backward = fine.chunk(2)
        return TwoWayFlow(forward, backward, flow, (*answers, fine) if steps else ())

    def _match(self, source: Tensor, target: Tensor, flow: Tensor | None, scale: int) -> tuple[Tensor, Tensor]:
        """Transformed features of the source, and flow after matching at this scale."""
        splits = self.variant.splits[scale]
        _, channels, height, width = source.shape
        position = window_position(height, width, channels, splits, source.device)
        if flow is None:
            # Nothing is warped yet, so the two ways share their features.
            ahead, behind = self.transformer(*(source + position).chunk(2), splits)
            informed, other = torch.cat([ahead, behind]), torch.cat([behind, ahead])
            with torch.autocast(source.device.type, enabled=False):
                return informed, match_global(informed, other)
        flow = upsample_bilinear(flow, 2).detach()
        with torch.autocast(source.device.type, enabled=False):
            warped = warp(target, flow)
        informed, other = self.transformer(source + position, warped + position, splits)
        with torch.autocast(source.device.type, enabled=False):
            return informed, flow + match_local(informed, other, MATCH_RADIUS)

    def _regress(
        self, informed: Tensor, source: Tensor, target: Tensor, flow: Tensor, answers: list[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The regression steps: each starts from the same hidden state and a better flow."""
        hidden, context = self.refine_proj(informed).chunk(2, dim=1)
        hidden, context = torch.tanh(hidden), torch.relu(context)
        fine = flow
        for step in range(self.variant.refinements):
            flow = flow.detach()
            with torch.autocast(source.device.type, enabled=False):
                correlation = window_correlation(source, target, flow, MATCH_RADIUS)
            correction, weights = self.refine(hidden, context, correlation, flow)
            flow = flow + correction.float()
            last = step == self.variant.refinements - 1
            if last or answers is not None:
                fine = upsample_convex(flow, weights, self.variant.upsampling)
            if answers is not None and not last:
                answers.append(fine)
        return flow, fine

    def _check(self, first: Tensor, second: Tensor) -> None:
        multiple = self.variant.multiple
        if first.shape != second.shape or any(size % multiple or size == 0 for size in first.shape[-2:]):
            raise ValueError(
                f"{self.variant.name} takes two images of one size, both sides multiples of {multiple}; got "
                f"{tuple(first.shape)} and {tuple(second.shape)}: use inference.flow_both_ways, which resizes"
            )


def save_network(network: UniMatch, path: Path) -> Path:
    """Write a checkpoint in the published form; the file is replaced in one step."""
    content: dict[str, Any] = {
        "model": {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    }
    if network.variant not in VARIANTS.values():
        content["variant"] = asdict(network.variant)
    with whole_file(path) as temporary:
        torch.save(content, temporary)
    return path
