"""Agreement of the truths: loops over resamples with scipy, the jackknife by hand, a simulation of its coverage."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis import truth_matrix as tm
from analysis.agreement import random_halves
from analysis.intervals import bootstrap_indices


def indices(n: int) -> np.ndarray:
    return bootstrap_indices(n, 150, seed=3)


@pytest.fixture(scope="module")
def truths():
    """Effects of 4 layers of 3 heads; `shapley` covers the first 9 pictures alone."""
    rng = np.random.default_rng(0)
    effect = rng.exponential(size=(4, 3)) - 0.2
    found = {name: effect + rng.standard_t(3, size=(n, 4, 3)) for name, n in (("zero", 16), ("mean", 16))}
    return found | {"shapley": effect + rng.standard_t(3, size=(9, 4, 3))}


@pytest.fixture(scope="module")
def table(truths):
    return tm.truth_table(truths, indices, 5, num_halves=50)


def average(values, pictures, estimator):
    chosen = values[np.asarray(pictures)]
    return chosen.mean(axis=0) if estimator == "mean" else stats.trim_mean(chosen, 0.1, axis=0)


def row_of(table, *key):
    return table[(table[["truth_a", "truth_b", "estimator", "statistic"]] == list(key)).all(axis=1)].iloc[0]


def test_rows_stand_once_in_the_order_of_the_truths(truths, table):
    assert list(table.columns) == ["truth_a", "truth_b", "estimator", "statistic", "value", "ci_low", "ci_high", "n"]
    expected = []
    for estimator in ("mean", "trimmed"):
        for a, b in itertools.combinations_with_replacement(truths, 2):
            expected += [(a, b, estimator, s) for s in (tm.SELF_STATISTICS if a == b else tm.PAIR_STATISTICS)]
    assert [tuple(row) for row in table.to_numpy()[:, :4]] == expected
    assert set(table[(table == "shapley").any(axis=1)]["n"]) == {9}
    assert set(table[~(table == "shapley").any(axis=1)]["n"]) == {16}
    assert table.equals(tm.truth_table(truths, indices, 5, num_halves=50))


def top_ten(a, b):
    first, second = (set(np.argsort(-x.ravel())[:10]) for x in (a, b))
    return len(first & second) / 10


def within(a, b):
    return np.mean([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])


def whole(a, b):
    return stats.spearmanr(a.ravel(), b.ravel()).statistic


@pytest.mark.parametrize("estimator", ["mean", "trimmed"])
@pytest.mark.parametrize(("a", "b", "n"), [("zero", "mean", 16), ("mean", "shapley", 9)])
@pytest.mark.parametrize(
    ("statistic", "function", "lowest"),
    [("spearman", whole, -1), ("spearman_within_layers", within, -1), ("top_10", top_ten, 0)],
)
def test_a_pair_equals_a_loop_over_resamples(truths, table, estimator, a, b, n, statistic, function, lowest):
    row = row_of(table, a, b, estimator, statistic)

    def of(pictures):
        return function(*(average(truths[name][:n], pictures, estimator) for name in (a, b)))

    value = of(range(n))
    replicates = np.array([of(drawn) for drawn in indices(n)])
    limits = np.nanpercentile(replicates, [2.5, 97.5]) + value - np.nanmean(replicates)
    limits = [min(limits[0], value), max(limits[1], value)]
    np.testing.assert_allclose([row["value"], row["ci_low"], row["ci_high"]], [value, *np.clip(limits, lowest, 1)],
                               atol=1e-12)  # fmt: skip


@pytest.mark.parametrize("estimator", ["mean", "trimmed"])
@pytest.mark.parametrize("name", ["zero", "shapley"])
def test_a_truth_with_itself_is_the_mean_over_halves_with_a_jackknife(truths, table, estimator, name):
    truth = truths[name]
    halves = random_halves(len(truth), 50, 5)[0] == 1
    assert (halves.sum(axis=1) == len(truth) // 2).all()

    def reliability(kept, halves):
        found = []
        for half in halves:
            sides = ([i for i in kept if half[i]], [i for i in kept if not half[i]])
            found.append(whole(*(average(truth, side, estimator) for side in sides)))
        return np.mean(found)

    everyone = list(range(len(truth)))
    value = reliability(everyone, halves)
    left_out = [reliability([i for i in everyone if i != gone], halves[:40]) for gone in everyone]
    error = np.sqrt((len(truth) - 1) * np.var(left_out))
    row = row_of(table, name, name, estimator, "spearman_split_half")
    limits = np.clip(stats.t.interval(0.95, len(truth) - 1, value, error), -1, 1)
    np.testing.assert_allclose([row["value"], row["ci_low"], row["ci_high"]], [value, *limits], atol=1e-9)
    brown = row_of(table, name, name, estimator, "spearman_brown")
    assert brown["value"] == pytest.approx(2 * row["value"] / (1 + row["value"]))
    assert brown["ci_high"] == pytest.approx(2 * row["ci_high"] / (1 + row["ci_high"]))
    assert -1 <= brown["ci_low"] <= brown["value"]


def test_spearman_brown_predicts_parallel_measurements_and_is_cut_off_below():
    rng = np.random.default_rng(1)  # Pearson's r of sums of two parallel measurements, against the formula
    signal, noise = rng.normal(size=200_000), rng.normal(size=(4, 200_000))
    one, two = (np.corrcoef(signal + noise[0], signal + noise[1])[0, 1],
                np.corrcoef(2 * signal + noise[:2].sum(0), 2 * signal + noise[2:].sum(0))[0, 1])  # fmt: skip
    assert tm._spearman_brown((one, one, one))[0] == pytest.approx(two, abs=0.01)
    np.testing.assert_allclose(tm._spearman_brown((0.0, -0.2, -1.0)), [0.0, -0.5, -1.0])
    assert np.isnan(tm._spearman_brown((np.nan, 0.0, 0.0))[0])


def test_pictures_needed_reach_the_reliability_they_are_for():
    def reliability(r, pictures, num_images):
        times = pictures / (num_images / 2)
        return times * r / (1 + (times - 1) * r)

    value, low, high = tm.pictures_needed((0.4916706862177632, 0.19, 0.79), 16)
    assert value == pytest.approx(74.4, abs=0.05) and low < value < high
    for r, pictures in ((0.4916706862177632, value), (0.79, low), (0.19, high)):
        assert reliability(r, pictures, 16) == pytest.approx(0.9)
    assert tm.pictures_needed((0.9, 0.9, 0.9), 40)[0] == pytest.approx(20)
    found = tm.pictures_needed((0.2, -0.1, 0.5), 10)
    assert found[0] == pytest.approx(5 * 36) and found[1] == pytest.approx(45) and np.isnan(found[2])


@pytest.mark.parametrize("name", ["zero", "shapley"])
def test_the_table_says_how_many_pictures_a_truth_needs(truths, table, name):
    split, needed = (row_of(table, name, name, "mean", one) for one in (tm.SELF_STATISTICS[0], tm.SELF_STATISTICS[2]))
    n = len(truths[name])
    for key, other in (("value", "value"), ("ci_low", "ci_high"), ("ci_high", "ci_low")):
        r = split[other]
        np.testing.assert_allclose(needed[key], n / 2 * 9 * (1 - r) / r if r > 0 else np.nan, rtol=1e-9)


def test_interval_of_the_split_half_holds_the_true_reliability():
    rng = np.random.default_rng(2)
    effect = rng.exponential(size=(6, 6))
    n, tables = 14, []
    for _ in range(40):
        truth = effect + 2 * rng.standard_t(4, size=(n, 6, 6))
        found = tm.truth_table({"t": truth}, indices, 0, estimators=("mean",), num_halves=20)
        tables.append(row_of(found, "t", "t", "mean", "spearman_split_half"))
    drawn = [
        whole(*((effect + 2 * rng.standard_t(4, size=(n // 2, 6, 6))).mean(0) for _ in range(2))) for _ in range(1000)
    ]
    true = np.mean(drawn)
    assert np.mean([row["value"] for row in tables]) == pytest.approx(true, abs=0.05)
    assert np.mean([row["ci_low"] <= true <= row["ci_high"] for row in tables]) >= 0.85


def test_too_few_pictures_for_a_jackknife_leave_no_interval(truths):
    table = tm.truth_table({"t": truths["zero"][:3]}, indices, 0)
    assert table["value"].notna().all() and table[["ci_low", "ci_high"]].isna().all(axis=None)


def test_refuses_in_one_line(truths):
    cases = {
        "at least one": {},
        "of at least 2 pictures": {"a": truths["zero"][:1]},
        r"heads \[4, 3\]": {"a": truths["zero"], "b": truths["mean"][:, :2]},
        "a: expected finite": {"a": np.where(truths["zero"] == truths["zero"][2, 1, 1], np.nan, truths["zero"])},
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=message) as refusal:
            tm.truth_table(given, indices, 0)
        assert "\n" not in str(refusal.value)
