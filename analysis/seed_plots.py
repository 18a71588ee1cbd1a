"""The figure of several fine-tunings: effects by layer and agreement of methods, a model beside the others.

Takes the tidy tables of `analysis.seeds`; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from analysis.artists import (
    OKABE_ITO,
    dress,
    effect_label,
    effect_scale,
    linear_within,
    require_columns,
    rows_where,
    shared_legend,
)


def seeds_side_by_side(layers: pd.DataFrame, methods: pd.DataFrame, *, truth: str = "ablation_zero") -> Figure:
    """Every model (seed) beside the others: mean effect by layer, and each method's agreement with its truth.

    A band or a line is the interval of a model; methods are sorted by their mean over models.
    """
    require_columns(layers, ("model", "layer", "truth", "effect_var_pct", "ci_low", "ci_high"), "layers_by_seed")
    require_columns(methods, ("model", "method", "truth", "spearman", "ci_low", "ci_high"), "methods_by_seed")
    layers, methods = (
        rows_where(layers, "layers_by_seed", truth=truth),
        rows_where(methods, "methods_by_seed", truth=truth),
    )
    for table, name, key in ((layers, "layers_by_seed", "layer"), (methods, "methods_by_seed", "method")):
        if table.duplicated(["model", key]).any():
            raise ValueError(f"{name}: more than one row for a model and {key}, expected one")
    models = list(dict.fromkeys([*layers["model"], *methods["model"]]))
    mean = methods.groupby("method", sort=False)["spearman"].mean()
    order = list(mean.sort_values(ascending=False, kind="stable", na_position="last").index)
    figure = Figure((9.6, max(3.8, 1.2 + 0.24 * len(order))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(0.48, 0.52))
    left.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    shifts = np.linspace(-0.26, 0.26, len(models)) if len(models) > 1 else np.zeros(1)
    for at, (model, shift) in enumerate(zip(models, shifts, strict=True)):
        look = {"color": OKABE_ITO[at % len(OKABE_ITO)], "marker": "osD^vP*"[at % 7], "zorder": 3}
        line = layers[layers["model"] == model].sort_values("layer")
        left.fill_between(line["layer"], line["ci_low"], line["ci_high"], color=look["color"], alpha=0.15, linewidth=0)
        left.plot(line["layer"], line["effect_var_pct"], markersize=4, linewidth=1.3, label=str(model), **look)
        dots = methods[methods["model"] == model].set_index("method").reindex(order)
        place = np.arange(len(order)) + shift
        right.hlines(place, dots["ci_low"], dots["ci_high"], color=look["color"], linewidth=0.9, alpha=0.7)
        right.scatter(dots["spearman"], place, s=16, linewidths=0, label=str(model), **look)
    drawn = layers[["effect_var_pct", "ci_low", "ci_high"]].to_numpy(float).ravel()
    label = effect_label(f"{truth}_var_pct")
    effect_scale(left, "y", drawn, f"mean {label}", linear_within(layers["effect_var_pct"]))
    left.xaxis.set_major_locator(FixedLocator(sorted(layers["layer"].unique())))
    for row in range(1, len(order), 2):
        right.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
    right.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    right.set_yticks(range(len(order)), order)
    right.set_ylim(len(order) - 0.4, -0.6)
    dress(left, "layer", None, "Effect of removing a head, by layer")
    dress(right, f"Spearman ρ with {truth}", "", "Agreement of each method, by model")
    shared_legend(figure, left, [str(model) for model in models])
    return figure
