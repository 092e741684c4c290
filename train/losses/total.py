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
    counts: dict[str, Tensor | float] = field(default_factory=dict)

    def add(self, name: str, value: Float[Tensor, ""], weight: float, **counts: Tensor | float) -> None:
        """Keep a term; `counts`, tensors of one number or numbers, go into the log as `<name>_<count>`."""
        if weight > 0:
            self.values[name] = value
            self.weights[name] = weight
        self.counts.update({f"{name}_{what}": count for what, count in counts.items()})

    def total(self) -> Float[Tensor, ""]:
        """Eq. 12: Σ λ L. Raises ValueError without any term."""
        if not self.values:
            raise ValueError("every loss weight is zero: nothing to train on; set at least loss.photometric")
        return torch.stack([self.weights[name] * value for name, value in self.values.items()]).sum()

    def log(self) -> dict[str, Tensor | float]:
        """For the logger: unweighted terms as `loss/<name>`, counts as `rays/<name>`, still where they were made
        (`read_back` makes plain numbers of them)."""
        numbers: dict[str, Tensor | float] = {f"loss/{name}": value.detach() for name, value in self.values.items()}
        return numbers | {f"rays/{name}": count for name, count in self.counts.items()}


def read_back(numbers: dict[str, Tensor | float]) -> dict[str, float]:
    """Plain numbers, in the same order, of tensors of one number each: all of them by one copy to the host.

    A host that asks a GPU for a number waits for everything before it; asked one by one, forty times a step.
    """
    names = [name for name, value in numbers.items() if isinstance(value, Tensor)]
    tensors = [numbers[name].detach().reshape(()).double() for name in names]  # type: ignore[union-attr]
    read = dict(zip(names, torch.stack(tensors).tolist(), strict=True)) if tensors else {}
    return {name: read[name] if name in read else float(value) for name, value in numbers.items()}
