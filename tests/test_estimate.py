"""The estimate against enumeration of all samples, a loop that refits for every picture, and limits known by hand."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from analysis.estimate import (
    NOISE_TO_SIGNAL,
    difference_estimate,
    estimate_effects,
    estimate_from_outputs,
    poor_heads,
    sample_pictures,
    with_exact,
)
from analysis.intervals import bootstrap_indices, interval_over_images


def heavy(rng, *shape):
    return rng.standard_t(2, shape)


def outputs(rng, num_images=6, num_layers=2, num_heads=2, num_targets=3):
    """Changes of the outputs, a prediction of them and residuals, all heavy-tailed."""
    changes = heavy(rng, num_images, num_layers, num_heads, num_targets)
    return changes, changes + 0.5 * heavy(rng, *changes.shape), heavy(rng, num_images, num_targets)


def refitted_line(effects, predicted, swept, left_out):
    """Predictions for all pictures of the line through the swept pictures but one."""
    keep = [place for place in range(len(swept)) if place != left_out]
    result = np.empty(predicted.shape)
    for column in np.ndindex(predicted.shape[1:]):
        x = predicted[(swept[keep], *column)]
        design = np.stack([np.ones(len(keep)), x], axis=1)
        intercept, slope = np.linalg.lstsq(design, effects[(keep, *column)], rcond=None)[0]
        result[(slice(None), *column)] = intercept + slope * predicted[(slice(None), *column)]
    return result


def refitted_process(changes, predicted, residuals, swept, left_out):
    """Predicted changes of the squared errors, for all pictures, of the process fitted to the swept ones but one."""
    keep = np.delete(np.arange(len(swept)), left_out)
    flat = predicted.reshape(len(predicted), -1)
    features = flat / np.sqrt((flat**2).mean(axis=0))
    kernel = np.exp(-cdist(features, features, "sqeuclidean") / (2 * flat.shape[1]))
    inside = kernel[np.ix_(swept[keep], swept[keep])] + NOISE_TO_SIGNAL * np.eye(len(keep))
    missed = (changes - predicted[swept])[keep].reshape(len(keep), -1)
    fitted = (flat + kernel[:, swept[keep]] @ np.linalg.solve(inside, missed)).reshape(predicted.shape)
    return (fitted + residuals[:, None, None]) ** 2 - residuals[:, None, None] ** 2


def theta(effects, swept, total, left_out, predicted):
    """θⱼ as the module's docstring writes it."""
    others = np.delete(np.arange(len(swept)), left_out)
    rest = np.setdiff1d(np.arange(total), swept[others])
    error = effects[left_out] - predicted[swept[left_out]]
    return (effects[others].sum(axis=0) + predicted[rest].sum(axis=0) + len(rest) * error) / total


def test_sample_is_sorted_distinct_nested_and_even():
    small, large = sample_pictures(50, 10, seed=3), sample_pictures(50, 30, seed=3)
    for sample in (small, large):
        assert list(sample) == sorted(set(sample)) and sample.min() >= 0 and sample.max() < 50
    assert set(small) < set(large)
    assert list(small) != list(sample_pictures(50, 10, seed=4))
    assert list(sample_pictures(5, 5, seed=0)) == [0, 1, 2, 3, 4]
    drawn = np.bincount(np.concatenate([sample_pictures(6, 3, seed) for seed in range(2000)]), minlength=6)
    assert np.abs(drawn / 2000 - 0.5).max() < 4 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize("count", [2, 7])
def test_sample_refuses_sizes(count):
    with pytest.raises(ValueError, match=rf"pictures to sweep: expected from 3 to 6, got {count}"):
        sample_pictures(6, count, seed=0)


def test_by_hand():
    # Lines through two of (0, 1), (1, 3), (2, 8): predictions -2, 4.5 and 5 for the third, 13, 11.5 and 7 at 3.
    estimate = estimate_effects(np.array([1.0, 3.0, 8.0]), np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 1, 2]))
    np.testing.assert_allclose(estimate.pseudo_values, [1.5, 2.0, 8.5, 12.0], atol=1e-14)
    assert estimate.pseudo_values.mean() == pytest.approx((7 + 5.5 + 5.5) / 3, abs=1e-14)
    assert float(estimate.r2) == pytest.approx(1 - 13.5 / 26, abs=1e-14)
    assert float(estimate.variance_reduction) == pytest.approx(1 / (3 / 4 + 1 / 4 * 13.5 / 26), abs=1e-14)
    assert not estimate.is_exact


@pytest.mark.parametrize("count", [3, 4, 5])
def test_unbiased_over_all_samples(count):
    rng = np.random.default_rng(count)
    effects, predicted = heavy(rng, 6, 2, 2), heavy(rng, 6, 2, 2)
    changes, foreseen, residuals = outputs(rng)
    squares = changes * (changes + 2 * residuals[:, None, None])
    found, by_loss, by_target = [], [], []
    for chosen in combinations(range(6), count):
        swept = np.array(chosen)
        found.append(estimate_effects(effects[swept], predicted, swept).pseudo_values.mean(axis=0))
        loss, targets = estimate_from_outputs(changes[swept], foreseen, residuals, swept)
        by_loss.append(loss.pseudo_values.mean(axis=0))
        by_target.append(targets.pseudo_values.mean(axis=0))
    assert np.std(found, axis=0).min() > 0.01  # each of them is off
    np.testing.assert_allclose(np.mean(found, axis=0), effects.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(np.mean(by_target, axis=0), squares.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(np.mean(by_loss, axis=0), squares.mean(axis=(0, -1)), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(arrays(np.int64, (2, 5), elements=st.integers(-9, 9)))
def test_unbiased_whatever_the_numbers(table):
    effects, predicted = table.astype(float)
    found = [
        estimate_effects(effects[list(chosen)], predicted, np.array(chosen)).pseudo_values.mean()
        for chosen in combinations(range(5), 3)
    ]
    assert np.mean(found) == pytest.approx(effects.mean(), abs=1e-10)


def test_unbiased_with_any_fit():
    """A fit that is nonsense, but does not look at the picture it predicts."""
    rng = np.random.default_rng(0)
    effects, predicted = heavy(rng, 7), heavy(rng, 7)
    found = []
    for chosen in combinations(range(7), 4):
        swept = np.array(chosen)
        y = effects[swept]
        fits = np.array([np.sin(predicted * np.delete(y, j).max()) for j in range(4)])
        estimate = difference_estimate(y, fits[np.arange(4), swept], fits.mean(axis=0), swept)
        found.append(estimate.pseudo_values.mean())
    assert np.mean(found) == pytest.approx(effects.mean(), abs=1e-12)


def test_equals_the_mean_of_refitted_estimates():
    rng = np.random.default_rng(1)
    effects, predicted = heavy(rng, 12, 2, 3), heavy(rng, 12, 2, 3)
    swept = np.array([7, 0, 3, 11, 4])
    estimate = estimate_effects(effects[swept], predicted, swept)
    fits = [refitted_line(effects[swept], predicted, swept, left_out) for left_out in range(5)]
    expected = np.mean([theta(effects[swept], swept, 12, j, fit) for j, fit in enumerate(fits)], axis=0)
    np.testing.assert_allclose(estimate.pseudo_values.mean(axis=0), expected, atol=1e-12)
    errors = np.array([effects[place] - fit[place] for place, fit in zip(swept, fits, strict=True)])
    constant = errors.mean(axis=0)
    outside = np.setdiff1d(np.arange(12), swept)
    np.testing.assert_allclose(estimate.pseudo_values[swept], effects[swept] + 7 / 5 * (errors - constant), atol=1e-12)
    np.testing.assert_allclose(estimate.pseudo_values[outside], np.mean(fits, axis=0)[outside] + constant, atol=1e-12)
    np.testing.assert_allclose(estimate.r2, 1 - errors.var(axis=0) / effects[swept].var(axis=0), atol=1e-12)


def test_process_equals_refits(monkeypatch):
    monkeypatch.setattr("analysis.estimate._PICTURES_AT_ONCE", 5)
    changes, foreseen, residuals = outputs(np.random.default_rng(2), num_images=14)
    swept = np.array([13, 2, 5, 6, 9, 0])
    squares = changes * (changes + 2 * residuals[:, None, None])
    loss, targets = estimate_from_outputs(changes[swept], foreseen, residuals, swept)
    fits = np.array([refitted_process(changes[swept], foreseen, residuals, swept, j) for j in range(6)])
    own = fits[np.arange(6), swept]
    expected = difference_estimate(squares[swept], own, fits.mean(axis=0), swept)
    np.testing.assert_allclose(targets.pseudo_values, expected.pseudo_values, atol=1e-10)
    np.testing.assert_allclose(loss.pseudo_values, targets.pseudo_values.mean(axis=-1), atol=1e-12)
    thetas = [theta(squares[swept], swept, 14, j, fit) for j, fit in enumerate(fits)]
    np.testing.assert_allclose(targets.pseudo_values.mean(axis=0), np.mean(thetas, axis=0), atol=1e-10)
    errors = (squares[swept] - own).mean(axis=-1)
    np.testing.assert_allclose(loss.r2, 1 - errors.var(axis=0) / squares[swept].mean(axis=-1).var(axis=0), atol=1e-10)


def test_several_replacements_are_averaged_and_one_is_none():
    """Effects are means over replacements, of which each is predicted by itself."""
    rng = np.random.default_rng(3)
    changes, predicted, residuals = outputs(rng, num_images=9)
    swept = np.array([0, 2, 3, 5, 8])
    one = estimate_from_outputs(changes[swept], predicted, residuals, swept)
    same = estimate_from_outputs(changes[swept][:, :, :, None], predicted[:, :, :, None], residuals, swept)
    for mine, theirs in zip(one, same, strict=True):
        np.testing.assert_allclose(mine.pseudo_values, theirs.pseudo_values, rtol=1e-10)
        np.testing.assert_allclose(mine.r2, theirs.r2, rtol=1e-10)
    others = changes + heavy(rng, *changes.shape)
    both = np.stack([changes, others], axis=3)
    guesses = np.stack([predicted, predicted + 0.1 * heavy(rng, *predicted.shape)], axis=3)
    effects = (both * (both + 2 * residuals[:, None, None, None])).mean(axis=(3, 4))
    found = []
    for sample in combinations(range(6), 4):
        places = np.array(sample)
        loss, per_target = estimate_from_outputs(both[places], guesses[:6], residuals[:6], places)
        assert per_target.pseudo_values.shape == (6, 2, 2, 3) and loss.pseudo_values.shape == (6, 2, 2)
        np.testing.assert_allclose(per_target.pseudo_values.mean(axis=-1), loss.pseudo_values, rtol=1e-9, atol=1e-9)
        found.append(loss.pseudo_values.mean(axis=0))
    np.testing.assert_allclose(np.mean(found, axis=0), effects[:6].mean(axis=0), rtol=1e-9, atol=1e-9)


def test_correction_helps_where_the_misses_are_alike():
    rng = np.random.default_rng(3)
    mood, residuals = rng.normal(size=(200, 1, 1, 1)), rng.normal(size=(200, 3))
    foreseen = mood + 0.5 * rng.normal(size=(200, 2, 3, 3))
    changes = foreseen + np.sin(2 * mood)  # what all heads miss shows in what is foreseen of them together
    squares = changes * (changes + 2 * residuals[:, None, None])
    raw = foreseen * (foreseen + 2 * residuals[:, None, None])
    swept = sample_pictures(200, 60, seed=0)
    corrected, _ = estimate_from_outputs(changes[swept], foreseen, residuals, swept)
    plain = estimate_effects(squares[swept].mean(axis=-1), raw.mean(axis=-1), swept)
    assert corrected.r2.min() > 0.8 > 0.65 > plain.r2.max()


def test_perfect_predictor():
    rng = np.random.default_rng(4)
    predicted = heavy(rng, 20, 3)
    swept = np.array([1, 4, 8, 15])
    estimate = estimate_effects(1 - 2 * predicted[swept], predicted, swept)
    np.testing.assert_allclose(estimate.pseudo_values, 1 - 2 * predicted, atol=1e-12)
    np.testing.assert_array_equal(estimate.r2, 1.0)
    np.testing.assert_allclose(estimate.variance_reduction, 5.0, atol=1e-12)
    changes, _, residuals = outputs(rng, num_images=20)
    loss, targets = estimate_from_outputs(changes[swept], changes, residuals, swept)
    squares = changes * (changes + 2 * residuals[:, None, None])
    np.testing.assert_allclose(targets.pseudo_values, squares, atol=1e-12)
    np.testing.assert_array_equal(loss.r2, 1.0)


def test_useless_predictor_gives_the_mean_of_the_sample():
    effects = heavy(np.random.default_rng(5), 10, 4)
    swept = np.array([0, 2, 9, 5, 6])
    estimate = estimate_effects(effects[swept], np.full((10, 4), 3.0), swept)
    np.testing.assert_allclose(estimate.pseudo_values.mean(axis=0), effects[swept].mean(axis=0), atol=1e-12)
    # Leaving one out moves the mean by 1 / (n − 1) of its deviation.
    np.testing.assert_allclose(estimate.r2, 1 - (5 / 4) ** 2, atol=1e-12)
    assert poor_heads(estimate).all()


def test_one_picture_off_a_constant_predictor():
    """Without the only picture that differs there is no slope."""
    predicted = np.array([0.0, 0.0, 0.0, 1.0, 1.0])
    estimate = estimate_effects(np.array([1.0, 2.0, 3.0, 9.0]), predicted, np.arange(4))
    assert np.isfinite(estimate.pseudo_values).all()
    # Held-out predictions 2.5, 2, 1.5 and (no slope) 2; for the last picture 9, 9, 9 and 2.
    thetas = [(14 + 2.5 + 9 - 2 * 1.5) / 5, (13 + 2 + 9) / 5, (12 + 1.5 + 9 + 2 * 1.5) / 5, (6 + 2 + 2 + 2 * 7) / 5]
    assert estimate.pseudo_values.mean() == pytest.approx(np.mean(thetas), abs=1e-12)


def test_no_effect_at_all():
    estimate = estimate_effects(np.zeros((4, 2)), np.arange(14.0).reshape(7, 2), np.arange(4))
    np.testing.assert_array_equal(estimate.pseudo_values, 0.0)
    np.testing.assert_array_equal(estimate.r2, 1.0)
    wrong = difference_estimate(np.zeros(4), np.arange(4.0), np.zeros(7), np.arange(4))
    assert wrong.r2 == -np.inf and wrong.variance_reduction == 0 and poor_heads(wrong)


def test_everything_swept_is_the_sweep():
    rng = np.random.default_rng(6)
    effects, predicted = heavy(rng, 8, 3), heavy(rng, 8, 3)
    estimate = estimate_effects(effects, predicted, np.arange(8))
    np.testing.assert_array_equal(estimate.pseudo_values, effects)
    changes, foreseen, residuals = outputs(rng, num_images=8)
    loss, targets = estimate_from_outputs(changes, foreseen, residuals, np.arange(8))
    squares = changes * (changes + 2 * residuals[:, None, None])
    np.testing.assert_allclose(targets.pseudo_values, squares, atol=1e-14)
    for exact in (estimate, loss, targets):
        assert exact.is_exact.all() and (exact.r2 == 1).all() and np.isnan(exact.variance_reduction).all()
        assert not poor_heads(exact, 2.0).any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.01, 100) | st.floats(-100, -0.01),
    st.floats(-100, 100),
    st.permutations(range(5)),
)
def test_units_and_order_change_nothing(seed, scale, shift, order):
    rng = np.random.default_rng(seed)
    effects, predicted = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    swept = np.array([8, 1, 3, 4, 6])
    first = estimate_effects(effects[swept], predicted, swept)
    other = swept[list(order)]
    moved = estimate_effects(effects[other], shift + scale * predicted, other)
    np.testing.assert_allclose(first.pseudo_values, moved.pseudo_values, rtol=1e-6, atol=1e-6)
    tripled = estimate_effects(3 * effects[swept] - 1, predicted, swept)
    np.testing.assert_allclose(3 * first.pseudo_values - 1, tripled.pseudo_values, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(first.r2, tripled.r2, rtol=1e-8, atol=1e-8)


def test_process_does_not_hang_on_order_or_unit_of_a_head():
    changes, foreseen, residuals = outputs(np.random.default_rng(7), num_images=11)
    swept = np.array([3, 9, 1, 0, 7])
    first, _ = estimate_from_outputs(changes[swept], foreseen, residuals, swept)
    turned, _ = estimate_from_outputs(changes[swept[::-1]], foreseen, residuals, swept[::-1])
    np.testing.assert_allclose(first.pseudo_values, turned.pseudo_values, atol=1e-12)
    silent = np.concatenate([foreseen, np.zeros_like(foreseen[:, :1])], axis=1)  # a block that does nothing
    beside = np.concatenate([changes, np.zeros_like(changes[:, :1])], axis=1)
    found, _ = estimate_from_outputs(beside[swept], silent, residuals, swept)
    np.testing.assert_allclose(found.pseudo_values[:, 2], 0.0, atol=1e-14)
    assert np.isfinite(found.pseudo_values).all()


def test_spread_of_pseudo_values_is_the_variance_of_the_estimate():
    rng = np.random.default_rng(8)
    means, claimed, reductions = [], [], []
    for _ in range(1500):
        predicted = rng.normal(size=(120, 2))
        effects = predicted + np.array([0.5, 2.0]) * rng.normal(size=(120, 2))
        estimate = estimate_effects(effects[:24], predicted, np.arange(24))
        means.append(estimate.pseudo_values.mean(axis=0))
        claimed.append(estimate.pseudo_values.var(axis=0, ddof=1) / 120)
        reductions.append(estimate.variance_reduction)
    np.testing.assert_allclose(np.mean(claimed, axis=0), np.var(means, axis=0), rtol=0.12)
    noise = np.array([0.25, 4.0])
    np.testing.assert_allclose(np.var(means, axis=0), (1 + noise) / 120 + noise * (1 / 24 - 1 / 120), rtol=0.2)
    truth = 1 / (0.2 + 0.8 * noise / (1 + noise))
    np.testing.assert_allclose(np.median(reductions, axis=0), truth, rtol=0.15)


def test_a_constant_error_of_the_predictor_does_not_widen_intervals():
    rng = np.random.default_rng(9)
    effects, noise = rng.normal(size=30), 0.1 * rng.normal(size=30)
    swept = np.arange(10)
    spreads = []
    for constant in (0.0, 50.0):
        predicted = effects + noise + constant
        spreads.append(difference_estimate(effects[swept], predicted[swept], predicted, swept).pseudo_values.std())
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-9)


def test_tables_intervals_take_pseudo_values():
    rng = np.random.default_rng(10)
    effects, predicted = heavy(rng, 40, 2, 2), heavy(rng, 40, 2, 2)
    swept = sample_pictures(40, 10, seed=1)
    estimate = estimate_effects(effects[swept], predicted, swept)
    interval = interval_over_images(estimate.pseudo_values, bootstrap_indices(40, 200))
    np.testing.assert_allclose(interval.value, estimate.pseudo_values.mean(axis=0), atol=1e-12)
    assert (interval.low < interval.value).all() and (interval.value < interval.high).all()


def test_poor_heads_are_swept():
    rng = np.random.default_rng(11)
    effects = rng.normal(size=(60, 1, 2))
    predicted = np.stack([effects[..., 0] + 0.1 * rng.normal(size=(60, 1)), rng.normal(size=(60, 1))], axis=-1)
    swept = sample_pictures(60, 20, seed=2)
    estimate = estimate_effects(effects[swept], predicted, swept)
    poor = poor_heads(estimate)
    np.testing.assert_array_equal(poor, [[False, True]])
    np.testing.assert_array_equal(poor_heads(estimate, -np.inf), [[False, False]])
    np.testing.assert_array_equal(poor_heads(estimate, float(estimate.r2[0, 0])), [[False, True]])  # not below itself
    everywhere = np.where(poor, effects, np.nan)  # a sweep of that head alone
    mixed = with_exact(estimate, everywhere, poor)
    np.testing.assert_array_equal(mixed.pseudo_values[..., 1], effects[..., 1])
    np.testing.assert_array_equal(mixed.pseudo_values[..., 0], estimate.pseudo_values[..., 0])
    np.testing.assert_array_equal(mixed.is_exact, poor)
    assert mixed.r2[0, 1] == 1 and np.isnan(mixed.variance_reduction[0, 1])
    assert mixed.r2[0, 0] == estimate.r2[0, 0]
    assert not poor_heads(mixed).any()
    with pytest.raises(ValueError, match="a number for every picture of the heads that are marked"):
        with_exact(estimate, everywhere, np.array([[True, True]]))
    with pytest.raises(ValueError, match=r"exact effects: expected effects \[60, 1, 2\] and marks \[1, 2\]"):
        with_exact(estimate, everywhere[:20], poor)
    with pytest.raises(ValueError, match="exact effects"):
        with_exact(estimate, everywhere, poor.T)


def test_marks_of_heads_serve_their_targets():
    changes, foreseen, residuals = outputs(np.random.default_rng(12), num_images=9)
    swept = np.arange(4)
    _, targets = estimate_from_outputs(changes[swept], foreseen, residuals, swept)
    marks = np.array([[True, False], [False, False]])
    exact = np.arange(changes.size, dtype=float).reshape(changes.shape)
    mixed = with_exact(targets, exact, marks)
    np.testing.assert_array_equal(mixed.pseudo_values[:, 0, 0], exact[:, 0, 0])
    np.testing.assert_array_equal(mixed.pseudo_values[:, 1], targets.pseudo_values[:, 1])
    np.testing.assert_array_equal(mixed.is_exact, np.broadcast_to(marks[..., None], (2, 2, 3)))


@pytest.mark.parametrize(
    ("effects", "predicted", "swept", "message"),
    [
        (np.ones((2, 1)), np.ones((5, 1)), np.array([0, 1]), "swept pictures: expected at least 3 indices"),
        (np.ones((3, 1)), np.ones((5, 1)), np.array([0.0, 1, 2]), "swept pictures: expected at least 3 indices"),
        (np.ones((3, 1)), np.ones((5, 1)), np.array([0, 1, 1]), "expected different indices from 0 to 4"),
        (np.ones((3, 1)), np.ones((5, 1)), np.array([0, 1, 5]), "expected different indices from 0 to 4"),
        (np.ones((3, 1)), np.ones((5, 1)), np.array([-1, 1, 2]), "expected different indices from 0 to 4"),
        (np.ones((4, 1)), np.ones((5, 1)), np.array([0, 1, 2]), r"for 3 swept pictures beside predictions \[5, 1\]"),
        (np.ones((3, 2)), np.ones((5, 1)), np.array([0, 1, 2]), r"got \[3, 2\]"),
        (np.full((3, 1), np.nan), np.ones((5, 1)), np.array([0, 1, 2]), "found NaN or infinity"),
        (np.ones((3, 1)), np.full((5, 1), np.inf), np.array([0, 1, 2]), "found NaN or infinity"),
    ],
)
def test_refuses_what_does_not_fit(effects, predicted, swept, message):
    with pytest.raises(ValueError, match=message) as caught:
        estimate_effects(effects, predicted, swept)
    assert "\n" not in str(caught.value)


def test_outputs_and_held_out_predictions_must_fit():
    changes, foreseen, residuals = outputs(np.random.default_rng(13))
    swept = np.arange(3)
    with pytest.raises(ValueError, match=r"residuals \[image target\], got \[3, 2, 2, 3\] and \[6, 2\]"):
        estimate_from_outputs(changes[:3], foreseen, residuals[:, :2], swept)
    with pytest.raises(ValueError, match=r"changes \[swept layer head \(replacement\) target\]"):
        estimate_from_outputs(changes[:3, 0], foreseen[:, 0], residuals, swept)
    with pytest.raises(ValueError, match="finite residuals and a positive noise_to_signal"):
        estimate_from_outputs(changes[:3], foreseen, residuals * np.nan, swept)
    with pytest.raises(ValueError, match="finite residuals and a positive noise_to_signal"):
        estimate_from_outputs(changes[:3], foreseen, residuals, swept, noise_to_signal=0.0)
    with pytest.raises(ValueError, match=r"finite held-out predictions of shape \[3\]"):
        difference_estimate(np.ones(3), np.ones(2), np.ones(6), swept)
    with pytest.raises(ValueError, match="finite held-out predictions"):
        difference_estimate(np.ones(3), np.full(3, np.nan), np.ones(6), swept)


def test_inputs_are_left_alone():
    changes, foreseen, residuals = outputs(np.random.default_rng(14))
    swept = np.arange(4)
    before = [part.copy() for part in (changes, foreseen, residuals)]
    estimate_from_outputs(changes[swept], foreseen, residuals, swept)
    squares = changes[..., 0]
    estimate_effects(squares[swept], foreseen[..., 0], swept)
    difference_estimate(squares[swept], squares[swept], foreseen[..., 0], swept)
    for part, copy in zip((changes, foreseen, residuals), before, strict=True):
        np.testing.assert_array_equal(part, copy)
