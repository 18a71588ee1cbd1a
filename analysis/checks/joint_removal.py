"""All heads of a layer removed together, and of layers together: is what is small one at a time small together?

Takes the effects of single heads; gives one pass, which sets to zero all heads of every layer and of groups of layers,
and a table of those effects beside the sums of the single ones on the same pictures. Does not look for the reason of a
difference: heads that stand in for each other make it positive, and so does the square of the loss alone
(:mod:`analysis.checks.redundancy` tells the two apart, for pairs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from analysis.checks.evidence import Evidence, Head, Orders
from analysis.intervals import interval_over_images
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.batch import Batch
from attribution.method import Method
from attribution.sweep import predictions_without
from attribution.vit import head_layout, loss_per_image

NAME = "check_joint_removal"
LAYER, GROUP = "layer", "group"
COLUMNS = (
    *("level", "layers", "joint_var_pct", "ci_low", "ci_high", "trimmed_var_pct"),
    *("sum_of_single_var_pct", "sum_ci_low", "sum_ci_high"),
    *("difference_var_pct", "difference_ci_low", "difference_ci_high"),
    *("joint_over_sum", "share_of_all_single_effects", "largest_picture_share", "n"),
)


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over the first pictures: ``losses`` float64 [image set], of the intact model and of it without the heads
    of each set of layers (:func:`layer_sets`), standardised units."""
    layout = head_layout(opened.model)
    sets = list(layer_sets(layout.num_layers).values())
    removed = [(), *(heads_of(layers, layout.num_heads) for layers in sets)]
    forwards = 1.0 + sum((layout.num_layers - layers[0]) / layout.num_layers for layers in sets)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        predictions, _route = predictions_without(opened.model, batch.pixel_values, removed, batch_size=batch_size)
        labels = batch.labels.to("cpu", torch.float64)
        losses = torch.stack([loss_per_image(scenario, labels) for scenario in predictions], dim=1)
        return {NAME: {"losses": losses.numpy()}}

    depends_on = {"sets": [list(layers) for layers in sets]}
    rows = first_rows(settings.curve_pictures, source.count)
    return [Pass(NAME, {NAME: depends_on}, compute, forwards, rows=rows)]


def layer_sets(num_layers: int) -> dict[tuple[str, str], tuple[int, ...]]:
    """(level, name) -> the layers whose heads leave together.

    Every layer (``("layer", "3")``); and groups of two or more (``("group", "0-2")``): from the first layer to each
    later one, and from five twelfths of the depth to the last layer and to the one before it. In 12 layers these hold
    those that claims are made of: 0-2, 0-3, 5-10 and 5-11.
    """
    late = round(5 * num_layers / 12)
    spans = [(0, last) for last in range(1, num_layers)] + [(late, num_layers - 2), (late, num_layers - 1)]
    groups = dict.fromkeys(span for span in spans if span[0] < span[1])
    found = {(LAYER, str(layer)): (layer,) for layer in range(num_layers)}
    return found | {(GROUP, f"{first}-{last}"): tuple(range(first, last + 1)) for first, last in groups}


def heads_of(layers: Sequence[int], num_heads: int) -> tuple[Head, ...]:
    """All heads of some layers."""
    return tuple((layer, head) for layer in layers for head in range(num_heads))


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a layer, then one a group of layers; effects in % of the label variance, means over the first n pictures
    with 95 % intervals.

    ``joint_var_pct``: rise of the loss without all these heads, ``trimmed_var_pct`` its 10 % trimmed mean;
    ``sum_of_single_var_pct``: the sum of their single effects by zero ablation on the same pictures;
    ``difference_var_pct``: joint minus sum, paired; ``joint_over_sum``, of the means; ``share_of_all_single_effects``:
    the sum over the sum for all heads; ``largest_picture_share``: what the picture with the largest effect by size adds
    to the sum of joint effects over pictures (above 1 where others cancel). NaN where what is divided by is 0.
    """
    losses = evidence.read(NAME)["losses"]
    count = len(losses)
    singles = 100 * evidence.truth.delta_loss[:count].sum(axis=2)  # [image layer]
    sets = layer_sets(singles.shape[1])
    joint = 100 * (losses[:, 1:] - losses[:, :1])  # [image set]
    summed = np.stack([singles[:, list(layers)].sum(axis=1) for layers in sets.values()], axis=1)
    indices = evidence.indices(count)
    together, apart, more = (interval_over_images(values, indices) for values in (joint, summed, joint - summed))
    largest = np.take_along_axis(joint, np.abs(joint).argmax(axis=0)[None], axis=0)[0]
    columns = {
        "level": [level for level, _ in sets],
        "layers": [name for _, name in sets],
        "joint_var_pct": together.value,
        "ci_low": together.low,
        "ci_high": together.high,
        "trimmed_var_pct": interval_over_images(joint, indices, estimator="trimmed").value,
        "sum_of_single_var_pct": apart.value,
        "sum_ci_low": apart.low,
        "sum_ci_high": apart.high,
        "difference_var_pct": more.value,
        "difference_ci_low": more.low,
        "difference_ci_high": more.high,
        "joint_over_sum": _over(together.value, apart.value),
        "share_of_all_single_effects": _over(apart.value, np.full(len(sets), singles.sum(axis=1).mean())),
        "largest_picture_share": _over(largest, joint.sum(axis=0)),
        "n": count,
    }
    return pd.DataFrame(columns)[list(COLUMNS)]


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)
