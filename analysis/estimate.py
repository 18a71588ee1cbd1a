"""The mean effect of every head over N pictures, from an exact sweep of n of them and a cheap prediction for all N.

Takes arrays: what the sweep found on a simple random sample of the pictures, and what a predictor says of every
picture. Gives one pseudo-value a picture and head, whose plain mean over all N pictures is the estimate and whose
spread over pictures is its uncertainty, so that whatever averages and resamples per-picture effects takes them as they
are. Only means: a trimmed mean, a median or a single pseudo-value says nothing. Does not know models, how the
predictions came about, or what a sweep costs (`analysis.estimate_cost`).

**The estimate** is a difference estimator (sum of predictions plus expanded sum of the errors on the sample) whose
every prediction of a swept picture comes from a fit that did not see it (Mickey 1959, JASA 54:594-612; Wu &
Gagnon-Bartsch 2018, 1708.01229). With y the effects, S the sample and f⁻ʲ the predictions fitted to S without j:

    θⱼ = [ Σ_{i in S, i≠j} yᵢ + Σ_{i not in S, or i=j} f⁻ʲᵢ + (N − n + 1)·(yⱼ − f⁻ʲⱼ) ] / N,     θ = mean over j in S.

**Unbiased, whatever the fit.** Given S without j, f⁻ʲ is fixed and j is equally likely to be each of the N − n + 1
other pictures; so the last term has the mean Σ (y − f⁻ʲ) over these, and θⱼ the mean Σ y / N. So has θ. This is over
the draw of the sample, exactly, for every n, N and predictor; a bad predictor costs precision only.

**Pseudo-values.** vᵢ = mean over j of f⁻ʲᵢ outside the sample, vⱼ = yⱼ + (N − n)/n · (yⱼ − f⁻ʲⱼ) inside, have the mean
θ. The mean error on the sample is then moved from the swept to the unswept ones, which changes no mean and
leaves the spread free of a constant error of the predictor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Below this share of explained variance the sweep replaces the estimate: see `poor_heads`.
LEAST_R2 = 0.0
# Of the correction in `estimate_from_outputs`: noise variance over signal variance. As good: 0.1; a little worse: 1.
NOISE_TO_SIGNAL = 0.3
_PICTURES_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimated effects: `pseudo_values` [image ...] and, with the same trailing axes, how good they are.

    `r2`: share of the variance over pictures that the predictor explains, on swept pictures that its fit did not see
    (1 for exact ones); `variance_reduction`: variance of the plain mean over the swept pictures divided by that of the
    estimate, both over new samples of new pictures (NaN for exact ones); `is_exact`: the pseudo-values are the effects
    themselves. `swept` [swept]: the pictures of the sweep.
    """

    pseudo_values: Floats
    r2: Floats
    variance_reduction: Floats
    is_exact: NDArray[np.bool_]
    swept: Indices


def sample_pictures(num_pictures: int, num_swept: int, seed: int) -> Indices:
    """Simple random sample without replacement, in increasing order; a larger sample of the same seed contains it.

    ValueError unless 3 ≤ num_swept ≤ num_pictures.
    """
    return np.sort(drawn_pictures(num_pictures, num_swept, seed))


def drawn_pictures(num_pictures: int, num_swept: int, seed: int) -> Indices:
    """The same sample as it is drawn: a larger one of the same seed begins with it, both being the first of one
    permutation of the pictures."""
    if not 3 <= num_swept <= num_pictures:
        raise ValueError(f"pictures to sweep: expected from 3 to {num_pictures}, got {num_swept}")
    return np.random.default_rng([seed, 7]).permutation(num_pictures)[:num_swept]


def estimate_effects(effects: NDArray[np.floating], predicted: NDArray[np.floating], swept: Indices) -> Estimate:
    """Estimate from one number per picture and head: each head's effects regressed on it (least squares, intercept).

    `effects` [swept ...], `predicted` [image ...] in any unit, `swept` [swept] their places. An increasing or
    decreasing affine change of the predictions changes nothing; a constant predictor gives the mean of the sample. No
    prediction of a swept picture has seen its effect, so the estimate is unbiased (see above).
    """
    y, x, swept = _checked(effects, predicted, swept)
    count = len(y)
    x_mean, y_mean = x[swept].mean(axis=0), y.mean(axis=0)
    dx, dy = x[swept] - x_mean, y - y_mean
    # Sums of squares about the mean when one picture is left out.
    rest = count / (count - 1)
    squares = (dx**2).sum(axis=0)
    spread = np.maximum(squares - rest * dx**2, 0.0)
    defined = spread > 1e-12 * squares
    slope = np.where(defined, ((dx * dy).sum(axis=0) - rest * dx * dy) / np.where(defined, spread, 1.0), 0.0)
    intercept = (y_mean - dy / (count - 1)) - slope * (x_mean - dx / (count - 1))
    held_out = intercept + slope * x[swept]
    return difference_estimate(y, held_out, intercept.mean(axis=0) + slope.mean(axis=0) * x, swept)


def estimate_from_outputs(
    changes: NDArray[np.floating],
    predicted_changes: NDArray[np.floating],
    residuals: NDArray[np.floating],
    swept: Indices,
    *,
    noise_to_signal: float = NOISE_TO_SIGNAL,
) -> tuple[Estimate, Estimate]:
    """Estimates of the change of the loss `[image layer head]` and of each squared error `[image layer head target]`.

    `changes` [swept layer head target]: outputs ablated − intact; `predicted_changes` [image layer head target]: the
    same from first-order contributions (minus `g·∂ŷ/∂g`). Of an ablation that averages effects over several
    replacements both have them before the targets, [... replacement target]. `residuals` [image target]: intact outputs
    − labels. All standardised; the loss is the mean over targets of c·(c + 2r), and its estimate the mean of theirs.

    What the first order misses is alike in pictures that the heads treat alike. So a Gaussian process shared by all
    heads and targets corrects the predicted changes: squared-exponential in the predicted changes of all heads, each in
    units of its root mean square (unit length scale per feature), mean zero, with the leave-one-out fits in closed form
    (Rasmussen & Williams 2006, eq. 2.25 and 5.12).
    """
    found, predicted, swept = _checked(changes, predicted_changes, swept)
    if found.ndim not in (4, 5) or np.shape(residuals) != (len(predicted), found.shape[-1]):
        raise ValueError(
            f"estimate: expected changes [swept layer head (replacement) target] and residuals [image target], "
            f"got {list(found.shape)} and {list(np.shape(residuals))}"
        )
    if not (np.isfinite(residuals).all() and noise_to_signal > 0):
        raise ValueError("estimate: expected finite residuals and a positive noise_to_signal")
    residuals = np.asarray(residuals, dtype=np.float64)
    twice = 2 * residuals.reshape(len(residuals), *(1,) * (found.ndim - 2), residuals.shape[1])

    def of_replacements(values: Floats) -> Floats:
        return values if values.ndim == 4 else values.mean(axis=3)

    flat = predicted.reshape(len(predicted), -1)
    size = np.sqrt((flat**2).mean(axis=0))
    features = flat / np.where(size > 0, size, 1.0)
    missed = (found - predicted[swept]).reshape(len(swept), -1)
    inverse = np.linalg.inv(_alikeness(features[swept], features[swept]) + noise_to_signal * np.eye(len(swept)))
    errors = inverse @ missed / np.diag(inverse)[:, None]
    held_out = found - errors.reshape(found.shape)
    held_out = held_out * (held_out + twice[swept])
    expected = np.empty_like(predicted)
    for start in range(0, len(predicted), _PICTURES_AT_ONCE):
        block = slice(start, start + _PICTURES_AT_ONCE)
        weights = _alikeness(features[block], features[swept]) @ inverse
        fitted = (flat[block] + weights @ missed).reshape(predicted[block].shape)
        # Without picture j the fitted change is lower by weights[:, j]·errors[j]: mean and mean square of that over j.
        lower = (weights @ errors / len(swept)).reshape(fitted.shape)
        lower_sq = (weights**2 @ errors**2 / len(swept)).reshape(fitted.shape)
        expected[block] = fitted * (fitted + twice[block]) - (2 * fitted + twice[block]) * lower + lower_sq
    effects = of_replacements(found * (found + twice[swept]))
    held_out, expected = of_replacements(held_out), of_replacements(expected)
    per_target = difference_estimate(effects, held_out, expected, swept)
    loss = difference_estimate(effects.mean(axis=-1), held_out.mean(axis=-1), expected.mean(axis=-1), swept)
    return loss, per_target


def difference_estimate(
    effects: NDArray[np.floating], held_out: NDArray[np.floating], predicted: NDArray[np.floating], swept: Indices
) -> Estimate:
    """Put together an estimate from predictions made by any fit.

    `effects` [swept ...]; `held_out` [swept ...]: the prediction for each swept picture by the fit without it;
    `predicted` [image ...]: the mean over all those fits (read for unswept pictures alone). Every picture swept: the
    pseudo-values are the effects.
    """
    effects, predicted, swept = _checked(effects, predicted, swept)
    if np.shape(held_out) != effects.shape or not np.isfinite(held_out).all():
        raise ValueError(f"estimate: expected finite held-out predictions of shape {list(effects.shape)}")
    total, count = len(predicted), len(swept)
    errors = effects - held_out
    constant = errors.mean(axis=0)
    values = predicted + constant
    values[swept] = effects + (total - count) / count * (errors - constant)
    rounding = 1e-24 * (effects**2).sum(axis=0)
    spread, missed = (
        np.where(squares > rounding, squares, 0.0)
        for squares in (((part - part.mean(axis=0)) ** 2).sum(axis=0) for part in (effects, errors))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(spread > 0, 1 - missed / spread, np.where(missed > 0, -np.inf, 1.0))
        # Variance of the effects / N, of the errors (1/n − 1/N); of the plain mean of the sample: of the effects / n.
        reduction = 1 / (1 - r2 * (1 - count / total))
    exact = np.full(r2.shape, total == count)
    return Estimate(values, np.where(exact, 1.0, r2), np.where(exact, np.nan, reduction), exact, swept)


def poor_heads(estimate: Estimate, least_r2: float = LEAST_R2) -> NDArray[np.bool_]:
    """Heads to be swept on all pictures instead, `[...]`: those whose `r2` is below `least_r2`.

    At 0 the predictor adds nothing to the swept pictures. Sweeping a head on the other N − n pictures buys at most
    N − n more for the price of N − n, where estimates buy several pictures for the price of one: at any R² above 0 it
    raises the cost at equal intervals. The rule looks at the sample, so it favours heads whose sample is easy; a
    threshold well inside the range of `r2` biases the heads that stay (`analysis.estimate_coverage` measures it).
    """
    return ~estimate.is_exact & (estimate.r2 < least_r2)


def with_exact(estimate: Estimate, effects: NDArray[np.floating], is_exact: NDArray[np.bool_]) -> Estimate:
    """The estimate with the effects of all pictures, `[image ...]`, in place of the pseudo-values of some heads.

    `is_exact` [...], or without the last axes, marks the heads; other heads' effects are not looked at (may be NaN).
    """
    shape = estimate.r2.shape
    marked = np.asarray(is_exact, dtype=bool)
    if marked.shape != shape[: marked.ndim] or np.shape(effects) != estimate.pseudo_values.shape:
        raise ValueError(
            f"exact effects: expected effects {list(estimate.pseudo_values.shape)} and marks {list(shape)}, "
            f"got {list(np.shape(effects))} and {list(marked.shape)}"
        )
    marked = np.broadcast_to(marked.reshape(marked.shape + (1,) * (len(shape) - marked.ndim)), shape)
    if not np.isfinite(np.asarray(effects)[:, marked]).all():
        raise ValueError("exact effects: expected a number for every picture of the heads that are marked")
    return Estimate(
        np.where(marked, effects, estimate.pseudo_values),
        np.where(marked, 1.0, estimate.r2),
        np.where(marked, np.nan, estimate.variance_reduction),
        estimate.is_exact | marked,
        estimate.swept,
    )


def _alikeness(a: Floats, b: Floats) -> Floats:
    """exp(−½·mean squared difference of features), `[a b]`."""
    mean_sq = (a**2).mean(axis=1)[:, None] + (b**2).mean(axis=1) - 2 * (a @ b.T) / a.shape[1]
    return np.exp(-0.5 * np.maximum(mean_sq, 0.0))


def _checked(
    found: NDArray[np.floating], predicted: NDArray[np.floating], swept: Indices
) -> tuple[Floats, Floats, Indices]:
    """Float64 copies that fit each other. ValueError in one line."""
    places = np.asarray(swept)
    if places.ndim != 1 or not np.issubdtype(places.dtype, np.integer) or len(places) < 3:
        raise ValueError(f"swept pictures: expected at least 3 indices, got {places.dtype} {list(places.shape)}")
    if len(np.unique(places)) != len(places) or places.min() < 0 or places.max() >= len(predicted):
        raise ValueError(f"swept pictures: expected different indices from 0 to {len(predicted) - 1}")
    y, x = np.asarray(found, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if y.shape != (len(places), *x.shape[1:]):
        raise ValueError(
            f"estimate: expected [swept ...] for {len(places)} swept pictures beside predictions {list(x.shape)}, "
            f"got {list(y.shape)}"
        )
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise ValueError("estimate: expected finite effects and predictions, found NaN or infinity")
    return y, x, places.astype(np.int64)
