"""Regression steps after matching (RAFT's update operator): from local correlations to a correction of the flow."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "n channels h w"]


class MotionEncoder(nn.Module):
    """Correlations and the flow so far, as 128 channels of which the last two are the flow itself."""

    def __init__(self, correlations: int) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(correlations, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(192 + 64, 126, 3, padding=1)

    def forward(self, flow: Float[Tensor, "n 2 h w"], correlation: Map) -> Float[Tensor, "n 128 h w"]:
        """Motion features."""
        seen = F.relu(self.convc2(F.relu(self.convc1(correlation))))
        moved = F.relu(self.convf2(F.relu(self.convf1(flow))))
        motion = F.relu(self.conv(torch.cat([seen, moved], dim=1)))
        return torch.cat([motion, flow.to(motion.dtype)], dim=1)


class SeparableGRU(nn.Module):
    """A convolutional gated unit along rows, then one along columns."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        for axis, kernel, padding in (("1", (1, 5), (0, 2)), ("2", (5, 1), (2, 0))):
            for gate in "zrq":
                self.add_module(f"conv{gate}{axis}", nn.Conv2d(hidden + inputs, hidden, kernel, padding=padding))

    def forward(self, hidden: Map, x: Map) -> Map:
        """The next hidden state."""
        for axis in "12":
            update, reset, new = (self.get_submodule(f"conv{gate}{axis}") for gate in "zrq")
            both = torch.cat([hidden, x], dim=1)
            keep = torch.sigmoid(update(both))
            candidate = torch.tanh(new(torch.cat([torch.sigmoid(reset(both)) * hidden, x], dim=1)))
            hidden = (1 - keep) * hidden + keep * candidate
        return hidden


class FlowHead(nn.Module):
    """Two convolutions from hidden state to flow."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden: Map) -> Float[Tensor, "n 2 h w"]:
        """A correction, in pixels of the map."""
        return self.conv2(F.relu(self.conv1(hidden)))


class UpdateBlock(nn.Module):
    """One regression step."""

    def __init__(self, correlations: int, upsampling: int) -> None:
        super().__init__()
        self.encoder = MotionEncoder(correlations)
        self.gru = SeparableGRU(hidden=128, inputs=128 + 128)
        self.flow_head = FlowHead(128)
        self.mask = nn.Sequential(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 9 * upsampling**2, 1))

    def forward(
        self, hidden: Map, context: Map, correlation: Map, flow: Float[Tensor, "n 2 h w"]
    ) -> tuple[Float[Tensor, "n 2 h w"], Map]:
        """The correction of the flow, and weights for its convex upsampling."""
        hidden = self.gru(hidden, torch.cat([context, self.encoder(flow, correlation)], dim=1))
        return self.flow_head(hidden), self.mask(hidden)
