"""Trials of the estimate on stored effects: is it unbiased, how much variance does it save, do its intervals cover.

Takes the effects of every head on some pictures and what the predictors say of them; gives arrays over heads. Two
kinds of trial. *Redraws*: samples without replacement from the stored pictures, whose mean is the truth. *Populations*:
pictures drawn with replacement from the stored ones, the first n of them swept; the truth is the stored mean again, now
of a population. A picture drawn twice is then in the sample and outside it, which flatters the predictor, so that
variances come from the redraws and only coverage from the populations; and the stored pictures' longest tail is the
population's. Does not know files or models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from analysis.estimate import Estimate, Indices, estimate_effects, estimate_from_outputs
from analysis.intervals import bca_interval, bootstrap_indices, index_counts, percentile_interval

Floats = NDArray[np.float64]
INTERVALS = ("bca", "student_t", "stratified_bootstrap_t")


@dataclass(frozen=True, eq=False)
class StoredEffects:
    """What a run stored of the pictures that it swept completely.

    `effects` [image layer head]: change of the loss; `predicted` [image layer head]: the predictor's; and where the
    outputs were stored, `changes` and `predicted_changes` [image layer head target] and `residuals` [image target] as
    `analysis.estimate.estimate_from_outputs` takes them.
    """

    effects: Floats
    predicted: Floats
    changes: Floats | None = None
    predicted_changes: Floats | None = None
    residuals: Floats | None = None

    @property
    def estimators(self) -> dict[str, Callable[[Indices, Indices], Estimate]]:
        """Name -> function of the pictures drawn (indices of stored ones) and the places among them that are swept."""
        found: dict[str, Callable[[Indices, Indices], Estimate]] = {"scores": self._from_scores}
        if self.changes is not None and self.predicted_changes is not None and self.residuals is not None:
            found["outputs"] = self._from_outputs
        return found

    def _from_scores(self, drawn: Indices, swept: Indices) -> Estimate:
        return estimate_effects(self.effects[drawn[swept]], self.predicted[drawn], swept)

    def _from_outputs(self, drawn: Indices, swept: Indices) -> Estimate:
        assert self.changes is not None and self.predicted_changes is not None and self.residuals is not None
        return estimate_from_outputs(
            self.changes[drawn[swept]], self.predicted_changes[drawn], self.residuals[drawn], swept
        )[0]


@dataclass(frozen=True, eq=False)
class Redraws:
    """One estimator over many samples of the stored pictures, heads flattened.

    `errors` [draw head]: estimate − mean over all stored pictures; `reported_r2` [draw head]; `r2` [head]: share of the
    variance that the predictor really explained, 1 − Var(estimate) / Var(mean of the sample).
    """

    errors: Floats
    reported_r2: Floats
    r2: Floats

    @property
    def bias_z(self) -> Floats:
        """Mean error in units of its own standard error over the draws, `[head]`."""
        return _z(self.errors)

    def kept(self, least_r2: float) -> NDArray[np.bool_]:
        """Which estimates the rule for poor heads leaves as they are, `[draw head]`."""
        return self.reported_r2 >= least_r2

    def kept_bias(self, least_r2: float) -> Floats:
        """Bias of the estimates kept, in standard errors of one estimate, `[head]`; NaN where under a tenth is kept."""
        kept = self.kept(least_r2)
        number = kept.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            bias = (self.errors * kept).sum(axis=0) / np.maximum(number, 1) / self.errors.std(axis=0)
        return np.where(number >= 0.1 * len(kept), bias, np.nan)


@dataclass(frozen=True, eq=False)
class Coverage:
    """Whether 95 % intervals held the truth and how wide they were, `[population head]`, and the estimates' errors."""

    holds: dict[str, NDArray[np.bool_]]
    widths: dict[str, Floats]
    errors: Floats

    @property
    def bias_z(self) -> Floats:
        """Mean error in units of its own standard error over the populations, `[head]`."""
        return _z(self.errors)


def redraw(stored: StoredEffects, estimator: str, num_swept: int, draws: int, seed: int) -> Redraws:
    """Estimate the stored mean from `draws` samples without replacement."""
    total, everything = len(stored.effects), np.arange(len(stored.effects))
    truth = stored.effects.mean(axis=0).ravel()
    errors, reported = [], []
    for draw in range(draws):
        swept = np.random.default_rng([seed, 11, num_swept, draw]).permutation(total)[:num_swept]
        estimate = stored.estimators[estimator](everything, swept)
        errors.append(estimate.pseudo_values.mean(axis=0).ravel() - truth)
        reported.append(estimate.r2.ravel())
    found = np.array(errors)
    plain = stored.effects.reshape(total, -1).var(axis=0, ddof=1) * (1 / num_swept - 1 / total)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Redraws(found, np.array(reported), 1 - (found**2).mean(axis=0) / plain)


def coverage(
    stored: StoredEffects,
    estimator: str,
    num_pictures: int,
    num_swept: int,
    *,
    populations: int,
    bootstrap_replicates: int,
    seed: int,
) -> Coverage:
    """Intervals of one estimator, or of `exact` (which sweeps all `num_pictures`), over many drawn sets of pictures."""
    counts = index_counts(bootstrap_indices(num_pictures, bootstrap_replicates, seed), num_pictures)
    strata = _stratified_counts(num_pictures, num_swept, bootstrap_replicates, seed)
    truth = stored.effects.mean(axis=0).ravel()
    swept = np.arange(num_swept)
    holds: dict[str, list[NDArray[np.bool_]]] = {}
    widths: dict[str, list[Floats]] = {}
    errors = []
    for population in range(populations):
        # The same pictures for every estimator and number of swept pictures.
        drawn = np.random.default_rng([seed, 13, population]).integers(0, len(stored.effects), num_pictures)
        if estimator == "exact":
            values = stored.effects[drawn].reshape(num_pictures, -1)
        else:
            values = stored.estimators[estimator](drawn, swept).pseudo_values.reshape(num_pictures, -1)
        mean = values.mean(axis=0)
        errors.append(mean - truth)
        limits = {
            "bca": _bca(values - mean, counts),
            "student_t": _student_t(values - mean, num_swept if estimator == "exact" else num_swept - 1),
        }
        if estimator != "exact":
            limits["stratified_bootstrap_t"] = _stratified_t(values - mean, num_swept, strata)
        for name, (low, high) in limits.items():
            holds.setdefault(name, []).append((mean + low <= truth) & (truth <= mean + high))
            widths.setdefault(name, []).append(high - low)
    return Coverage(
        {name: np.array(rows) for name, rows in holds.items()},
        {name: np.array(rows) for name, rows in widths.items()},
        np.array(errors),
    )


def _z(errors: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return errors.mean(axis=0) / (errors.std(axis=0, ddof=1) / np.sqrt(len(errors)))


def _bca(centred: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Limits of the mean about the estimate, as the tables make them."""
    number = len(centred)
    return bca_interval(counts @ centred / number, np.zeros(centred.shape[1]), -centred / (number - 1))


def _student_t(centred: Floats, num_free: int) -> tuple[Floats, Floats]:
    """± t times the standard error of the mean of the pseudo-values; one degree of freedom less than `num_free`."""
    half = student_t.ppf(0.975, num_free - 1) * np.sqrt((centred**2).sum(axis=0) / (len(centred) * (len(centred) - 1)))
    return -half, half


def _stratified_counts(num_pictures: int, num_swept: int, replicates: int, seed: int) -> Floats:
    """Resamples that draw as many swept and unswept pictures as there are, `[replicate image]`."""
    generator, parts = np.random.default_rng([seed, 17]), (num_swept, num_pictures - num_swept)
    drawn = [generator.multinomial(part, np.full(part, 1 / part), replicates) for part in parts if part > 0]
    return np.concatenate(drawn, axis=1).astype(np.float64)


def _stratified_t(centred: Floats, num_swept: int, counts: Floats) -> tuple[Floats, Floats]:
    """Bootstrap-t: percentiles of (replicate − estimate) / (standard error within the replicate, both strata)."""
    number = len(centred)
    parts = [part for part in (slice(0, num_swept), slice(num_swept, number)) if part.start < part.stop]

    def standard_error(weights: Floats) -> Floats:
        total = np.zeros((len(weights), centred.shape[1]))
        for part in parts:
            size = part.stop - part.start
            mean = weights[:, part] @ centred[part] / size
            spread = weights[:, part] @ centred[part] ** 2 / size - mean**2
            total += (size / number) ** 2 * np.maximum(spread, 0.0) / max(size - 1, 1)
        return np.sqrt(total)

    own = standard_error(np.ones((1, number)))[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = percentile_interval((counts @ centred / number) / standard_error(counts))
    return -high * own, -low * own
