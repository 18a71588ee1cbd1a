"""Are scores in units of the loss the effects they predict, not only in the same order?

Takes predicted and true effects per picture and head `[image layer head]`, both increases of the loss; gives slopes and
R² with intervals over pictures. For methods whose scores are predictions of the effect itself (signed, `_out`).
Does not know: models, how a prediction came about.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import Indices, centred_interval, index_counts

Floats = NDArray[np.float64]

COLUMNS = (
    *("method", "level", "slope", "slope_ci_low", "slope_ci_high", "slope_with_intercept", "intercept"),
    *("r2", "r2_ci_low", "r2_ci_high"),
    *("largest_layer", "largest_head", "slope_without_largest", "slope_without_largest_ci_low"),
    *("slope_without_largest_ci_high", "r2_without_largest", "r2_without_largest_ci_low"),
    *("r2_without_largest_ci_high", "n"),
)
LEVELS = ("mean", "picture")
Limits = tuple[float, float, float]  # value, lower and upper limit
UNKNOWN: Limits = (np.nan, np.nan, np.nan)


def calibration_table(
    scores: Mapping[str, NDArray[np.floating]], truth: NDArray[np.floating], indices: Indices
) -> pd.DataFrame:
    """Two rows per method, level "mean" and "picture": `COLUMNS`.

    `scores` name -> predicted effects and `truth` the effects Δℓ, `[image layer head]` of the first pictures of a run,
    compared on the first `n` that both have; `indices(n)` -> the bootstrap matrix `[replicate image]`. With x
    predicted and y true, level "mean": one point per head, averaged over pictures; "picture": one point per picture and
    head, pooled. `slope` = Σxy/Σxx, through the origin: 1 is calibrated, above 1 the method predicts too little.
    `slope_with_intercept`, `intercept`: least squares of y on x. `r2` = 1 − Σ(y − x)²/Σ(y − ȳ)² of the prediction as it
    is, nothing fitted: 1 is perfect, negative is worse than one number for all heads. NaN where a denominator is 0.
    `…_without_largest`: the same without the head whose mean effect on these pictures is largest in size, which is
    `largest_layer`, `largest_head`: one head can carry a slope over all. NaN where it is the only one.

    Intervals: 95 % `centred_interval` over pictures (heads are not resampled, nor is the largest chosen anew), `r2` at
    most 1.

    ValueError for other shapes of heads, fewer than 2 pictures, or values that are not finite.
    """
    records = []
    for name, found in scores.items():
        n = min(len(found), len(truth))
        if np.shape(found)[1:] != np.shape(truth)[1:] or n < 2:
            raise ValueError(
                f"{name}: expected [image layer head] of 2 pictures and heads {list(truth.shape[1:])}, "
                f"got {list(found.shape)} beside {len(truth)} pictures"
            )
        predicted, effects = (np.asarray(part[:n], dtype=np.float64).reshape(n, -1) for part in (found, truth))
        if not (np.isfinite(predicted).all() and np.isfinite(effects).all()):
            raise ValueError(f"{name}: expected finite scores and effects")
        counts = np.concatenate([np.ones((1, n)), index_counts(indices(n), n)])
        largest = int(np.abs(effects.mean(axis=0)).argmax())
        layer, head = divmod(largest, truth.shape[2])
        others = np.arange(effects.shape[1]) != largest
        for level in LEVELS:
            fit = _fit_means if level == "mean" else _fit_pooled
            slope, sloped, intercept, r2 = _with_limits(fit(predicted, effects, counts))
            without: tuple[Limits, ...] = (UNKNOWN,) * 4
            if others.any():
                without = _with_limits(fit(predicted[:, others], effects[:, others], counts))
            numbers = (*slope, sloped[0], intercept[0], *r2, layer, head, *without[0], *without[3])
            records.append((name, level, *numbers, n))
    return pd.DataFrame(records, columns=list(COLUMNS))


def _with_limits(fits: Floats) -> tuple[Limits, ...]:
    """Value, lower and upper limit of slope, slope with intercept, intercept and R², from fits `[1 + replicate 4]`."""
    low, high = centred_interval(fits[0], fits[1:])
    high[3] = min(high[3], 1.0)
    return tuple((float(fits[0, at]), float(low[at]), float(high[at])) for at in range(4))


def _fit_means(predicted: Floats, effects: Floats, counts: Floats) -> Floats:
    """Slope, slope with intercept, intercept and R² of the means over pictures, `[row 4]`."""
    drawn = counts.sum(axis=1, keepdims=True)
    x, y = counts @ predicted / drawn, counts @ effects / drawn
    # Heads are the points: sums over them, one row per resample.
    return _fit(*(part.mean(axis=1) for part in (x, y, x * x, x * y, y * y, (y - x) ** 2)))


def _fit_pooled(predicted: Floats, effects: Floats, counts: Floats) -> Floats:
    """The same of all pictures and heads pooled, `[row 4]`."""
    x, y = predicted, effects
    per_picture = np.stack([part.mean(axis=1) for part in (x, y, x * x, x * y, y * y, (y - x) ** 2)], axis=1)
    return _fit(*(counts @ per_picture / counts.sum(axis=1, keepdims=True)).T)


def _fit(x: Floats, y: Floats, xx: Floats, xy: Floats, yy: Floats, squared_error: Floats) -> Floats:
    """From means over points, `[row]` each."""
    spread_x, spread_y = _cleared(xx - x * x, xx), _cleared(yy - y * y, yy)
    with np.errstate(invalid="ignore", divide="ignore"):
        sloped = (xy - x * y) / spread_x
        return np.stack([xy / _cleared(xx, xx), sloped, y - sloped * x, 1 - squared_error / spread_y], axis=1)


def _cleared(spread: Floats, size: Floats) -> Floats:
    """NaN where a sum of squares is nothing but rounding."""
    return np.where(spread > 1e-13 * size, spread, np.nan)
