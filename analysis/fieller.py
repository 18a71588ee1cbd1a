"""The interval of a ratio of two means over the same pictures, on its own terms: Fieller's (1954).

Takes values per picture of numerator and denominator; gives limits of the ratio. Does not know what is divided.

The limits are those r for which the mean of a − r·b cannot be told from 0 by Student's t. They are two numbers exactly
where the t interval of the denominator's mean leaves out 0; else the set reaches infinity, and there are none (NaN):
guard and interval are of one kind. Trimmed: the same with 10 % trimmed means and winsorised covariances (Yuen 1974).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from analysis.intervals import TRIMMED, Interval

Floats = NDArray[np.float64]


def ratio_interval(numerator: Floats, denominator: Floats, *, level: float = 0.95, estimator: str = "mean") -> Interval:
    """Ratio of the means of ``numerator`` and ``denominator`` [image column], with its limits, [column]; of the trimmed
    means with ``estimator`` "trimmed". NaN limits where the denominator cannot be told from 0, or with fewer than two
    pictures. ValueError for shapes that differ, numbers that are none, or another estimator."""
    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"ratio: expected two finite [image column] of one shape, got {a.shape} and {b.shape}")
    (mean_a, mean_b), (aa, ab, bb), freedom = moments(a, b, estimator)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = mean_a / mean_b
        if freedom < 1:
            nothing = np.full_like(ratio, np.nan)
            return Interval(ratio, nothing, nothing)
        squared = student.ppf((1 + level) / 2, freedom) ** 2
        # (mean_a − r·mean_b)² = t²·(aa − 2·r·ab + r²·bb), a quadratic in r
        lead, half, rest = mean_b**2 - squared * bb, mean_a * mean_b - squared * ab, mean_a**2 - squared * aa
        root = np.sqrt(np.maximum(half**2 - lead * rest, 0.0))
        low, high = np.where(lead > 0, half - root, np.nan) / lead, np.where(lead > 0, half + root, np.nan) / lead
    return Interval(ratio, low, high)


def moments(a: Floats, b: Floats, estimator: str) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats, Floats], int]:
    """Means of both, the variances and covariance of these means (aa, ab, bb), and degrees of freedom."""
    count = len(a)
    if estimator == "mean":
        cut = 0
    elif estimator == "trimmed":
        cut = int(TRIMMED * count)
    else:
        raise ValueError(f"estimator: expected mean or trimmed, got {estimator!r}")
    kept = count - 2 * cut
    means = tuple(np.sort(one, axis=0)[cut : count - cut].mean(axis=0) for one in (a, b))
    inner = [np.clip(one, *np.sort(one, axis=0)[[cut, count - cut - 1]]) for one in (a, b)]
    off = [one - one.mean(axis=0) for one in inner]
    freedom = kept - 1
    # of a trimmed mean: winsorised sum of squares / (kept · (kept − 1)); without a cut, s² / n
    scale = kept * freedom if freedom > 0 else np.nan
    aa, ab, bb = ((off[i] * off[j]).sum(axis=0) / scale for i, j in ((0, 0), (0, 1), (1, 1)))
    return (means[0], means[1]), (aa, ab, bb), freedom
