"""Paired differences over seeds, with intervals, and what they say about an expected order."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

UNRESOLVED = "unresolved"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Row minus reference over paired seeds.

    Attributes:
        seeds: those on which both have a value; the figures are theirs.
        mean: nan without any.
        low, high: 95 % interval of the mean by Student's t with len(seeds) - 1 degrees of freedom; infinite with fewer
            than two.
        missing: seeds that were run for both and lack a value on either side (a run that failed, a metric that does not
            exist there). They are never left out in silence: while there is one, nothing is resolved.
    """

    seeds: tuple[int, ...]
    mean: float
    low: float
    high: float
    missing: tuple[int, ...] = ()

    def verdict(self, expected: int, words: tuple[str, str] = ("as the paper", "opposite")) -> str:
        """Whether the interval lies wholly on the side of `expected` (+1 or -1), wholly on the other, or neither: the
        first of `words`, the second, or `unresolved`."""
        if self.missing or not (self.low > 0 or self.high < 0) or not expected:
            return UNRESOLVED
        return words[(self.low > 0) != (expected > 0)]


def paired_difference(row: Mapping[int, float | None], reference: Mapping[int, float | None]) -> Difference:
    """The difference over the seeds (keys) that both were run with; None, nan and infinities are missing values.

    Differences 1, 2, 3 have the mean 2, s = 1 and, with t(0.975; 2) = 4.3027, the interval 2 ± 2.4841.
    """
    common = sorted(set(row) & set(reference))
    paired = {seed: (row[seed], reference[seed]) for seed in common}
    known = {s: a - b for s, (a, b) in paired.items() if a is not None and b is not None and math.isfinite(a - b)}
    values = np.array(list(known.values()), dtype=np.float64)
    mean = float(values.mean()) if len(values) else math.nan
    half = math.inf
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    missing = tuple(seed for seed in common if seed not in known)
    return Difference(tuple(known), mean, mean - half, mean + half, missing)
