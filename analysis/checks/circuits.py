"""Circuits: how much of the model the heads that an order puts first are worth by themselves, all others gone.

Takes what ``curves`` computes, which removes heads from the end of every order too; has no passes of its own. Gives
faithfulness along the order with its areas, beside those of random orders (:mod:`analysis.circuit_scores`).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.checks import curves
from analysis.checks.evidence import Evidence, Orders
from analysis.circuit_scores import circuit_table, kept_counts
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource
from analysis.settings import CompareSettings
from attribution.method import Method

NEEDS = ("curves",)


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """None: those of ``curves`` are enough."""
    return []


def table(evidence: Evidence) -> pd.DataFrame:
    """One row an order and number of heads kept (`analysis.circuit_scores.circuit_table`); random orders last. Empty
    where the model is no worse without its heads."""
    losses, random = curves.losses_of_sets(evidence)
    orders = curves.ranked_orders(evidence.orders) | random
    counts = kept_counts(len(next(iter(orders.values()))))
    kept = {name: losses([order[count:] for count in counts]) for name, order in orders.items()}
    empty = losses([next(iter(orders.values()))])[0]
    if empty.mean() <= next(iter(kept.values()))[-1].mean():
        return pd.DataFrame()
    return circuit_table(kept, empty, counts, evidence.indices, random)
