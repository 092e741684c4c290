"""A loaded flow network that answers batches of image pairs, numpy in and out, and remembers what it answered."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from pipelines.config import ConfigError, json_digest
from pipelines.cues.devices import loaded_once, pick_device
from pipelines.cues.protocols import FlowField
from pipelines.cues.two_way_cache import TwoWayCache, film_key
from pipelines.cues.unimatch.inference import CheckRule, Precision, confidence, flow_both_ways, looking_size
from pipelines.cues.unimatch.network import UniMatch
from pipelines.cues.unimatch.weights import load_network
from pipelines.weights import locate, weights_digest

Image = UInt8[np.ndarray, "height width 3"]
Pair = tuple[Image, Image]

KEPT_BYTES = 512 << 20
"""Of answers kept by a process: flow_next of a keyframe is, backwards, flow_prev of the next one."""


_ANSWERS = TwoWayCache(KEPT_BYTES)


@dataclass(frozen=True)
class PairMatcher:
    """A loaded network that answers pairs of images, seen at `size`, or enlarged to `least_width`. `settings` tells
    apart what changes its answers."""

    network: UniMatch
    precision: Precision
    size: tuple[int, int] | None
    least_width: int
    check: CheckRule
    settings: str

    @classmethod
    def load(
        cls,
        weights: str,
        device: str,
        precision: Precision,
        size: tuple[int, int] | None,
        least_width: int,
        check: CheckRule,
    ) -> "PairMatcher":
        """The matcher of a cue's parameters; the network is loaded once per process.

        Raises:
            WeightsError: the checkpoint is not here or cannot be used.
            ConfigError: no such device here, or a size that the network cannot take.
        """
        path = locate(weights)
        digest = weights_digest(path)
        network = _network(path, digest, pick_device(device))
        multiple = network.variant.multiple
        if size is not None and any(side < multiple or side % multiple for side in size):
            raise ConfigError(
                f"size = {list(size)}: {network.variant.name} needs a height and width that are multiples of {multiple}"
            )
        settings = json_digest([digest, precision, size, least_width, asdict(check), device])
        return cls(network, precision, size, least_width, check, settings)

    def __call__(self, pairs: Sequence[Pair]) -> list[FlowField]:
        """Flow from the first to the second image of each pair, in its own pixels."""
        asked = [film_key(pair, self.settings) for pair in pairs]
        found = {key: answer for key, _ in asked if (answer := _ANSWERS.get(key)) is not None}
        # Either way round, a pair is put to the network in one order: the same bytes whoever comes first.
        missing = {
            key: pair[::-1] if turned else pair
            for (key, turned), pair in zip(asked, pairs, strict=True)
            if key not in found
        }
        for keys in _of_one_size(missing):
            for key, answer in zip(keys, self._answer([missing[key] for key in keys]), strict=True):
                found[key] = answer
                _ANSWERS.put(key, answer)
        return [found[key][1 if turned else 0] for key, turned in asked]

    @torch.inference_mode()
    def _answer(self, pairs: Sequence[Pair]) -> Iterator[tuple[FlowField, FlowField]]:
        device = self.network.mean.device
        first, second = (
            torch.from_numpy(np.stack([pair[k] for pair in pairs])).to(device).permute(0, 3, 1, 2) for k in (0, 1)
        )
        height, width = first.shape[-2:]
        size = self.size or looking_size(height, width, self.network.variant.multiple, self.least_width)
        ways = flow_both_ways(self.network, first, second, size, self.precision)
        fields = [_fields(*ways, self.check), _fields(*ways[::-1], self.check)]
        return zip(*fields, strict=True)


def _fields(forward: torch.Tensor, backward: torch.Tensor, rule: CheckRule) -> list[FlowField]:
    trust = confidence(forward, backward, rule)
    known = torch.where(trust[:, None] > 0, forward, torch.nan)
    return [FlowField(f, t) for f, t in zip(known.cpu().numpy(), trust.cpu().numpy(), strict=True)]


def _of_one_size(pairs: dict[str, Pair]) -> Iterator[list[str]]:
    """Keys of pairs that fit into one batch."""
    shapes = {pair[0].shape for pair in pairs.values()}
    for shape in sorted(shapes):
        yield [key for key, pair in pairs.items() if pair[0].shape == shape]


@loaded_once
def _network(path: Path, digest: str, device: torch.device) -> UniMatch:
    """One network for all slots of a process; `digest` notices a file that was replaced."""
    return load_network(path).to(device)
