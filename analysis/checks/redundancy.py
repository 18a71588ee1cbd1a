"""Heads that stand in for each other: pairs removed together, among the heads that matter most.

Takes the order of heads by the truth; gives one pass, which removes the first 20 heads one by one and two by two, and a
table of how far the effect of a pair is from the sum of its parts.

The loss is square: two heads whose shares of the outputs simply add up, a1 and a2, already interact by 2 mean_k a1 a2.
What goes beyond that is the model's doing: where it is positive, one head stands in for the other while it is there;
where it is negative, the two share in one harm, and the second to leave takes less with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon

from analysis.checks.evidence import Evidence, Head, Orders
from analysis.intervals import interval_over_images
from analysis.models import OpenedModel
from analysis.nulls import false_discovery_rate
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.truth_passes import TRUTH
from attribution.batch import Batch
from attribution.method import Method
from attribution.sweep import predictions_without
from attribution.vit import head_layout

NAME = "check_redundancy"
TOP = 20
SIGNIFICANT = 0.05
COLUMNS = (
    *("layer_a", "head_a", "layer_b", "head_b", "effect_a_var_pct", "effect_b_var_pct", "effect_pair_var_pct"),
    *("interaction_var_pct", "ci_low", "ci_high", "additive_var_pct"),
    *("beyond_var_pct", "beyond_ci_low", "beyond_ci_high", "p", "q_value", "is_backup", "is_shared", "n"),
)


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over the first pictures: ``residuals`` float64 [image scenario target], standardised outputs minus
    labels, of the intact model, of it without each of the first 20 heads, and without each pair of them."""
    scenarios = scenarios_of(orders)
    layers = head_layout(opened.model).num_layers
    forwards = sum((layers - min((layer for layer, _ in heads), default=0)) / layers for heads in scenarios)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        outputs, _route = predictions_without(opened.model, batch.pixel_values, scenarios, batch_size=batch_size)
        residuals = outputs - batch.labels.to("cpu", torch.float64)
        return {NAME: {"residuals": residuals.transpose(0, 1).contiguous().numpy()}}

    depends_on = {"scenarios": [list(heads) for heads in scenarios]}
    rows = first_rows(settings.curve_pictures, source.count)
    return [Pass(NAME, {NAME: depends_on}, compute, forwards, rows=rows)]


def scenarios_of(orders: Orders) -> list[tuple[Head, ...]]:
    """Nothing removed, each of the first 20 heads by zero ablation, each pair of them."""
    top = orders[TRUTH][:TOP]
    return [(), *((head,) for head in top), *combinations(top, 2)]


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a pair, largest ``beyond_var_pct`` first; % of the label variance, means over n pictures.

    ``interaction_var_pct``: effect of the pair minus both effects, with 95 % interval; ``additive_var_pct``: what
    it would be if outputs added up; ``beyond_var_pct``: the rest, with its interval, ``p`` of Wilcoxon's signed-rank
    test over pictures and Benjamini-Hochberg ``q_value`` over pairs. ``is_backup``: beyond is positive, its interval
    excludes 0 and q < 0.05; ``is_shared``: the same below 0.
    """
    residuals = evidence.read(NAME)["residuals"]
    scenarios = scenarios_of(evidence.orders)
    place = {heads: number for number, heads in enumerate(scenarios)}
    effects = 100 * ((residuals**2).mean(axis=2) - (residuals[:, :1] ** 2).mean(axis=2))  # [image scenario]
    moved = residuals - residuals[:, :1]
    pairs = [heads for heads in scenarios if len(heads) == 2]
    if not pairs:  # a model of one head
        return pd.DataFrame(columns=list(COLUMNS))
    first, second, both = (
        np.array([place[heads[:1]] for heads in pairs]),
        np.array([place[heads[1:]] for heads in pairs]),
        np.array([place[heads] for heads in pairs]),
    )
    interaction = effects[:, both] - effects[:, first] - effects[:, second]
    additive = 200 * (moved[:, first] * moved[:, second]).mean(axis=2)
    beyond = interaction - additive
    indices = evidence.indices(len(residuals))
    whole, rest = interval_over_images(interaction, indices), interval_over_images(beyond, indices)
    p = np.array([wilcoxon(values).pvalue if np.any(values) else 1.0 for values in beyond.T])
    q = false_discovery_rate(p)
    columns = {
        "layer_a": [a[0] for a, _ in pairs],
        "head_a": [a[1] for a, _ in pairs],
        "layer_b": [b[0] for _, b in pairs],
        "head_b": [b[1] for _, b in pairs],
        "effect_a_var_pct": effects[:, first].mean(axis=0),
        "effect_b_var_pct": effects[:, second].mean(axis=0),
        "effect_pair_var_pct": effects[:, both].mean(axis=0),
        "interaction_var_pct": whole.value,
        "ci_low": whole.low,
        "ci_high": whole.high,
        "additive_var_pct": additive.mean(axis=0),
        "beyond_var_pct": rest.value,
        "beyond_ci_low": rest.low,
        "beyond_ci_high": rest.high,
        "p": p,
        "q_value": q,
        "is_backup": (rest.low > 0) & (q < SIGNIFICANT),
        "is_shared": (rest.high < 0) & (q < SIGNIFICANT),
        "n": len(residuals),
    }
    found = pd.DataFrame(columns)[list(COLUMNS)]
    return found.sort_values("beyond_var_pct", ascending=False, kind="stable", ignore_index=True)
