"""Planted truths: methods on models whose answer is known because it was put there.

Takes the methods on trial and the order of heads by the truth; gives one pass for each plant, and the table of how far
each method is from what it should find. Copies of the model with one edit (`attribution.planted`): the head that
matters most silenced, the same head as two halves, all heads in reversed order; and a tiny model wired by hand so that
one head carries the answer. Two pictures, and four steps for path methods: what must hold holds for every picture and
any number of steps, and for any mean context, here that of the pictures' donors. A method that cannot run somewhere has
NaN there, and does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from analysis.checks.evidence import Evidence, Head, Orders
from analysis.checks.rerun import forwards_of, needs_of, on_trial, scores_or_nan
from analysis.estimate_cost import sweep_costs
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows, method_settings, told_apart
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.scorecard import oriented
from analysis.settings import CompareSettings
from analysis.truth_passes import TRUTH
from attribution.ablation import mean_context, zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.method import Method
from attribution.planted import permute_heads, silence_head, split_head, wired_regressor
from attribution.vit import ViTRegressor, attention_modules, num_heads_of

NAME = "check_planted"
INTACT, SILENCED, HALVES, PERMUTED, WIRED = "intact", "silenced", "halves", "permuted", "wired"
STATISTICS = {SILENCED: "share_of_largest", HALVES: "difference", PERMUTED: "largest_change", WIRED: "rank"}
IDEALS = {"share_of_largest": 0.0, "difference": 0.0, "largest_change": 0.0, "rank": 1.0}
TOLERANCE = 1e-3
PICTURES, STEPS, WIRED_PICTURES = 2, 4, 16
COLUMNS = ("method", "plant", "statistic", "value", "ideal", "passes", "n")

Build = Callable[[], ViTRegressor]
Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass for the intact model and for each edit, with an array [image layer head] for each method and for
    ``ablation_zero``; and one for the wired model, whose arrays [image] repeat the rank of its head for every picture.

    The copies are made when they are needed, and only one is held at a time.
    """
    chosen = on_trial(methods)
    dials = replace(method_settings(settings), steps=STEPS)
    depends_on = {"seed": settings.seed, "steps": STEPS, **told_apart(chosen)}
    forwards = forwards_of(chosen.values(), dials, opened) + 1 + float(sweep_costs(*_shape(opened.model)).sum())
    held: dict[str, ViTRegressor | None] = {}

    def model_of(plant: str, build: Build) -> ViTRegressor | None:
        if plant not in held:
            held.clear()
            held[plant] = _built(build)
        return held[plant]

    def of(plant: str, build: Build) -> Pass:
        key = f"{NAME}_{plant}"

        def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
            own = replace(dials, internal_batch_size=batch_size)
            model = model_of(plant, build)
            if model is None:
                shape = (len(batch), *_shape(opened.model))
                return {key: {name: np.full(shape, np.nan) for name in (*chosen, TRUTH)}}
            return {key: _scores(model, with_mean_of_donors(model, batch), own, chosen)}

        heads = planted_heads(orders)
        return Pass(
            key,
            {key: depends_on | {"heads": heads} if plant in (SILENCED, HALVES) else depends_on},
            compute,
            forwards,
            rows=first_rows(PICTURES, source.count),
            needs=needs_of(chosen.values()),
        )

    def wired(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        ranks = _ranks_of_the_wired_head(chosen, replace(dials, internal_batch_size=batch_size))
        return {f"{NAME}_{WIRED}": {name: np.full(len(batch), rank) for name, rank in ranks.items()}}

    rows = first_rows(PICTURES, source.count)
    return [
        *(of(plant, build) for plant, build in edits(opened.model, orders).items()),
        Pass(f"{NAME}_{WIRED}", {f"{NAME}_{WIRED}": depends_on}, wired, 1.0, rows=rows),
    ]


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a method and plant, the truth's own (``ablation_zero``) last; ``passes``: within 0.001 of the ideal.

    ``silenced``: |score| of the silenced head as a share of the picture's largest, mean over pictures. ``halves``:
    |a - b| / max(|a|, |b|) of the two halves' scores, mean over pictures. ``permuted``: largest change of a score when
    heads change places, over the largest |score|. ``wired``: rank of the head that carries the answer, 1 the best.
    """
    orders = evidence.orders
    plants = edits(evidence.opened.model, orders)
    (layer, head), into = planted_heads(orders)
    found = {plant: evidence.read(f"{NAME}_{plant}") for plant in (*plants, WIRED)}

    def value(plant: str, name: str) -> float:
        scores = found[plant][name].astype(np.float64)
        if plant == WIRED:
            return float(scores[0])
        if plant == SILENCED:
            largest = np.abs(scores).max(axis=(1, 2))
            return float(_ratio(np.abs(scores[:, layer, head]), largest).mean())
        if plant == HALVES:
            one, other = scores[:, layer, head], scores[:, layer, into]
            return float(_ratio(np.abs(one - other), np.maximum(np.abs(one), np.abs(other))).mean())
        intact = found[INTACT][name].astype(np.float64)
        return float(_ratio(np.abs(scores[..., ::-1] - intact).max(), np.abs(intact).max()))

    rows = []
    for name in (*on_trial(evidence.methods), TRUTH):
        for plant, statistic in STATISTICS.items():
            if plant in found:
                number, ideal = value(plant, name), IDEALS[statistic]
                count = WIRED_PICTURES if plant == WIRED else len(found[plant][name])
                rows.append((name, plant, statistic, number, ideal, abs(number - ideal) <= TOLERANCE, count))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def planted_heads(orders: Orders) -> tuple[Head, int]:
    """The head that matters most by the truth, and the head of its layer that matters least."""
    layer, head = orders[TRUTH][0]
    return (layer, head), [other for other_layer, other in orders[TRUTH] if other_layer == layer][-1]


def edits(model: ViTRegressor, orders: Orders) -> dict[str, Build]:
    """The intact model and its edited copies, by plant; a layer of one head has no halves."""
    (layer, head), into = planted_heads(orders)
    found: dict[str, Build] = {INTACT: lambda: model, SILENCED: lambda: silence_head(model, layer, head)}
    if into != head:
        found[HALVES] = lambda: split_head(model, layer, head, into)
    return found | {PERMUTED: lambda: _reversed(model)}


def _reversed(model: ViTRegressor) -> ViTRegressor:
    num_layers, num_heads = _shape(model)
    for layer in range(num_layers):
        model = permute_heads(model, layer, range(num_heads)[::-1])
    return model


def _built(build: Build) -> ViTRegressor | None:
    try:
        return build()
    except ValueError:  # attention that cannot be edited
        return None


def with_mean_of_donors(model: ViTRegressor, batch: Batch) -> Batch:
    """The batch with the mean context of its donors in this model, where a method needs a mean context."""
    if batch.mean_context is None:
        return batch
    pictures = batch.pixel_values if batch.donor_pixel_values is None else batch.donor_pixel_values.flatten(0, 1)
    return replace(batch, mean_context=mean_context(model, pictures.split(PICTURES)))


def _scores(model: ViTRegressor, batch: Batch, dials: MethodSettings, chosen: Mapping[str, Method]) -> Arrays:
    found: Arrays = {name: scores_or_nan(name, model, batch, dials) for name in chosen}
    found[TRUTH] = zero_ablation(model, batch, batch_size=dials.internal_batch_size).delta_loss.numpy()
    return found


def _ranks_of_the_wired_head(chosen: Mapping[str, Method], dials: MethodSettings) -> dict[str, float]:
    model, batch, (layer, head) = wired_regressor(num_images=WIRED_PICTURES)
    ranks = {}
    for name, scores in _scores(model, batch, dials, chosen).items():
        turned = oriented(scores.astype(np.float64), chosen[name]) if name in chosen else scores
        mean = turned.mean(axis=0)
        known = bool(np.isfinite(mean).all())
        ranks[name] = float(rankdata(-mean).reshape(mean.shape)[layer, head]) if known else np.nan
    return ranks


def _shape(model: ViTRegressor) -> tuple[int, int]:
    modules = attention_modules(model)
    return len(modules), num_heads_of(modules[0])


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part over whole, 0 where both are 0."""
    return np.where(whole == 0, 0.0, part / np.where(whole == 0, 1.0, whole))
