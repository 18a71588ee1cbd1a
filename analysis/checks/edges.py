"""From which head to which: what the heads that matter most do by way of later heads' queries, keys and values.

Takes pictures and the order of heads by the truth; gives one pass and a table of edges: exact for the senders that
matter most, to first order for all pairs (:mod:`attribution.edges`). Knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.checks.evidence import Evidence, Head, Orders
from analysis.intervals import interval_over_images
from analysis.models import OpenedModel
from analysis.passes import BACKWARD_COST, Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.truth_passes import TRUTH
from attribution.batch import Batch
from attribution.edges import INPUTS, estimated_edges, exact_edges
from attribution.method import Method
from attribution.vit import head_layout

NAME = "check_edges"
SENDERS = 20
GRAPHS_AT_ONCE = 4  # pictures whose graph, and gradients at the states of every receiver, are held
COLUMNS = (
    *("sender_layer", "sender_head", "layer", "head", "input"),
    *("effect_var_pct", "ci_low", "ci_high", "share_of_exact", "estimate_var_pct", "n"),
)

Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over the first pictures: ``exact`` float64 [image sender layer head input], NaN where there is no edge,
    and ``estimated`` float32 [image layer head layer head input]: sender, receiver, input."""
    senders = senders_of(orders)
    layout = head_layout(opened.model)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        exact = exact_edges(opened.model, batch, senders, batch_size=batch_size)
        estimated = estimated_edges(opened.model, batch, batch_size=min(batch_size, GRAPHS_AT_ONCE))
        return {NAME: {"exact": exact.numpy(), "estimated": estimated.float().numpy()}}

    num_layers = layout.num_layers
    later = [layer for first, _ in senders for layer in range(first + 1, num_layers)]
    swept = sum(3 * layout.num_heads * (num_layers - layer) / num_layers for layer in later)
    forwards = 2 + swept + BACKWARD_COST * len(opened.model.config.target_names)
    rows = first_rows(settings.curve_pictures, source.count)
    return [Pass(NAME, {NAME: {"senders": senders}}, compute, forwards, rows=rows)]


def senders_of(orders: Orders) -> tuple[Head, ...]:
    """The heads that matter most by zero ablation."""
    return tuple(orders[TRUTH][:SENDERS])


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a sender, receiver in a later block and input (queries, keys, values), the largest exact edges by size
    first, then those of which the estimate alone is known; means over the first n pictures, % of the label variance.

    ``effect_var_pct`` with its 95 % interval: what the sender does by this way alone; ``share_of_exact``: the sum of
    the sizes of the exact edges down to this one over the sum of all; ``estimate_var_pct``: its linear part.
    """
    found = evidence.read(NAME)
    exact, estimated = 100 * found["exact"], 100 * found["estimated"].astype(np.float64)
    count, num_senders, num_layers, num_heads, _ = exact.shape
    mean = interval_over_images(exact.reshape(count, -1), evidence.indices(count))
    known = {name: values.reshape(exact.shape[1:]) for name, values in vars(mean).items() if name in _LIMITS}
    linear = estimated.mean(axis=0)  # [layer head layer head input]
    layers, heads, to_layers, to_heads, inputs = (axis.ravel() for axis in np.indices(linear.shape))
    there = to_layers > layers
    columns = dict(zip(COLUMNS[:4], (layers[there], heads[there], to_layers[there], to_heads[there]), strict=True))
    frame = pd.DataFrame(
        columns | {"input": np.array(INPUTS)[inputs[there]], "estimate_var_pct": linear.ravel()[there]}
    )
    place = {pair: number for number, pair in enumerate(senders_of(evidence.orders))}
    numbers = [place.get(pair, -1) for pair in zip(frame["sender_layer"], frame["sender_head"], strict=True)]
    which = np.array(numbers), frame["layer"].to_numpy(), frame["head"].to_numpy(), inputs[there]
    for name, column in _LIMITS.items():
        frame[column] = np.where(which[0] >= 0, known[name][which], np.nan)
    assert num_senders == len(place) and (num_layers, num_heads) == linear.shape[:2]
    frame["n"] = count
    size, rest = frame["effect_var_pct"].abs(), frame["estimate_var_pct"].abs()
    frame = frame.iloc[np.lexsort((-rest, -size.fillna(-1.0)))].reset_index(drop=True)
    sizes = frame["effect_var_pct"].abs()
    frame["share_of_exact"] = sizes.cumsum() / sizes.sum()
    return frame[list(COLUMNS)]


_LIMITS = {"value": "effect_var_pct", "low": "ci_low", "high": "ci_high"}
