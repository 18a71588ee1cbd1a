"""Is the best method better than each other one? Differences in Spearman's ρ, paired over pictures, with Holm's p.

Takes oriented scores and truths `[image layer head]` and the shared bootstrap matrices; gives one row per truth, kind
of pictures and method. Does not know: models, costs, what a method is.

A difference is paired: in each replicate both methods and the truth are averaged over the same drawn pictures, so
noise of the truth that pulls both the same way cancels. On the `same` pictures replicates are a bootstrap. On
`different` ones (`value_cross`: methods on one half of the pictures, the truth on the other) they are the jackknife,
since a bootstrap would draw one picture into both halves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from analysis.agreement import Floats, Ranking, aggregated, random_halves, resampled, spearman
from analysis.intervals import Indices, centred_interval
from analysis.jackknife import LEAST_PICTURES, halves_left_out, jackknife_error, jackknife_interval, mean_over_halves

COLUMNS = (
    *("truth", "pictures", "method", "best", "difference", "difference_ci_low", "difference_ci_high"),
    *("p", "p_holm", "n"),
)
SAME, DIFFERENT = "same", "different"
Rho = Callable[[str, int], Floats]


def difference_table(
    scores: Mapping[str, NDArray[np.floating]],
    truths: Mapping[str, NDArray[np.floating]],
    controls: Collection[str],
    indices: Indices,
    seed: int,
    *,
    against: str | None = None,
    estimator: str = "mean",
    num_halves: int = 200,
) -> pd.DataFrame:
    """The best method on trial, or the one that ``against`` names, against every other method and control, under each
    truth: `COLUMNS`.

    `scores` name -> `[image layer head]`, larger = matters more, of the first n pictures of a run; `truths` name ->
    `[image layer head]` of the first pictures likewise; `indices(n)` -> the bootstrap matrix `[replicate image]`;
    `seed` of the random halves. `pictures` is `same` or `different`; the best is the one with the highest ρ with the
    truth on its own pictures, same or different, among methods that are not in `controls` (the first of equals).
    `difference` = ρ(best) − ρ(method), both on the first `n` pictures that both and the truth have: a method that runs
    on few pictures may be ahead on these (below 0). As the best is chosen from these data, its lead is flattered a
    little.

    Same pictures: the interval is the 95 % `centred_interval`: replicates carry the noise of the pictures twice, which
    shrinks every ρ and with them the differences, so they are moved to have the mean `difference`. `p`, two-sided:
    twice the smaller of the shares of moved replicates ≤ 0 and ≥ 0, at most 1 and at least 1/(R+1) for R replicates.
    Different pictures: `difference` of the means over `num_halves` halves, 95 % `jackknife_interval`, and the two-sided
    p of the Student's t that it rests on. `p_holm`: Holm's over all methods of one truth and kind of pictures
    that have a p. NaN where a method's scores are all equal, and so order nothing. A truth under which no method on
    trial has a ρ has no rows.

    ValueError where that is so of every truth.
    """
    records: list[tuple[object, ...]] = []
    has_best = False
    for name, truth in truths.items():
        for pictures, rho_of, judge in (
            (SAME, _over_resamples(scores, truth, indices, estimator), _judge_resamples),
            (DIFFERENT, _over_halves(scores, truth, seed, num_halves, estimator), _judge_left_out),
        ):
            found = _against_one(scores, len(truth), controls, against, rho_of, judge)
            if found is None:
                continue
            has_best = True
            adjusted = holm([row[5] for row in found])
            records += [(name, pictures, *row[:6], p, row[6]) for row, p in zip(found, adjusted, strict=True)]
    if not has_best:
        raise ValueError("differences: expected a method on trial whose scores differ between heads, got none")
    return pd.DataFrame(records, columns=list(COLUMNS))


def _against_one(
    scores: Mapping[str, NDArray[np.floating]],
    num_images: int,
    controls: Collection[str],
    against: str | None,
    rho_of: Rho,
    judge: Callable[[Floats], tuple[float, float, float]],
) -> list[tuple[str, str, float, float, float, float, int]] | None:
    """Method, the best (or the one named), difference, its limits, p and n for every other method; None where there is
    no best."""
    own = {
        name: float(rho_of(name, min(len(found), num_images))[0])
        for name, found in scores.items()
        if name not in controls
    }
    known = {name: value for name, value in own.items() if np.isfinite(value)}
    if not known:
        return None
    best = max(known, key=lambda name: known[name]) if against is None else against
    rows = []
    for name in scores:
        if name != best:
            n = min(len(scores[name]), len(scores[best]), num_images)
            gap = rho_of(best, n) - rho_of(name, n)
            rows.append((name, best, float(gap[0]), *judge(gap), n))
    return rows


def _over_resamples(
    scores: Mapping[str, NDArray[np.floating]], truth: NDArray[np.floating], indices: Indices, estimator: str
) -> Rho:
    """ρ of a method over the first n pictures, then in each resample of them, `[1 + replicate]`; remembered."""
    rankings: dict[int, Ranking] = {}
    known: dict[tuple[str, int], Floats] = {}

    def rho(name: str, n: int) -> Floats:
        if n not in rankings:
            rankings[n] = resampled(truth[:n], indices(n), estimator)
        if (name, n) not in known:
            known[name, n] = spearman(resampled(scores[name][:n], indices(n), estimator), rankings[n])
        return known[name, n]

    return rho


def _over_halves(
    scores: Mapping[str, NDArray[np.floating]],
    truth: NDArray[np.floating],
    seed: int,
    num_halves: int,
    estimator: str,
) -> Rho:
    """`value_cross` of a method over the first n pictures, then without each block of them, `[1 + block]`; remembered.
    Without blocks below 4 pictures."""
    rows: dict[int, tuple[Floats, Ranking]] = {}
    known: dict[tuple[str, int], Floats] = {}

    def rho(name: str, n: int) -> Floats:
        if n not in rows:
            first, second = random_halves(n, num_halves, seed)
            if n >= LEAST_PICTURES:
                without = halves_left_out(first, second)
                first, second = (np.concatenate(parts) for parts in zip((first, second), without, strict=True))
            rows[n] = first, aggregated(truth[:n], second, estimator)
        if (name, n) not in known:
            first, ranking = rows[n]
            found = spearman(aggregated(scores[name][:n], first, estimator), ranking)
            left_out = mean_over_halves(found[num_halves:], num_halves)
            known[name, n] = np.append(found[:num_halves].mean(), left_out)
        return known[name, n]

    return rho


def _judge_resamples(gap: Floats) -> tuple[float, float, float]:
    """Limits and p of a difference `[0]` from its resamples `[1:]`."""
    low, high = centred_interval(gap[:1], gap[1:, None])
    return float(low[0]), float(high[0]), bootstrap_p(gap[0], gap[1:])


def _judge_left_out(gap: Floats) -> tuple[float, float, float]:
    """Limits and p of a difference `[0]` from its values without each block `[1:]`."""
    if len(gap) == 1 or not np.isfinite(gap).all():
        return float("nan"), float("nan"), float("nan")
    rounding = 1e-12  # two equal methods differ by nothing
    error = max(jackknife_error(gap[1:]), rounding)
    p = 1.0 if abs(gap[0]) <= rounding else float(2 * student.sf(abs(gap[0]) / error, len(gap) - 2))
    return *jackknife_interval(float(gap[0]), gap[1:], -2.0, 2.0), p


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
