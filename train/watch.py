"""What ends a run that has stopped learning: which loss, which keyframes, which parameters are not numbers any more."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

NAMED = 3
"""Parameters and keyframes named in the message; the others are counted."""


class TrainingDiverged(RuntimeError):
    """A step that cannot be taken. The message names the loss term, the keyframes and the parameters."""


class Watch:
    """Looks at every step whose gradient is not finite; such a step changes nothing.

    A loss that is not finite ends the run at once: with sound weights (all before were) the keyframe's own content or a
    loss is at fault, and the same keyframe would do it again every epoch, unnoticed. A gradient that is not finite
    under a finite loss is forgiven `limit` - 1 times in a row: one overflow in half precision is no reason to lose a
    night.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0

    def good_step(self) -> None:
        """The gradient was finite."""
        self.in_a_row = 0

    def bad_step(
        self,
        where: str,
        numbers: Mapping[str, float],
        keyframes: Sequence[tuple[str, int]],
        parameters: Iterable[tuple[str, nn.Parameter]],
    ) -> None:
        """Count a step whose gradient is not finite; before the gradients are gone.

        Args:
            where: stage and step, for the message.
            numbers: what was logged of the step; loss terms are `loss/<name>`.

        Raises:
            TrainingDiverged: a loss term is not finite, or this was the last of `limit` such steps in a row.
        """
        self.in_a_row += 1
        terms = {name.removeprefix("loss/"): float(v) for name, v in numbers.items() if name.startswith("loss/")}
        wrong = {name: value for name, value in terms.items() if not math.isfinite(value)}
        if not wrong and self.in_a_row < self.limit:
            return
        found = [name for name, p in parameters if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        if wrong:
            cause = "loss not finite: " + ", ".join(f"{name} = {value}" for name, value in wrong.items())
            remedy = "Look at the cues of this keyframe; `data.exclude` leaves it out of a new run."
        else:
            cause = f"gradients were not finite {self.in_a_row} steps in a row, every loss was"
            remedy = "A lower optimiser.lr or run.precision=32-true is the first thing to try, in a new run."
        raise TrainingDiverged(
            f"{where}: {cause}; keyframes {_few([f'{scene}:{t}' for scene, t in keyframes])}; parameters with such "
            f"gradients: {_few(found)}. None of these steps changed the weights. {remedy}"
        )


def _few(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return (", ".join(names[:NAMED]) or "none") + (f" and {rest} more" if rest > 0 else "")
