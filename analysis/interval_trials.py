"""Trials of the kinds of interval: how often does each hold the mean of a population whose mean is known?

Takes effects per picture that a run stored, `[image head]`; draws sets of n pictures from a population made of them and
gives, for every kind of interval, how often it held what it should and how wide it was, `[head]`.

Two populations. *Stored*: pictures drawn with replacement from the stored ones; its tails end with them. *Tailed*: the
same, but the highest and the lowest tenth of a head's effects are drawn anew from generalized Pareto tails of the same
mean, so that effects beyond the stored ones occur. Both have the stored mean and the stored 10 % trimmed mean.
Does not know: runs, files, models; what the other pictures are like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from analysis.intervals import (
    ESTIMATORS,
    Floats,
    all_but_one,
    bca_interval,
    bootstrap_indices,
    index_counts,
    percentile_interval,
    student_interval,
)

TAIL = 0.1  # share of the pictures on either side whose effects a tail replaces
HEAVIEST = 0.5  # largest tail shape: above it effects have no variance and no interval for a mean covers
KINDS = {
    "mean": ("student_t", "bca", "percentile", "bootstrap_t", "log_t"),
    "trimmed": ("student_t", "bca", "percentile"),
}


@dataclass(frozen=True, eq=False)
class Population:
    """Effects `[image head]` to draw from, and the tails beyond them; `shape` and `scale` `[side head]`, upper side
    first, or None: no tails."""

    effects: Floats
    shape: Floats | None = None
    scale: Floats | None = None

    def draw(self, rng: np.random.Generator, num_pictures: int) -> Floats:
        """Effects of so many pictures, `[image head]`."""
        rows = rng.integers(0, len(self.effects), num_pictures)
        found = self.effects[rows]
        if self.shape is None or self.scale is None:
            return found
        for side, sign in enumerate((1.0, -1.0)):
            rank, threshold = _tail(sign * self.effects)
            shape, scale = self.shape[side], self.scale[side]
            # Inverse of the generalized Pareto distribution; the exponential one where the shape is 0.
            chance = rng.random(found.shape)
            safe = np.where(shape > 0, shape, 1.0)
            beyond = scale * np.where(shape > 0, np.expm1(-safe * np.log1p(-chance)) / safe, -np.log1p(-chance))
            found = np.where(rank[rows], sign * (threshold + beyond), found)
        return found

    def target(self, estimator: str) -> Floats:
        """What an interval of this estimator should hold, `[head]`: mean, or 10 % trimmed mean, of the population."""
        if estimator == "mean":
            return self.effects.mean(axis=0)
        # Many copies of every picture: then a tenth of the population is cut, not the largest whole number of pictures.
        return ESTIMATORS[estimator](self.effects, np.full((1, len(self.effects)), 10.0))[0]


def with_tails(effects: Floats) -> Population:
    """The tailed population: shapes by probability-weighted moments of the excesses (Hosking & Wallis 1987), held
    between 0 (a tail that never ends) and 0.5, and the scale that leaves the mean of the tail where it was."""
    shapes, scales = [], []
    for sign in (1.0, -1.0):
        rank, threshold = _tail(sign * effects)
        excess = np.sort(np.where(rank, sign * effects - threshold, -np.inf), axis=0)[-int(rank[:, 0].sum()) :]
        number = len(excess)
        mean = excess.mean(axis=0)
        lower = (excess * (number - 1 - np.arange(number))[:, None]).sum(axis=0) / (number * (number - 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            shape = 2 - mean / (mean - 2 * lower)
        # A tail without excess, all of its effects equal, is drawn as it is: scale 0.
        shape = np.clip(np.where(mean > 0, shape, 0.0), 0.0, HEAVIEST)
        shapes.append(shape)
        scales.append(mean * (1 - shape))
    return Population(effects, np.array(shapes), np.array(scales))


@dataclass(frozen=True, eq=False)
class Trial:
    """Of one kind of interval, `[head]`: share of the sets whose interval `holds` the target, share whose interval lies
    wholly `below` it, mean `width`."""

    holds: Floats
    below: Floats
    width: Floats


def trial(
    population: Population,
    num_pictures: int,
    *,
    estimator: str = "mean",
    level: float = 0.95,
    sets: int,
    replicates: int,
    seed: int,
) -> dict[str, Trial]:
    """Kind of interval -> how it did over `sets` drawn sets of `num_pictures` pictures. The bootstrap of every set uses
    the same index matrix, as the tables of a run do."""
    counts = index_counts(bootstrap_indices(num_pictures, replicates, seed), num_pictures)
    target = population.target(estimator)
    tallies: dict[str, Floats] = {}
    for number in range(sets):
        values = population.draw(np.random.default_rng([seed, 19, num_pictures, number]), num_pictures)
        for kind, (low, high) in limits_of(values, counts, estimator, level).items():
            tally = np.array([(low <= target) & (target <= high), high < target, high - low], dtype=np.float64)
            tallies[kind] = tallies.get(kind, 0.0) + tally
    return {kind: Trial(*(tally / sets)) for kind, tally in tallies.items()}


def limits_of(
    values: Floats, counts: Floats, estimator: str = "mean", level: float = 0.95
) -> dict[str, tuple[Floats, Floats]]:
    """Kind of interval -> limits `[head]` for values `[image head]` and bootstrap counts `[replicate image]`."""
    number = len(values)
    student = student_interval(values, estimator, level)
    found = {"student_t": (student.low, student.high)}
    point = student.value
    if estimator == "mean":
        centred = values - point
        replicates = counts @ centred / number
        found["bootstrap_t"] = _bootstrap_t(centred, replicates, counts, point, level)
        found["log_t"] = _log_t(values, level)
        replicates += point
        jackknife = point - centred / (number - 1)
    else:
        replicates = ESTIMATORS[estimator](values, counts)
        jackknife = ESTIMATORS[estimator](values, all_but_one(number))
    found["bca"] = bca_interval(replicates, point, jackknife, level)
    found["percentile"] = percentile_interval(replicates, level)
    return found


def _bootstrap_t(centred: Floats, moved: Floats, counts: Floats, mean: Floats, level: float) -> tuple[Floats, Floats]:
    """Mean − percentiles of (replicate − mean) / (standard error within the replicate) times the own standard error
    (Efron & Tibshirani 1993, eq. 12.22); replicates of one value alone, which have no error, are left out."""
    number = len(centred)
    own = np.sqrt((centred**2).sum(axis=0) / (number * (number - 1)))
    spread = np.sqrt(np.maximum(counts @ centred**2 / number - moved**2, 0.0) / (number - 1))
    alone = spread <= 1e-9 * own  # nothing but rounding
    low, high = percentile_interval(np.where(alone, np.nan, moved / np.where(alone, 1.0, spread)), level)
    return mean - high * own, mean - low * own


def _log_t(values: Floats, level: float) -> tuple[Floats, Floats]:
    """Student's t on the logarithm of the mean (standard error by the delta method) where the plain interval keeps
    clear of 0, mirrored below 0; elsewhere the plain one."""
    number = len(values)
    mean = values.mean(axis=0)
    half = student_t.ppf((1 + level) / 2, number - 1) * values.std(axis=0, ddof=1) / np.sqrt(number)
    clear = np.abs(mean) > half
    factor = np.exp(half / np.where(clear, np.abs(mean), 1.0))
    ends = np.sort(np.stack([mean / factor, mean * factor]), axis=0)
    return np.where(clear, ends[0], mean - half), np.where(clear, ends[1], mean + half)


def _tail(effects: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Which pictures are the head's highest tenth, `[image head]`, and the highest effect below them, `[head]`."""
    number = int(TAIL * len(effects))
    order = np.argsort(-effects, axis=0, kind="stable")
    marks = np.zeros(effects.shape, dtype=bool)
    np.put_along_axis(marks, order[:number], True, axis=0)
    return marks, np.take_along_axis(effects, order[number : number + 1], axis=0)[0]
