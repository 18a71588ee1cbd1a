"""How many pictures must be swept for intervals of a given width, told from an estimate made of fewer.

Takes an :class:`~analysis.estimate.Estimate`; gives a number of pictures, and what is out of reach. With R² the share
of the variance σ² over pictures that the predictor explains, the estimate of a head's mean effect over N pictures of
which n are swept has the variance σ²·(R²/N + (1 − R²)/n) (`analysis.estimate_cost`): never less than σ²/N, whatever is
swept. Knows no model and no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from analysis.estimate import Estimate, poor_heads

HEADS_ASKED = 10  # the heads that matter most, whose intervals are to be so narrow
NEAR_ENOUGH = 1.1  # where sweeping all pictures is still too wide: within a tenth of that


@dataclass(frozen=True)
class SampleSize:
    """``needed``: pictures to sweep, of ``total``, at most all; ``widest``: half the width of the widest of the asked
    intervals, in shares of its effect, as it is now; ``out_of_reach``: of how many heads these pictures cannot give
    such intervals, and ``pictures_for_all``: about how many would (``total`` where none is out of reach, -1 where no
    number does)."""

    needed: int
    total: int
    widest: float
    out_of_reach: int
    pictures_for_all: int


def sample_size(estimate: Estimate, interval: float) -> SampleSize:
    """For 95 % intervals of the mean effects of the :data:`HEADS_ASKED` heads that matter most, half of whose width is
    at most ``interval`` of the effect.

    ``estimate`` of `[image layer head]`. Where even sweeping all pictures leaves a head's interval wider, it is asked
    to be within :data:`NEAR_ENOUGH` of that. ValueError for an interval that is not a positive share.
    """
    if not 0 < interval:
        raise ValueError(f"interval: expected a positive share, got {interval}")
    values = estimate.pseudo_values.reshape(len(estimate.pseudo_values), -1)
    total, swept = len(values), len(estimate.swept)
    mean, spread, r2 = values.mean(axis=0), values.var(axis=0, ddof=1), estimate.r2.ravel()
    exact, poor = estimate.is_exact.ravel(), poor_heads(estimate).ravel()
    explained = np.where(exact, 1.0, np.clip(r2, 0.0, 1.0))
    # Pseudo-values vary by N times the variance of the estimate; of pictures themselves, by σ².
    variance = spread / (explained + (1 - explained) * total / swept)
    # What is predicted badly is swept on all pictures, however many the others need.
    spread, explained = np.where(poor, variance, spread), np.where(poor, 1.0, explained)
    chosen = np.argsort(-mean, kind="stable")[:HEADS_ASKED]
    factor = float(student_t.ppf(0.975, max(1, swept - 2)))
    wide, least = (factor * np.sqrt(found[chosen] / total) for found in (spread, variance))
    asked = interval * np.abs(mean[chosen])
    beyond = least > asked
    goal = np.where(beyond, NEAR_ENOUGH * least, asked)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = (goal / factor) ** 2 * total / variance[chosen] - explained[chosen]  # of (1 − R²)·N/n
        number = np.where(explained[chosen] < 1, (1 - explained[chosen]) * total / left, 0.0)
        shares = np.where(asked > 0, wide / np.abs(mean[chosen]), np.inf)
        enough = np.where(asked > 0, (factor / asked) ** 2 * variance[chosen], np.inf)
    number = np.where(variance[chosen] > 0, number, 0.0)
    needed = int(min(total, np.ceil(_finite(number, total).max())))
    most = float(_finite(enough, np.inf).max())
    return SampleSize(
        needed,
        total,
        float(_finite(shares, np.inf).max()),
        int(beyond.sum()),
        max(total, int(np.ceil(most))) if np.isfinite(most) else -1,
    )


def _finite(values: NDArray[np.float64], instead: float) -> NDArray[np.float64]:
    return np.where(np.isfinite(values) & (values >= 0), values, instead)
