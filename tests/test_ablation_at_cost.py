"""The sweep at a method's price: loops over draws with scipy, and the ends where the answer is known."""

import numpy as np
import pytest
from scipy import stats

from analysis import ablation_at_cost as ac
from analysis.passes import BACKWARD_COST


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    return rng.exponential(size=(3, 4)) + 1.5 * rng.standard_t(3, size=(21, 3, 4))


def draws(n: int, seed: int, num_draws: int) -> np.ndarray:
    """The place of each picture in each draw: the first m are drawn."""
    return np.random.default_rng([seed, 12]).permuted(np.tile(np.arange(n), (num_draws, 1)), axis=1)


def rho(truth, swept, judged):
    return stats.spearmanr(truth[swept].mean(axis=0).ravel(), truth[judged].mean(axis=0).ravel()).statistic


def test_rows_equal_a_loop_over_draws(truth):
    costs = {"cheap": 4.9, "dear": 20.0, "few": 8.0, "free": 0.0, "richest": 80.0}
    num_pictures = {"cheap": 21, "dear": 21, "few": 9, "free": 21, "richest": 50}
    table = ac.ablation_at_cost_table(truth, costs, num_pictures, 34.0, 7, num_draws=30)
    assert list(table.columns) == list(ac.COLUMNS) and table["method"].tolist() == list(costs)
    table = table.set_index("method")
    # floor of 21 · 4.9 / 34, 21 · 20 / 34, 9 · 8 / 34, 0, 21 · 80 / 34; and of the halves 10, 10, 4, 10, 10
    assert table["num_pictures_paid"].tolist() == [3, 12, 2, 0, 49]
    assert table["num_pictures_matched"].tolist() == [1, 5, 0, 0, 23]
    assert table["capped"].tolist() == [False, True, False, False, True]
    assert table["n"].tolist() == [21, 21, 9, 21, 21]
    np.testing.assert_allclose(table["budget_forwards"], [102.9, 420, 72, 0, 1680])
    for name, n in (("cheap", 21), ("dear", 21), ("few", 9), ("richest", 21)):
        row, places = table.loc[name], draws(n, 7, 30)
        m, half = row["num_pictures_paid"], n // 2
        cross = [rho(truth[:n], place < min(m, half), place >= min(m, half)) for place in places]
        assert row["spearman_cross"] == pytest.approx(np.mean(cross), abs=1e-12)
        np.testing.assert_allclose(row[["ci_low", "ci_high"]].to_numpy(float), np.percentile(cross, [2.5, 97.5]))
        same = [rho(truth[:n], place < m, place >= 0) for place in places]
        assert row["spearman_same"] == pytest.approx(np.mean(same), abs=1e-12)
        if row["num_pictures_matched"]:
            apart = [rho(truth[:n], place < min(row["num_pictures_matched"], half), place >= half) for place in places]
            assert row["spearman_matched"] == pytest.approx(np.mean(apart), abs=1e-12)
    assert table.loc["few", "spearman_matched"] != table.loc["few", "spearman_matched"]  # no picture paid for: NaN
    unpaid = table.loc["free", ["spearman_cross", "spearman_same", "spearman_matched", "ci_low", "ci_high"]]
    assert unpaid.isna().all()
    assert table.loc["richest", "spearman_same"] == pytest.approx(1.0)


def test_paying_for_half_is_the_split_half_of_the_truth(truth):
    """Cost = sweep: half of the pictures against the others, in all three forms but `same`."""
    row = ac.ablation_at_cost_table(truth, {"sweep": 34.0}, {"sweep": 21}, 34.0, 0).iloc[0]
    half = ac.ablation_at_cost_table(truth, {"half": 17.0}, {"half": 21}, 34.0, 0).iloc[0]
    assert half["num_pictures_paid"] == 10 and not half["capped"] and half["spearman_cross"] == row["spearman_cross"]
    assert row["num_pictures_paid"] == 21 and row["num_pictures_matched"] == 10 and row["capped"]
    assert row["spearman_cross"] == row["spearman_matched"] and row["spearman_same"] == pytest.approx(1.0)
    halves = [rho(truth, place < 10, place >= 10) for place in draws(21, 0, 200)]
    assert row["spearman_cross"] == pytest.approx(np.mean(halves))


def test_more_money_agrees_better_without_noise_any_does():
    rng = np.random.default_rng(1)
    effect = rng.normal(size=(6, 6))
    truth = effect + 4 * rng.normal(size=(40, 6, 6))
    costs = {str(cost): float(cost) for cost in (1, 2, 5, 10, 17)}
    table = ac.ablation_at_cost_table(truth, costs, dict.fromkeys(costs, 40), 34.0, 0)
    for column in ("spearman_cross", "spearman_same", "spearman_matched"):
        assert table[column].dropna().is_monotonic_increasing and len(table[column].dropna()) >= 4
    assert (table["ci_low"] < table["spearman_cross"]).all() and (table["spearman_cross"] < table["ci_high"]).all()
    exact = ac.ablation_at_cost_table(np.tile(effect, (40, 1, 1)), costs, dict.fromkeys(costs, 40), 34.0, 0)
    np.testing.assert_allclose(exact[["spearman_cross", "spearman_same", "ci_low", "ci_high"]], 1.0)


def test_a_whole_number_of_pictures_is_not_lost_to_rounding():
    assert ac.pictures_paid(0.1 + 0.2, 0.1) == 3 and ac.pictures_paid(2.3 * 3, 2.3) == 3
    assert ac.pictures_paid(33.999, 34.0) == 0 and ac.pictures_paid(34.0, 34.0) == 1
    assert ac.forward_equivalents(1, 3) == pytest.approx(4.9)
    assert ac.BACKWARD_IN_FORWARDS == BACKWARD_COST  # prices of the league and the forecast of a run are the same


def test_reproducible_and_independent_of_the_other_methods(truth):
    costs, pictures = {"a": 5.0, "b": 9.0}, {"a": 21, "b": 12}
    table = ac.ablation_at_cost_table(truth, costs, pictures, 30.0, 3)
    assert table.equals(ac.ablation_at_cost_table(truth, costs, pictures, 30.0, 3))
    alone = ac.ablation_at_cost_table(truth, {"b": 9.0}, pictures, 30.0, 3)
    assert alone.iloc[0].equals(table.iloc[1].rename(0))
    assert not table.equals(ac.ablation_at_cost_table(truth, costs, pictures, 30.0, 4))


def test_refuses_in_one_line(truth):
    for message, costs, pictures, sweep in (
        ("a: expected 2 pictures", {"a": 1.0}, {"a": 1}, 34.0),
        ("a: expected 2 pictures and a finite cost", {"a": -1.0}, {"a": 5}, 34.0),
        ("a: expected 2 pictures and a finite cost", {"a": np.nan}, {"a": 5}, 34.0),
        ("expected positive costs", {"a": 1.0}, {"a": 5}, 0.0),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            ac.ablation_at_cost_table(truth, costs, pictures, sweep, 0)
        assert "\n" not in str(refusal.value)
