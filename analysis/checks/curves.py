"""Removal curves: what the loss becomes when heads leave one after the other, in the order a method gives them.

Takes the orders of heads; gives a pass that removes the first so many of them, most important first and least important
first, and the table of its losses. Head sets that several orders share are computed once. A second pass does the same
in random orders, the null of the curves; it hangs on no method, so that another method leaves it as it is.

Orders come from all pictures a method has scores for, the pictures of the curves among them; the order of a truth is
in part fitted to them, and is a bound rather than a contender.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.checks.evidence import LOOKS_AT, Evidence, Head, Orders
from analysis.circuit_scores import kept_counts
from analysis.curve_areas import above_random, curve_table, random_orders, removal_counts
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
RANDOM = "check_curves_random"
ENDS = ("most_first", "least_first")


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """The loss of the first pictures without each set of heads, ``losses`` [image set]: one pass for the sets of the
    given orders (`head_sets`), one for those of random orders (`random_sets`)."""
    sets = head_sets(orders)
    digest = hashlib.sha256(json.dumps(sets).encode()).hexdigest()
    layers = head_layout(opened.model).num_layers
    forwards = sum((layers - min((layer for layer, _ in heads), default=0)) / layers for heads in sets)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        return {NAME: {"losses": _losses(opened, batch, sets, batch_size)}}

    depends_on = {"sets": digest}
    rows = first_rows(settings.curve_pictures, source.count)
    found = [Pass(NAME, {NAME: depends_on}, compute, forwards, rows=rows)]
    null = random_sets(orders, settings.seed)
    return [*found, _random_pass(opened, null, rows)] if null else found


def _random_pass(opened: OpenedModel, sets: Sequence[tuple[Head, ...]], rows: tuple[int, ...] | None) -> Pass:
    layers = head_layout(opened.model).num_layers
    forwards = sum((layers - min(layer for layer, _ in heads)) / layers for heads in sets)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        return {RANDOM: {"losses": _losses(opened, batch, sets, batch_size)}}

    digest = hashlib.sha256(json.dumps(sets).encode()).hexdigest()
    depends_on = {"sets": digest}
    return Pass(RANDOM, {RANDOM: depends_on}, compute, forwards, rows=rows)


def _losses(
    opened: OpenedModel, batch: Batch, sets: Sequence[tuple[Head, ...]], batch_size: int
) -> NDArray[np.float64]:
    predictions, _route = predictions_without(opened.model, batch.pixel_values, sets, batch_size=batch_size)
    labels = batch.labels.to("cpu", torch.float64)
    return torch.stack([loss_per_image(scenario, labels) for scenario in predictions], dim=1).numpy()


def table(evidence: Evidence) -> pd.DataFrame:
    """The curves of every order, with the areas under them (`analysis.curve_areas.curve_table`); those of random orders
    last, as ``random_0``, ``random_1``, ..., and how many of these each order surpasses (`above_random`)."""
    losses, random = losses_of_sets(evidence)
    counts = removal_counts(len(next(iter(evidence.orders.values()))))
    curves = {
        name: {end: losses(_sets_of(order, end, counts)) for end in ENDS}
        for name, order in (ranked_orders(evidence.orders) | random).items()
    }
    return above_random(curve_table(curves, counts, evidence.indices), random)


def losses_of_sets(
    evidence: Evidence,
) -> tuple[Callable[[Sequence[tuple[Head, ...]]], NDArray[np.float64]], dict[str, tuple[Head, ...]]]:
    """Losses `[set image]` without each of some sets of heads that were computed, whatever their order; and the random
    orders."""
    seed = evidence.settings.seed
    null = random_sets(evidence.orders, seed)
    losses = np.concatenate([evidence.read(name)["losses"] for name in ((NAME, RANDOM) if null else (NAME,))], axis=1)
    # A set that is in both is read from the first place, as in a run without the null.
    place = {heads: number for number, heads in reversed([*enumerate([*head_sets(evidence.orders), *null])])}

    def of(sets: Sequence[tuple[Head, ...]]) -> NDArray[np.float64]:
        return np.stack([losses[:, place[tuple(sorted(heads))]] for heads in sets])

    return of, _random(evidence.orders, seed)


def head_sets(orders: Orders) -> list[tuple[Head, ...]]:
    """Every set of heads that some order removes, each once, sorted within and in a fixed order: from either end so
    many as curves have steps, and all but so many as circuits keep."""
    sets: set[tuple[Head, ...]] = set()
    for order in ranked_orders(orders).values():
        counts = removal_counts(len(order))
        sets |= {heads for end in ENDS for heads in _sets_of(order, end, counts)}
        sets |= {tuple(sorted(order[kept:])) for kept in kept_counts(len(order))}
    return sorted(sets, key=lambda heads: (len(heads), heads))


def random_sets(orders: Orders, seed: int) -> list[tuple[Head, ...]]:
    """Every set of heads that some random order removes; without none and all, which `head_sets` has."""
    return [heads for heads in head_sets(_random(orders, seed)) if 0 < len(heads) < len(next(iter(orders.values())))]


def _random(orders: Orders, seed: int) -> dict[str, tuple[Head, ...]]:
    return random_orders(sorted(next(iter(orders.values()))), seed)


def ranked_orders(orders: Orders) -> dict[str, tuple[Head, ...]]:
    """The orders that say how much heads matter, of methods and truths; not those of where they look."""
    return {name: order for name, order in orders.items() if not name.startswith(LOOKS_AT)}


def _sets_of(order: Sequence[Head], end: str, counts: Sequence[int]) -> list[tuple[Head, ...]]:
    ordered = list(order) if end == "most_first" else list(reversed(order))
    return [tuple(sorted(ordered[:count])) for count in counts]
