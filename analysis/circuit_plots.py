"""Figures of circuits: what is left of the model with the heads kept that an order puts first.

Takes the table of :mod:`analysis.circuit_scores`; gives matplotlib figures. Computes no statistics.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.artists import CONTROLS, OKABE_ITO, dress, require_columns, shared_legend
from analysis.curve_areas import is_random_order

AREAS = {
    "performance_ratio": "performance ratio (larger is better)",
    "model_distance": "distance from the model (smaller is better)",
}
LEAST_SHOWN = -1.0  # of faithfulness: below, only how far below changes


def faithfulness_curves(circuits: pd.DataFrame, *, coloured: int = 5) -> Figure:
    """Faithfulness over the share of heads kept, of the orders with the largest performance ratio in colour, all others
    grey, with nine tenths of the random orders as a band."""
    require_columns(circuits, ("method", "kept", "share", "faithfulness", "performance_ratio"), "circuits")
    is_null = circuits["method"].map(lambda name: is_random_order(str(name))).astype(bool)
    null, own = circuits[is_null], circuits[~is_null]
    best = own.drop_duplicates("method").nlargest(coloured, "performance_ratio")["method"].tolist()
    figure = Figure((7.4, 4.8), layout="constrained")
    ax = figure.subplots()
    names = []
    for level in (0.0, 1.0):
        ax.axhline(level, color="0.8", linewidth=0.8, zorder=0)
    if len(null):
        band = null.groupby("share")["faithfulness"].quantile(np.array([0.05, 0.5, 0.95])).unstack()
        low, middle, high = band.to_numpy().T
        label = f"{null['method'].nunique()} random orders"
        names += [f"median of {label}", f"90 % of {label}"]
        ax.fill_between(band.index, low, high, color="0.87", linewidth=0, zorder=0.5, label=names[1])
        ax.plot(band.index, middle, color="0.3", linestyle="--", linewidth=1.5, zorder=2, label=names[0])
    for name, rows in own.groupby("method", sort=False):
        if name not in best:
            ax.plot(rows["share"], rows["faithfulness"], color="0.75", linewidth=0.7, zorder=1, label="other orders")
    for place, name in enumerate(best):
        rows = own[own["method"] == name]
        colour = OKABE_ITO[place % len(OKABE_ITO)]
        ax.plot(rows["share"], rows["faithfulness"], "o-", label=str(name), color=colour, markersize=3.5, zorder=3)
    steps = circuits.drop_duplicates("kept").sort_values("kept")
    ax.set_xscale("log")
    ax.set_xticks(steps["share"], [f"{count}" for count in steps["kept"]], minor=False)
    ax.set_xticks([], minor=True)
    lowest = float(circuits["faithfulness"].min())
    ax.set_ylim(max(lowest, LEAST_SHOWN) - 0.05, max(1.05, float(own["faithfulness"].max()) + 0.05))
    dress(ax, "heads kept (logarithmic)", "share of the model's performance left", "")
    known = ax.get_legend_handles_labels()[1]
    shared_legend(figure, ax, [name for name in (*map(str, best), *names, "other orders") if name in known], 3)
    return figure


def circuit_areas(circuits: pd.DataFrame) -> Figure:
    """Performance ratio and distance from the model of each order with 95 % intervals, beside the range of random
    orders; controls are grey."""
    columns = [f"{area}{end}" for area in AREAS for end in ("", "_ci_low", "_ci_high")]
    require_columns(circuits, ("method", *columns), "circuits")
    rows = circuits.drop_duplicates("method").set_index("method")
    random = np.array([is_random_order(str(name)) for name in rows.index], dtype=bool)
    null, rows = rows[random], rows[~random].sort_values("performance_ratio", kind="stable")
    figure = Figure((9.4, 1.3 + 0.21 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    label = f"range of {len(null)} random orders"
    for panel, (area, title) in zip(panels, AREAS.items(), strict=True):
        if len(null):
            low, high = float(null[area].min()), float(null[area].max())
            panel.axvspan(low, high, color="0.88", linewidth=0, zorder=0, label=label)
        for place, (name, row) in enumerate(rows.iterrows()):
            colour = "0.45" if name in CONTROLS else OKABE_ITO[0]
            panel.plot([row[f"{area}_ci_low"], row[f"{area}_ci_high"]], [place, place], color=colour, linewidth=1.2)
            panel.plot(row[area], place, "o", color=colour, markersize=3.5)
        dress(panel, title, None, "")
    panels[0].set_yticks(range(len(rows)), [str(name) for name in rows.index], fontsize=8)
    panels[0].set_ylim(-0.8, len(rows) - 0.2)
    if len(null):
        shared_legend(figure, panels[0], [label])
    return figure
