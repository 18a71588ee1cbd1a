"""Removal curves: what the loss becomes when heads leave one after the other, in the order a method gives them.

Takes the orders of heads; gives a pass that removes the first so many of them, most important first and least important
first, and the table of its losses. Head sets that several orders share are computed once.

Orders come from all pictures a method has scores for, the pictures of the curves among them; the order of a truth is
in part fitted to them, and is a bound rather than a contender.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from analysis.checks.evidence import LOOKS_AT, Evidence, Head, Orders
from analysis.curve_areas import curve_table, removal_counts
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.batch import Batch
from attribution.method import Method
from attribution.sweep import predictions_without
from attribution.vit import head_layout, loss_per_image

NAME = "check_curves"
ENDS = ("most_first", "least_first")


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass: the loss of the first pictures without each set of heads, ``losses`` [image set] (`head_sets`)."""
    sets = head_sets(orders)
    digest = hashlib.sha256(json.dumps(sets).encode()).hexdigest()
    layers = head_layout(opened.model).num_layers
    forwards = sum((layers - min((layer for layer, _ in heads), default=0)) / layers for heads in sets)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        predictions, _route = predictions_without(opened.model, batch.pixel_values, sets, batch_size=batch_size)
        labels = batch.labels.to("cpu", torch.float64)
        losses = torch.stack([loss_per_image(scenario, labels) for scenario in predictions], dim=1)
        return {NAME: {"losses": losses.numpy()}}

    depends_on = {"sets": digest}
    rows = first_rows(settings.curve_pictures, source.count)
    return [Pass(NAME, {NAME: depends_on}, compute, forwards, rows=rows)]


def table(evidence: Evidence) -> pd.DataFrame:
    """The curves of every order, with the areas under them (`analysis.curve_areas.curve_table`)."""
    losses = evidence.read(NAME)["losses"]
    place = {heads: number for number, heads in enumerate(head_sets(evidence.orders))}
    counts = removal_counts(len(next(iter(evidence.orders.values()))))
    curves = {
        name: {end: np.stack([losses[:, place[heads]] for heads in _sets_of(order, end, counts)]) for end in ENDS}
        for name, order in ranked_orders(evidence.orders).items()
    }
    return curve_table(curves, counts, evidence.indices)


def head_sets(orders: Orders) -> list[tuple[Head, ...]]:
    """Every set of heads that some order removes, each once, sorted within and in a fixed order."""
    ranked = ranked_orders(orders).values()
    sets = {heads for order in ranked for end in ENDS for heads in _sets_of(order, end, removal_counts(len(order)))}
    return sorted(sets, key=lambda heads: (len(heads), heads))


def ranked_orders(orders: Orders) -> dict[str, tuple[Head, ...]]:
    """The orders that say how much heads matter, of methods and truths; not those of where they look."""
    return {name: order for name, order in orders.items() if not name.startswith(LOOKS_AT)}


def _sets_of(order: Sequence[Head], end: str, counts: Sequence[int]) -> list[tuple[Head, ...]]:
    ordered = list(order) if end == "most_first" else list(reversed(order))
    return [tuple(sorted(ordered[:count])) for count in counts]
