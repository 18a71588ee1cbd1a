"""Is the best method better than each other one? Paired bootstrap of differences in Spearman's ρ, with Holm's p.

Takes oriented scores and a truth `[image layer head]` and the shared bootstrap matrices; gives one row per method.
Does not know: models, costs, what a method is.

A difference is paired: in each replicate both methods and the truth are averaged over the same drawn pictures, so
noise of the truth that pulls both the same way cancels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import Floats, Ranking, aggregated, resampled, spearman
from analysis.intervals import Indices, centred_interval

COLUMNS = ("method", "best", "difference", "difference_ci_low", "difference_ci_high", "p", "p_holm", "n")


def difference_table(
    scores: Mapping[str, NDArray[np.floating]],
    truth: NDArray[np.floating],
    controls: Collection[str],
    indices: Indices,
    *,
    estimator: str = "mean",
) -> pd.DataFrame:
    """The best method on trial against every other method and control, in the order of `scores`: `COLUMNS`.

    `scores` name -> `[image layer head]`, larger = matters more, of the first n pictures of a run; `truth`
    `[image layer head]` of the first pictures likewise; `indices(n)` -> the bootstrap matrix `[replicate image]`. The
    best is the one with the highest ρ with the truth on its own pictures among methods that are not in `controls` (the
    first of equals). `difference` = ρ(best) − ρ(method), both on the first `n` pictures that both and the truth have.
    As the best is chosen from these data, its lead is flattered a little.

    The interval is the 95 % `centred_interval`: replicates carry the noise of the pictures twice, which shrinks every ρ
    and with them the differences, so they are moved to have the mean `difference`. `p`, two-sided: twice the smaller of
    the shares of moved replicates ≤ 0 and ≥ 0, at most 1 and at least 1/(R+1) for R replicates. `p_holm`: Holm's over
    all methods of the table that have a p. NaN where a method's scores are all equal, and so order nothing.

    ValueError where no method on trial has a ρ.
    """
    own = {name: correlation(found, truth, estimator) for name, found in scores.items() if name not in controls}
    known = {name: value for name, value in own.items() if np.isfinite(value)}
    if not known:
        raise ValueError("differences: expected a method on trial whose scores differ between heads, got none")
    best = max(known, key=lambda name: known[name])
    truth_rankings: dict[int, Ranking] = {}
    of_best: dict[int, Floats] = {}

    def rho(name: str, n: int) -> Floats:
        """ρ over the first n pictures, then in each resample of them."""
        if n not in truth_rankings:
            truth_rankings[n] = resampled(truth[:n], indices(n), estimator)
        return spearman(resampled(scores[name][:n], indices(n), estimator), truth_rankings[n])

    records = []
    for name in scores:
        if name == best:
            continue
        n = min(len(scores[name]), len(scores[best]), len(truth))
        if n not in of_best:
            of_best[n] = rho(best, n)
        gap = of_best[n] - rho(name, n)
        low, high = centred_interval(gap[:1], gap[1:, None])
        records.append((name, best, gap[0], low[0], high[0], bootstrap_p(gap[0], gap[1:]), np.nan, n))
    table = pd.DataFrame(records, columns=list(COLUMNS))
    table["p_holm"] = holm(table["p"].to_numpy(np.float64))
    return table


def correlation(scores: NDArray[np.floating], truth: NDArray[np.floating], estimator: str = "mean") -> float:
    """Spearman's ρ over heads of scores and truth `[image layer head]` on the first pictures both have; may be NaN."""
    n = min(len(scores), len(truth))
    once = np.ones((1, n))
    return float(spearman(aggregated(scores[:n], once, estimator), aggregated(truth[:n], once, estimator))[0])


def bootstrap_p(value: float, replicates: Floats) -> float:
    """Two-sided p of the hypothesis that the value is 0, from replicates `[replicate]` moved to have it as their mean.

    Twice the smaller share on either side of 0 (0 counts on both), at most 1, at least 1/(R+1). Replicates that are NaN
    are left out; NaN where the value is, or where all are.
    """
    finite = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or not len(finite):
        return float("nan")
    moved = finite + (value - finite.mean())
    rounding = 1e-12  # two equal methods differ by nothing
    tail = min(np.mean(moved <= rounding), np.mean(moved >= -rounding))
    return float(np.clip(2 * tail, 1 / (len(finite) + 1), 1.0))


def holm(p: Sequence[float] | Floats) -> Floats:
    """Holm's (1979) step-down adjusted p values, in the order given; NaN stay NaN and do not count."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN sort last
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted
