"""Do heads matter more when there is something irrelevant in the picture?

Takes pictures that have twins; gives one pass, which removes every head from a picture and from its twins without one
irrelevant item each, and the table of the difference, per head and per layer, and its slope over depth. Positive: the
head matters more where the item is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.checks.evidence import Evidence, Orders
from analysis.intervals import interval_over_images, weighted_mean
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.truth_passes import sweep_forwards
from analysis.twin_batches import irrelevant, spread, twin_batch
from attribution.ablation import zero_ablation
from attribution.batch import Batch
from attribution.method import Method
from attribution.vit import head_layout
from data_synth.twins import without

NAME = "check_distraction"
ITEMS = ("text", "title", "x_label", "y_label", "x_ticks", "y_ticks", "colorbar", "chirp")  # less what is to be read
SLOPE = "slope"
COLUMNS = (
    *("level", "layer", "head", "item", "with_var_pct", "without_var_pct", "difference_var_pct"),
    *("ci_low", "ci_high", "difference_var_pct_trimmed", "n"),
)

Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over the first pictures, ``delta_loss`` float64 [image item layer head] of the twins without each item,
    NaN where the picture does not show it; none for pictures without twins."""
    if source.twin is None:
        return []

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        return {NAME: {"delta_loss": effects_without(opened, source, batch, batch_size)}}

    rows = first_rows(settings.distraction_pictures, source.count)
    items = irrelevant(source, ITEMS)
    forwards = len(items) * sweep_forwards(opened)
    return [Pass(NAME, {NAME: {"items": items}}, compute, forwards, rows=rows)]


def effects_without(opened: OpenedModel, source: PictureSource, batch: Batch, batch_size: int) -> Floats:
    """Effect of removing each head from the twins without each item, [image item layer head]; NaN: no such item."""
    found: dict[str, Floats] = {}
    for item in irrelevant(source, ITEMS):
        twins = twin_batch(opened, source, batch, without(item))
        if twins is not None:
            effects = zero_ablation(opened.model, twins.batch, batch_size=batch_size).delta_loss.numpy()
            found[item] = spread(effects, twins.places, len(batch))
    layout = head_layout(opened.model)
    nothing = np.full((len(batch), layout.num_layers, layout.num_heads), np.nan)
    return np.stack([found.get(item, nothing) for item in ITEMS], axis=1)


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a head and item (``level`` head), then one a layer and item (``layer``: the mean of its heads, in each
    picture), then one an item (``slope``: of the layers' differences over depth, per layer, least squares).

    ``difference_var_pct`` [% of the label variance], mean over the n pictures that show the item, paired, with 95 %
    interval and 10 % trimmed mean; ``with_var_pct`` and ``without_var_pct``: the effects themselves, same pictures.
    """
    if evidence.source.twin is None:
        return pd.DataFrame(columns=list(COLUMNS))
    without_item = 100 * evidence.read(NAME)["delta_loss"]
    count, _, num_layers, num_heads = without_item.shape
    with_item = np.where(np.isnan(without_item), np.nan, 100 * evidence.truth.delta_loss[:count, None])
    indices = evidence.indices(count)
    parts = []
    for place, item in enumerate(ITEMS):
        before, after = with_item[:, place], without_item[:, place]
        if np.isnan(after).all():
            continue
        layer, head = (axis.ravel() for axis in np.indices((num_layers, num_heads)))
        heads = _rows(before.reshape(count, -1), after.reshape(count, -1), indices)
        parts.append(pd.DataFrame({"level": "head", "layer": layer, "head": head, "item": item} | heads))
        layers = _rows(before.mean(axis=2), after.mean(axis=2), indices)
        parts.append(pd.DataFrame({"level": "layer", "layer": range(num_layers), "item": item} | layers))
        if num_layers > 1:
            slopes = _rows(over_depth(before.mean(axis=2)), over_depth(after.mean(axis=2)), indices)
            parts.append(pd.DataFrame({"level": SLOPE, "item": item} | slopes))
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    found = pd.concat([part.reindex(columns=list(COLUMNS)) for part in parts], ignore_index=True)
    order = found["level"].map({"head": 0, "layer": 1, SLOPE: 2})
    items = found["item"].map({name: place for place, name in enumerate(ITEMS)})
    found = found.iloc[np.lexsort((items, found["head"], found["layer"], order))].reset_index(drop=True)
    return found.astype({"layer": "Int64", "head": "Int64"})


def over_depth(values: Floats) -> Floats:
    """Least-squares slope over layers of each picture's values, [image layer] -> [image 1], per layer."""
    depth = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    return (values @ depth / (depth @ depth))[:, None]


def _rows(before: Floats, after: Floats, indices: NDArray[np.integer]) -> dict[str, Floats]:
    difference = interval_over_images(before - after, indices)
    ones = np.ones((1, len(before)))
    return {
        "with_var_pct": weighted_mean(before, ones)[0],
        "without_var_pct": weighted_mean(after, ones)[0],
        "difference_var_pct": difference.value,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "difference_var_pct_trimmed": interval_over_images(before - after, indices, estimator="trimmed").value,
        "n": np.isfinite(after).sum(axis=0),
    }
