"""The sentences about truths and league, from tables written by hand."""

import numpy as np
import pandas as pd

from analysis.answer import closest, describe_lead, describe_league, describe_run, first_by_truth


def league_of(**columns):
    values = {
        "method": ["good", "twin", "poor", "layer_index"],
        "is_control": [False, False, False, True],
        "same_as": ["", "good", "", ""],
        "spearman": [0.9, 0.9, 0.2, 0.5],
        "beats_ablation_at_cost": [True, True, False, np.nan],
        "num_truths_better_than_layer_index": [2.0, 2.0, 0.0, 0.0],
        "rank_ablation_zero": [1.0, 1.0, 4.0, 3.0],
        "rank_ablation_mean": [1.0, 1.0, 4.0, 3.0],
    }
    return pd.DataFrame(values | columns)


def truths_of():
    rows = [
        ("ablation_zero", "ablation_zero", "mean", "spearman_split_half", 0.95),
        ("ablation_zero", "ablation_mean", "mean", "spearman", 0.8),
        ("ablation_zero", "ablation_resample", "mean", "spearman", 0.6),
        ("ablation_zero", "ablation_mean", "trimmed", "spearman", 0.1),
    ]
    return pd.DataFrame(rows, columns=["truth_a", "truth_b", "estimator", "statistic", "value"])


def test_what_is_said_of_truths_and_methods():
    first, second, third = describe_league(league_of(), truths_of())
    assert first == (
        "The truths, two by two, agree with a Spearman of 0.60 to 0.80 over heads (least: zero and resample)."
    )
    # A method that is another under a second name does not count twice, controls not at all.
    assert second == "Methods that order heads better than their depth alone under every truth: 1 of 2 (good)."
    assert third == (
        "Of 2 methods whose price pays for ablation of at least one picture in a half, 1 agree better with the effects "
        "of the other half than that ablation does (good)."
    )


def test_what_cannot_be_said_is_left_out():
    assert describe_league(None, None) == []
    unknown = league_of(num_truths_better_than_layer_index=np.nan, beats_ablation_at_cost=np.nan)
    assert describe_league(unknown, None) == []
    none = league_of(num_truths_better_than_layer_index=[0.0, 0.0, 0.0, 0.0])
    assert "0 of 2 (none)" in describe_league(none, None)[0]
    of_itself = truths_of().head(1)
    assert describe_league(None, of_itself) == []


SCORECARD = pd.DataFrame({"layer": [0, 1], "head": [1, 0], "ablation_zero_var_pct": [1.0, 2.5], "n": 64})


def agreement_of(**cross):
    """Agreement with each truth of three methods and a control: `value_cross` given, same pictures in another order."""
    names = ("one", "two", "three", "random")
    rows = [
        (name, f"ablation_{truth}", "mean", "spearman", 1 - place / 10, value, value - 0.1, value + 0.05,
         32 if name == "three" else 64)
        for truth, values in cross.items() for place, (name, value) in enumerate(zip(names, values, strict=True))
    ]  # fmt: skip
    columns = "method truth estimator statistic value value_cross cross_ci_low cross_ci_high n"
    return pd.DataFrame(rows, columns=columns.split())


def test_the_closest_method_is_first_under_three_truths_of_four_on_other_pictures():
    table = agreement_of(zero=(0.5, 0.8, 0.1, 0.9), mean=(0.5, 0.6, 0.7, 0), resample=(0.5, 0.6, 0.1, 0),
                         counterfactual=(0.5, 0.6, 0.1, 0))  # fmt: skip
    shapley = table[table["truth"] == "ablation_zero"].assign(truth="shapley", value_cross=1.0)
    absolute = shapley.assign(truth="ablation_zero_abs")
    table = pd.concat([table, absolute, shapley], ignore_index=True)
    first = first_by_truth(table)
    assert first["method"].tolist() == ["two", "three", "two", "two"] and closest(first) == "two"
    heads, methods = describe_run(SCORECARD, table)
    assert heads.endswith("L1H0 (+2.50 %), L0H1 (+1.00 %).")
    assert methods == (
        "Method closest to ablation, on other pictures than the truth's (Spearman over heads, 95 % intervals): two "
        "under zero 0.80 [0.70, 0.85], resample 0.60 [0.50, 0.65], counterfactual 0.60 [0.50, 0.65]; but three under "
        "mean 0.70 [0.60, 0.75] on 32 pictures. Farthest from zero ablation: three (0.10, on 32 pictures)."
    )


def test_no_method_is_best_that_is_first_under_fewer():
    two = agreement_of(zero=(0.5, 0.8, 0.1, 0), mean=(0.5, 0.4, 0.1, 0))
    assert closest(first_by_truth(two)) is None
    line = describe_run(SCORECARD, two)[1]
    assert line.startswith("No method is closest to ablation, on other pictures than the truth's ")
    assert "under 2 of 2 truths: two under zero 0.80 [0.70, 0.85]; one under mean 0.50 [0.40, 0.55]." in line
    three = agreement_of(zero=(0.5, 0.8, 0.1, 0), mean=(0.1, 0.4, 0.1, 0), counterfactual=(0.5, 0.4, 0.1, 0))
    assert closest(first_by_truth(three)) is None  # two of three
    alone = agreement_of(zero=(0.5, 0.8, 0.1, 0)).assign(cross_ci_low=np.nan)
    assert closest(first_by_truth(alone)) == "two"
    assert "intervals): two under zero 0.80. Farthest" in describe_run(SCORECARD, alone)[1]
    nothing = alone.assign(value_cross=np.nan)
    assert len(describe_run(SCORECARD, nothing)) == 1 and closest(first_by_truth(nothing)) is None


def test_a_lead_counts_where_it_is_tested_under_every_truth_that_the_method_leads():
    rows = [
        ("ablation_zero", "different", "one", "two", 0.1, 0.01),
        ("ablation_mean", "different", "one", "two", 0.1, 0.2),
        ("ablation_zero", "different", "three", "two", 0.3, 0.01),
        ("ablation_mean", "different", "three", "two", 0.3, 0.04),
        ("ablation_zero", "different", "four", "two", -0.3, 0.01),  # ahead on its own few pictures
        ("ablation_mean", "different", "four", "two", 0.3, 0.01),
        ("ablation_resample", "different", "three", "one", 0.3, 0.9),  # where another leads
        ("shapley", "different", "three", "two", 0.3, 0.9),
        ("ablation_zero", "same", "three", "two", 0.3, 0.9),
        ("ablation_zero", "different", "random", "two", 0.9, 0.9),
        ("ablation_zero", "different", "flat", "two", np.nan, np.nan),
    ]
    table = pd.DataFrame(rows, columns=["truth", "pictures", "method", "best", "difference", "p_holm"])
    assert describe_lead("two", table) == [
        "two is ahead of 1 of 3 other methods under every truth under which it is first (differences tested over "
        "pictures, Holm's p below 0.05); not of one, four."
    ]
    assert describe_lead(None, table) == []
    sure = table.query("method == 'three' and best == 'two' and truth != 'shapley' and pictures == 'different'")
    assert describe_lead("two", sure)[0].endswith("0.05).")
