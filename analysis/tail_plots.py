"""Figures of what has two tails: area gaps of removal curves against those of random orders, and pairs of heads that do
more or less harm together than apart.

Takes the tidy tables of the checks; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.artists import (
    CONTROLS,
    OKABE_ITO,
    dress,
    effect_scale,
    head_name,
    linear_within,
    require_columns,
    shared_legend,
)
from analysis.curve_areas import is_random_order
from analysis.point_labels import name_all

PAIRS = {
    "is_backup": ("more harm together: one stands in for the other", OKABE_ITO[1]),
    "is_shared": ("less harm together: they share in one", OKABE_ITO[0]),
    "neither": ("not both: interval beyond 0 and q < 0.05", "0.7"),
}
NAMED = 3  # pairs named at either end
ONE_MORE = "random (one more order)"  # what the method `random` is beside the orders of the null


def area_gaps(curves: pd.DataFrame) -> Figure:
    """Area under the curve of each order, most less least important first, with its interval, beside the range of
    random orders (and of these from their end); controls are grey, and the method `random` is one more such order."""
    require_columns(curves, ("method", "area_gap", "area_gap_ci_low", "area_gap_ci_high"), "curves")
    gaps = curves.drop_duplicates("method").set_index("method")
    random = np.array([is_random_order(str(name)) for name in gaps.index], dtype=bool)
    null, gaps = gaps.loc[random, "area_gap"], gaps[~random].sort_values("area_gap", kind="stable")
    figure = Figure((7.0, 1.2 + 0.23 * len(gaps)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color="0.5", linewidth=0.8, zorder=1)
    if len(null):
        far = float(null.abs().max())
        label = f"range of {len(null)} random orders (ticks), from either end"
        ax.axvspan(-far, far, color="0.88", linewidth=0, zorder=0, label=label)
        ax.plot([*null, *-null], np.full(2 * len(null), -1.0), "|", color="0.35", markersize=6)
    for place, (name, row) in enumerate(gaps.iterrows()):
        colour = "0.45" if name in CONTROLS else OKABE_ITO[0]
        ax.plot([row["area_gap_ci_low"], row["area_gap_ci_high"]], [place, place], color=colour, linewidth=1.2)
        ax.plot(row["area_gap"], place, "o", color=colour, markersize=4)
    names = [ONE_MORE if name == "random" and len(null) else str(name) for name in gaps.index]
    ax.set_yticks(range(len(gaps)), names, fontsize=8)
    ax.set_ylim(-1.8 if len(null) else -0.8, len(gaps) - 0.2)
    dress(ax, "area most first − area least first (% of the label variance)", None, "")
    if len(null):
        shared_legend(figure, ax, [label])
    return figure


def pairs_beyond_adding_up(redundancy: pd.DataFrame) -> Figure:
    """Every pair of heads by what its removal costs beyond outputs that add up, with intervals; both tails in colour,
    the pairs at the ends by name."""
    columns = ("layer_a", "head_a", "layer_b", "head_b", "beyond_var_pct", "beyond_ci_low", "beyond_ci_high")
    require_columns(redundancy, (*columns, "is_backup", "is_shared"), "redundancy")
    rows = redundancy.sort_values("beyond_var_pct", ascending=False, kind="stable", ignore_index=True)
    kinds = np.where(rows["is_backup"], "is_backup", np.where(rows["is_shared"], "is_shared", "neither"))
    figure = Figure((8.4, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    for kind, (text, colour) in PAIRS.items():
        chosen = rows[kinds == kind]
        ax.vlines(chosen.index, chosen["beyond_ci_low"], chosen["beyond_ci_high"], color=colour, linewidth=0.9)
        ax.plot(
            *(chosen.index, chosen["beyond_var_pct"], "o"),
            color=colour,
            markersize=2.6,
            label=f"{text} ({len(chosen)})",
        )
    limits = rows[["beyond_ci_low", "beyond_ci_high"]].to_numpy(float).ravel()
    label = "effect of the pair beyond adding up\n(% of the label variance)"
    effect_scale(ax, "y", limits, label, linear_within(rows["beyond_var_pct"].to_numpy(float)))
    named = [*range(min(NAMED, len(rows))), *range(max(len(rows) - NAMED, NAMED), len(rows))]
    points = np.column_stack([rows.index.to_numpy(float), rows["beyond_var_pct"].to_numpy(float)])
    bars = [np.array([[x, low], [x, high]]) for x, (low, high) in enumerate(limits.reshape(-1, 2))]
    heads = rows.iloc[named][["layer_a", "head_a", "layer_b", "head_b"]].to_numpy()
    names = [f"{head_name(*pair[:2])} + {head_name(*pair[2:])}" for pair in heads]
    dress(ax, "pairs of heads, in order", None, "")
    shared_legend(figure, ax, [f"{text} ({(kinds == kind).sum()})" for kind, (text, _) in PAIRS.items()], 2)
    drawn = [bar for bar in bars if np.isfinite(bar).all()]
    name_all(ax, points[named], names, points, drawn, np.zeros(len(named), dtype=bool))
    return figure
