"""Heads that look at text: does removing them together change predictions only where there is text?

Takes pictures that have twins and the orders of heads by attention to each region; gives one pass, which removes the
heads that look at a region most, all at once, from pictures and from their twins without it, and a table of how far
predictions move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.checks.evidence import LOOKS_AT, Evidence, Head, Orders
from analysis.intervals import bootstrap_interval, interval_over_images, weighted_root_ratio
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.twin_batches import irrelevant, spread, twin_batch
from attribution.batch import Batch
from attribution.method import Method
from attribution.sweep import predictions_without
from attribution.vit import loss_per_image
from data_synth.twins import without

NAME = "check_necessity"
ITEMS = ("text", "colorbar", "chirp")  # less what is to be read
GROUP_SIZES = (1, 5, 10)
COLUMNS = (
    *("item", "heads", "names", "shift_with", "shift_without", "ratio", "ratio_ci_low", "ratio_ci_high"),
    *("effect_with_var_pct", "effect_without_var_pct", "difference_var_pct", "ci_low", "ci_high", "n"),
)

Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over the first pictures: ``moved_with``, ``moved_without`` float64 [image item group target], what
    removing a group adds to the standardised outputs with and without the item, and ``delta_with``, ``delta_without``
    [image item group], what it adds to the loss; NaN where the picture does not show the item."""
    if source.twin is None:
        return []
    chosen = groups(orders, source)
    if not chosen:
        return []

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        return {NAME: removed(opened, source, batch, chosen, batch_size)}

    depends_on = {"groups": {item: [list(group) for group in found] for item, found in chosen.items()}}
    rows = first_rows(settings.curve_pictures, source.count)
    forwards = 2.0 * sum(1 + len(found) for found in chosen.values())
    return [Pass(NAME, {NAME: depends_on}, compute, forwards, rows=rows)]


def groups(orders: Orders, source: PictureSource) -> dict[str, list[tuple[Head, ...]]]:
    """The first 1, 5 and 10 heads by attention to each irrelevant item, as far as the model has more heads."""
    chosen = {item: orders[LOOKS_AT + item] for item in irrelevant(source, ITEMS)}
    found = {item: [order[:size] for size in GROUP_SIZES if size < len(order)] for item, order in chosen.items()}
    return {item: sets for item, sets in found.items() if sets}


def removed(
    opened: OpenedModel,
    source: PictureSource,
    batch: Batch,
    chosen: Mapping[str, Sequence[tuple[Head, ...]]],
    batch_size: int,
) -> Arrays:
    """The arrays of the pass (see :func:`passes`)."""
    num_targets = batch.labels.shape[1]
    found: dict[str, list[Floats]] = {}
    for item, found_groups in chosen.items():
        twins = twin_batch(opened, source, batch, without(item))
        for side in ("with", "without"):
            moved = np.full((len(batch), len(found_groups), num_targets), np.nan)
            delta = np.full((len(batch), len(found_groups)), np.nan)
            if twins is not None:
                part = twins.batch if side == "without" else batch.select(list(twins.places))
                scenarios = [(), *found_groups]
                outputs, _ = predictions_without(opened.model, part.pixel_values, scenarios, batch_size=batch_size)
                labels = part.labels.to("cpu", torch.float64)
                losses = torch.stack([loss_per_image(one, labels) for one in outputs])
                moved = spread((outputs[1:] - outputs[0]).transpose(0, 1).numpy(), twins.places, len(batch))
                delta = spread((losses[1:] - losses[0]).T.numpy(), twins.places, len(batch))
            found.setdefault(f"moved_{side}", []).append(moved)
            found.setdefault(f"delta_{side}", []).append(delta)
    return {name: np.stack(values, axis=1) for name, values in found.items()}


def table(evidence: Evidence) -> pd.DataFrame:
    """One row an item and group of heads, over the n pictures that show the item.

    ``shift_...``: root mean square move of the outputs (standard deviations of the labels); ``ratio``, without over
    with: 0 where the heads act only on what is there to be seen, 1 where it makes no difference to them.
    ``effect_...``: rise of the loss (% of the label variance), ``difference`` paired, with 95 % interval;
    that of the ratio is BCa.
    """
    if evidence.source.twin is None or not groups(evidence.orders, evidence.source):
        return pd.DataFrame(columns=list(COLUMNS))
    found = evidence.read(NAME)
    indices = evidence.indices(len(found["delta_with"]))
    rows = []
    for place, (item, found_groups) in enumerate(groups(evidence.orders, evidence.source).items()):
        for number, group in enumerate(found_groups):
            with_item, without_item = (
                (found[f"moved_{side}"][:, place, number] ** 2).mean(axis=-1, keepdims=True)
                for side in ("with", "without")
            )
            shown = int(np.isfinite(with_item).sum())
            if not shown:
                continue
            ratio = bootstrap_interval(partial(weighted_root_ratio, without_item, with_item), indices)
            effects = [100 * found[f"delta_{side}"][:, place, number] for side in ("with", "without")]
            difference = interval_over_images(effects[0] - effects[1], indices)
            rows.append(
                {
                    "item": item,
                    "heads": len(group),
                    "names": " ".join(f"L{layer}H{head}" for layer, head in group),
                    "shift_with": np.sqrt(np.nanmean(with_item)),
                    "shift_without": np.sqrt(np.nanmean(without_item)),
                    "ratio": ratio.value[0],
                    "ratio_ci_low": ratio.low[0],
                    "ratio_ci_high": ratio.high[0],
                    "effect_with_var_pct": np.nanmean(effects[0]),
                    "effect_without_var_pct": np.nanmean(effects[1]),
                    "difference_var_pct": float(difference.value),
                    "ci_low": float(difference.low),
                    "ci_high": float(difference.high),
                    "n": shown,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))
