"""How well does a cheap method order the heads as the truth does?

Takes: scores per picture `[image layer head]` of methods and of truths (positive = removing the head raises
the loss), and the bootstrap matrix `[replicate image]` shared by everything.
Gives: statistics of agreement between two score vectors `[row layer head]` (a row is a resample, a half,
...), and the tidy table.
Does not know: models, how a score came about.

Conventions: scores are aggregated over pictures first (mean, or 10 % trimmed mean) and compared then. Tied
heads share average ranks; where a list must be cut inside a tie, each of its heads is in with equal
probability, and the overlap is its expectation. Scores that are all equal order nothing: NaN in every
statistic, not 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import ceil

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from analysis.intervals import ESTIMATORS, centred_interval, index_counts
from analysis.jackknife import LEAST_PICTURES, halves_left_out, jackknife_interval, mean_over_halves

Floats = NDArray[np.float64]

COLUMNS = (
    *("method", "truth", "estimator", "statistic", "value", "ci_low", "ci_high"),
    *("value_cross", "cross_ci_low", "cross_ci_high", "noise_ceiling", "n"),
)
OVERLAPS = ("top_5", "top_10", "top_10pct", "rbo")
_PAIRS_AT_ONCE = 4_000_000
_DIGITS = 12


@dataclass(frozen=True)
class Ranking:
    """Everything the statistics need of scores `[row layer head]`, computed once; heads flattened in the rows.

    `*_ranks` are average ranks, centred and of unit norm, NaN where they are all equal: a product of two of
    them is Spearman's ρ. `above` counts heads strictly higher, `tied` the heads of equal score, itself
    included.
    """

    ranks: Floats  # [row head]
    layer_ranks: Floats  # [row layer head], within each layer
    residual_ranks: Floats  # [row head], after removing layer means
    average_rank: Floats  # [row head]
    above: Floats  # [row head]
    tied: Floats  # [row head]

    @cached_property
    def pairs(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """One bit a pair of heads, `[row word]`: is the first ranked above the second, and is it ranked below."""
        return _pair_bits(self.average_rank)


def rank_scores(scores: Floats) -> Ranking:
    """Rank scores `[row layer head]` of each row."""
    flat = scores.reshape(len(scores), -1)
    average = rankdata(flat, axis=1)
    highest_place = rankdata(-flat, method="min", axis=1).astype(np.float64)
    lowest_place = rankdata(-flat, method="max", axis=1)
    from_first = scores - scores[..., :1]
    residual = (from_first - from_first.mean(axis=2, keepdims=True)).reshape(flat.shape)
    size = np.abs(flat).max(axis=1, keepdims=True)
    residual = np.round(residual / np.where(size == 0, 1.0, size), _DIGITS)  # ties are not to hang on rounding
    return Ranking(
        ranks=_unit(average),
        layer_ranks=_unit(rankdata(scores, axis=2)),
        residual_ranks=_unit(rankdata(residual, axis=1)),
        average_rank=average,
        above=highest_place - 1,
        tied=lowest_place - highest_place + 1,
    )


def spearman(a: Ranking, b: Ranking) -> Floats:
    """Spearman's ρ per row: Pearson's r of average ranks."""
    return (a.ranks * b.ranks).sum(axis=1)


def spearman_within_layers(a: Ranking, b: Ranking) -> Floats:
    """Mean over layers of the ρ inside each layer; layers where either is constant are left out, NaN if all are."""
    inside = (a.layer_ranks * b.layer_ranks).sum(axis=2)
    defined = np.isfinite(inside)
    with np.errstate(invalid="ignore"):
        return np.where(defined, inside, 0.0).sum(axis=1) / defined.sum(axis=1)


def spearman_layer_means_removed(a: Ranking, b: Ranking) -> Floats:
    """Spearman's ρ of what is left of the scores when each layer's mean is subtracted."""
    return (a.residual_ranks * b.residual_ranks).sum(axis=1)


def kendall(a: Ranking, b: Ranking) -> Floats:
    """Kendall's τ-b per row: (concordant − discordant) / √(pairs untied in a · pairs untied in b) (Kendall 1945)."""
    (above_a, below_a), (above_b, below_b) = a.pairs, b.pairs
    concordant = _set_bits((above_a & above_b) | (below_a & below_b))
    discordant = _set_bits((above_a & below_b) | (below_a & above_b))
    with np.errstate(invalid="ignore"):
        return (concordant - discordant) / np.sqrt(_set_bits(above_a | below_a) * _set_bits(above_b | below_b))


def top_overlap(a: Ranking, b: Ranking, k: int) -> Floats:
    """Share of the k highest heads of one that are among the k highest of the other."""
    if not 1 <= k <= a.above.shape[1]:
        raise ValueError(f"top-k overlap: expected k from 1 to {a.above.shape[1]} heads, got {k}")
    return _constant_as_nan(a, b, (_in_top(a, k) * _in_top(b, k)).sum(axis=1) / k)


def rank_biased_overlap(a: Ranking, b: Ranking, p: float = 0.9) -> Floats:
    """Extrapolated RBO of the complete lists, highest first (Webber, Moffat & Zobel 2010, eq. 30).

    (1−p)/p · Σ_d X_d/d · p^d + X_H/H · p^H with X_d the overlap at depth d = 1 … H; X_H = H, as both rank the
    same H heads. It is linear in the overlaps, so ties enter by the expected X_d.
    """
    if not 0 < p < 1:
        raise ValueError(f"rank-biased overlap: expected p between 0 and 1, got {p}")
    depth = np.arange(1, a.above.shape[1] + 1)
    weight = (1 - p) / p * p**depth / depth
    untied = (a.tied.max(axis=1) == 1) & (b.tied.max(axis=1) == 1)
    from_depth = np.append(np.cumsum(weight[::-1])[::-1], 0.0)
    # Without ties a head is in both lists from the deeper of its two places on.
    deeper = np.maximum(a.above, b.above).astype(np.intp)
    result = from_depth[deeper].sum(axis=1)
    if not untied.all():
        x, y = _only(a, ~untied), _only(b, ~untied)
        result[~untied] = sum(
            w * (_in_top(x, d) * _in_top(y, d)).sum(axis=1) for d, w in zip(depth, weight, strict=True)
        )
    return _constant_as_nan(a, b, result + p ** len(depth))


def rank_correlations(a: Ranking, b: Ranking) -> dict[str, Floats]:
    """The statistics of agreement that are Spearman's ρ, name -> `[row]`."""
    return {
        "spearman": spearman(a, b),
        "spearman_within_layers": spearman_within_layers(a, b),
        "spearman_layer_means_removed": spearman_layer_means_removed(a, b),
    }


def statistics(a: Ranking, b: Ranking) -> dict[str, Floats]:
    """Every statistic of agreement, name -> `[row]`. Top-k has k = 5, 10 (or all heads, if fewer) and ⌈10 %⌉."""
    num_heads, correlations = a.above.shape[1], rank_correlations(a, b)
    return {
        "spearman": correlations["spearman"],
        "kendall": kendall(a, b),
        "top_5": top_overlap(a, b, min(5, num_heads)),
        "top_10": top_overlap(a, b, min(10, num_heads)),
        "top_10pct": top_overlap(a, b, ceil(num_heads / 10)),
        "rbo": rank_biased_overlap(a, b),
        **correlations,
    }


def random_halves(num_images: int, num_halves: int, seed: int) -> tuple[Floats, Floats]:
    """Counts `[half image]` of random halves and of the pictures each leaves over (the larger part when odd)."""
    places = np.tile(np.arange(num_images), (num_halves, 1))
    first = (np.random.default_rng(seed).permuted(places, axis=1) < num_images // 2).astype(np.float64)
    return first, 1 - first


def noise_ceiling(split_half: Floats) -> float:
    """√(mean agreement of the truth's halves): no method's expected `value_cross` exceeds it.

    For two independent halves each statistic here is an inner product of their (unit) features, so by
    Cauchy-Schwarz E⟨method, half⟩ ≤ √(E⟨half, other half⟩). A mean that is negative or undefined bounds
    nothing: NaN.
    """
    mean = float(np.mean(split_half))
    return float(np.sqrt(mean)) if mean >= 0 else float("nan")


def aggregated(scores: NDArray[np.floating], counts: Floats, estimator: str = "mean") -> Ranking:
    """Ranking of scores `[image layer head]` aggregated under each row of counts `[row image]`."""
    columns = scores.reshape(len(scores), -1).astype(np.float64)
    return rank_scores(ESTIMATORS[estimator](columns, counts).reshape(-1, *scores.shape[1:]))


def resampled(scores: NDArray[np.floating], indices: NDArray[np.integer], estimator: str = "mean") -> Ranking:
    """Ranking of scores `[image layer head]` over all pictures (the first row), then over each resample."""
    counts = index_counts(indices, len(scores))
    return aggregated(scores, np.concatenate([np.ones((1, len(scores))), counts]), estimator)


def agreement_table(
    methods: Mapping[str, NDArray[np.floating]],
    truths: Mapping[str, NDArray[np.floating]],
    signed: Mapping[str, bool],
    indices: NDArray[np.integer],
    seed: int,
    *,
    num_halves: int = 200,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    absolute: bool = True,
) -> pd.DataFrame:
    """The tidy table: one row per method, truth, estimator and statistic, in that order.

    All scores `[image layer head]` of the same pictures, `indices [replicate image]`. Unsigned methods
    (`signed` false) meet each truth and, as truth `<name>_abs`, its absolute value per picture. `value`:
    method and truth on the same pictures; `ci_*`: its 95 % interval over pictures, `centred_interval` within
    the range of the statistic; `value_cross`: method on one half of the pictures, truth on the other, mean
    over `num_halves` random halves; `cross_ci_*`: its 95 % `jackknife_interval` over pictures, of the three rank
    correlations of means (NaN for other rows, and below 4 pictures); `noise_ceiling`: the bound the truth's own noise
    sets to `value_cross`; `n` pictures. Where truths are pseudo-values, of which means alone count, `estimators` is
    ("mean",) and `absolute` false: no trimmed means, no absolute values.

    Noise in the scores lowers every statistic: the interval is the precision of `value` at this number of
    pictures, not of what infinitely many would give.
    """
    num_images = _check(methods, truths, signed, num_halves)
    counts = index_counts(indices, num_images)
    first, second = random_halves(num_images, num_halves, seed)
    shared = np.concatenate([np.ones((1, num_images)), counts])
    method_rows, truth_rows = np.concatenate([shared, first]), np.concatenate([shared, second])
    left_first, left_second = halves_left_out(first, second)
    records = []
    for estimator in estimators:
        has_interval = estimator == "mean" and num_images >= LEAST_PICTURES
        known: dict[str, tuple[Ranking, dict[str, float]]] = {}
        left: dict[str, Ranking] = {}
        for name, truth in truths.items():
            for label, scores in ((name, truth), (f"{name}_abs", np.abs(truth))):
                if label != name and (not absolute or all(signed[method] for method in methods)):
                    continue
                ranking = aggregated(scores, truth_rows, estimator)
                halves = _only(ranking, np.arange(len(shared), len(truth_rows)))
                split = statistics(halves, aggregated(scores, first, estimator))
                known[label] = ranking, {key: noise_ceiling(found) for key, found in split.items()}
                if has_interval:
                    left[label] = aggregated(scores, left_second)
        for method, scores in methods.items():
            ranking = aggregated(scores, method_rows, estimator)
            left_ranking = aggregated(scores, left_first) if has_interval else None
            for label, (truth_ranking, ceilings) in known.items():
                if signed[method] and label not in truths:
                    continue
                left_out = {} if left_ranking is None else rank_correlations(left_ranking, left[label])
                for statistic, found in statistics(ranking, truth_ranking).items():
                    value, replicates, cross = np.split(found[:, None], [1, len(shared)])
                    limits = centred_interval(value[0], replicates)
                    low, high = np.clip(limits, 0.0 if statistic in OVERLAPS else -1.0, 1.0)[:, 0]
                    apart = (float(cross.mean()), np.nan, np.nan)
                    if statistic in left_out:
                        without = mean_over_halves(left_out[statistic], num_halves)
                        apart = (apart[0], *jackknife_interval(apart[0], without))
                    numbers = (value[0, 0], low, high, *apart, ceilings[statistic], num_images)
                    records.append((method, label, estimator, statistic, *numbers))
    table = pd.DataFrame(records, columns=list(COLUMNS))
    order = {name: place for place, name in enumerate(methods)}
    labels = {name: place for place, name in enumerate(label for t in truths for label in (t, f"{t}_abs"))}
    keys = pd.DataFrame({"method": table["method"].map(order), "truth": table["truth"].map(labels)})
    return table.loc[keys.sort_values(["method", "truth"], kind="stable").index].reset_index(drop=True)


def _check(
    methods: Mapping[str, NDArray[np.floating]],
    truths: Mapping[str, NDArray[np.floating]],
    signed: Mapping[str, bool],
    num_halves: int,
) -> int:
    """The number of pictures, the same in all scores, else ValueError."""
    if not methods or not truths:
        raise ValueError(f"agreement: expected methods and truths, got {len(methods)} and {len(truths)}")
    missing = sorted(set(methods) - set(signed))
    if missing:
        raise ValueError(f"agreement: expected signed true or false for every method, missing for {missing}")
    shape = np.shape(next(iter(truths.values())))
    for name, scores in (*truths.items(), *methods.items()):
        if np.ndim(scores) != 3 or np.shape(scores) != shape or 0 in shape:
            raise ValueError(f"{name}: expected scores [image layer head] {list(shape)}, got {list(np.shape(scores))}")
        if not np.isfinite(scores).all():
            raise ValueError(
                f"{name}: expected finite scores, picture {np.argwhere(~np.isfinite(scores))[0][0]} has others"
            )
    clash = sorted({f"{name}_abs" for name in truths} & set(truths))
    if clash or shape[0] < 2 or num_halves < 1:
        raise ValueError(
            f"agreement: expected 2 pictures, 1 half and truths unlike {clash}, got {shape[0]} and {num_halves}"
        )
    return int(shape[0])


def _unit(ranks: Floats) -> Floats:
    centred = ranks - (ranks.shape[-1] + 1) / 2
    norm = np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return centred / np.where(norm == 0, np.nan, norm)


def _pair_bits(ranks: Floats) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    num_rows, num_heads = ranks.shape
    num_pairs = num_heads * (num_heads - 1) // 2
    width = -(-num_pairs // 64) * 64  # whole words; bits without a pair stay 0 in both
    found = np.zeros((2, num_rows, width // 64), dtype=np.uint64)
    rows = max(1, _PAIRS_AT_ONCE // max(1, num_pairs))
    for start in range(0, num_rows, rows):
        part = ranks[start : start + rows]
        for place, compare in enumerate((np.greater, np.less)):
            bits = np.zeros((len(part), width), dtype=bool)
            end = 0
            for head in range(num_heads - 1):
                begin, end = end, end + num_heads - 1 - head
                compare(part[:, head, None], part[:, head + 1 :], out=bits[:, begin:end])
            found[place, start : start + rows] = np.packbits(bits, axis=1).view(np.uint64)
    return found[0], found[1]


def _set_bits(words: NDArray[np.uint64]) -> Floats:
    return np.bitwise_count(words).sum(axis=1, dtype=np.int64).astype(np.float64)


def _in_top(ranking: Ranking, k: int) -> Floats:
    """Probability `[row head]` that a head is among the k highest, ties broken at random."""
    return np.clip((k - ranking.above) / ranking.tied, 0.0, 1.0)


def _constant_as_nan(a: Ranking, b: Ranking, values: Floats) -> Floats:
    constant = np.isnan(a.ranks[:, 0]) | np.isnan(b.ranks[:, 0])
    return np.where(constant, np.nan, values)


def _only(ranking: Ranking, rows: NDArray[np.generic]) -> Ranking:
    return Ranking(**{field.name: getattr(ranking, field.name)[rows] for field in fields(ranking)})
