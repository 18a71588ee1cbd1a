"""The jackknife between halves: closed form for a mean, loops over pictures, and the coverage it is trusted for."""

import numpy as np
import pytest
from scipy import stats

from analysis import jackknife as jk
from analysis.agreement import aggregated, random_halves, spearman


def test_the_error_of_a_mean_is_the_one_of_the_textbook():
    values = np.random.default_rng(0).standard_t(3, 23)
    left_out = jk.blocks_left_out(23) @ values / 22
    assert jk.jackknife_error(left_out) == pytest.approx(stats.sem(values))
    low, high = jk.jackknife_interval(values.mean(), left_out, -np.inf, np.inf)
    np.testing.assert_allclose([low, high], stats.t.interval(0.95, 22, values.mean(), stats.sem(values)))
    assert jk.jackknife_interval(0.99, np.array([0.5, 0.7, 0.9]))[1] == 1.0


def test_many_pictures_are_left_out_in_blocks():
    kept = jk.blocks_left_out(600)
    assert kept.shape == (256, 600) and ((1 - kept).sum(axis=0) == 1).all()
    assert set((1 - kept).sum(axis=1)) == {2, 3}


def test_halves_lose_the_picture_they_hold_and_come_block_by_block():
    first, second = random_halves(7, 50, 3)
    left_first, left_second = jk.halves_left_out(first, second)
    assert left_first.shape == left_second.shape == (7 * 40, 7)
    for gone in range(7):
        for half in range(40):
            row = gone * 40 + half
            for left, whole in ((left_first, first), (left_second, second)):
                assert left[row].tolist() == [0 if i == gone else whole[half, i] for i in range(7)]
    numbers = np.arange(7.0)[:, None] + np.linspace(-1, 1, 40)
    np.testing.assert_allclose(jk.mean_over_halves(numbers.ravel(), 50), np.arange(7.0), atol=1e-12)
    assert jk.mean_over_halves(np.arange(6.0), 2).tolist() == [0.5, 2.5, 4.5]  # fewer halves than the jackknife takes


def study(rng, n):
    """Effects of 24 heads whose sizes and pictures are heavy-tailed, and two methods that see them with an error of
    their own."""
    size = np.exp(np.random.default_rng(1).normal(0, 1.2, (4, 6)))
    picture = rng.lognormal(0, 1.2, (n, 1, 1))
    truth = size * picture * rng.gamma(0.5, 2, (n, 4, 6))
    wrong = np.exp(np.random.default_rng(2).normal(0, 0.4, (2, 4, 6)))
    return truth, [truth * error + 0.3 * picture * rng.standard_t(3, truth.shape) for error in wrong]


def test_coverage_in_simulated_effects():
    """95 % intervals of `value_cross` and of the difference of two methods hold the expected value as often as said."""
    values, lefts = [], []
    for trial in range(150):
        truth, methods = study(np.random.default_rng([7, trial]), 20)
        first, second = random_halves(20, 60, trial)
        left_first, left_second = jk.halves_left_out(first, second)
        whole, left = aggregated(truth, second), aggregated(truth, left_second)
        values.append([spearman(aggregated(found, first), whole).mean() for found in methods])
        lefts.append(
            [jk.mean_over_halves(spearman(aggregated(found, left_first), left), 60) for found in methods]
        )  # fmt: skip
    values, lefts = np.array(values), np.array(lefts)
    values = np.column_stack([values, values[:, 0] - values[:, 1]])
    lefts = np.concatenate([lefts, lefts[:, :1] - lefts[:, 1:]], axis=1)
    expected = values.mean(axis=0)  # each trial is an unbiased estimate of what it estimates
    for column in range(3):
        limits = np.array(
            [jk.jackknife_interval(v[column], left[column]) for v, left in zip(values, lefts, strict=True)]
        )
        held = np.mean((limits[:, 0] <= expected[column]) & (expected[column] <= limits[:, 1]))
        assert 0.9 <= held, (column, held)
    errors = np.array([[jk.jackknife_error(row) for row in left] for left in lefts])
    ratio = errors.mean(axis=0) / values.std(axis=0)  # the jackknife errs on the wide side, and not by much
    assert (ratio > 0.9).all() and (ratio < 1.6).all(), ratio
