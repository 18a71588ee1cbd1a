"""Through which heads does the irrelevant reach the prediction? One head at a time sees the picture without it.

Takes pictures that have twins; gives one pass, which puts each head's context from the twin without text (or colour
bar) into the picture that has it, and a table of how much of the twin's effect on the predictions goes through the
head, beside what removing the head does to predictions with and without the thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.checks.evidence import Evidence, Orders
from analysis.intervals import (
    bootstrap_interval,
    interval_over_images,
    weighted_mean,
    weighted_ratio,
    weighted_root_ratio,
)
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.truth_passes import sweep_forwards
from analysis.twin_batches import irrelevant, spread, twin_batch
from attribution.ablation import zero_ablation
from attribution.batch import Batch
from attribution.contexts import contexts
from attribution.method import Method
from attribution.vit import head_layout
from data_synth.twins import without

NAME = "check_patching"
ITEMS = ("text", "colorbar", "chirp")  # less what is to be read
COLUMNS = (
    *("layer", "head", "item", "share", "ci_low", "ci_high"),
    *("shift_with", "shift_without", "shift_ratio", "shift_ratio_ci_low", "shift_ratio_ci_high", "twin_shift", "n"),
)

Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over the first pictures, float64, standardised outputs, NaN where the picture does not show the item:
    ``twin`` [image item target], prediction with the item minus without; ``patched`` [image item layer head target],
    prediction with the item minus that with one head's context from the twin; ``removed_with``, ``removed_without``
    of the same shape, what setting the head to zero adds to the prediction. None for pictures without twins."""
    if source.twin is None:
        return []

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        return {NAME: patched(opened, source, batch, batch_size)}

    rows = first_rows(settings.curve_pictures, source.count)
    items = irrelevant(source, ITEMS)
    forwards = len(items) * (3 * sweep_forwards(opened) + 1)
    return [Pass(NAME, {NAME: {"items": items}}, compute, forwards, rows=rows)]


def patched(opened: OpenedModel, source: PictureSource, batch: Batch, batch_size: int) -> Arrays:
    """The arrays of the pass (see :func:`passes`)."""
    model, layout = opened.model, head_layout(opened.model)
    num_targets = batch.labels.shape[1]
    shapes = {"twin": (num_targets,)} | {
        name: (layout.num_layers, layout.num_heads, num_targets)
        for name in ("patched", "removed_with", "removed_without")
    }
    found: dict[str, list[Floats]] = {name: [] for name in shapes}
    chosen = irrelevant(source, ITEMS)
    for item in ITEMS:
        twins = twin_batch(opened, source, batch, without(item)) if item in chosen else None
        if twins is None:
            for name, shape in shapes.items():
                found[name].append(np.full((len(batch), *shape), np.nan))
            continue
        shown = batch.select(list(twins.places))
        elsewhere = contexts(model, twins.batch.pixel_values, batch_size=batch_size)
        swapped = zero_ablation(model, shown, replacement=elsewhere, batch_size=batch_size)
        here = zero_ablation(model, shown, batch_size=batch_size)
        there = zero_ablation(model, twins.batch, batch_size=batch_size)
        intact = here.intact_predictions
        arrays = {
            "twin": intact - there.intact_predictions,
            "patched": intact[:, None, None] - swapped.ablated_predictions,
            "removed_with": here.ablated_predictions - intact[:, None, None],
            "removed_without": there.ablated_predictions - there.intact_predictions[:, None, None],
        }
        for name, values in arrays.items():
            found[name].append(spread(values.to("cpu", torch.float64).numpy(), twins.places, len(batch)))
    return {name: np.stack(values, axis=1) for name, values in found.items()}


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a head and item, over the n pictures that show it.

    ``share``: how much of the item's effect d on the three outputs one head's context from the twin takes back,
    sum(c . d) / sum(|d|^2) over pictures, where c is what it takes back. Each head is patched alone and effects
    overlap, so over heads these add up to no whole, and are no parts of one. ``shift_with``, ``shift_without``: root
    mean square change of the outputs (standard deviations of the labels) when the head is set to zero, with and without
    the item; ``shift_ratio``, without over with: near 0 for a head that acts only where the item is. ``twin_shift``:
    root mean square of d itself.
    """
    if evidence.source.twin is None:
        return pd.DataFrame(columns=list(COLUMNS))
    found = evidence.read(NAME)
    count, _, num_layers, num_heads, _ = found["patched"].shape
    indices, ones = evidence.indices(count), np.ones((1, count))
    layer, head = (axis.ravel() for axis in np.indices((num_layers, num_heads)))
    parts = []
    for place, item in enumerate(ITEMS):
        d = found["twin"][:, place]  # [image target]
        if np.isnan(d).all():
            continue
        through = np.einsum("ilht,it->ilh", found["patched"][:, place], d).reshape(count, -1)
        whole = np.repeat((d**2).sum(axis=1)[:, None], layer.size, axis=1)
        share = bootstrap_interval(partial(weighted_ratio, through, whole), indices)
        with_item, without_item = (
            (found[f"removed_{side}"][:, place] ** 2).mean(axis=-1).reshape(count, -1) for side in ("with", "without")
        )
        ratio = bootstrap_interval(partial(weighted_root_ratio, without_item, with_item), indices)
        columns = {
            "share": share.value,
            "ci_low": share.low,
            "ci_high": share.high,
            "shift_with": np.sqrt(weighted_mean(with_item, ones)[0]),
            "shift_without": np.sqrt(weighted_mean(without_item, ones)[0]),
            "shift_ratio": ratio.value,
            "shift_ratio_ci_low": ratio.low,
            "shift_ratio_ci_high": ratio.high,
            "twin_shift": np.sqrt(interval_over_images((d**2).mean(axis=1), indices).value),
            "n": np.isfinite(through).sum(axis=0),
        }
        parts.append(pd.DataFrame({"layer": layer, "head": head, "item": item} | columns))
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)] if parts else pd.DataFrame(columns=list(COLUMNS))
