"""Do the truths agree with each other, and each with itself?

Takes per-picture effects `[image layer head]` of several truths and the shared bootstrap matrices.
Gives the tidy table of their agreement over heads: each pair on the pictures both cover, and each truth between two
halves of its own pictures.
Does not know: methods, models, how a truth came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import (
    Floats,
    Ranking,
    aggregated,
    random_halves,
    resampled,
    spearman,
    spearman_within_layers,
    top_overlap,
)
from analysis.intervals import Indices, centred_interval
from analysis.jackknife import HALVES, LEAST_PICTURES, blocks_left_out, jackknife_interval

COLUMNS = ("truth_a", "truth_b", "estimator", "statistic", "value", "ci_low", "ci_high", "n")
PAIR_STATISTICS = ("spearman", "spearman_within_layers", "top_10")
SELF_STATISTICS = ("spearman_split_half", "spearman_brown", "pictures_for_reliability_0_9")
ENOUGH = 0.9  # the reliability that the last of these asks for


def truth_table(
    truths: Mapping[str, NDArray[np.floating]],
    indices: Indices,
    seed: int,
    estimators: Sequence[str] = ("mean", "trimmed"),
    *,
    num_halves: int = 200,
) -> pd.DataFrame:
    """The tidy table `COLUMNS`: every truth with itself and with each later one, in the order of `truths`.

    `truths` name -> effects `[image layer head]` of the first n pictures of a run; `indices(n)` -> the bootstrap matrix
    `[replicate image]`. A pair is compared on the first pictures that both have, `n` of them: `PAIR_STATISTICS` of the
    two aggregated over the same pictures, with the `centred_interval` over pictures. Noise that the truths share (the
    intact loss of the same pictures) raises these; noise of their own lowers them.

    A truth with itself: `spearman_split_half` is the mean over `num_halves` random halves of its pictures of the ρ
    between the half and the rest, that is, the reliability of n/2 pictures; `spearman_brown` is 2r/(1+r) of it, what
    the formula of Spearman and Brown (1910) makes of all n (from -1 to 1). The interval of the first is the
    `jackknife_interval` over pictures (from the first 40 of the halves, which suffice; in simulated heavy-tailed
    effects it held the true value in 95 to 98 %), of the second the formula at those ends: a bootstrap would draw the
    same picture into both halves. NaN where there are fewer than 4 pictures. `pictures_for_reliability_0_9`: how many
    pictures a reliability of 0.9 takes by the same formula, with the limits that it makes of the first one's; NaN where
    halves do not agree at all (r ≤ 0), so that no number is known to suffice.

    ValueError for no truths, other shapes of heads, fewer than 2 pictures, non-finite effects.
    """
    _check(truths)
    records = []
    for estimator in estimators:
        names = list(truths)
        known: dict[tuple[str, int], Ranking] = {}
        for place, first in enumerate(names):
            own = len(truths[first])
            split = _split_half(truths[first], estimator, num_halves, seed)
            of_all = (split, _spearman_brown(split), pictures_needed(split, own))
            for statistic, numbers in zip(SELF_STATISTICS, of_all, strict=True):
                records.append((first, first, estimator, statistic, *numbers, own))
            for second in names[place + 1 :]:
                shared = min(own, len(truths[second]))
                for name in (first, second):
                    if (name, shared) not in known:
                        known[name, shared] = resampled(truths[name][:shared], indices(shared), estimator)
                found = pair_statistics(known[first, shared], known[second, shared])
                for statistic, rows in found.items():
                    low, high = centred_interval(rows[:1], rows[1:, None])
                    lowest = 0.0 if statistic == "top_10" else -1.0
                    limits = np.clip([low[0], high[0]], lowest, 1.0)
                    records.append((first, second, estimator, statistic, rows[0], *limits, shared))
    return pd.DataFrame(records, columns=list(COLUMNS))


def pair_statistics(a: Ranking, b: Ranking) -> dict[str, Floats]:
    """`PAIR_STATISTICS` per row `[row]`; the ten of `top_10` are all heads where there are fewer."""
    values = (spearman(a, b), spearman_within_layers(a, b), top_overlap(a, b, min(10, a.above.shape[1])))
    return dict(zip(PAIR_STATISTICS, values, strict=True))


def _split_half(truth: NDArray[np.floating], estimator: str, num_halves: int, seed: int) -> tuple[float, float, float]:
    """Mean ρ between random halves, and its limits by the jackknife over pictures."""
    n = len(truth)
    first, second = random_halves(n, num_halves, seed)
    value = _mean_rho(truth, first, second, estimator)
    if n < LEAST_PICTURES:
        return value, np.nan, np.nan
    first, second = first[:HALVES], second[:HALVES]
    left_out = np.array([_mean_rho(truth, first * row, second * row, estimator) for row in blocks_left_out(n)])
    return value, *jackknife_interval(value, left_out)


def _mean_rho(truth: NDArray[np.floating], first: Floats, second: Floats, estimator: str) -> float:
    return float(spearman(aggregated(truth, first, estimator), aggregated(truth, second, estimator)).mean())


def _spearman_brown(numbers: tuple[float, float, float]) -> tuple[float, ...]:
    """2r/(1+r), which falls below -1 (and to minus infinity) for r < -1/3: cut off there."""
    return tuple(2 * r / (1 + r) if not r < -1 / 3 else -1.0 for r in numbers)


def pictures_needed(split_half: tuple[float, float, float], num_images: int) -> tuple[float, ...]:
    """How many pictures reach a reliability of 0.9, from that of half of `num_images` and its limits (Spearman–Brown:
    reliability r of n/2 pictures becomes kr/(1+(k−1)r) with k times as many). The limits change places."""
    value, low, high = split_half
    factor = ENOUGH / (1 - ENOUGH)
    return tuple(num_images / 2 * factor * (1 - r) / r if r > 0 else np.nan for r in (value, high, low))


def _check(truths: Mapping[str, NDArray[np.floating]]) -> None:
    if not truths:
        raise ValueError("truths: expected at least one")
    heads = np.shape(next(iter(truths.values())))[1:]
    for name, truth in truths.items():
        if np.ndim(truth) != 3 or np.shape(truth)[1:] != heads or len(truth) < 2:
            raise ValueError(
                f"{name}: expected effects [image layer head] of at least 2 pictures and heads {list(heads)}, "
                f"got {list(np.shape(truth))}"
            )
        if not np.isfinite(truth).all():
            raise ValueError(f"{name}: expected finite effects")
