from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.stats import rankdata, trim_mean

from analysis.intervals import bootstrap_indices
from analysis.scorecard import Truth, head_scores_table, methods_table, oriented, ranks, scorecard_table
from attribution.methods import Method, MethodSettings

RNG = np.random.default_rng(0)
EFFECT = RNG.standard_t(2, (30, 2, 3))
TRUTH = Truth("zero", EFFECT, RNG.normal(size=(30, 2, 3, 2)), RNG.uniform(0.1, 1, 30))
METHODS = {
    "good": Method("good", lambda *_: None),
    "small_is_good": Method("small_is_good", lambda *_: None, signed=False, direction="-"),
    "flat": Method("flat", lambda *_: None, signed=False, direction="+"),
}
SCORES = {"good": EFFECT.copy(), "small_is_good": -EFFECT, "flat": np.ones((30, 2, 3))}


def indices(count):
    return bootstrap_indices(count, 200, seed=0)


def card():
    return scorecard_table(
        [TRUTH], None, SCORES, METHODS, None, {"entropy": EFFECT**2}, ("start_time_s", "mass"), ("s", "kg"), indices
    )


def test_effects_and_units():
    table = card()
    flat = EFFECT.reshape(30, 6)
    np.testing.assert_allclose(table["ablation_zero_var_pct"], 100 * flat.mean(axis=0))
    np.testing.assert_allclose(table["ablation_zero_var_pct_trimmed"], 100 * trim_mean(flat, 0.1, axis=0))
    intact = TRUTH.intact_loss.mean()
    np.testing.assert_allclose(table["ablation_zero_mse_pct"], 100 * flat.mean(axis=0) / intact)
    np.testing.assert_allclose(table["ablation_zero_mse_pct_trimmed"], 100 * trim_mean(flat, 0.1, axis=0) / intact)
    np.testing.assert_allclose(table["ablation_zero_start_time_s2"], TRUTH.delta_target_sq[..., 0].mean(axis=0).ravel())
    np.testing.assert_allclose(table["ablation_zero_mass_kg2"], TRUTH.delta_target_sq[..., 1].mean(axis=0).ravel())
    assert (table["ablation_zero_var_pct_ci_low"] <= table["ablation_zero_var_pct"]).all()
    assert (table["ablation_zero_mse_pct_ci_high"] >= table["ablation_zero_mse_pct"]).all()
    assert list(zip(table["layer"], table["head"], strict=True)) == [
        (layer, head) for layer in range(2) for head in range(3)
    ]
    assert (table["n"] == 30).all()
    np.testing.assert_allclose(table["entropy"], (flat**2).mean(axis=0))


def test_overlaps_stand_beside_their_heads_whatever_the_order_of_rows():
    """Rows of two regions, queries and metrics in random order; each number tells its head, region and column."""
    rows = [
        {"layer": layer, "head": head, "query": query, "region": region, "metric": metric}
        | {"value": 100 * layer + 10 * head + place, "adjusted": -(100 * layer + 10 * head + place)}
        for layer in range(2)
        for head in range(3)
        for place, (query, region, metric) in enumerate(
            [("cls", "text", "iou"), ("cls", "chirp", "iou"), ("mean", "text", "iou"), ("cls", "text", "mass")]
        )
    ]
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=0)
    assert list(shuffled["layer"]) != sorted(shuffled["layer"])
    table = scorecard_table([TRUTH], None, {}, {}, shuffled, {}, ("a", "b"), ("s", "s"), indices)
    for place, region in enumerate(("text", "chirp")):
        expected = [100 * layer + 10 * head + place for layer, head in zip(table["layer"], table["head"], strict=True)]
        assert table[f"iou_{region}"].tolist() == expected
        assert table[f"iou_{region}_adjusted"].tolist() == [-value for value in expected]
    assert sum(name.startswith("iou_") for name in table) == 4


def test_intervals_of_effects_are_students_and_estimates_have_fewer_degrees_of_freedom():
    flat = 100 * EFFECT.reshape(30, 6)
    limits = stats.ttest_1samp(flat, 0.0).confidence_interval(0.95)
    table = card()
    np.testing.assert_allclose(table["ablation_zero_var_pct_ci_low"], limits.low)
    np.testing.assert_allclose(table["ablation_zero_var_pct_ci_high"], limits.high)
    # Ten of thirty pictures swept: a mean and a slope less.
    estimated = replace(TRUTH, kind="zero_estimated", is_swept=np.zeros((2, 3), dtype=bool), r2=np.zeros((2, 3)),
                        num_swept=10)  # fmt: skip
    found = scorecard_table([estimated], None, {}, METHODS, None, {}, ("a", "b"), ("s", "kg"), indices)
    half = stats.t.ppf(0.975, 8) * stats.sem(flat, axis=0)
    np.testing.assert_allclose(found["ablation_zero_estimated_var_pct_ci_low"], flat.mean(axis=0) - half)
    np.testing.assert_allclose(found["ablation_zero_estimated_var_pct_ci_high"], flat.mean(axis=0) + half)


def test_ranks_follow_the_direction_and_constants_have_none():
    table = card()
    np.testing.assert_array_equal(table["rank_good"], table["ablation_zero_rank"])
    np.testing.assert_array_equal(table["rank_small_is_good"], table["ablation_zero_rank"])
    assert table["rank_flat"].isna().all()
    assert table.loc[table["ablation_zero_rank"] == 1, "ablation_zero_var_pct"].item() == pytest.approx(
        table["ablation_zero_var_pct"].max()
    )
    np.testing.assert_array_equal(ranks(np.array([[3.0, 1.0], [3.0, 2.0]])), [[1.5, 4], [1.5, 3]])
    assert oriented(np.array([1.0]), METHODS["small_is_good"]) == -1


def test_head_scores_are_tidy():
    table = head_scores_table(SCORES, METHODS, indices)
    assert len(table) == 18 and list(table["method"].unique()) == list(SCORES)
    row = table[(table["method"] == "good") & (table["layer"] == 1) & (table["head"] == 2)].iloc[0]
    assert row["score"] == pytest.approx(EFFECT[:, 1, 2].mean())
    assert row["ci_low"] <= row["score"] <= row["ci_high"]


def test_scores_of_every_table_are_larger_where_the_head_matters_more():
    """A method of direction "-" is turned round, interval and all: its scores here are those of a signed twin."""
    table, scorecard = head_scores_table(SCORES, METHODS, indices), card()
    rows = {name: part.reset_index(drop=True) for name, part in table.groupby("method")}
    numbers = ["layer", "head", "score", "rank", "n"]
    pd.testing.assert_frame_equal(rows["small_is_good"][numbers], rows["good"][numbers])
    for limit in ("ci_low", "ci_high"):
        np.testing.assert_allclose(rows["small_is_good"][limit], rows["good"][limit], atol=1e-12)
    for name in ("good", "small_is_good"):
        np.testing.assert_allclose(rows[name]["score"], scorecard[f"score_{name}"], rtol=1e-12)
        np.testing.assert_array_equal(rows[name]["rank"], scorecard[f"rank_{name}"])
        np.testing.assert_array_equal(rows[name]["rank"], rankdata(-rows[name]["score"]))


def test_methods_say_what_they_cost():
    methods = {"a": Method("a", lambda *_: None, forwards=lambda s, layers, targets: s.steps * targets, backwards=2)}
    table = methods_table(methods, MethodSettings(steps=5), 12, 3, {"a": {"seconds": 1.5, "forwards_measured": 11.5}},
                          {"a": 0.01})  # fmt: skip
    columns = ["forwards", "backwards", "forwards_measured", "seconds", "completeness_delta"]
    assert table.loc[0, columns].tolist() == [15, 2, 11.5, 1.5, 0.01]
    unknown = methods_table(methods, MethodSettings(steps=5), 12, 3, {}, {})
    assert unknown[["forwards_measured", "seconds"]].isna().all(axis=None)
    assert np.isnan(table.loc[0, "peak_mb"])
