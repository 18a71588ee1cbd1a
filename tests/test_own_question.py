"""Methods by their own question: the table, the best by question, and the sentence, by hand on small tables."""

import numpy as np
import pandas as pd
import pytest

from analysis.own_question import best_by_question, describe_questions, question_table
from analysis.question_plots import question_heatmap

EXPANDS = {"a": "zero", "b": "mean", "c": "", "random": ""}
CROSS = {  # method -> truth -> (over all heads, within layers)
    "a": {"ablation_zero": (0.9, 0.8), "ablation_mean": (0.5, 0.1), "ablation_zero_abs": (1.0, 1.0), "shapley": (0, 0)},
    "b": {"ablation_zero": (0.6, 0.9), "ablation_mean": (0.7, 0.3), "ablation_zero_abs": (1.0, 1.0), "shapley": (0, 0)},
    "c": {"ablation_zero": (0.4, 0.2), "ablation_mean": (0.8, 0.2), "ablation_zero_abs": (1.0, 1.0), "shapley": (0, 0)},
    "random": {"ablation_zero": (0.95, np.nan), "ablation_mean": (0.9, np.nan)},
}


def agreement():
    rows = []
    for method, truths in CROSS.items():
        for truth, (whole, within) in truths.items():
            for estimator in ("mean", "trimmed"):
                for statistic, value in (("spearman", whole), ("spearman_within_layers", within), ("kendall", 0.0)):
                    off = 0.0 if estimator == "mean" else 0.5
                    rows.append(
                        (
                            method,
                            truth,
                            estimator,
                            statistic,
                            value + 0.01,
                            value - off,
                            value - 0.1,
                            value + 0.1,
                            0.99,
                            8,
                        )
                    )
    columns = ["method", "truth", "estimator", "statistic", "value", "value_cross", "cross_ci_low", "cross_ci_high"]
    return pd.DataFrame(rows, columns=[*columns, "noise_ceiling", "n"])


def test_every_method_stands_by_its_question():
    table = question_table(agreement(), EXPANDS, ["random"])
    assert list(table["method"]) == ["a", "a", "b", "b", "c", "c", "random", "random"]
    assert set(table["truth"]) == {"ablation_zero", "ablation_mean"}
    own = table[table["is_own"]]
    assert list(zip(own["method"], own["truth"], strict=True)) == [("a", "ablation_zero"), ("b", "ablation_mean")]
    for row in table.to_dict("records"):
        whole, within = CROSS[row["method"]][row["truth"]]
        assert row["value_cross"] == whole and row["value"] == whole + 0.01
        np.testing.assert_equal(row["within_layers_cross"], within)
    ranks = table.pivot(index="method", columns="truth", values="rank")
    assert ranks["ablation_zero"].to_dict() == pytest.approx({"a": 1, "b": 2, "c": 3, "random": np.nan}, nan_ok=True)
    assert ranks["ablation_mean"].to_dict() == pytest.approx({"a": 3, "b": 2, "c": 1, "random": np.nan}, nan_ok=True)
    inside = table.pivot(index="method", columns="truth", values="within_layers_rank")
    assert inside["ablation_zero"].to_dict() == pytest.approx({"a": 2, "b": 1, "c": 3, "random": np.nan}, nan_ok=True)


def test_the_best_of_those_that_expand_a_truth_is_set_against_the_best_of_the_others():
    table = question_table(agreement(), EXPANDS, ["random"])
    found = best_by_question(table).set_index("truth")
    assert found.loc["ablation_zero"].to_list() == ["a", 0.9, "b", 0.6]
    assert found.loc["ablation_mean"].to_list() == ["b", 0.7, "c", 0.8]
    assert best_by_question(table, "within_layers_cross").set_index("truth").loc["ablation_zero"].to_list() == [
        *("a", 0.8, "b", 0.9)
    ]
    [line] = describe_questions(table)
    assert line.startswith("Each by its own question: under 1 of 2 kinds of ablation the method closest to it")
    assert "zero a 0.90 against b 0.60 (within layers a 0.80 against b 0.90)" in line
    assert "mean b 0.70 against c 0.80 (within layers b 0.30 against c 0.20)" in line


def test_without_a_method_that_has_a_question_nothing_is_said():
    table = question_table(agreement(), {}, ["random"])
    assert not table["is_own"].any() and describe_questions(table) == [] and describe_questions(None) == []


def test_a_method_without_a_number_bears_no_rank():
    found = agreement()
    found.loc[found["method"] == "b", "value_cross"] = np.nan
    table = question_table(found, EXPANDS, ["random"])
    assert table[table["method"] == "b"]["rank"].isna().all()
    assert list(best_by_question(table)["truth"]) == ["ablation_zero"]


def test_the_figure_frames_own_questions_and_prints_the_best_bold():
    figure = question_heatmap(question_table(agreement(), EXPANDS, ["random"]), controls=["random"])
    left, right = figure.axes[:2]
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c", "random"]
    frames = [(round(patch.get_x() + 0.47), round(patch.get_y() + 0.45)) for patch in left.patches]
    assert frames == [(0, 0), (1, 1)]
    bold = {text.get_text() for text in left.texts if text.get_fontweight() == "bold"}
    assert bold == {"0.90", "0.80"}
    assert {text.get_text() for text in right.texts if text.get_fontweight() == "bold"} == {"0.90", "0.30"}
