"""The overall loss (eq. 12): named terms with their weights, and counts of what each term saw."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class LossTerms:
    """Terms by name, before weighting, and counts by name. A term of weight zero is not kept."""

    values: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Float[Tensor, ""], weight: float, **counts: float | int) -> None:
        """Keep a term; `counts` go into the log as `<name>_<count>`."""
        if weight > 0:
            self.values[name] = value
            self.weights[name] = weight
        self.counts.update({f"{name}_{what}": float(count) for what, count in counts.items()})

    def total(self) -> Float[Tensor, ""]:
        """Eq. 12: Σ λ L. Raises ValueError without any term."""
        if not self.values:
            raise ValueError("every loss weight is zero: nothing to train on; set at least loss.photometric")
        return torch.stack([self.weights[name] * value for name, value in self.values.items()]).sum()

    def log(self) -> dict[str, float]:
        """Plain numbers for the logger: unweighted terms as `loss/<name>`, counts as `rays/<name>`."""
        numbers = {f"loss/{name}": float(value.detach()) for name, value in self.values.items()}
        return numbers | {f"rays/{name}": count for name, count in self.counts.items()}
