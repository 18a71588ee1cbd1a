"""The price test says one thing in sentence, table, figure and report: in a run of many methods, and of one."""

import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from tiny_models import tiny_model

from analysis.ablation_at_cost import beats_ablation
from analysis.agreement import random_halves
from analysis.answer import describe_league
from analysis.intervals import bootstrap_indices
from analysis.league_plots import BEATS, cost_front
from analysis.league_tables import league_tables
from analysis.models import OpenedModel
from analysis.run_folder import league_on_the_page
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from analysis.tables import read_table, write_table
from attribution.methods import METHODS

GOOD = ("gate_ixg_out", "gate_saliency_out", "layer_conductance", "layer_ig_out")
POOR = ("gate_ixg", "cls_mass", "chefer")


def run_of(names):
    """A league of 40 pictures: effects of heavy tails, good methods that see them almost as they are, poor ones."""
    rng = np.random.default_rng(0)
    size = rng.exponential(size=(3, 2))
    effects = size * rng.lognormal(0, 1, (40, 1, 1)) + 1.5 * rng.standard_t(3, (40, 3, 2))
    noise = {name: 0.2 if name in GOOD else 4.0 for name in names}
    scores = {name: size + noise[name] * rng.normal(size=effects.shape) for name in names}
    truth = Truth("zero", effects, effects[..., None], np.ones(40))
    tables = league_tables(
        CompareSettings(methods=tuple(names), bootstrap_replicates=40),
        OpenedModel(tiny_model(), "tiny", "0", is_control=True),
        SimpleNamespace(truths=(truth,), truth=truth, shapley=None, scores=scores),
        {name: METHODS[name] for name in names},
        lambda count: bootstrap_indices(count, 40),
    )
    return scores, effects, tables


@pytest.mark.parametrize("names", [(*GOOD, *POOR, "random", "layer_index"), ("gate_ixg_out",), ("gate_ixg",)])
def test_sentence_table_figure_and_report_agree(names, tmp_path):
    scores, effects, tables = run_of(names)
    write_table(tables["league"], tmp_path / "league.csv")
    league = read_table(tmp_path / "league.csv")
    judged = tables["league"].set_index("method")["beats_ablation_at_cost"]
    won = sorted(judged.index[judged.eq(True)])
    assert sorted(league["method"][league["beats_ablation_at_cost"].astype(str) == "True"]) == won

    # By definition: the method on one half, the truth on the other; the sweep likewise.
    at_cost = tables["ablation_at_cost"].set_index("method")["spearman_matched"]
    halves = random_halves(40, 200, 0)[0] == 1
    mean = lambda part: part.mean(axis=0).ravel()  # noqa: E731
    for name in at_cost.dropna().index:
        cross = np.mean([spearmanr(mean(scores[name][half]), mean(effects[~half])).statistic for half in halves])
        assert (name in won) == (cross > at_cost[name]), name
    assert set(judged.dropna().index) == set(at_cost.dropna().index)

    sentence = next(line for line in describe_league(tables["league"], None) if "whose price" in line)
    told = re.fullmatch(r"Of (\d+) methods whose price .*, (\d+) agree .* \((.*)\)\.", sentence)
    assert told is not None
    assert (int(told[1]), int(told[2])) == (len(at_cost.dropna()), len(won))
    assert sorted(told[3].split(", ")) == (won or ["none"])

    ax = cost_front(tables["league"])
    rings = next(part for part in ax.collections if part.get_label() == BEATS).get_offsets()
    points = tables["league"].set_index("method").loc[judged.index[judged.eq(True)], ["forwards", "value_cross"]]
    assert rings.tolist() == points.to_numpy(float).tolist()
    line = next((line for line in ax.lines if line.get_label() == "ablation at that price"), None)
    for x, y in rings:  # a ringed point lies above the dashed line
        assert line is not None and y > line.get_ydata()[list(line.get_xdata()).index(x)]
    plt.close(ax.figure)

    page = league_on_the_page(tables)[-1][2].set_index("method")
    assert sorted(page.index[page["beats_ablation_at_cost"].eq(True)]) == won


def test_both_outcomes_occur():
    judged = run_of((*GOOD, *POOR, "random", "layer_index"))[2]["league"].set_index("method")["beats_ablation_at_cost"]
    assert {True, False} <= set(judged.dropna()) and judged[["random", "layer_index"]].isna().all()


def test_what_cannot_be_compared_is_not_judged():
    found = beats_ablation(pd.Series([0.5, 0.5, 0.5, np.nan]), pd.Series([0.4, 0.5, np.nan, 0.1]))
    assert found.tolist()[:2] == [True, False] and found.isna().tolist() == [False, False, True, True]
