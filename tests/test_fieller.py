"""Fieller's interval against its definition, scipy's standard errors, and how often it covers."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import mstats, ttest_1samp
from scipy.stats import t as student

from analysis.fieller import moments, ratio_interval
from analysis.intervals import bootstrap_indices, bootstrap_interval, student_interval, weighted_ratio


def heavy(rng, count, columns, spread=1.5):
    """Numerators and denominators [picture column] with heavy tails in common, and the ratio of their expectations."""
    shared, one, other = rng.standard_normal((3, count, columns))
    return 3 * np.exp(spread * (0.6 * shared + 0.8 * one)), np.exp(spread * (0.6 * shared + 0.8 * other)), 3.0


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_limits_are_where_the_difference_can_just_be_told_from_0(level):
    a, b, _ = heavy(np.random.default_rng(0), 40, 5, 0.8)
    found = ratio_interval(a, b, level=level)
    assert np.allclose(found.value, a.mean(axis=0) / b.mean(axis=0), rtol=1e-14)
    for limits in (found.low, found.high):
        assert ttest_1samp(a - limits * b, 0).pvalue == pytest.approx(np.full(5, 1 - level), abs=1e-9)
    inside = (found.low + found.high) / 2
    assert (ttest_1samp(a - inside * b, 0).pvalue > 1 - level).all()
    assert (ttest_1samp(a - (found.high * 1.01) * b, 0).pvalue < 1 - level).all()


def test_limits_exist_exactly_where_the_guard_leaves_out_0():
    rng = np.random.default_rng(1)
    a, b = rng.normal(2, 1, (12, 400)), rng.normal(0.5, 1, (12, 400))
    guard = student_interval(b)
    told = (guard.low > 0) | (guard.high < 0)
    found = ratio_interval(a, b)
    assert 50 < told.sum() < 350
    assert (np.isfinite(found.low) == told).all() and (np.isfinite(found.high) == told).all()
    assert (found.low[told] <= found.value[told]).all() and (found.value[told] <= found.high[told]).all()
    limits = ttest_1samp(b, 0).confidence_interval(0.95)
    assert np.allclose(guard.low, limits.low) and np.allclose(guard.high, limits.high)


def test_trimmed_means_have_the_winsorised_standard_error():
    a, b, _ = heavy(np.random.default_rng(2), 37, 3)
    (mean_a, _), (aa, ab, bb), freedom = moments(a, b, "trimmed")
    for column in range(3):
        assert mean_a[column] == pytest.approx(mstats.trimmed_mean(a[:, column], limits=(0.1, 0.1)), rel=1e-12)
        # scipy divides by n² (1 - 2·0.1)², Yuen by h (h - 1) with h = n - 2·3: the same sum of squares
        inner = np.asarray(mstats.winsorize(a[:, column], limits=(0.1, 0.1)))
        squares = ((inner - inner.mean()) ** 2).sum()
        assert aa[column] == pytest.approx(squares / (31 * 30), rel=1e-12) and freedom == 30
        error = mstats.trimmed_stde(a[:, column], limits=(0.1, 0.1))
        assert np.sqrt(aa[column]) == pytest.approx(error, rel=0.1)
    same = moments(a, a, "trimmed")[1]
    assert np.allclose(same[0], same[1]) and np.allclose(same[1], same[2]) and not np.allclose(ab, bb)
    inner = student_interval(a, estimator="trimmed", level=0.9)
    assert np.allclose(inner.high - inner.value, student.ppf(0.95, 30) * np.sqrt(aa))
    ratio = ratio_interval(a, b, estimator="trimmed")
    expected = [mstats.trimmed_mean(a[:, i], (0.1, 0.1)) / mstats.trimmed_mean(b[:, i], (0.1, 0.1)) for i in range(3)]
    assert np.allclose(ratio.value, expected)


def test_too_few_pictures_and_other_shapes():
    found = ratio_interval(np.ones((1, 2)), np.ones((1, 2)))
    assert found.value.tolist() == [1, 1] and np.isnan([found.low, found.high]).all()
    for a, b in (
        (np.ones(3), np.ones(3)),
        (np.ones((3, 1)), np.ones((2, 1))),
        (np.full((3, 1), np.nan), np.ones((3, 1))),
    ):
        with pytest.raises(ValueError, match="expected two finite"):
            ratio_interval(a, b)
    with pytest.raises(ValueError, match="expected mean or trimmed"):
        ratio_interval(np.ones((3, 1)), np.ones((3, 1)), estimator="median")


@pytest.mark.parametrize("count", [32, 128])
def test_it_covers_where_others_do_not(count):
    """Of ratios of heavy-tailed means (lognormal, sigma 1.5), 95 %: Fieller's covers at least 93 %, t on the log scale
    (jackknife) less than Fieller's and BCa less than both.

    Measured at 16, 64, 128 and 512 pictures, 600 draws: Fieller's 0.97, 0.96, 0.98, 0.93, log 0.88, 0.91, 0.92, 0.90,
    BCa 0.83, 0.88, 0.89, 0.88; on pictures redrawn from the stored effects of the reference run 0.92 to 0.96, 0.93 to
    0.96, 0.86 to 0.95. No kind covers where one picture of 128 holds most of the effect and is not among those drawn.
    """
    a, b, truth = heavy(np.random.default_rng(3), count, 500)
    found = ratio_interval(a, b)
    known = np.isfinite(found.low)
    assert known.mean() > 0.8
    a, b = a[:, known], b[:, known]

    def covered(low, high):
        return np.mean((low <= truth) & (truth <= high))

    bca = bootstrap_interval(partial(weighted_ratio, a, b), bootstrap_indices(count, 400, 0), method="bca")
    rest = np.log((a.sum(axis=0) - a) / (b.sum(axis=0) - b))
    error = np.sqrt((count - 1) / count * ((rest - rest.mean(axis=0)) ** 2).sum(axis=0))
    factor = np.exp(student.ppf(0.975, count - 1) * error)
    point = a.mean(axis=0) / b.mean(axis=0)
    fieller, log = covered(found.low[known], found.high[known]), covered(point / factor, point * factor)
    assert fieller >= 0.93 and fieller > log > covered(bca.low, bca.high)
