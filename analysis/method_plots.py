"""Figures that compare methods: scores against the truth, agreement, pixel maps against masks.

Takes the tidy tables of a run; gives an `Axes` for one panel, a `Figure` for several. The conventions are those of
`analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from analysis.artists import (
    CEILING,
    CONTROLS,
    EFFECT,
    OKABE_ITO,
    depth_bar,
    depth_colours,
    dress,
    effect_label,
    effect_scale,
    new_axes,
    require_columns,
    require_heads,
    rows_by_method,
    shared_legend,
    tiles,
    true_minus,
    truth_words,
)
from analysis.captions import fewer_pictures, names_with_n
from analysis.cells import grey_names

PREFIX = "pixel_"  # of a pixel method in tables
PATCH_CEILING = "ceiling: the best of\nany map made of patches"
DIFFERENT, SAME, INTERVAL = "different pictures", "the same pictures", "its 95 % interval"


def method_scatter(
    scorecard: pd.DataFrame,
    agreement: pd.DataFrame,
    *,
    effect: str = EFFECT,
    methods: Sequence[str] | None = None,
    truth: str = "ablation_zero",
    estimator: str = "mean",
    statistic: str = "spearman",
) -> Figure:
    """Score of each method against the effect of removing the head: a panel per method, a point per head.

    `methods` defaults to every `score_<method>` column, best agreement first. The title of a panel is the row of the
    agreement table with this `truth`, `estimator` and `statistic`: of the same pictures for scores and effects, which
    for a method judged on fewer pictures than others are not those of the effects drawn; its title and a line below
    say so. More than 16 panels stand five in a row, and smaller.
    """
    require_heads(scorecard, effect)
    rows = rows_by_method(agreement, "agreement", truth=truth, estimator=estimator, statistic=statistic)
    require_columns(rows, ("value", "ci_low", "ci_high"), "agreement")
    known = rows["value"].astype(float).dropna().to_dict()
    if methods is None:
        found = [name.removeprefix("score_") for name in map(str, scorecard.columns) if name.startswith("score_")]
        methods = sorted(found, key=lambda name: -known.get(name, -2.0))
    require_columns(scorecard, [f"score_{name}" for name in methods] or ["score_<method>"], "head_scorecard")
    counts = rows["n"].astype(float) if "n" in rows else pd.Series(np.nan, index=rows.index)
    fewer = counts[counts < counts.max()]
    many = len(methods) > 16
    num_rows, num_cols = tiles(len(methods), 5 if many else 4)
    width, height = (1.74, 1.9) if many else (2.2, 2.35)
    figure = Figure((0.9 + width * num_cols, 0.7 + height * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_cols, squeeze=False, sharey=True).ravel()
    depth = depth_colours(scorecard["layer"])
    for panel, name in zip(panels[: len(methods)], methods, strict=True):
        panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        scores = scorecard[f"score_{name}"]
        panel.scatter(
            scores,
            scorecard[effect],
            c=scorecard["layer"],
            s=20,
            edgecolors="white",
            linewidths=0.3,
            **depth,
        )
        if scores.isna().all():
            panel.text(0.5, 0.5, "no values", transform=panel.transAxes, ha="center", fontsize=8, color="0.4")
        effect_scale(panel, "x", scores, "score", is_narrow=True)
        if panel.get_xscale() == "linear":
            panel.xaxis.set_major_locator(MaxNLocator(3))
        symbol, text = ("ρ" if statistic.startswith("spearman") else statistic), "not compared"
        if name in known:
            row = rows.loc[name, ["value", "ci_low", "ci_high"]].astype(float)
            value, low, high = (true_minus(f"{number:.2f}") for number in row)
            text = f"{symbol} = {value} [{low}, {high}]"
            if name in fewer:
                text += f"\n(same {fewer[name]:.0f} pictures)"
        dress(panel, None, "", f"{name}\n{text}")
        panel.tick_params(labelsize=7)
        if many:
            panel.set_title(panel.get_title(), fontsize=8)
            panel.set_xlabel(panel.get_xlabel(), fontsize=7.5)
    effect_scale(panels[0], "y", scorecard[effect], effect_label(effect))
    label = panels[0].get_ylabel()
    panels[0].set_ylabel("")
    for panel in panels[len(methods) :]:
        panel.remove()
    figure.supylabel(label.replace("\n", " ") if num_rows > 1 else label, fontsize=9)  # one row is too low for one line
    if fewer.index.isin(list(methods)).any():
        figure.supxlabel(
            f"{symbol}: scores and effects of the same pictures. Points: effects of all {counts.max():.0f} pictures.",
            fontsize=8,
        )
    depth_bar(figure, list(panels[: len(methods)]), depth)
    return figure


def agreement_bars(
    agreement: pd.DataFrame,
    *,
    truth: str = "ablation_zero",
    estimator: str = "mean",
    statistics: Mapping[str, str] | None = None,
    controls: Iterable[str] = CONTROLS,
) -> Figure:
    """Agreement of each method with the truth: a panel per statistic, methods sorted by the first of them.

    Bars are `value_cross` (method and truth on different pictures) with its interval, bounded by the dashed noise
    ceiling; methods stand in its order. Small circles: the same pictures. `statistics` maps names in the table to panel
    titles (default: Spearman, and Spearman within layers where the table has it); all panels have the same range.
    Controls are grey and hatched. A method judged on fewer pictures than others bears its number.
    """
    if statistics is None:
        statistics = {"spearman": f"Spearman ρ with {truth_words(truth)}, all heads"}
        if "statistic" in agreement and "spearman_within_layers" in set(agreement["statistic"]):
            statistics["spearman_within_layers"] = f"Spearman ρ with {truth_words(truth)}, within layers"
    tables = [
        rows_by_method(agreement, "agreement", truth=truth, estimator=estimator, statistic=name) for name in statistics
    ]
    for table in tables:
        require_columns(table, ("value", "value_cross", "cross_ci_low", "cross_ci_high", "noise_ceiling"), "agreement")
    order = list(tables[0].sort_values("value_cross", ascending=False, kind="stable", na_position="last").index)
    height = 0.28 if len(order) <= 16 else 0.23
    figure = Figure((1.9 + 3.6 * len(tables), 1.3 + height * len(order)), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharex=True, sharey=True)[0]
    place, grey, least = np.arange(len(order)), set(controls), -0.05
    for panel, table, title in zip(panels, tables, statistics.values(), strict=True):
        table = table.reindex(order)
        same, apart, low, high = (
            table[name].to_numpy(float) for name in ("value", "value_cross", "cross_ci_low", "cross_ci_high")
        )
        bars = panel.barh(place, apart, height=0.62, color=OKABE_ITO[4], zorder=2, label=DIFFERENT)
        for name, bar in zip(order, bars, strict=True):
            if name in grey:
                bar.set(facecolor="0.85", edgecolor="0.45", hatch="////", linewidth=0.5)
        panel.hlines(place, low, high, colors="black", linewidth=1.1, zorder=3, label=INTERVAL)
        look = {"facecolors": "white", "edgecolors": "black", "linewidths": 0.8}
        panel.scatter(same, place, s=13, zorder=4, label=SAME, **look)
        panel.vlines(
            table["noise_ceiling"].to_numpy(float),
            place - 0.5,
            place + 0.5,
            colors=OKABE_ITO[5],
            linestyles="dashed",
            linewidth=1.4,
            zorder=3,
            label=CEILING,
        )
        for at in place[~np.isfinite(apart)]:
            panel.text(0.01, at, "no value", va="center", fontsize=7, color="0.4")
        panel.axvline(0, color="black", linewidth=0.8, zorder=3)
        panel.grid(axis="x", color="0.92")
        panel.set_axisbelow(True)
        least = min(least, float(np.nanmin([0.0, *low, *apart, *same])) - 0.03)
        dress(panel, title, "", "")
    panels[0].set_xlim(least, 1.02)
    panels[0].set_yticks(place, names_with_n(tables[0].reindex(order)))
    panels[0].set_ylim(len(order) - 0.4, -0.6)
    shared_legend(figure, panels[0], (DIFFERENT, INTERVAL, SAME, CEILING), note=fewer_pictures(tables[0]))
    return figure


def pixel_localization_bars(
    pixel_localization: pd.DataFrame,
    *,
    ax: Axes | None = None,
    region: str = "chirp",
    metric: str = "iou",
    controls: Iterable[str] = (),
) -> Axes:
    """One metric of each pixel method on one region, best first, with chance and (if it has one) ceiling.

    Names are without their prefix; `controls` (names as in the table) are grey. A method judged on fewer pictures than
    others bears its number.
    """
    rows = rows_by_method(pixel_localization, "pixel_localization", region=region, metric=metric)
    require_columns(rows, ("value", "chance", "ci_low", "ci_high", "ceiling"), "pixel_localization")
    rows = rows.sort_values("value", ascending=False, kind="stable", na_position="last")
    ax = new_axes(ax, 7.4, 1.4 + 0.24 * len(rows))
    place, word = np.arange(len(rows)), "IoU" if metric == "iou" else metric
    grey = rows.index.isin(list(controls))
    bars = ax.barh(place, rows["value"], height=0.6, color=OKABE_ITO[0], zorder=2, label=word)
    for at in np.flatnonzero(grey):
        bars[at].set_facecolor("0.7")
    ax.hlines(place, rows["ci_low"], rows["ci_high"], colors="black", linewidth=1.2, zorder=3, label=INTERVAL)
    marks: dict[str, tuple[str, str, Any]] = {
        "chance": ("chance", OKABE_ITO[6], "solid"),
        "ceiling": (PATCH_CEILING, OKABE_ITO[5], (0, (4, 2))),
    }
    for column, (label, colour, dashes) in marks.items():
        if rows[column].notna().any():
            ax.vlines(
                rows[column],
                place - 0.42,
                place + 0.42,
                colors=colour,
                linestyles=dashes,
                linewidth=1.8,
                zorder=4,
                label=label,
                path_effects=[withStroke(linewidth=3, foreground="black")] if column == "chance" else None,
            )
    for at in place[rows["value"].isna()]:
        ax.annotate(
            "no value",
            (0, at),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color="0.4",
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    names = names_with_n(rows.set_axis([str(name).removeprefix(PREFIX) for name in rows.index]))
    ax.set_yticks(place, names)
    grey_names(ax, rows.index, rows.index[grey])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    drawn = rows[["value", "ci_low", "ci_high", "chance", "ceiling"]].to_numpy(float)
    least, most = np.nanmin([0.0, *drawn.ravel()]), np.nanmax([0.0, *drawn.ravel()])
    ax.set_xlim(left=least - 0.02 * most if most else None)  # chance may be next to nothing
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    known = [name for name in (word, INTERVAL, "chance", PATCH_CEILING) if name in handles]
    ax.legend(
        [handles[name] for name in known],
        known,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize=8,
        frameon=False,
    )
    note, what = fewer_pictures(rows), f"{word} with the {region}"
    dress(ax, f"{what}\n{note}".strip(), None, f"Pixel methods: {what}")
    return ax
