"""Figures of the checks: removal curves, whole layers removed, randomised models, settings, planted truths.

Takes the tidy tables of the checks; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.artists import (
    CONTROLS,
    OKABE_ITO,
    PLAIN,
    dress,
    effect_scale,
    linear_within,
    require_columns,
    rows_where,
    shared_legend,
)
from analysis.captions import fewer_pictures, names_with_n
from analysis.cells import (
    CORRELATION,
    distance_bar,
    distance_cells,
    dot_sure_cells,
    grey_names,
    grid_of,
    slant,
    table_cells,
)
from analysis.curve_areas import is_random_order
from analysis.tail_plots import ONE_MORE

ENDS = {"most_first": "most important head first", "least_first": "least important head first"}
JOINT_LEVELS = {"layer": "all heads of layer", "group": "all heads of layers"}
TRUTH_ORDER = "ablation_zero"
INTERVAL = "95 % interval"
TIED = 4  # digits of a miss: what float32 leaves beyond them is no difference between methods
SENSITIVITY = {
    "spearman_with_default": "ρ with its own\nscores as set",
    "change_of_agreement": "change of its ρ\nwith the truth",
    "top_10_kept": "share kept of\nits first ten heads",
}


def removal_curves(
    curves: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    coloured: int = 5,
    banded: int = 2,
    control: str = "random",
) -> Figure:
    """Mean rise of the loss against the number of heads removed, in each method's order: from either end.

    In colour: `methods`, or the `coloured` best by area (most first minus least first); the first `banded` of them with
    their intervals as bands. The others are thin and grey, `control` is dashed, and the order of the truth itself,
    where the table has it, is black. Where the table has random orders, a grey band holds nine tenths of them, from
    either end, the dashed line is their median, and `control`, one more such order, is dotted.
    """
    require_columns(curves, ("method", "order", "removed", "loss_rise_var_pct", "ci_low", "ci_high", "area"), "curves")
    if curves.duplicated(["method", "order", "removed"]).any():
        raise ValueError("curves: more than one row for a method, order and number removed, expected one")
    is_null = curves["method"].map(lambda name: is_random_order(str(name))).astype(bool)
    null, curves = curves[is_null], curves[~is_null]
    halves = {end: rows_where(curves, "curves", order=end) for end in ENDS}
    apart = [TRUTH_ORDER, control]
    if methods is None:
        areas = {end: half.groupby("method")["area"].first() for end, half in halves.items()}
        gained = (areas["most_first"] - areas["least_first"]).dropna().drop(apart, errors="ignore")
        methods = list(gained.sort_values(ascending=False, kind="stable").index[:coloured])
    present = list(dict.fromkeys(curves["method"]))
    if absent := [name for name in methods if name not in present]:
        raise ValueError(f"curves: no rows with method={absent[0]!r}, expected one of {', '.join(present)}")
    figure = Figure((9.6, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours = dict(zip(methods, [OKABE_ITO[at % len(OKABE_ITO)] for at in range(len(methods))], strict=True))
    shown = {name: f"{name} (band: {INTERVAL})" if at < banded else name for at, name in enumerate(methods)}
    look: dict[str, Any] = {"color": "0.3", "linestyle": "--", "linewidth": 1.6, "label": control}
    if len(null):
        look = {"color": "0.5", "linestyle": ":", "linewidth": 1.3, "label": ONE_MORE}
    drawn = [0.0]
    for panel, (end, title) in zip(panels, ENDS.items(), strict=True):
        lines = dict(tuple(halves[end].sort_values("removed").groupby("method")))
        panel.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        for name in (name for name in present if name not in (*methods, *apart) and name in lines):
            line = lines[name]
            panel.plot(
                line["removed"], line["loss_rise_var_pct"], color="0.75", linewidth=0.8, zorder=1, label="other methods"
            )
        if len(null):
            band = null.groupby("removed")["loss_rise_var_pct"].quantile(np.array([0.05, 0.5, 0.95])).unstack()
            counts, (low, middle, high) = band.index.to_numpy(), band.to_numpy().T
            label = f"{null['method'].nunique()} random orders"
            panel.fill_between(counts, low, high, color="0.85", linewidth=0, zorder=0.5, label=f"90 % of {label}")
            panel.plot(counts, middle, color="0.3", linestyle="--", linewidth=1.6, zorder=2, label=f"median of {label}")
            drawn += [*low, *high]
        for name, style in ((control, look), (TRUTH_ORDER, {"color": "black", "linewidth": 1.6, "label": TRUTH_ORDER})):
            if name in lines and name not in methods:
                line = lines[name]
                panel.plot(line["removed"], line["loss_rise_var_pct"], zorder=2, **style)
        for name in (name for name in methods if name in lines):
            line = lines[name]
            if shown[name] != name:
                ends = line[["ci_low", "ci_high"]]
                look_of_band = {"color": colours[name], "alpha": 0.13, "linewidth": 0}
                panel.fill_between(line["removed"], ends["ci_low"], ends["ci_high"], zorder=2, **look_of_band)
                drawn += [*ends.to_numpy().ravel()]
            panel.plot(
                *(line["removed"], line["loss_rise_var_pct"]),
                *("o-",),
                color=colours[name],
                markersize=3,
                linewidth=1.5,
                zorder=4,
                label=shown[name],
            )
        drawn += [*halves[end]["loss_rise_var_pct"]]
        dress(panel, "heads removed", "", title)
    label = "rise of the loss (% of the label variance)"
    effect_scale(panels[0], "y", drawn, label, linear_within(drawn))
    panels[0].yaxis.label.set_fontsize(9)
    known = panels[0].get_legend_handles_labels()[1]
    random = sorted((name for name in known if name.endswith(" random orders")), reverse=True)
    names = dict.fromkeys((*shown.values(), TRUTH_ORDER, control, *random, ONE_MORE, "other methods"))
    shared_legend(figure, panels[0], [name for name in names if name in known], 3)
    return figure


def joint_removal(joint: pd.DataFrame) -> Figure:
    """What the loss gains without all heads of a layer, or of layers together, beside the sum of their single effects.

    One scale for both panels; intervals are those of the table.
    """
    columns = ("level", "layers", "joint_var_pct", "ci_low", "ci_high")
    require_columns(joint, (*columns, "sum_of_single_var_pct", "sum_ci_low", "sum_ci_high"), "joint_removal")
    if joint.duplicated(["level", "layers"]).any():
        raise ValueError("joint_removal: more than one row for a level and its layers, expected one")
    levels = [level for level in JOINT_LEVELS if (joint["level"] == level).any()]
    halves = [joint[joint["level"] == level] for level in levels]
    figure = Figure((9.6, 4.2), layout="constrained")
    widths = [len(half) + 1 for half in halves]
    panels = figure.subplots(1, len(levels), sharey=True, squeeze=False, width_ratios=widths)[0]
    kinds = (
        ("sum_of_single_var_pct", "sum_ci_low", "sum_ci_high", -0.14, "0.55", "s", "one at a time, added up"),
        ("joint_var_pct", "ci_low", "ci_high", 0.14, OKABE_ITO[0], "o", "together"),
    )
    for panel, level, half in zip(panels, levels, halves, strict=True):
        panel.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        for value, low, high, aside, colour, marker, name in kinds:
            middle, places = half[value].to_numpy(float), np.arange(len(half)) + aside
            panel.vlines(places, half[low], half[high], color=colour, linewidth=1.2)
            panel.plot(places, middle, marker, color=colour, markersize=5, label=name)
        panel.set_xticks(range(len(half)), half["layers"].astype(str))
        dress(panel, JOINT_LEVELS[level], "", "")
        if level == "group":
            slant(panel)
    drawn = joint[["joint_var_pct", "ci_low", "ci_high", "sum_of_single_var_pct", "sum_ci_low", "sum_ci_high"]]
    values = drawn.to_numpy(float).ravel()
    effect_scale(panels[0], "y", values, "rise of the loss without these heads\n(% of the label variance)")
    panels[0].yaxis.label.set_fontsize(9)
    shared_legend(figure, panels[0], [kind[-1] for kind in kinds])
    return figure


def randomised_bars(randomised: pd.DataFrame, *, controls: Iterable[str] = CONTROLS) -> Figure:
    """Scores on broken models against the method's own on the intact one, and against the truth of the intact one.

    Methods that forget most when all weights are redrawn come first. A method that reads the trained weights is near 0
    on the left; one that agrees with the truth all the same reads the architecture. Dots: interval excludes 0.
    """
    require_columns(randomised, ("method", "model", "n"), "randomised")
    own = grid_of(randomised, "randomised", "method", "model", "spearman_with_own")
    first = own["reinitialised"] if "reinitialised" in own else own.iloc[:, 0]
    order = first.abs().sort_values(kind="stable", na_position="last").index
    counts = randomised.groupby("method")["n"].max().reindex(order)
    names = names_with_n(counts.to_frame())
    figure = Figure((2.7 + 1.2 * own.shape[1], max(4.6, 1.9 + 0.24 * len(own))), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = (
        ("spearman_with_own", "own_ci_low", "own_ci_high", "with its own scores on the intact model"),
        ("spearman_with_truth", "ci_low", "ci_high", "with the truth of the intact model"),
    )
    for panel, (value, *ends, title) in zip(panels, kinds, strict=True):
        grids = [grid_of(randomised, "randomised", "method", "model", c).reindex(order) for c in (value, *ends)]
        shown = grids[0].set_axis([str(name).replace("_", " ") for name in grids[0]], axis=1)
        image = table_cells(panel, shown.set_axis(names, axis=0), CORRELATION, "RdBu_r")
        numbers, *limits = (grid.to_numpy(float) for grid in grids)
        dot_sure_cells(panel, image, numbers, limits, (0.42, 0.3))
        dress(panel, "", "", title)
        slant(panel)
    panels[1].tick_params(labelleft=False)
    grey_names(panels[0], order, controls)
    if note := fewer_pictures(counts.to_frame()):
        figure.supxlabel(note, fontsize=8)
    bar = figure.colorbar(image, ax=panels[1], pad=0.03, aspect=35)
    bar.set_label("Spearman ρ over heads (dot: interval excludes 0)", fontsize=9)
    bar.ax.yaxis.set_major_formatter(PLAIN)
    bar.ax.tick_params(labelsize=8)
    return figure


def sensitivity_heatmap(sensitivity: pd.DataFrame) -> Figure:
    """What a method's ranking owes to its settings: the same method with more or fewer steps, or another baseline.

    White is at the ideal: the same ranking, no change of agreement with the truth, the same ten first heads.
    """
    columns = ("spearman_with_truth", "spearman_with_truth_default", "spearman_with_default", "top_10_kept")
    require_columns(sensitivity, ("method", "variant", *columns, "n"), "sensitivity")
    table = sensitivity.assign(change_of_agreement=sensitivity[columns[0]] - sensitivity[columns[1]])
    # A number of heads or a share of them: the ideal is all ten either way.
    all_kept = 10.0 if table["top_10_kept"].max() > 1 else 1.0
    ideals = {"spearman_with_default": 1.0, "change_of_agreement": 0.0, "top_10_kept": all_kept}
    counts = table.groupby("method", sort=False)[["n"]].max()
    names = names_with_n(counts)
    num_methods, num_variants = table["method"].nunique(), table["variant"].nunique()
    figure = Figure((2.6 + 3 * max(1.6, 0.56 * num_variants), 1.7 + 0.3 * num_methods), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (column, title) in zip(panels, SENSITIVITY.items(), strict=True):
        values = grid_of(table, "sensitivity", "method", "variant", column)
        values = values.set_axis([str(name).replace("_", " ") for name in values], axis=1)
        whole = column == "top_10_kept" and all_kept == 10
        title = title.replace("share", "number") if whole else title
        distance_cells(
            panel, values.set_axis(names, axis=0), [ideals[column]] * values.shape[1], "g" if whole else ".2f"
        )
        dress(panel, "", "", f"{title}\n(ideal {ideals[column]:g})")
        slant(panel)
        panel.tick_params(labelleft=panel is panels[0])
    if note := fewer_pictures(counts):
        figure.supxlabel(note, fontsize=8)
    distance_bar(figure, panels[-1])
    return figure


def planted_heatmap(
    planted: pd.DataFrame, *, ideals: Mapping[str, float] | None = None, controls: Iterable[str] = CONTROLS
) -> Figure:
    """Each method on models whose answer is known because it was planted; white is at the ideal.

    `ideals` maps a statistic to what a right method scores; 1 where it is silent. Rows are sorted by the mean distance
    from the ideals, a missing value counting as the worst of its column; equal ones by name, controls last. Columns of
    different numbers of pictures bear theirs, as does a method with fewer than others in some column.
    """
    require_columns(planted, ("method", "plant", "statistic", "value", "n"), "planted")
    best = dict(ideals or {})
    kinds = planted[["plant", "statistic"]].drop_duplicates().sort_values("plant", kind="stable")
    targets = [best.get(str(name), 1.0) for name in kinds["statistic"]]
    named = planted.assign(column=planted["plant"] + "|" + planted["statistic"])
    columns = [*(kinds["plant"] + "|" + kinds["statistic"])]
    values = grid_of(named, "planted", "method", "column", "value")[columns]
    misses = (values - targets).abs()
    miss = misses.fillna(misses.max()).fillna(0.0).round(TIED).mean(axis=1)
    last = set(controls)
    order = sorted(values.index, key=lambda name: (miss[name], name in last, str(name)))
    counts = named.groupby("column")["n"].max().reindex(columns)
    few = named[named["n"] < named["column"].map(counts)].groupby("method")["n"].min()
    names = [f"{name} (n={few[name]:.0f})" if name in few else str(name) for name in order]
    notes = [f", n={count:.0f}" if counts.nunique() > 1 else "" for count in counts]
    labels = [
        f"{plant}: {str(statistic).replace('_', ' ')} (ideal {ideal:g}{note})"
        for plant, statistic, ideal, note in zip(kinds["plant"], kinds["statistic"], targets, notes, strict=True)
    ]
    figure = Figure((3.4 + 0.8 * len(labels), 2.6 + 0.24 * len(values)), layout="constrained")
    ax = figure.add_subplot()
    distance_cells(ax, values.reindex(order).set_axis(names, axis=0).set_axis(labels, axis=1), targets)
    title = "Planted truths: what each method finds\nsmallest mean distance from the ideals first, equal ones by name"
    dress(ax, "", "", title)
    slant(ax)
    grey_names(ax, order, controls)
    distance_bar(figure, ax)
    return figure
