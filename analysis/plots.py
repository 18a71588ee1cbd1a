"""Figures of a comparison: tidy tables in, matplotlib artists out.

Takes the tables of a run (pandas) or plain arrays; gives an `Axes` for one panel, a `Figure` for several. Nothing
writes or shows (`analysis.artists.save_figure` writes). Knows neither models nor data sets: methods, regions, effects
are names found in the tables. A column that a figure needs and does not find is a `ValueError` naming table and column.

**Conventions.** Layers and heads count from 0 (`L5H3`). Effects are positive where removing the head raises
the loss. Effects are heavy-tailed: where the largest exceeds ten times the median the scale turns
symmetric-log (linear around 0), and its label says so. A missing value is drawn as missing, never as 0.
Colours: viridis (depth, overlap), RdBu_r centred on 0 (signed), Okabe-Ito (categories).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from analysis.artists import (
    EFFECT,
    GREY,
    OKABE_ITO,
    PLAIN,
    bootstrap_layers,
    column_of,
    depth_bar,
    depth_colours,
    draw_cells,
    dress,
    effect_label,
    effect_scale,
    figure_of,
    head_grid,
    head_name,
    ink_on,
    largest_size,
    linear_within,
    new_axes,
    require_columns,
    require_heads,
    rows_where,
    shared_legend,
    symlog_ticks,
    tiles,
    true_minus,
)
from analysis.median_lines import median_lines
from analysis.point_labels import label_points

LAYER_MEAN = "mean over heads with its 95 % interval"


def effect_heatmap(scorecard: pd.DataFrame, *, ax: Axes | None = None, effect: str = EFFECT) -> Axes:
    """Layer x head map of the column `effect`, each cell with its number.

    A dot marks heads whose interval (`<effect>_ci_low`, `<effect>_ci_high`, where present) excludes 0.
    """
    grid = head_grid(scorecard, effect)
    ax = new_axes(ax, 2.6 + 0.5 * grid.shape[1], max(3.4, 1.4 + 0.34 * grid.shape[0]))
    limit, linear = largest_size(grid), linear_within(grid)
    norm = Normalize(-limit, limit) if linear is None else SymLogNorm(linear, vmin=-limit, vmax=limit)
    image = draw_cells(ax, grid, norm, "RdBu_r", lambda v: f"{v:.0f}" if abs(v) >= 100 else f"{v:.2f}", 7.5)
    bar = figure_of(ax).colorbar(image, ax=ax, pad=0.02)
    note = "" if linear is None else f"\nsymmetric-log colours, linear within ±{linear:g}"
    bar.set_label(effect_label(effect) + note, fontsize=9)
    if linear is not None:
        bar.ax.yaxis.set_major_locator(FixedLocator(symlog_ticks(-limit, limit, linear)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(PLAIN)
    bar.ax.tick_params(labelsize=8)
    mark = ""
    if {f"{effect}_ci_low", f"{effect}_ci_high"} <= set(scorecard):
        low, high = (head_grid(scorecard, f"{effect}_ci_{side}") for side in ("low", "high"))
        layers, heads = np.nonzero((low > 0) | (high < 0))
        ink = [ink_on(image, grid[cell]) for cell in zip(layers, heads, strict=True)]
        ax.scatter(heads + 0.38, layers - 0.32, s=8, c=ink, linewidths=0, label="interval excludes 0")
        mark = "   (dot: interval excludes 0)"
    dress(ax, "head" + mark, "layer", "Effect of removing each head")
    return ax


def iou_heatmaps(
    data: pd.DataFrame,
    *,
    regions: Sequence[str] = ("chirp", "text", "colorbar"),
    query: str = "cls",
    metric: str = "iou",
) -> Figure:
    """Chance-adjusted overlap of each head with each region: a panel per region, one scale for all.

    `data` is the head scorecard (columns `iou_<region>_adjusted`) or the localization table (rows of `query`
    and `metric`, column `adjusted`), which holds the finer regions too. 0 is chance; cells below it are grey.
    """
    grids = []
    for region in regions:
        if "region" in data:
            rows = rows_where(data, "localization", query=query, metric=metric, region=region)
            grids.append(head_grid(rows, "adjusted", "localization"))
        else:
            grids.append(head_grid(data, f"iou_{region}_adjusted"))
    num_layers, num_heads = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
    num_rows, num_cols = tiles(len(grids), 3 if num_heads > 6 else 5)
    width = min(max(1.3, 0.4 + 0.29 * num_heads), max(8.4 / num_cols, 0.3 + 0.22 * num_heads))
    size = 7 if width / num_heads > 0.32 else 6
    figure = Figure(
        (1.2 + num_cols * width, max(2.9, 0.3 + num_rows * (0.8 + 0.25 * num_layers))), layout="constrained"
    )
    panels = figure.subplots(num_rows, num_cols, squeeze=False).ravel()
    norm = Normalize(0, max(0.1, largest_size(np.concatenate([grid.clip(0).ravel() for grid in grids]))))
    images = []
    for at, (panel, region, grid) in enumerate(zip(panels[: len(grids)], regions, grids, strict=True)):
        images.append(draw_cells(panel, grid, norm, "viridis", lambda v: f"{v:.2f}".replace("0.", ".", 1), size))
        name = region.replace("_", " ")
        title = f"{name}\nno values"
        if np.isfinite(grid).any():
            layer, head = np.unravel_index(np.nanargmax(grid), grid.shape)
            title = f"{name}\nbest {head_name(layer, head)}: " + true_minus(f"{grid[layer, head]:.2f}")
        first, last = at % num_cols == 0, at + num_cols >= len(grids)
        dress(panel, "head" if last else "", "layer" if first else "", title)
        panel.tick_params(labelbottom=last, labelleft=first)
    for panel in panels[len(grids) :]:
        panel.remove()
    bar = figure.colorbar(
        images[0],
        ax=list(panels[: len(grids)]),
        extend="min",
        extendfrac=0.03,
        aspect=max(20, 18 * num_rows),
        pad=0.02,
    )
    bar.set_label("adjusted IoU (0 = chance, grey: below)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def head_ranking(scorecard: pd.DataFrame, *, effect: str = EFFECT, top: int = 30) -> Figure:
    """The `top` heads by mean effect with name, interval and trimmed mean; beside them every head by rank."""
    require_heads(scorecard, effect)
    table = scorecard.dropna(subset=[effect]).sort_values([effect, "layer", "head"], ascending=[False, True, True])
    first, rest = table.iloc[:top], table.iloc[top:]
    figure = Figure((9.5 if len(rest) else 6.0, 1.5 + 0.2 * max(len(first), 6)), layout="constrained")
    panels = list(figure.subplots(1, 2 if len(rest) else 1, squeeze=False)[0])
    depth = depth_colours(scorecard["layer"])
    low, high, trimmed = (column_of(table, f"{effect}_{suffix}") for suffix in ("ci_low", "ci_high", "trimmed"))
    place = np.arange(len(table))
    named = panels[0]
    named.hlines(place[:top], low[:top], high[:top], colors=GREY, linewidth=1.2, zorder=1, label="interval")
    named.scatter(first[effect], place[:top], c=first["layer"], s=32, zorder=3, label="mean (colour: layer)", **depth)
    named.scatter(
        trimmed[:top],
        place[:top],
        marker="D",
        s=18,
        facecolors="white",
        edgecolors="black",
        linewidths=0.8,
        zorder=2,
        label="trimmed mean",
    )
    named.set_yticks(place[:top], [head_name(*pair) for pair in zip(first["layer"], first["head"], strict=True)])
    named.set_ylim(max(len(first), 1) - 0.4, -0.6)
    drawn = np.concatenate([first[effect], low[:top], high[:top], trimmed[:top]])
    linear = linear_within(table[effect])
    effect_scale(named, "x", drawn, effect_label(effect), linear)
    title = f"First {len(first)} of {len(table)} heads" if len(rest) else "All heads"
    if missing := len(scorecard) - len(table):
        title += f" ({missing} without a value)"
    dress(named, None, "", title)
    named.grid(axis="x", color="0.92")
    named.set_axisbelow(True)
    if len(rest):
        every = panels[1]
        every.axvspan(0.5, top + 0.5, color="0.95", zorder=0)
        every.vlines(place + 1, low, high, colors=GREY, linewidth=0.8, zorder=1)
        every.scatter(place + 1, table[effect], c=table["layer"], s=16, zorder=3, **depth)
        effect_scale(every, "y", np.concatenate([table[effect], low, high]), effect_label(effect), linear)
        low_rest, high_rest, total = (
            true_minus(f"{v:.2g}") for v in (rest[effect].min(), rest[effect].max(), rest[effect].sum())
        )
        summary = f"the other {len(rest)}: {low_rest} to {high_rest}, together {total}"
        dress(every, "rank (shaded: named on the left)", None, f"All heads ({summary})")
    depth_bar(figure, panels[-1], depth)
    parts = (("mean (colour: layer)", table[effect]), ("interval", low), ("trimmed mean", trimmed))
    shared_legend(figure, named, [name for name, values in parts if np.isfinite(values).any()])
    return figure


def quadrant(
    scorecard: pd.DataFrame,
    *,
    ax: Axes | None = None,
    looks: str = "iou_chirp_adjusted",
    looks_label: str = "adjusted IoU with the chirp (0 = chance)",
    effect: str = EFFECT,
    looks_line: float | None = None,
    effect_line: float | None = None,
    labelled: int = 16,
) -> Axes:
    """Where a head looks (column `looks`) against what its removal does (column `effect`), a point per head.

    The lines split the plane at `looks_line` and `effect_line` (default: medians over heads; lines to read
    by, not tests). Named are the `labelled` heads farthest out, taking turns between the two directions.
    """
    require_heads(scorecard, looks, effect)
    table = scorecard.dropna(subset=[looks, effect])
    ax = new_axes(ax, 7.4, 5.4)
    depth = depth_colours(scorecard["layer"])
    ax.scatter(
        table[looks],
        table[effect],
        c=table["layer"],
        s=34,
        edgecolors="white",
        linewidths=0.4,
        zorder=3,
        **depth,
    )
    effect_scale(ax, "y", table[effect], effect_label(effect))
    missing = len(scorecard) - len(table)
    note = f" ({missing} heads without a value)" if missing else ""
    dress(ax, looks_label, None, "Where a head looks, and whether it helps" + note)
    depth_bar(figure_of(ax), ax, depth)
    if table.empty:
        ax.text(0.5, 0.5, "no head has both values", transform=ax.transAxes, ha="center", color="0.4")
        return ax
    ax.margins(0.09, 0.13)
    median_lines(ax, table[looks], table[effect], looks_line, effect_line)
    points = table[[looks, effect]].to_numpy(float)
    names = [head_name(*pair) for pair in zip(table["layer"], table["head"], strict=True)]
    label_points(ax, points, names, labelled)
    return ax


def layer_profile(
    data: pd.DataFrame | ArrayLike, *, ax: Axes | None = None, label: str | None = None, resamples: int = 2000
) -> Axes:
    """Mean effect per layer with its interval; symmetric-log only where the means (and heads) are heavy-tailed.

    `data`: a table with `layer, mean, ci_low, ci_high`, or effects `[image layer head]` in the unit that
    `label` names. From an array, the mean is over images and heads, the interval a 95 % percentile bootstrap
    over images (seeded), and a dot shows the mean of each head.
    """
    heads: NDArray[np.float64] | None = None
    if isinstance(data, pd.DataFrame):
        require_columns(data, ("layer", "mean", "ci_low", "ci_high"), "layer profile")
        table = data.sort_values("layer")
    else:
        effects = np.asarray(data, dtype=np.float64)
        if effects.ndim != 3 or effects.shape[0] == 0 or not np.isfinite(effects).all():
            raise ValueError(f"layer profile: expected finite effects [image layer head], got shape {effects.shape}")
        table, heads = bootstrap_layers(effects, resamples), effects.mean(axis=0)
    layers, mean = table["layer"].to_numpy(), table["mean"].to_numpy(float)
    low, high = table["ci_low"].to_numpy(float), table["ci_high"].to_numpy(float)
    ax = new_axes(ax, max(4.6, 2.2 + 0.4 * len(layers)), 3.9)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    if heads is not None:
        at = np.repeat(layers, heads.shape[1]) + np.tile(np.linspace(-0.22, 0.22, heads.shape[1]), len(layers))
        ax.scatter(at, heads.ravel(), s=10, color=GREY, linewidths=0, zorder=1, label="one head")
    ax.vlines(layers, low, high, colors=OKABE_ITO[0], linewidth=2, zorder=2)
    ax.plot(layers, mean, "o-", color=OKABE_ITO[0], linewidth=0.8, markersize=5, zorder=3, label=LAYER_MEAN)
    points = np.concatenate([mean, [] if heads is None else heads.ravel()])
    label = label or "effect of removal"
    if (linear := linear_within(points)) is None:
        ax.set_ylabel(label)
    else:
        effect_scale(ax, "y", np.concatenate([points, low, high]), label, linear)
    ax.set_xlim(layers.min() - 0.5, layers.max() + 0.5)
    ax.xaxis.set_major_locator(FixedLocator(layers.tolist()) if len(layers) <= 24 else MaxNLocator(integer=True))
    ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    dress(ax, "layer", None, "Effect of removing a head, by layer")
    return ax
