"""NeuS opacity and rendering weights from signed distances along rays, in log space (eq. 13), and their temperature."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Temperature(nn.Module):
    """`inv_s = exp(10 v)`, per metre: how sharply the signed distance turns into matter. Learned in the first stage."""

    def __init__(self, v: float = 0.1) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.tensor(float(v)))

    def forward(self) -> Float[Tensor, ""]:
        """inv_s, 1 / metre."""
        return torch.exp(10 * self.v)

    @torch.no_grad()
    def keep_above(self, v: float | None) -> None:
        """Raise the temperature to `v` where it is lower; None, or a frozen one: leave it."""
        if v is not None and self.v.requires_grad:
            self.v.clamp_(min=v)

    def freeze(self, frozen: bool = True) -> None:
        """Take the temperature out of training (second stage), or back in."""
        self.v.requires_grad_(not frozen)


def log_keep_consecutive(
    sdf: Float[Tensor, "*rays edges"], inv_s: Float[Tensor, ""] | float
) -> Float[Tensor, "*rays intervals"]:
    """log(1 - α) of the intervals between consecutive samples, eq. 13: α = max((Φ(s_i) - Φ(s_i+1)) / Φ(s_i), 0).

    1 - α is min(Φ(s_i+1) / Φ(s_i), 1), a difference of log-sigmoids: nothing is divided and nothing underflows, however
    sharp the temperature. n + 1 signed distances give n intervals.
    """
    log_phi = F.logsigmoid(sdf * inv_s)
    return (log_phi[..., 1:] - log_phi[..., :-1]).clamp_max(0)


def log_keep_gradient(
    sdf: Float[Tensor, "*rays samples"],
    slope: Float[Tensor, "*rays samples"],
    lengths: Float[Tensor, "*#rays samples"],
    inv_s: Float[Tensor, ""] | float,
    anneal: float,
) -> Float[Tensor, "*rays samples"]:
    """log(1 - α) of intervals centred on samples, with the signed distance at both ends taken from its slope.

    Args:
        sdf: at the samples, metres.
        slope: derivative of the signed distance along the ray (∇s · direction), negative where the ray enters matter.
        lengths: of the intervals, metres.
        anneal: 0 starts with half the slope assumed for all samples, so that gradients reach surfaces that face away
            or do not exist yet; 1 uses the slope as it is.
    """
    falling = -(F.relu(0.5 - 0.5 * slope) * (1 - anneal) + F.relu(-slope) * anneal)
    half = 0.5 * falling * lengths
    return (F.logsigmoid((sdf + half) * inv_s) - F.logsigmoid((sdf - half) * inv_s)).clamp_max(0)


def weights_from_log_keep(
    log_keep: Float[Tensor, "*rays samples"],
) -> tuple[Float[Tensor, "*rays samples"], Float[Tensor, "*rays"]]:
    """Weights w_i = α_i Π_j<i (1 - α_j) and what is left behind the last sample; together they sum to 1."""
    log_after = torch.cumsum(log_keep, dim=-1)
    # Shifted, not log_after - log_keep: at a sharp temperature logarithms reach 1e7 and a difference loses all digits.
    log_before = F.pad(log_after[..., :-1], (1, 0))
    weights = torch.exp(log_before) * -torch.expm1(log_keep)
    return weights, torch.exp(log_after[..., -1])
