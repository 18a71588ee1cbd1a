"""Removal orders and curves: by hand, by a loop over pictures, and against additive effects whose area is known."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import trapezoid

from analysis import curve_areas as ca
from analysis.intervals import bootstrap_indices


def indices(n: int) -> np.ndarray:
    return bootstrap_indices(n, 300, seed=4)


def test_removal_counts():
    assert ca.removal_counts(72) == (0, 1, 2, 4, 8, 12, 18, 24, 36, 48, 60, 72)
    assert ca.removal_counts(144) == (*ca.REMOVAL_COUNTS, 144)
    assert ca.removal_counts(12) == (0, 1, 2, 4, 8, 12) and ca.removal_counts(13)[-2:] == (12, 13)
    assert ca.removal_counts(1) == (0, 1)
    with pytest.raises(ValueError, match="at least 1 head"):
        ca.removal_counts(0)


def test_orders_by_hand():
    scores = np.array([[0.1, -2.0], [5.0, 0.3]])
    orders = ca.removal_orders(scores, (0, 1, 3))
    assert orders == {
        "most_first": {0: (), 1: ((1, 0),), 3: ((1, 0), (1, 1), (0, 0))},
        "least_first": {0: (), 1: ((0, 1),), 3: ((0, 1), (0, 0), (1, 1))},
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=12, max_size=12), st.integers(0, 1000))
def test_orders_are_nested_complete_and_sorted(values, seed):
    scores = np.array(values, dtype=float).reshape(3, 4)
    orders = ca.removal_orders(scores, seed=seed)
    for name, sign in (("most_first", -1), ("least_first", 1)):
        sets = orders[name]
        assert tuple(sets) == ca.removal_counts(12) and all(len(heads) == count for count, heads in sets.items())
        assert set(sets[12]) == set(np.ndindex(3, 4)) and all(sets[12][:count] == sets[count] for count in sets)
        assert (np.diff([sign * scores[head] for head in sets[12]]) >= 0).all()
    assert orders["least_first"][12] == orders["most_first"][12][::-1]
    assert orders == ca.removal_orders(3 * scores + 1, seed=seed)


def test_equal_heads_leave_in_a_random_order_that_the_seed_fixes():
    first = Counter(ca.head_order(np.zeros((2, 2)), seed)[0] for seed in range(400))
    assert set(first) == set(np.ndindex(2, 2)) and min(first.values()) > 60
    assert ca.head_order(np.zeros((5, 5)), 3) == ca.head_order(np.full((5, 5), 0.1), 3)


def test_orders_refuse_in_one_line():
    for message, call in {
        "expected finite mean scores": lambda: ca.removal_orders(np.array([[np.nan, 1.0]])),
        r"\[layer head\]": lambda: ca.head_order(np.zeros(3)),
        "expected counts from 0 to 4": lambda: ca.removal_orders(np.zeros((2, 2)), (0, 5)),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_random_orders_are_even_and_hang_on_the_seed():
    heads = [(layer, head) for layer in range(2) for head in range(3)]
    orders = ca.random_orders(heads, 0, number=600)
    assert list(orders)[:2] == ["random_0", "random_1"] and all(sorted(order) == heads for order in orders.values())
    first = Counter(order[0] for order in orders.values())
    assert set(first) == set(heads) and stats.chisquare([*first.values()]).pvalue > 1e-3
    assert ca.random_orders(heads, 0, 3) == {name: orders[name] for name in list(orders)[:3]}
    assert ca.random_orders(heads, 1, 3) != ca.random_orders(heads, 0, 3)
    assert [ca.is_random_order(name) for name in ("random_0", "random_19", "random", "random_gate")] == [
        *(True, True, False, False)
    ]


def test_a_gap_is_told_beside_those_of_random_orders_and_of_these_from_their_end():
    gaps = {"best": 9.0, "middle": 1.5, "worst": -4.0, "random_0": 5.0, "random_1": -3.0, "random_2": 1.0}
    table = pd.DataFrame(
        [(name, order, gap) for name, gap in gaps.items() for order in ca.ORDERS],
        columns=["method", "order", "area_gap"],
    )
    found = ca.above_random(table, ["random_0", "random_1", "random_2"]).groupby("method")["above_random"].unique()
    # The null: -5, -3, -1, 1, 3, 5.
    assert found.drop(["random_0", "random_1", "random_2"]).map(list).to_dict() == {
        "best": [1.0], "middle": [4 / 6], "worst": [1 / 6],
    }  # fmt: skip
    assert all(np.isnan(found[name]).all() for name in ("random_0", "random_1", "random_2"))
    assert ca.above_random(table[:6], [])["above_random"].isna().all()


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    counts = (0, 1, 2, 4, 8, 10)
    losses = {
        name: {order: np.cumsum(rng.exponential(size=(6, n)), axis=0) for order in reversed(ca.ORDERS)}
        for name, n in (("a", 14), ("b", 9))
    }
    return losses, counts, ca.curve_table(losses, counts, indices)


def test_curves_are_tidy(study):
    losses, counts, table = study
    assert list(table.columns) == list(ca.COLUMNS)
    keys = [(name, order, count) for name in losses for order in ca.ORDERS for count in counts]
    assert [tuple(row) for row in table[["method", "order", "removed"]].to_numpy()] == keys
    assert table.groupby("method")["n"].unique().map(list).to_dict() == {"a": [14], "b": [9]}
    at_start = table[table["removed"] == 0]
    assert (at_start[["loss_rise_var_pct", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert ca.curve_table({}, counts, indices).empty


def student(values):
    """Interval of a mean by scipy."""
    return stats.ttest_1samp(values, 0.0).confidence_interval(0.95)


@pytest.mark.parametrize("name", ["a", "b"])
def test_rises_areas_and_gaps_are_means_over_pictures(study, name):
    losses, counts, table = study
    areas = {}
    for order in ca.ORDERS:
        rows = table[(table["method"] == name) & (table["order"] == order)]
        rises = 100 * (losses[name][order] - losses[name][order][0])
        np.testing.assert_allclose(rows["loss_rise_var_pct"], rises.mean(axis=1))
        np.testing.assert_allclose(rows[["ci_low", "ci_high"]].iloc[3], student(rises[3]), rtol=1e-9)
        areas[order] = np.array([trapezoid(picture, np.array(counts) / 10) for picture in rises.T])
        np.testing.assert_allclose(rows["area"], trapezoid(rows["loss_rise_var_pct"], rows["removed"] / 10))
        np.testing.assert_allclose(rows["area"], areas[order].mean())
        for row in rows[["area_ci_low", "area_ci_high"]].to_numpy():
            np.testing.assert_allclose(row, student(areas[order]), rtol=1e-9)
    gap = areas["most_first"] - areas["least_first"]
    rows = table[table["method"] == name]
    np.testing.assert_allclose(rows["area_gap"], gap.mean())
    np.testing.assert_allclose(rows[["area_gap_ci_low", "area_gap_ci_high"]].iloc[0], student(gap), rtol=1e-9)


def test_of_all_orders_that_of_additive_effects_has_the_largest_gap():
    rng = np.random.default_rng(1)
    effects = rng.exponential(size=(3, 4))
    noise = 1 + 0.1 * rng.random(8)
    counts = ca.removal_counts(12)

    def losses(scores):
        return {
            order: np.array([[0.7 + sum(effects[head] for head in heads) for heads in sets.values()]]).T * noise
            for order, sets in ca.removal_orders(scores).items()
        }

    scores = {"truth": effects, "against": -effects} | {str(i): rng.random((3, 4)) for i in range(30)}
    table = ca.curve_table({name: losses(found) for name, found in scores.items()}, counts, indices)
    one = table.drop_duplicates(["method", "order"]).pivot(index="method", columns="order", values="area")
    gaps = table.drop_duplicates("method").set_index("method")["area_gap"]
    assert gaps.idxmax() == "truth" and gaps.idxmin() == "against"
    assert one["most_first"].idxmax() == "truth" and one["least_first"].idxmin() == "truth"
    assert gaps["against"] == pytest.approx(-gaps["truth"])
    ends = table[table["removed"] == 12]["loss_rise_var_pct"]
    np.testing.assert_allclose(ends, 100 * effects.sum() * noise.mean())


def test_refuses_in_one_line(study):
    losses, counts, _ = study
    good = losses["a"]
    broken = {**good, "most_first": np.where(good["most_first"] > 5, np.nan, good["most_first"])}
    cut = {**good, "most_first": good["most_first"][:, 1:]}
    for message, curves, steps in (
        ("counts that rise from 0", good, (1, 2, 4, 8, 9, 10)),
        ("counts that rise from 0", good, (0, 2, 2, 4, 8, 10)),
        ("of 5 counts", good, (0, 1, 2, 4, 8)),
        ("of 6 counts", cut, counts),
        ("expected finite", broken, counts),
        ("most_first, least_first", {"most_first": good["most_first"]}, counts),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            ca.curve_table({"a": curves}, steps, indices)
        assert "\n" not in str(refusal.value)
