"""The control `ablation@cost`: the exact sweep on only as many pictures as a method's passes would pay for.

Takes the swept truth `[image layer head]`, what each method costs and on how many pictures it ran; gives how well the
mean effect over so few pictures agrees with the truth. It costs no pass: the effects are drawn from the stored truth.
Does not know: models, the methods' scores. Estimated effects (pseudo-values) are no sweep and must not be given.

What is compared with what, for a method of cost c on n pictures when a swept picture costs s forward passes:

- `spearman_same` stands beside the method's `value`: the whole budget c·n pays for m = ⌊c·n/s⌋ of the n pictures, and
  the truth is the mean over all n, those m included, as a method's scores and the truth share their pictures there.
- `spearman_cross`: the same m pictures, and the truth on the n − m others. It is generous to the control where it is
  put beside `value_cross`, in which a method has run on half of the pictures and is judged on the other half alone.
- `spearman_matched` stands beside `value_cross`: half of the pictures, thus half of the budget, ⌊c·⌊n/2⌋/s⌋ swept
  pictures drawn from one half, and the truth on the other half. The price test is this comparison alone
  (`beats_ablation`): neither the method nor the sweep has seen the pictures it is judged on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import Floats, aggregated, spearman

BACKWARD_IN_FORWARDS = 1.3
COLUMNS = (
    *("method", "budget_forwards", "num_pictures_paid", "spearman_cross", "spearman_same", "ci_low", "ci_high"),
    *("capped", "num_pictures_matched", "spearman_matched", "n"),
)


def forward_equivalents(forwards: float, backwards: float) -> float:
    """What a method costs per picture: its forward passes + 1.3 for each backward pass."""
    return forwards + BACKWARD_IN_FORWARDS * backwards


def ablation_at_cost_table(
    truth: NDArray[np.floating],
    costs: Mapping[str, float],
    num_pictures: Mapping[str, int],
    sweep_forwards: float,
    seed: int,
    *,
    num_draws: int = 200,
) -> pd.DataFrame:
    """One row per method, in the order of `costs`: `COLUMNS`.

    `costs` method -> forward equivalents per picture; `num_pictures` method -> pictures it ran on, of which the first n
    that the truth has count; `sweep_forwards`: what the exact sweep of one picture costs. `budget_forwards` = c·n and
    `num_pictures_paid` = ⌊c·n/sweep_forwards⌋, which may exceed n. The agreements (above) are Spearman's ρ over heads
    of mean effects, means over `num_draws` random draws without replacement, the same pictures first for every method
    with the same n; `ci_*`: 2.5 and 97.5 % of the draws of `spearman_cross`, which tell the luck of the draw and not
    the precision of the mean. `capped`: more is paid for than half of the pictures, so `spearman_cross` is of half of
    them; `spearman_same` stops at all n pictures, where it is 1, `spearman_matched` at its half. NaN where not even one
    picture is paid for.

    ValueError for a cost that is negative or not finite, a sweep that costs nothing, fewer than 2 pictures.
    """
    if not (sweep_forwards > 0 and num_draws >= 1):
        raise ValueError(f"ablation at cost: expected positive costs and draws, got {sweep_forwards} and {num_draws}")
    records = []
    drawn: dict[int, NDArray[np.int64]] = {}
    for name, cost in costs.items():
        n = min(num_pictures[name], len(truth))
        if n < 2 or not (np.isfinite(cost) and cost >= 0):
            raise ValueError(f"{name}: expected 2 pictures and a finite cost from 0, got {n} and {cost}")
        if n not in drawn:
            places = np.tile(np.arange(n), (num_draws, 1))
            drawn[n] = np.random.default_rng([seed, 12]).permuted(places, axis=1)
        half = n // 2
        budget = cost * n
        paid, matched = pictures_paid(budget, sweep_forwards), pictures_paid(cost * half, sweep_forwards)
        effects, order = np.asarray(truth[:n], dtype=np.float64), drawn[n]
        cross = _agreement(effects, order < min(paid, half), order >= min(paid, half))
        same = _agreement(effects, order < min(paid, n), np.ones_like(order, dtype=bool))
        apart = _agreement(effects, order < min(matched, half), order >= half)
        low, high = np.quantile(cross, [0.025, 0.975])
        numbers = (budget, paid, cross.mean(), same.mean(), low, high, paid > half, matched, apart.mean(), n)
        records.append((name, *numbers))
    return pd.DataFrame(records, columns=list(COLUMNS))


def beats_ablation(value_cross: pd.Series, spearman_matched: pd.Series) -> pd.Series:
    """The price test: does a method agree better with the truth of the other half than ablation at its price does?

    True or False; NaN where either is unknown (a price that does not pay for a picture of the half, a control).
    """
    known = value_cross.notna() & spearman_matched.notna()
    return (value_cross > spearman_matched).astype(object).where(known, np.nan)


def pictures_paid(budget: float, sweep_forwards: float) -> int:
    """⌊budget/sweep_forwards⌋, not one less where only rounding is missing to a whole number."""
    return int(np.floor(budget / sweep_forwards + 1e-9))


def _agreement(effects: Floats, swept: NDArray[np.bool_], judged: NDArray[np.bool_]) -> Floats:
    """ρ over heads of the mean over swept and over judged pictures per draw, `[draw image]` both -> `[draw]`."""
    if not swept.any():
        return np.full(len(swept), np.nan)
    return spearman(aggregated(effects, swept.astype(np.float64)), aggregated(effects, judged.astype(np.float64)))
