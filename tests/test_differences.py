"""Differences against the best: loops over resamples with scipy, Holm by hand and by the closed test it shortens."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis import differences as df
from analysis.agreement import agreement_table, random_halves
from analysis.intervals import bootstrap_indices

REPLICATES = 250


def indices(n: int) -> np.ndarray:
    return bootstrap_indices(n, REPLICATES, seed=1)


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    effect = rng.exponential(size=(3, 5))
    truth = effect + rng.standard_t(3, size=(20, 3, 5))
    scores = {
        "middling": effect + 2 * rng.standard_t(3, size=(20, 3, 5)),
        "control": truth.copy(),
        "few": effect + rng.normal(size=(8, 3, 5)),
        "good": truth + 0.3 * rng.normal(size=truth.shape),
        "flat": np.full((20, 3, 5), 0.1),
        "bad": -effect + rng.normal(size=(20, 3, 5)),
        "good_again": np.zeros(1),
    }
    scores["good_again"] = 3 * scores["good"]
    return scores, truth, table_of(scores, truth)


def table_of(scores, truth, pictures="same", controls=("control",)):
    """The rows of one truth and kind of pictures."""
    table = df.difference_table(scores, {"zero": truth}, controls, indices, 3, num_halves=50)
    assert set(table["truth"]) == {"zero"} and list(dict.fromkeys(table["pictures"])) == ["same", "different"]
    return table[table["pictures"] == pictures].reset_index(drop=True)


def rho(scores, truth, pictures):
    pair = (part[np.asarray(pictures)].mean(axis=0).ravel() for part in (scores, truth))
    return stats.spearmanr(*pair).statistic


def apart(scores, truth, half, rest):
    return stats.spearmanr(scores[half].mean(axis=0).ravel(), truth[rest].mean(axis=0).ravel()).statistic


def test_columns_order_and_the_best_among_methods_on_trial(study):
    table = study[-1]
    assert list(table.columns) == [
        "truth", "pictures", "method", "best", "difference", "difference_ci_low", "difference_ci_high", "p", "p_holm",
        "n",
    ]  # fmt: skip
    assert table["method"].tolist() == ["middling", "control", "few", "flat", "bad", "good_again"]
    assert set(table["best"]) == {"good"}  # the control's rho is 1, and yet
    assert table["n"].tolist() == [20, 20, 8, 20, 20, 20]
    assert table.set_index("method").loc["control", "difference"] < 0


@pytest.mark.parametrize("method", ["middling", "control", "few", "bad"])
def test_rows_equal_a_loop_over_resamples(study, method):
    scores, truth, table = study
    row = table.set_index("method").loc[method]
    n = len(scores[method])
    gap = [
        rho(scores["good"], truth, pictures) - rho(scores[method], truth, pictures)
        for pictures in (range(n), *indices(n))
    ]
    value, replicates = gap[0], np.array(gap[1:])
    moved = replicates + value - replicates.mean()
    low, high = np.percentile(moved, [2.5, 97.5])
    np.testing.assert_allclose(
        row[["difference", "difference_ci_low", "difference_ci_high"]].to_numpy(float),
        [value, min(low, value), max(high, value)],
        atol=1e-12,
    )
    smaller = min(sum(moved <= 0), sum(moved >= 0))
    assert row["p"] == pytest.approx(max(2 * smaller / REPLICATES, 1 / (REPLICATES + 1)))


def test_the_same_scores_in_another_unit_differ_by_nothing(study):
    row = study[-1].set_index("method").loc["good_again"]
    assert row["difference"] == 0 and row["difference_ci_low"] == 0 == row["difference_ci_high"]
    assert row["p"] == 1 and row["p_holm"] == 1


def test_scores_that_order_nothing_have_no_p_and_cost_the_others_nothing(study):
    scores, truth, table = study
    assert table.set_index("method").loc["flat", ["difference", "p", "p_holm"]].isna().all()
    without = table_of({k: v for k, v in scores.items() if k != "flat"}, truth)
    assert table[table["method"] != "flat"].reset_index(drop=True).equals(without)


def test_a_truth_of_fewer_pictures_cuts_all(study):
    scores, truth, _ = study
    for pictures in ("same", "different"):
        table = table_of(scores, truth[:10], pictures)
        best = table["best"].iloc[0]  # on different pictures the one of 8 happens to come first
        assert table["n"].tolist() == [8 if "few" in (name, best) else 10 for name in table["method"]]
        assert table.equals(table_of({k: v[:10] for k, v in scores.items()}, truth[:10], pictures))


@pytest.mark.parametrize("method", ["middling", "few", "bad"])
def test_different_pictures_equal_a_loop_over_halves_and_pictures(study, method):
    scores, truth, _ = study
    row = table_of(scores, truth, "different").set_index("method").loc[method]
    n = len(scores[method])
    halves = random_halves(n, 50, 3)[0] == 1

    def cross(name, kept, halves):
        return np.mean([apart(scores[name], truth, [i for i in kept if half[i]], [i for i in kept if not half[i]])
                        for half in halves])  # fmt: skip

    def gap(kept, halves):
        return cross("good", kept, halves) - cross(method, kept, halves)

    assert row["best"] == "good" and row["n"] == n
    value = gap(range(n), halves)
    left_out = [gap([i for i in range(n) if i != gone], halves[:40]) for gone in range(n)]
    error = np.sqrt((n - 1) * np.var(left_out))
    expected = [value, *stats.t.interval(0.95, n - 1, value, error)]
    found = row[["difference", "difference_ci_low", "difference_ci_high"]].to_numpy(float)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert row["p"] == pytest.approx(2 * stats.t.cdf(-abs(value / error), n - 1))


def test_the_best_on_different_pictures_is_the_highest_value_cross(study):
    scores, truth, _ = study
    own = {
        name: agreement_table({name: found}, {"zero": truth[: len(found)]}, {name: True}, indices(len(found)), 3,
                              num_halves=50).iloc[0]["value_cross"]
        for name, found in scores.items() if name not in ("control", "flat")
    }  # fmt: skip
    table = table_of(scores, truth, "different")
    assert set(table["best"]) == {max(own, key=own.get)} == {"good"}
    row = table.set_index("method").loc["middling"]
    assert row["difference"] == pytest.approx(own["good"] - own["middling"], abs=1e-12)
    twin = table.set_index("method").loc["good_again"]
    assert twin["difference"] == 0 and twin["p"] == 1
    assert table.set_index("method").loc["flat", ["difference", "difference_ci_low", "p", "p_holm"]].isna().all()


def test_against_one_that_is_named(study):
    scores, truth, _ = study
    few = {name: found for name, found in scores.items() if name != "flat"}
    found = df.difference_table(few, {"zero": truth}, ["control"], indices, 3, against="control", num_halves=50)
    assert set(found["best"]) == {"control"} and "control" not in set(found["method"])
    assert set(found["method"]) == set(few) - {"control"}
    usual = df.difference_table(few, {"zero": truth}, ["control"], indices, 3, num_halves=50)
    for pictures in ("same", "different"):
        one = found[found["pictures"] == pictures].set_index("method")
        other = usual[usual["pictures"] == pictures].set_index("method")
        assert one.loc["good", "difference"] == pytest.approx(-other.loc["control", "difference"])
        assert one.loc["good", "n"] == other.loc["control", "n"]


def test_each_truth_has_a_best_of_its_own_and_holm_is_taken_within_it(study):
    scores, truth, table = study
    other = scores["bad"] + 0.1 * scores["middling"]
    both = df.difference_table(scores, {"zero": truth, "other": other}, {"control"}, indices, 3, num_halves=50)
    assert both.drop_duplicates(["truth", "pictures"])[["truth", "pictures", "best"]].to_numpy().tolist() == [
        ["zero", "same", "good"], ["zero", "different", "good"],
        ["other", "same", "bad"], ["other", "different", "bad"],
    ]  # fmt: skip
    assert both[(both["truth"] == "zero") & (both["pictures"] == "same")].reset_index(drop=True).equals(table)
    for _, part in both.groupby(["truth", "pictures"]):
        np.testing.assert_array_equal(part["p_holm"], df.holm(part["p"].to_numpy()))


@pytest.mark.parametrize(("pictures", "lowest"), [("same", 0.01), ("different", 0.005)])
def test_p_of_the_null_is_about_uniform(pictures, lowest):
    """Two methods as good as each other: small p are as rare as they say, up to the roughness of few pictures; rarer on
    different pictures, where the jackknife errs on the wide side."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(80):
        effect = rng.normal(size=(3, 8))
        truth, a, b = (effect + 2 * rng.normal(size=(24, 3, 8)) for _ in range(3))
        row = table_of({"a": a, "b": b}, truth, pictures, ()).iloc[0]
        assert row["difference"] >= 0
        found.append(row["p"])
    assert lowest <= np.mean(np.array(found) < 0.1) <= 0.22
    assert np.mean(np.array(found) < 0.5) <= 0.7
    assert np.mean(np.array(found) < 0.5) >= lowest * 30


def test_bootstrap_p_by_hand():
    replicates = np.array([0.1, 0.2, 0.3, 0.4, np.nan])  # mean 0.25
    assert df.bootstrap_p(0.25, replicates) == pytest.approx(1 / 5)  # none at or below 0: at least 1/(R+1)
    assert df.bootstrap_p(0.1, replicates) == pytest.approx(2 * 1 / 4)  # moved: -0.05 0.05 0.15 0.25
    assert df.bootstrap_p(0.05, replicates) == 1.0  # moved: -0.1 0 0.1 0.2, where 0 counts on both sides
    assert df.bootstrap_p(-0.1, -replicates) == df.bootstrap_p(0.1, replicates)
    assert np.isnan(df.bootstrap_p(np.nan, replicates)) and np.isnan(df.bootstrap_p(0.1, np.full(3, np.nan)))


def test_holm_by_hand():
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, and none below the one before it
    np.testing.assert_allclose(df.holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(df.holm([0.5, np.nan, 0.4]), [0.8, np.nan, 0.8])
    assert df.holm([0.9, 0.8]).tolist() == [1.0, 1.0] and df.holm([]).size == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    """A hypothesis falls when every set of hypotheses that contains it does: the largest Bonferroni p of those sets."""
    expected = [
        max(
            min(1.0, len(group) * min(p[i] for i in group))
            for size in range(1, len(p) + 1)
            for group in itertools.combinations(range(len(p)), size)
            if one in group
        )
        for one in range(len(p))
    ]
    np.testing.assert_allclose(df.holm(p), expected)


def test_refuses_where_no_method_orders_the_heads(study):
    scores, truth, _ = study
    for given_scores in ({"flat": scores["flat"]}, {"control": truth}, {}):
        with pytest.raises(ValueError, match="expected a method on trial"):
            df.difference_table(given_scores, {"zero": truth}, {"control"}, indices, 3)
