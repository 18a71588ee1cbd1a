"""The league of a run and everything it is made of, by file name.

Takes per-picture truths and scores; gives the tables of agreement, of the truths among themselves, of differences, of
zero ablation at the price of each method, of calibration, and the league that joins them. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.ablation_at_cost import ablation_at_cost_table, forward_equivalents
from analysis.calibration import calibration_table
from analysis.differences import correlation, difference_table
from analysis.duplicates import duplicate_groups
from analysis.explain import Explained
from analysis.intervals import ESTIMATORS, Indices
from analysis.league import agreement_over_groups, league_table, shared_table
from analysis.models import OpenedModel
from analysis.own_question import question_table
from analysis.passes import method_settings
from analysis.scorecard import oriented
from analysis.settings import CompareSettings
from analysis.truth_matrix import truth_table
from analysis.truth_passes import SHAPLEY, sweep_forwards
from attribution.method import Method, cost
from attribution.vit import head_layout

LEAGUE_TABLES = (
    *("agreement", "truths", "differences", "differences_from_depth", "ablation_at_cost", "calibration", "league"),
    "league_by_question",
)
DEPTH = "layer_index"  # the control that knows nothing but the layer
OUT = "_out"  # names of methods that predict effects in units of the loss end so


def league_tables(
    settings: CompareSettings,
    opened: OpenedModel,
    explained: Explained,
    methods: Mapping[str, Method],
    indices: Indices,
) -> dict[str, pd.DataFrame]:
    """The tables of :data:`LEAGUE_TABLES`. Where effects are estimated, of which means over all pictures alone mean
    something, agreement and league alone, of the methods that cover all of them."""
    truth, seed = explained.truth, settings.seed
    scores = {name: oriented(found, methods[name]) for name, found in explained.scores.items()}
    if truth.is_estimated:
        scores = {name: found for name, found in scores.items() if len(found) == len(truth.delta_loss)}
    if not scores:
        return {}
    truths = {one.name: one.delta_loss for one in explained.truths}
    if explained.shapley is not None:
        truths[SHAPLEY] = explained.shapley
    signed = {name: method.signed for name, method in methods.items()}
    agreement = agreement_over_groups(
        scores,
        truths,
        signed,
        indices,
        seed,
        estimators=("mean",) if truth.is_estimated else tuple(ESTIMATORS),
        absolute=not truth.is_estimated,
    )
    tables = {"agreement": agreement}
    controls = [name for name, method in methods.items() if method.family == "control"]
    on_trial = [name for name in scores if name not in controls]
    forwards = _forwards(settings, opened, methods)
    if not truth.is_estimated:
        tables["truths"] = truth_table(truths, indices, seed)
        tables["ablation_at_cost"] = ablation_at_cost_table(
            truth.delta_loss,
            {name: forwards[name] for name in on_trial},
            {name: len(scores[name]) for name in on_trial},
            sweep_forwards(opened),
            seed,
        )
        predicted = {name: found for name, found in explained.scores.items() if name.endswith(OUT)}
        predicted = {name: found for name, found in predicted.items() if methods[name].signed}
        if predicted:
            tables["calibration"] = calibration_table(predicted, truth.delta_loss, indices)
    stands_for = duplicate_groups({name: scores[name] for name in on_trial})
    if any(np.isfinite(correlation(scores[name], truth.delta_loss)) for name in on_trial):
        # A method under a second name is no further hypothesis.
        distinct = {name: found for name, found in scores.items() if stands_for.get(name, name) == name}
        tables["differences"] = difference_table(distinct, truths, controls, indices, seed)
        if DEPTH in distinct:
            found = difference_table(distinct, truths, controls, indices, seed, against=DEPTH)
            tables["differences_from_depth"] = found.rename(columns={"best": "against"})
    tables["league"] = league_table(
        agreement,
        shared_table(scores, truths),
        {name: methods[name].family for name in scores},
        forwards,
        controls,
        differences=tables.get("differences"),
        at_cost=tables.get("ablation_at_cost"),
        calibration=tables.get("calibration"),
        duplicates=stands_for,
    )
    if not truth.is_estimated:
        expands = {name: method.expands for name, method in methods.items()}
        copies = [name for name, other in stands_for.items() if other != name]
        tables["league_by_question"] = question_table(agreement, expands, {*controls, *copies})
    return {name: tables[name] for name in LEAGUE_TABLES if name in tables}


def _forwards(settings: CompareSettings, opened: OpenedModel, methods: Mapping[str, Method]) -> dict[str, float]:
    """What a method costs per picture, in forward passes."""
    dials, layout = method_settings(settings), head_layout(opened.model)
    num_targets = len(opened.model.config.target_names)
    found = {}
    for name, method in methods.items():
        forwards, backwards = cost(method, dials, num_layers=layout.num_layers, num_targets=num_targets)
        found[name] = forward_equivalents(forwards, backwards)
    return found
