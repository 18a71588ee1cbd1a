"""Intervals against scipy's, the bootstrap also against a loop over resamples; the kind in use against its trials."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from analysis import intervals as iv
from analysis.interval_coverage import NAME, best_kinds
from analysis.tables import read_table

METHODS = (iv.STUDENT_T, *iv.INTERVAL_METHODS)
TRIALS = Path(__file__).resolve().parents[1] / "results" / "estimate" / NAME


def _skewed(num_images: int, num_columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=(num_images, num_columns))


@pytest.mark.parametrize("statistic", ["mean", "trimmed"])
@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_intervals_equal_scipy_on_the_same_resamples(statistic, method):
    values = _skewed(37, 4, seed=0)
    found = iv.interval_over_images(values, iv.bootstrap_indices(37, 999, seed=11), estimator=statistic, method=method)
    function = {"mean": np.mean, "trimmed": lambda x, axis: stats.trim_mean(x, 0.1, axis=axis)}[statistic]
    expected = stats.bootstrap(
        (values,), function, n_resamples=999, method=method, axis=0, rng=np.random.default_rng(11)
    ).confidence_interval
    np.testing.assert_allclose(found.value, function(values, axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.low, expected.low, rtol=1e-9)
    np.testing.assert_allclose(found.high, expected.high, rtol=1e-9)


def test_levels_equal_scipy():
    values = _skewed(20, 2, seed=1)
    for level in (0.5, 0.9, 0.99):
        found = iv.interval_over_images(values, iv.bootstrap_indices(20, 500, seed=2), level=level, method="bca")
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=500, confidence_level=level, axis=0, rng=np.random.default_rng(2)
        ).confidence_interval
        np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_student_t_equals_scipys(level):
    values = _skewed(23, 3, seed=8)
    values[[0, 7, 8, 20], 1] = np.nan
    indices = iv.bootstrap_indices(23, 10)
    found = iv.interval_over_images(values, indices, method="student_t", level=level)
    expected = stats.ttest_1samp(values, 0.0, nan_policy="omit").confidence_interval(level)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-10)
    # Of the trimmed mean: Yuen's test against zeros, which have no spread and take no degree of freedom.
    trimmed = iv.interval_over_images(values, indices, estimator="trimmed", method="student_t", level=level)
    for column in range(3):
        kept = values[~np.isnan(values[:, column]), column]
        yuen = stats.ttest_ind(kept, np.zeros(len(kept)), equal_var=False, trim=0.1).confidence_interval(level)
        assert trimmed.value[column] == pytest.approx(stats.trim_mean(kept, 0.1))
        np.testing.assert_allclose([trimmed.low[column], trimmed.high[column]], [yuen.low, yuen.high], rtol=1e-10)


def test_degrees_of_freedom_can_be_given():
    values = _skewed(24, 2, seed=9)
    found = iv.interval_over_images(values, iv.bootstrap_indices(24, 10), method="student_t", degrees_of_freedom=6)
    half = 2.4469118511449692 * values.std(axis=0, ddof=1) / np.sqrt(24)
    np.testing.assert_allclose(found.high - found.value, half, rtol=1e-12)


def test_limits_stay_within_the_range_of_what_is_averaged():
    values = np.array([[0.0, 0.9], [0.0, 1.0], [0.1, 1.0], [0.0, 1.0]])
    free, held = (
        iv.interval_over_images(values, iv.bootstrap_indices(4, 10), method="student_t", bounds=bounds)
        for bounds in ((-np.inf, np.inf), (0.0, np.array([np.inf, 1.0])))
    )
    assert (free.low[0] < 0, free.high[1] > 1) == (True, True)
    assert (held.low[0], held.high[1]) == (0.0, 1.0)
    assert (held.high[0], held.low[1]) == (free.high[0], free.low[1])


def test_the_kind_in_use_is_the_one_that_covers_best_in_the_trials():
    """`kind_for` against the committed table, which `analysis.interval_coverage` makes."""
    table = read_table(TRIALS)
    best = best_kinds(table, "estimate")
    assert set(best.index) == {(name, size) for name in ("mean", "trimmed") for size in (16, 64, 128, 512)}
    for (estimator, size), kind in best.items():
        assert iv.kind_for(size, estimator) == kind
    # What `kind_for` says of it in words.
    rows = table[(table["run"] == "estimate") & (table["estimator"] == "mean")]
    medians = rows.groupby(["interval", "num_pictures"])["coverage_median"].agg(["min", "max"]).round(2)
    assert medians.loc["student_t"].to_numpy().tolist() == [[0.94, 0.94], [0.94, 0.94], [0.95, 0.95], [0.95, 0.95]]
    assert medians.loc["bca"].to_numpy().tolist() == [[0.88, 0.89], [0.92, 0.93], [0.93, 0.94], [0.94, 0.94]]
    values = _skewed(16, 2, seed=10)
    indices = iv.bootstrap_indices(16, 50)
    for estimator in iv.ESTIMATORS:
        found = iv.interval_over_images(values, indices, estimator=estimator)
        same = iv.interval_over_images(values, indices, estimator=estimator, method=iv.kind_for(16, estimator))
        np.testing.assert_array_equal([found.low, found.high], [same.low, same.high])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.25, 0.49]), st.integers(0, 2**32 - 1))
def test_trimmed_mean_of_resamples_equals_scipy(num_images, proportion, seed):
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_t(2, size=(num_images, 2)), 1)  # ties among them
    indices = iv.bootstrap_indices(num_images, 7, seed=seed)
    found = iv.weighted_trimmed_mean(values, iv.index_counts(indices, num_images), proportion)
    expected = stats.trim_mean(values[indices], proportion, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_pictures_that_say_nothing_are_left_out_of_each_resample():
    values = _skewed(12, 3, seed=3)
    values[[0, 4, 5], 0], values[:, 2] = np.nan, np.nan
    indices = iv.bootstrap_indices(12, 300, seed=4)
    counts = iv.index_counts(indices, 12)
    for row, drawn in enumerate(values[indices]):
        kept = drawn[:, 0][~np.isnan(drawn[:, 0])]
        assert iv.weighted_mean(values, counts)[row, 0] == pytest.approx(kept.mean())
        assert iv.weighted_trimmed_mean(values, counts)[row, 0] == pytest.approx(stats.trim_mean(kept, 0.1))
    found = iv.interval_over_images(values, indices)
    assert found.value[0] == pytest.approx(np.nanmean(values[:, 0]))
    assert np.isnan([found.value[2], found.low[2], found.high[2]]).all()
    alone = iv.interval_over_images(values[[1, 2, 3, 6]], iv.bootstrap_indices(4, 50, seed=0))
    assert np.isfinite(alone.low[:2]).all()


def test_replicates_that_drew_no_picture_with_the_region_are_left_out():
    values = np.array([[1.0], [3.0], [np.nan], [np.nan], [np.nan]])
    indices = np.array([[0, 1, 2, 3, 4], [2, 2, 3, 3, 4], [0, 0, 0, 1, 2], [1, 1, 1, 2, 2]])
    low, high = iv.percentile_interval(iv.weighted_mean(values, iv.index_counts(indices, 5)), level=0.5)
    np.testing.assert_allclose([low[0], high[0]], np.percentile([2.0, 1.5, 3.0], [25, 75]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("estimator", iv.ESTIMATORS)
def test_one_picture_has_a_value_and_no_interval(estimator, method):
    """By percentiles, too, where every resample that drew the picture says the same."""
    values = np.array([[np.nan, 1.0], [2.0, 2.0], [np.nan, 4.0]])
    indices = iv.bootstrap_indices(3, 100, seed=0)
    for level in (0.9, 0.95):
        found = iv.interval_over_images(values, indices, estimator=estimator, method=method, level=level)
        assert found.value[0] == 2.0 and np.isnan(found.low[0]) and np.isnan(found.high[0])
        assert found.low[1] < found.value[1] < found.high[1]


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(2, 40), st.sampled_from(METHODS))
def test_a_constant_column_is_that_constant_to_the_last_bit(constant, num_images, method):
    values = np.full((num_images, 3), constant)
    indices = iv.bootstrap_indices(num_images, 50, seed=0)
    for estimator in iv.ESTIMATORS:
        found = iv.interval_over_images(values, indices, estimator=estimator, method=method)
        for part in (found.value, found.low, found.high):
            assert (part == constant).all()


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (15, 2), elements=st.floats(-100, 100)), st.floats(0.1, 10), st.floats(-50, 50),
       st.sampled_from(METHODS))  # fmt: skip
def test_limits_follow_scale_and_shift(values, scale, shift, method):
    values = values + np.linspace(0, 1, 15)[:, None]
    indices = iv.bootstrap_indices(15, 100, seed=1)
    found, moved = (iv.interval_over_images(v, indices, method=method) for v in (values, scale * values + shift))
    assert (found.low <= found.high).all()
    np.testing.assert_allclose(moved.low, scale * found.low + shift, atol=1e-8)
    np.testing.assert_allclose(moved.high, scale * found.high + shift, atol=1e-8)


def test_bca_with_every_replicate_on_one_side_stays_a_number():
    replicates, jackknife = np.linspace(1, 2, 101)[:, None], np.array([[0.4], [0.5], [0.7]])
    for point in (0.5, 3.0):
        low, high = iv.bca_interval(replicates, np.array([point]), jackknife)
        assert 1 <= low[0] <= high[0] <= 2


def test_centred_interval_by_hand():
    replicates = np.array([[0.0, 5.0], [1.0, np.nan], [2.0, 7.0], [3.0, np.nan], [4.0, 6.0]])
    low, high = iv.centred_interval(np.array([10.0, 6.5]), replicates, level=0.5)
    np.testing.assert_allclose(low, [9.0, 6.0])  # percentile 1 and 5.5, moved by 8 and 0.5
    np.testing.assert_allclose(high, [11.0, 7.0])


def test_ratio_is_of_the_sums():
    hit, union = np.array([[1.0], [0.0], [np.nan]]), np.array([[2.0], [4.0], [np.nan]])
    counts = np.array([[1.0, 1, 1], [3, 0, 0], [0, 0, 3]])
    np.testing.assert_allclose(iv.weighted_ratio(hit, union, counts)[:, 0], [1 / 6, 1 / 2, np.nan])


def test_indices_are_scipys_draws_and_counts_count_them():
    indices = iv.bootstrap_indices(5, 4, seed=7)
    np.testing.assert_array_equal(indices, np.random.default_rng(7).integers(0, 5, (4, 5)))
    np.testing.assert_array_equal(iv.index_counts(indices, 5), [np.bincount(row, minlength=5) for row in indices])
    np.testing.assert_array_equal(iv.all_but_one(3), [[0, 1, 1], [1, 0, 1], [1, 1, 0]])


def test_shape_of_the_axes_after_image_is_kept():
    values = _skewed(9, 6, seed=5)
    indices = iv.bootstrap_indices(9, 50, seed=6)
    flat, shaped = iv.interval_over_images(values, indices), iv.interval_over_images(values.reshape(9, 2, 3), indices)
    np.testing.assert_array_equal(shaped.low, flat.low.reshape(2, 3))
    assert iv.interval_over_images(values[:, 0], indices).value.shape == ()


@pytest.mark.parametrize(
    "call",
    [
        lambda: iv.bootstrap_indices(0),
        lambda: iv.bootstrap_indices(3, 0),
        lambda: iv.index_counts(np.zeros((2, 3), dtype=int), 4),
        lambda: iv.index_counts(np.full((2, 3), 3), 3),
        lambda: iv.index_counts(np.full((2, 3), -1), 3),
        lambda: iv.index_counts(np.zeros((2, 3)), 3),
        lambda: iv.interval_over_images(np.zeros(4), np.zeros((2, 3), dtype=int)),
        lambda: iv.interval_over_images(np.zeros(3), np.zeros((2, 3), dtype=int), estimator="median"),
        lambda: iv.interval_over_images(np.zeros(3), np.zeros((2, 3), dtype=int), method="normal"),
        lambda: iv.kind_for(16, "median"),
        lambda: iv.kind_for(0),
        lambda: iv.weighted_trimmed_mean(np.zeros((3, 1)), np.ones((1, 3)), 0.5),
        lambda: iv.weighted_mean(np.full((3, 1), np.inf), np.ones((1, 3))),
        lambda: iv.weighted_mean(np.zeros(3), np.ones((1, 3))),
    ],
)
def test_refuses_in_one_line(call):
    with pytest.raises(ValueError, match="expected") as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_few_pictures_are_called_indicative():
    assert iv.indicative(128) == ""
    assert iv.indicative(127).startswith("indicative: 127 pictures")


def test_centred_interval_holds_the_value_and_is_nan_without_replicates():
    replicates = np.array([[0.5, np.nan], [0.5, np.nan], [0.5, np.nan], [0.1, np.nan]])
    low, high = iv.centred_interval(np.array([0.5, 0.5]), replicates, level=0.2)
    np.testing.assert_allclose([low[0], high[0]], [0.5, 0.6])  # replicates 0.5 to 0.5, moved by 0.1
    assert np.isnan(low[1]) and np.isnan(high[1])
