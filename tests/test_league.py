"""The league: groups against direct calls, ranks against scipy, the join against the tables it joins."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import league
from analysis.ablation_at_cost import ablation_at_cost_table
from analysis.agreement import agreement_table
from analysis.calibration import calibration_table
from analysis.differences import difference_table
from analysis.duplicates import duplicate_groups
from analysis.intervals import bootstrap_indices

CONTROLS = ("layer_index", "flat")


def indices(n: int) -> np.ndarray:
    return bootstrap_indices(n, 60, seed=1)


@pytest.fixture(scope="module")
def study():
    """16 pictures of 3 layers of 4 heads; a method of 8 pictures, a truth of 6."""
    rng = np.random.default_rng(0)
    depth = np.broadcast_to(np.arange(3.0)[None, :, None], (16, 3, 4))
    effect = rng.exponential(size=(3, 4)) + 0.2 * depth[0]
    truths = {name: effect + rng.standard_t(3, size=(n, 3, 4)) for name, n in (("zero", 16), ("mean", 16), ("few", 6))}
    good = truths["zero"] + 0.2 * rng.normal(size=(16, 3, 4))
    scores = {
        "bad": -effect + rng.normal(size=(16, 3, 4)),
        "path": (good + 0.5 * rng.normal(size=good.shape))[:8],
        "layer_index": depth.copy(),
        "good": good,
        "magnitude": np.abs(good + rng.normal(size=good.shape)),
        "again": 2 * good,
        "flat": np.full((16, 3, 4), 0.1),
    }
    signed = {name: name not in ("magnitude", "layer_index") for name in scores}
    return scores, truths, signed


@pytest.fixture(scope="module")
def agreement(study):
    return league.agreement_over_groups(*study, indices, 5, num_halves=20)


@pytest.fixture(scope="module")
def tables(study, agreement):
    scores, truths, _ = study
    on_trial = {name: found for name, found in scores.items() if name not in CONTROLS}
    forwards = {name: 0.0 if name in CONTROLS else 5.0 + place for place, name in enumerate(scores)}
    return {
        "agreement": agreement,
        "shared": league.shared_table(scores, truths),
        "families": {name: "control" if name in CONTROLS else "gates" for name in scores},
        "forwards": forwards,
        "controls": CONTROLS,
        "differences": difference_table(scores, truths, CONTROLS, indices, 5, num_halves=20),
        "at_cost": ablation_at_cost_table(truths["zero"], {k: forwards[k] for k in on_trial},
                                          {k: len(v) for k, v in on_trial.items()}, 20.0, 0),
        "calibration": calibration_table({"good": scores["good"]}, truths["zero"], indices),
        "duplicates": duplicate_groups(scores),
    }  # fmt: skip


@pytest.fixture(scope="module")
def table(tables):
    return league.league_table(**tables).set_index("method")


def row_of(agreement, *key):
    return agreement[(agreement[["method", "truth", "estimator", "statistic"]] == list(key)).all(axis=1)].iloc[0]


def test_groups_equal_a_call_for_each_method_and_truth_alone(study, agreement):
    scores, truths, signed = study
    for method, truth, n in (("good", "zero", 16), ("good", "few", 6), ("path", "mean", 8), ("path", "few", 6),
                             ("magnitude", "few", 6)):  # fmt: skip
        alone = agreement_table({method: scores[method][:n]}, {truth: truths[truth][:n]}, signed, indices(n), 5,
                                num_halves=20)  # fmt: skip
        labels = (truth, f"{truth}_abs")
        found = agreement[(agreement["method"] == method) & agreement["truth"].isin(labels)].reset_index(drop=True)
        assert set(found["n"]) == {n}
        pd.testing.assert_frame_equal(found, alone)


def test_groups_stand_in_the_order_of_methods_and_truths(study, agreement):
    scores, truths, signed = study
    keys = [
        (method, label)
        for method in scores
        for truth in truths
        for label in ((truth,) if signed[method] else (truth, f"{truth}_abs"))
    ]
    assert list(agreement[["method", "truth"]].drop_duplicates().itertuples(index=False, name=None)) == keys
    assert len(agreement) == len(keys) * 2 * 8


def test_one_group_is_the_agreement_table_itself(study):
    scores, truths, signed = study
    same = {name: found for name, found in scores.items() if len(found) == 16}
    whole = {name: found for name, found in truths.items() if len(found) == 16}
    keywords = {"num_halves": 20, "estimators": ("mean",), "absolute": False}
    found = league.agreement_over_groups(same, whole, signed, indices, 5, **keywords)
    pd.testing.assert_frame_equal(found, agreement_table(same, whole, signed, indices(16), 5, **keywords))
    assert set(found["estimator"]) == {"mean"} and not found["truth"].str.endswith("_abs").any()
    for nothing in ({}, whole), (same, {}):
        with pytest.raises(ValueError, match="expected methods and truths"):
            league.agreement_over_groups(*nothing, signed, indices, 5)


def test_shared_ranks_are_of_the_same_pictures_for_all(study):
    scores, truths, _ = study
    shared = league.shared_table(scores, truths)
    assert shared.groupby("truth", sort=False)["n"].first().to_dict() == {"zero": 8, "mean": 8, "few": 6}
    for truth, n in (("zero", 8), ("few", 6)):
        rows = shared[shared["truth"] == truth].set_index("method")
        expected = {
            name: stats.spearmanr(found[:n].mean(0).ravel(), truths[truth][:n].mean(0).ravel()).statistic
            for name, found in scores.items()
            if name != "flat"
        }
        for name, value in expected.items():
            assert rows.loc[name, "spearman"] == pytest.approx(value, abs=1e-11)
            better = sum(other > value + 1e-9 for other in expected.values())
            equal = sum(abs(other - value) < 1e-9 for other in expected.values())
            assert rows.loc[name, "rank"] == better + (equal + 1) / 2
        assert rows.loc["good", "rank"] == rows.loc["again", "rank"]
        assert rows.loc["flat", ["spearman", "rank"]].isna().all()


def test_every_column_comes_from_its_table(tables, table):
    agreement = tables["agreement"]
    sources = {
        "spearman": ("zero", "mean", "spearman", "value"), "spearman_ci_low": ("zero", "mean", "spearman", "ci_low"),
        "spearman_ci_high": ("zero", "mean", "spearman", "ci_high"),
        "spearman_trimmed": ("zero", "trimmed", "spearman", "value"),
        "within_layers": ("zero", "mean", "spearman_within_layers", "value"),
        "layer_means_removed": ("zero", "mean", "spearman_layer_means_removed", "value"),
        "kendall": ("zero", "mean", "kendall", "value"), "top_5": ("zero", "mean", "top_5", "value"),
        "top_10": ("zero", "mean", "top_10", "value"), "rbo": ("zero", "mean", "rbo", "value"),
        "value_cross": ("zero", "mean", "spearman", "value_cross"),
        "cross_ci_low": ("zero", "mean", "spearman", "cross_ci_low"),
        "cross_ci_high": ("zero", "mean", "spearman", "cross_ci_high"),
        "noise_ceiling": ("zero", "mean", "spearman", "noise_ceiling"), "n": ("zero", "mean", "spearman", "n"),
    }  # fmt: skip
    for method in table.index:
        for column, (truth, estimator, statistic, source) in sources.items():
            expected = row_of(agreement, method, truth, estimator, statistic)[source]
            assert table.loc[method, column] == pytest.approx(expected, nan_ok=True), column
    for column, source in (("difference_from_best", "difference"), ("difference_ci_low", "difference_ci_low"),
                           ("difference_ci_high", "difference_ci_high"), ("p_holm", "p_holm")):  # fmt: skip
        rows = tables["differences"].query("truth == 'zero'").to_dict("records")
        for row in rows:
            prefix = "cross_" if row["pictures"] == "different" else ""
            assert table.loc[row["method"], prefix + column] == pytest.approx(row[source], nan_ok=True)
        assert {row["pictures"] for row in rows} == {"same", "different"}
    for column, source in (("pictures", "num_pictures_paid"), ("cross", "spearman_cross"), ("same", "spearman_same"),
                           ("matched", "spearman_matched")):  # fmt: skip
        for row in tables["at_cost"].to_dict("records"):
            assert table.loc[row["method"], f"ablation_at_cost_{column}"] == pytest.approx(row[source], nan_ok=True)
        assert table.loc[list(CONTROLS), f"ablation_at_cost_{column}"].isna().all()
    for row in tables["shared"].to_dict("records"):
        assert table.loc[row["method"], f"rank_{row['truth']}"] == pytest.approx(row["rank"], nan_ok=True)
    means = tables["calibration"].iloc[0]
    assert table.loc["good", ["calibration_slope", "calibration_r2"]].tolist() == means[["slope", "r2"]].tolist()
    assert table["calibration_slope"].notna().sum() == 1
    assert (
        table.loc["magnitude", "spearman_abs"] == row_of(agreement, "magnitude", "zero_abs", "mean", "spearman").value
    )
    assert table.loc["good", "forwards"] == tables["forwards"]["good"]
    assert table["spearman_abs"].notna().sum() == 2  # layer_index is unsigned, too


def test_order_controls_best_and_duplicates(tables, table):
    values = table["value_cross"].to_numpy()
    assert np.isnan(values[-1]) and (np.diff(values[:-1]) <= 0).all()
    assert table.index[-1] == "flat" and table.index[:2].tolist() == ["good", "again"]  # equals in their order
    assert table.index[table["is_control"]].tolist() == ["layer_index", "flat"]
    for prefix in ("", "cross_"):
        assert table.loc["good", f"{prefix}difference_from_best"] == 0
        assert np.isnan(table.loc["good", f"{prefix}p_holm"])
    assert table["same_as"].to_dict() == {**dict.fromkeys(table.index, ""), "again": "good"}
    assert table.loc["path", "n"] == 8 and table["n"].dtype.kind == "i"


def test_the_price_test_takes_value_cross_and_the_matched_sweep(tables, table):
    at_cost = tables["at_cost"].set_index("method")["spearman_matched"]
    judged = {}
    for method in table.index:
        cross = row_of(tables["agreement"], method, "zero", "mean", "spearman")["value_cross"]
        known = method in at_cost and not np.isnan(at_cost[method]) and not np.isnan(cross)
        judged[method] = cross > at_cost[method] if known else None
    found = {name: None if pd.isna(won) else won for name, won in table["beats_ablation_at_cost"].items()}
    assert found == judged and set(judged.values()) == {True, False, None}


def test_better_than_layer_index_counts_truths(study, tables, table):
    scores, truths, _ = study
    for method in set(scores) - {"flat"}:
        count = 0
        for truth, n in (("zero", 8), ("mean", 8), ("few", 6)):
            found, depth = (
                stats.spearmanr(scores[one][:n].mean(0).ravel(), truths[truth][:n].mean(0).ravel()).statistic
                for one in (method, "layer_index")
            )
            count += method != "layer_index" and found > depth
        assert table.loc[method, "num_truths_better_than_layer_index"] == count
    assert np.isnan(table.loc["flat", "num_truths_better_than_layer_index"])
    shared = tables["shared"]
    without = league.league_table(**{**tables, "shared": shared[shared["method"] != "layer_index"]})
    assert without["num_truths_better_than_layer_index"].isna().all()


def test_what_was_not_given_is_missing_and_another_truth_may_lead(tables):
    needed = ("agreement", "shared", "families", "forwards", "controls")
    bare = league.league_table(**{name: tables[name] for name in needed}, truth="few").set_index("method")
    full = league.league_table(**tables)
    assert list(bare.columns) == [name for name in full.columns if name != "method"]
    assert bare["difference_from_best"].isna().all() and (bare["same_as"] == "").all()
    assert bare["cross_difference_from_best"].isna().all() and bare["beats_ablation_at_cost"].isna().all()
    assert bare["ablation_at_cost_cross"].isna().all() and bare["calibration_r2"].isna().all()
    assert bare.loc["good", "spearman"] == row_of(tables["agreement"], "good", "few", "mean", "spearman")["value"]
    assert bare.loc["magnitude", "n"] == 6


def test_refuses_in_one_line(tables):
    for message, change in {
        "expected the family of every method, missing for bad": {"families": {"good": "gates"}},
        "expected the cost of every method": {"forwards": {}},
        "expected agreement with shapley, got zero": {"truth": "shapley"},
    }.items():
        with pytest.raises(ValueError, match=message) as refusal:
            league.league_table(**{**tables, **change})
        assert "\n" not in str(refusal.value)
