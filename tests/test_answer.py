"""The sentences about truths and league, from tables written by hand."""

import numpy as np
import pandas as pd

from analysis.answer import describe_league


def league_of(**columns):
    values = {
        "method": ["good", "twin", "poor", "layer_index"],
        "is_control": [False, False, False, True],
        "same_as": ["", "good", "", ""],
        "spearman": [0.9, 0.9, 0.2, 0.5],
        "ablation_at_cost_same": [0.7, 0.7, 0.6, np.nan],
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
    assert third.startswith("Of 2 methods whose price pays for ablation of at least one picture, 1 agree better")


def test_what_cannot_be_said_is_left_out():
    assert describe_league(None, None) == []
    unknown = league_of(num_truths_better_than_layer_index=np.nan, ablation_at_cost_same=np.nan)
    assert describe_league(unknown, None) == []
    none = league_of(num_truths_better_than_layer_index=[0.0, 0.0, 0.0, 0.0])
    assert "0 of 2 (none)" in describe_league(none, None)[0]
    of_itself = truths_of().head(1)
    assert describe_league(None, of_itself) == []
