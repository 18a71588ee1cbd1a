"""Figures of a comparison: tidy tables in, matplotlib artists out.

Takes the tables of a run (pandas) or plain arrays; gives an `Axes` for one panel, a `Figure` for several.
Only `save_figure` writes, nothing shows. Knows neither models nor data sets: methods, regions and effects
are names found in the tables. A column that a figure needs and does not find is a `ValueError` naming table
and column.

**Conventions.** Layers and heads count from 0 (`L5H3`). Effects are positive where removing the head raises
the loss. Effects are heavy-tailed: where the largest exceeds ten times the median the scale turns
symmetric-log (linear around 0), and its label says so. A missing value is drawn as missing, never as 0.
Colours: viridis (depth, overlap), RdBu_r centred on 0 (signed), Okabe-Ito (categories).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from analysis.report import write_atomically

EFFECT = "ablation_zero_var_pct"
CONTROLS = ("random", "layer_index")
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_GREY = "0.62"
_CORNERS = {
    (0, 1): "helps, looks elsewhere",
    (1, 1): "looks there, helps",
    (0, 0): "neither",
    (1, 0): "looks there, does not help",
}
_CEILING = "noise ceiling of different pictures"
_PLAIN = FuncFormatter(lambda value, _: _minus(f"{value:g}"))
_UNITS = {"var_pct": "% of the label variance", "mse_pct": "% of the intact MSE", "s2": "s²", "hz2": "Hz²"}


def save_figure(figure: Figure, path_stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `<path_stem>.png` (150 dots per inch) and `.svg`, each whole or not at all; give both paths.

    Same figure, same library versions, same bytes: no dates, and ids inside the SVG come from a fixed salt.
    """
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "analysis", "svg.fonttype": "path"}):
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        paths.append(write_atomically(f"{os.fspath(path_stem)}.{kind}", buffer.getvalue()))
    return paths[0], paths[1]


def effect_heatmap(scorecard: pd.DataFrame, *, ax: Axes | None = None, effect: str = EFFECT) -> Axes:
    """Layer x head map of the column `effect`, each cell with its number.

    A dot marks heads whose interval (`<effect>_ci_low`, `<effect>_ci_high`, where present) excludes 0.
    """
    grid = _grid(scorecard, effect)
    ax = _canvas(ax, 2.6 + 0.5 * grid.shape[1], max(3.4, 1.4 + 0.34 * grid.shape[0]))
    limit, linear = _limit(grid), _linear_within(grid)
    norm = Normalize(-limit, limit) if linear is None else SymLogNorm(linear, vmin=-limit, vmax=limit)
    image = _cells(ax, grid, norm, "RdBu_r", lambda v: f"{v:.0f}" if abs(v) >= 100 else f"{v:.2f}", 7.5)
    bar = _figure(ax).colorbar(image, ax=ax, pad=0.02)
    note = "" if linear is None else f"\nsymmetric-log colours, linear within ±{linear:g}"
    bar.set_label(effect_label(effect) + note, fontsize=9)
    if linear is not None:
        bar.ax.yaxis.set_major_locator(FixedLocator(_symlog_ticks(-limit, limit, linear)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(_PLAIN)
    bar.ax.tick_params(labelsize=8)
    mark = ""
    if {f"{effect}_ci_low", f"{effect}_ci_high"} <= set(scorecard):
        low, high = (_grid(scorecard, f"{effect}_ci_{side}") for side in ("low", "high"))
        layers, heads = np.nonzero((low > 0) | (high < 0))
        ink = [_ink(image, grid[cell]) for cell in zip(layers, heads, strict=True)]
        ax.scatter(heads + 0.38, layers - 0.32, s=8, c=ink, linewidths=0, label="interval excludes 0")
        mark = "   (dot: interval excludes 0)"
    _dress(ax, "head" + mark, "layer", "Effect of removing each head")
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
            rows = _rows(data, "localization", query=query, metric=metric, region=region)
            grids.append(_grid(rows, "adjusted", "localization"))
        else:
            grids.append(_grid(data, f"iou_{region}_adjusted"))
    num_layers, num_heads = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
    num_rows, num_cols = _tiles(len(grids), 3 if num_heads > 6 else 4)
    width = max(1.3, 0.4 + 0.29 * num_heads)
    figure = Figure(
        (1.2 + num_cols * width, max(2.9, 0.3 + num_rows * (0.8 + 0.25 * num_layers))), layout="constrained"
    )
    panels = figure.subplots(num_rows, num_cols, squeeze=False).ravel()
    norm = Normalize(0, max(0.1, _limit(np.concatenate([grid.clip(0).ravel() for grid in grids]))))
    images = []
    for at, (panel, region, grid) in enumerate(zip(panels, regions, grids, strict=False)):
        images.append(_cells(panel, grid, norm, "viridis", lambda v: f"{v:.2f}".replace("0.", ".", 1), 6))
        title = f"{region}\nno values"
        if np.isfinite(grid).any():
            layer, head = np.unravel_index(np.nanargmax(grid), grid.shape)
            title = f"{region}\nbest {_name(layer, head)}: " + _minus(f"{grid[layer, head]:.2f}")
        first, last = at % num_cols == 0, at + num_cols >= len(grids)
        _dress(panel, "head" if last else "", "layer" if first else "", title)
        panel.tick_params(labelbottom=last, labelleft=first)
    for panel in panels[len(grids) :]:
        panel.remove()
    bar = figure.colorbar(
        images[0], ax=list(panels[: len(grids)]), extend="min", aspect=max(20, 18 * num_rows), pad=0.02
    )
    bar.set_label("adjusted IoU (0 = chance, grey: below)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def head_ranking(scorecard: pd.DataFrame, *, effect: str = EFFECT, top: int = 30) -> Figure:
    """The `top` heads by mean effect with name, interval and trimmed mean; beside them every head by rank."""
    _require_heads(scorecard, effect)
    table = scorecard.dropna(subset=[effect]).sort_values([effect, "layer", "head"], ascending=[False, True, True])
    first, rest = table.iloc[:top], table.iloc[top:]
    figure = Figure((9.5 if len(rest) else 6.0, 1.5 + 0.2 * max(len(first), 6)), layout="constrained")
    panels = list(figure.subplots(1, 2 if len(rest) else 1, squeeze=False)[0])
    depth = _depth(scorecard["layer"])
    low, high, trimmed = (_column(table, f"{effect}_{suffix}") for suffix in ("ci_low", "ci_high", "trimmed"))
    place = np.arange(len(table))
    named = panels[0]
    named.hlines(place[:top], low[:top], high[:top], colors=_GREY, linewidth=1.2, zorder=1, label="interval")
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
    named.set_yticks(place[:top], [_name(*pair) for pair in zip(first["layer"], first["head"], strict=True)])
    named.set_ylim(max(len(first), 1) - 0.4, -0.6)
    drawn = np.concatenate([first[effect], low[:top], high[:top], trimmed[:top]])
    linear = _linear_within(table[effect])
    _effect_scale(named, "x", drawn, effect_label(effect), linear)
    title = f"First {len(first)} of {len(table)} heads" if len(rest) else "All heads"
    if missing := len(scorecard) - len(table):
        title += f" ({missing} without a value)"
    _dress(named, None, "", title)
    named.grid(axis="x", color="0.92")
    named.set_axisbelow(True)
    if len(rest):
        every = panels[1]
        every.axvspan(0.5, top + 0.5, color="0.95", zorder=0)
        every.vlines(place + 1, low, high, colors=_GREY, linewidth=0.8, zorder=1)
        every.scatter(place + 1, table[effect], c=table["layer"], s=16, zorder=3, **depth)
        _effect_scale(every, "y", np.concatenate([table[effect], low, high]), effect_label(effect), linear)
        low_rest, high_rest, total = (
            _minus(f"{v:.2g}") for v in (rest[effect].min(), rest[effect].max(), rest[effect].sum())
        )
        summary = f"the other {len(rest)}: {low_rest} to {high_rest}, together {total}"
        _dress(every, "rank (shaded: named on the left)", None, f"All heads ({summary})")
    _depth_bar(figure, panels[-1], depth)
    parts = (("mean (colour: layer)", table[effect]), ("interval", low), ("trimmed mean", trimmed))
    _legend(figure, named, [name for name, values in parts if np.isfinite(values).any()])
    return figure


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

    `methods` defaults to every `score_<method>` column, best agreement first. The title of a panel is the row
    of the agreement table with this `truth`, `estimator` and `statistic`.
    """
    _require_heads(scorecard, effect)
    rows = _by_method(agreement, "agreement", truth=truth, estimator=estimator, statistic=statistic)
    _require(rows, ("value", "ci_low", "ci_high"), "agreement")
    known = rows["value"].astype(float).dropna().to_dict()
    if methods is None:
        found = [name.removeprefix("score_") for name in map(str, scorecard.columns) if name.startswith("score_")]
        methods = sorted(found, key=lambda name: -known.get(name, -2.0))
    _require(scorecard, [f"score_{name}" for name in methods] or ["score_<method>"], "head_scorecard")
    num_rows, num_cols = _tiles(len(methods), 4)
    figure = Figure((0.9 + 2.5 * num_cols, 0.5 + 2.35 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_cols, squeeze=False, sharey=True).ravel()
    depth = _depth(scorecard["layer"])
    for panel, name in zip(panels, methods, strict=False):
        panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        panel.scatter(
            scorecard[f"score_{name}"],
            scorecard[effect],
            c=scorecard["layer"],
            s=20,
            edgecolors="white",
            linewidths=0.3,
            **depth,
        )
        if scorecard[f"score_{name}"].isna().all():
            panel.text(0.5, 0.5, "no values", transform=panel.transAxes, ha="center", fontsize=8, color="0.4")
        _effect_scale(panel, "x", scorecard[f"score_{name}"], "score")
        symbol, text = ("ρ" if statistic.startswith("spearman") else statistic), "not compared"
        if name in known:
            row = rows.loc[name, ["value", "ci_low", "ci_high"]].astype(float)
            value, low, high = (_minus(f"{number:.2f}") for number in row)
            text = f"{symbol} = {value} [{low}, {high}]"
        _dress(panel, None, "", f"{name}\n{text}")
        panel.tick_params(labelsize=7)
    _effect_scale(panels[0], "y", scorecard[effect], effect_label(effect))
    label = panels[0].get_ylabel()
    panels[0].set_ylabel("")
    for panel in panels[len(methods) :]:
        panel.remove()
    figure.supylabel(label.replace("\n", " "), fontsize=9)
    _depth_bar(figure, list(panels[: len(methods)]), depth)
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

    `statistics` maps names in the table to panel titles (default: Spearman, and Spearman within layers where
    the table has it). Diamonds are `value_cross` (method and truth on different pictures), whose bound is the
    dashed noise ceiling. Controls are grey and hatched.
    """
    if statistics is None:
        statistics = {"spearman": "Spearman ρ, all heads"}
        if "statistic" in agreement and "spearman_within_layers" in set(agreement["statistic"]):
            statistics["spearman_within_layers"] = "Spearman ρ within layers"
    tables = [
        _by_method(agreement, "agreement", truth=truth, estimator=estimator, statistic=name) for name in statistics
    ]
    for table in tables:
        _require(table, ("value", "ci_low", "ci_high", "value_cross", "noise_ceiling"), "agreement")
    order = list(tables[0].sort_values("value", ascending=False, kind="stable", na_position="last").index)
    figure = Figure((1.9 + 3.6 * len(tables), 1.3 + 0.28 * len(order)), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    place, grey = np.arange(len(order)), set(controls)
    for panel, table, title in zip(panels, tables, statistics.values(), strict=True):
        table = table.reindex(order)
        value, low, high = (table[name].to_numpy(float) for name in ("value", "ci_low", "ci_high"))
        bars = panel.barh(place, value, height=0.62, color=OKABE_ITO[4], zorder=2, label="same pictures")
        for name, bar in zip(order, bars, strict=True):
            if name in grey:
                bar.set(facecolor="0.85", edgecolor="0.45", hatch="////", linewidth=0.5)
        panel.hlines(place, low, high, colors="black", linewidth=1.1, zorder=3, label="interval")
        panel.scatter(
            table["value_cross"],
            place,
            marker="D",
            s=24,
            facecolors="white",
            edgecolors="black",
            zorder=4,
            label="different pictures",
        )
        ceiling = table["noise_ceiling"].to_numpy(float)
        panel.vlines(
            ceiling,
            place - 0.5,
            place + 0.5,
            colors=OKABE_ITO[5],
            linestyles="dashed",
            linewidth=1.4,
            zorder=3,
            label=_CEILING,
        )
        for at in place[~np.isfinite(value)]:
            panel.text(0.01, at, "no value", va="center", fontsize=7, color="0.4")
        panel.axvline(0, color="black", linewidth=0.8, zorder=3)
        panel.grid(axis="x", color="0.92")
        panel.set_axisbelow(True)
        panel.set_xlim(min(-0.05, np.nanmin([0.0, *low, *value]) - 0.03), 1.02)
        _dress(panel, title, "", "")
    panels[0].set_yticks(place, order)
    panels[0].set_ylim(len(order) - 0.4, -0.6)
    _legend(figure, panels[0], ("same pictures", "interval", "different pictures", _CEILING))
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
    _require_heads(scorecard, looks, effect)
    table = scorecard.dropna(subset=[looks, effect])
    ax = _canvas(ax, 7.4, 5.4)
    depth = _depth(scorecard["layer"])
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
    _effect_scale(ax, "y", table[effect], effect_label(effect))
    missing = len(scorecard) - len(table)
    note = f" ({missing} heads without a value)" if missing else ""
    _dress(ax, looks_label, None, "Where a head looks, and whether it helps" + note)
    _depth_bar(_figure(ax), ax, depth)
    if table.empty:
        ax.text(0.5, 0.5, "no head has both values", transform=ax.transAxes, ha="center", color="0.4")
        return ax
    ax.margins(0.09, 0.11)
    across = table[looks].median() if looks_line is None else looks_line
    up = table[effect].median() if effect_line is None else effect_line
    ax.axvline(across, color="0.5", linewidth=0.8, linestyle="--")
    ax.axhline(up, color="0.5", linewidth=0.8, linestyle="--")
    for (x, y), text in _CORNERS.items():
        ax.annotate(
            text,
            (x, y),
            xycoords="axes fraction",
            xytext=(5 - 10 * x, 4 - 8 * y),
            textcoords="offset points",
            ha=("left", "right")[x],
            va=("bottom", "top")[y],
            fontsize=8,
            style="italic",
            color="0.45",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    points = table[[looks, effect]].to_numpy(float)
    names = [_name(*pair) for pair in zip(table["layer"], table["head"], strict=True)]
    _label_points(ax, points, names, labelled)
    return ax


def pixel_localization_bars(
    pixel_localization: pd.DataFrame, *, ax: Axes | None = None, region: str = "chirp", metric: str = "iou"
) -> Axes:
    """One metric of each pixel method on one region, best first, with chance and (if it has one) ceiling."""
    rows = _by_method(pixel_localization, "pixel_localization", region=region, metric=metric)
    _require(rows, ("value", "chance", "ci_low", "ci_high", "ceiling"), "pixel_localization")
    rows = rows.sort_values("value", ascending=False, kind="stable", na_position="last")
    ax = _canvas(ax, 6.4, 1.4 + 0.34 * len(rows))
    place = np.arange(len(rows))
    ax.barh(place, rows["value"], height=0.6, color=OKABE_ITO[0], zorder=2, label=metric)
    ax.hlines(place, rows["ci_low"], rows["ci_high"], colors="black", linewidth=1.2, zorder=3, label="interval")
    for column, colour, dashes in (("chance", "0.35", (1, 1.5)), ("ceiling", OKABE_ITO[5], (4, 2))):
        if rows[column].notna().any():
            ax.vlines(
                rows[column],
                place - 0.42,
                place + 0.42,
                colors=colour,
                linestyles=(0, dashes),
                linewidth=1.8,
                zorder=4,
                label=column,
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
    ax.set_yticks(place, rows.index)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(left=min(0.0, np.nanmin([0.0, *rows["ci_low"], *rows["value"]])))
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    names = [name for name in (metric, "interval", "chance", "ceiling") if name in handles]
    ax.legend(
        [handles[name] for name in names],
        names,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize=8,
        frameon=False,
    )
    _dress(ax, f"{metric} with {region}", None, f"Pixel methods: {metric} with {region}")
    return ax


def layer_profile(
    data: pd.DataFrame | ArrayLike, *, ax: Axes | None = None, label: str | None = None, resamples: int = 2000
) -> Axes:
    """Mean effect per layer with its interval.

    `data`: a table with `layer, mean, ci_low, ci_high`, or effects `[image layer head]` in the unit that
    `label` names. From an array, the mean is over images and heads, the interval a 95 % percentile bootstrap
    over images (seeded), and a dot shows the mean of each head.
    """
    heads: NDArray[np.float64] | None = None
    if isinstance(data, pd.DataFrame):
        _require(data, ("layer", "mean", "ci_low", "ci_high"), "layer profile")
        table = data.sort_values("layer")
    else:
        effects = np.asarray(data, dtype=np.float64)
        if effects.ndim != 3 or effects.shape[0] == 0 or not np.isfinite(effects).all():
            raise ValueError(f"layer profile: expected finite effects [image layer head], got shape {effects.shape}")
        table, heads = _bootstrap_layers(effects, resamples), effects.mean(axis=0)
    layers, mean = table["layer"].to_numpy(), table["mean"].to_numpy(float)
    low, high = table["ci_low"].to_numpy(float), table["ci_high"].to_numpy(float)
    ax = _canvas(ax, 2.2 + 0.4 * len(layers), 3.6)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    if heads is not None:
        at = np.repeat(layers, heads.shape[1]) + np.tile(np.linspace(-0.22, 0.22, heads.shape[1]), len(layers))
        ax.scatter(at, heads.ravel(), s=10, color=_GREY, linewidths=0, zorder=1, label="one head")
    ax.vlines(layers, low, high, colors=OKABE_ITO[0], linewidth=2, zorder=2, label="interval of the mean")
    ax.plot(layers, mean, "o-", color=OKABE_ITO[0], linewidth=0.8, markersize=5, zorder=3, label="mean over heads")
    drawn = np.concatenate([mean, low, high, [] if heads is None else heads.ravel()])
    _effect_scale(ax, "y", drawn, label or "effect of removal")
    ax.set_xlim(layers.min() - 0.5, layers.max() + 0.5)
    ax.xaxis.set_major_locator(FixedLocator(layers.tolist()) if len(layers) <= 24 else MaxNLocator(integer=True))
    ax.legend(fontsize=8, frameon=False)
    _dress(ax, "layer", None, "Effect of removing a head, by layer")
    return ax


def effect_label(column: str) -> str:
    """Axis label of an effect column `ablation_<kind>_[<target>_]<unit>`; any other name is its own label."""
    match = re.fullmatch(r"ablation_([a-z]+)_(?:(\w+)_)?(var_pct|mse_pct|s2|hz2)", column)
    if match is None:
        return column
    kind, target, unit = match.groups()
    return f"effect of {kind} ablation" + (f" on {target}" if target else "") + f"\n({_UNITS[unit]})"


# ---- drawing primitives: nothing below knows a table of a run or a figure above --------------------------


def _canvas(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax`, or the axes of a new figure (inches), made without pyplot: no global state, no window."""
    return Figure((width, height), layout="constrained").add_subplot() if ax is None else ax


def _tiles(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for this many panels, at most `most` a row, with few places left empty."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def _figure(ax: Axes) -> Figure:
    return cast(Figure, ax.get_figure(root=True))


def _dress(ax: Axes, xlabel: str | None, ylabel: str | None, title: str) -> None:
    """Titles and labels in one size; None keeps a label that is there."""
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(ax.get_xlabel() if xlabel is None else xlabel, fontsize=9)
    ax.set_ylabel(ax.get_ylabel() if ylabel is None else ylabel, fontsize=9)
    ax.tick_params(labelsize=8)


def _minus(number: str) -> str:
    """A formatted number with a true minus sign, and none before a zero."""
    return number.lstrip("-") if not number.strip("-0.") else number.replace("-", "−")


def _name(layer: Any, head: Any) -> str:
    return f"L{int(layer)}H{int(head)}"


def _require(frame: pd.DataFrame, columns: Iterable[str], table: str) -> None:
    absent = [name for name in columns if name not in frame]
    if absent:
        raise ValueError(f"{table}: missing column(s) {', '.join(absent)}")
    if frame.empty:
        raise ValueError(f"{table}: no rows")


def _rows(frame: pd.DataFrame, table: str, **chosen: str) -> pd.DataFrame:
    """Rows of a tidy table where every named column has the given value; an error lists what there is."""
    _require(frame, chosen, table)
    for column, value in chosen.items():
        present = sorted(map(str, frame[column].unique()))
        frame = frame[frame[column] == value]
        if frame.empty:
            raise ValueError(f"{table}: no rows with {column}={value!r}, expected one of {', '.join(present)}")
    return frame


def _by_method(frame: pd.DataFrame, table: str, **chosen: str) -> pd.DataFrame:
    """`_rows`, one for each method, with the method as the index."""
    rows = _rows(frame, table, **chosen)
    _require(rows, ("method",), table)
    if rows["method"].duplicated().any():
        raise ValueError(f"{table}: more than one row for a method with {chosen}, expected one")
    return rows.set_index("method")


def _require_heads(frame: pd.DataFrame, *columns: str, table: str = "head_scorecard") -> None:
    _require(frame, ("layer", "head", *columns), table)
    if frame.duplicated(["layer", "head"]).any():
        raise ValueError(f"{table}: more than one row for a head, expected one value of {columns[0]} each")


def _column(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """The column as floats, NaN where the table does not have it."""
    return frame[name].to_numpy(float) if name in frame else np.full(len(frame), np.nan)


def _grid(frame: pd.DataFrame, column: str, table: str = "head_scorecard") -> NDArray[np.float64]:
    """A column of a table with one row per head as `[layer head]`, NaN where a head has no row."""
    _require_heads(frame, column, table=table)
    layer, head = frame["layer"].to_numpy(int), frame["head"].to_numpy(int)
    grid = np.full((layer.max() + 1, head.max() + 1), np.nan)
    grid[layer, head] = frame[column].to_numpy(float)
    return grid


def _cells(
    ax: Axes, grid: NDArray[np.float64], norm: Normalize, cmap: str, text: Callable[[float], str], size: float
) -> AxesImage:
    """A `[layer head]` heat map with a number in each cell, "–" where there is none, grey below the scale."""
    colours = matplotlib.colormaps[cmap].with_extremes(bad="white", under="0.88")
    image = ax.imshow(np.ma.masked_invalid(grid), cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    for (layer, head), value in np.ndenumerate(grid):
        label = _minus(text(value)) if np.isfinite(value) else "–"
        ax.text(head, layer, label, ha="center", va="center", fontsize=size, color=_ink(image, value))
    ax.xaxis.set_major_locator(FixedLocator(range(grid.shape[1])))
    ax.yaxis.set_major_locator(FixedLocator(range(grid.shape[0])))
    return image


def _ink(image: ScalarMappable, value: float) -> str:
    """Black or white, whichever reads better on the colour of this value (relative luminance, WCAG 2)."""
    red, green, blue, _ = image.to_rgba(np.ma.masked_invalid([value]))[0]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.18 else "white"


def _limit(values: NDArray[np.float64]) -> float:
    """Largest finite |value|, so that no colour is clipped; 1 where there is none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def _linear_within(values: ArrayLike) -> float | None:
    """Half-width of the linear part of a symmetric-log scale (near the median); None: linear throughout."""
    size = np.abs(np.asarray(values, dtype=np.float64))
    size = size[np.isfinite(size) & (size > 0)]
    if size.size < 4 or size.max() <= 10 * (middle := max(np.median(size), size.max() / 1000)):
        return None
    power = 10.0 ** np.floor(np.log10(middle))
    return float(power * min((1, 2, 5, 10), key=lambda digit: abs(np.log(digit * power / middle))))


def _symlog_ticks(low: float, high: float, linear: float) -> list[float]:
    """0 and ± powers of ten from the linear part outwards, within the limits."""
    powers = 10.0 ** np.arange(np.ceil(np.log10(linear)), np.floor(np.log10(max(-low, high, linear))) + 1)
    return [float(v) for v in (*-powers[::-1], 0.0, *powers) if v == 0 or low <= v <= high]


def _effect_scale(ax: Axes, axis: str, values: ArrayLike, label: str, linear: float | None = None) -> None:
    """Label an axis; where values are heavy-tailed or `linear` is given, make it symmetric-log and say so."""
    linear, along = linear or _linear_within(values), ax.xaxis if axis == "x" else ax.yaxis
    if linear is not None:
        getattr(ax, f"set_{axis}scale")("symlog", linthresh=linear, linscale=0.6)
        ax.autoscale_view(scalex=axis == "x", scaley=axis == "y")  # limits may date from the linear scale
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        along.set_major_locator(FixedLocator(_symlog_ticks(1.5 * finite.min(), 1.5 * finite.max(), linear)))
        along.set_minor_locator(NullLocator())
        label = f"{label[:-1]}, symmetric log)" if label.endswith(")") else f"{label} (symmetric log)"
        along.set_major_formatter(_PLAIN)
    along.set_label_text(label)


def _depth(layers: pd.Series) -> dict[str, Any]:
    """Colour of a point by its layer: arguments for `scatter`."""
    count = int(layers.max()) + 1
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.93, count)))
    return {"cmap": colours, "norm": BoundaryNorm(np.arange(count + 1) - 0.5, count)}


def _legend(figure: Figure, ax: Axes, names: Sequence[str]) -> None:
    """One legend below all panels, with the artists of `ax` that bear these names, in this order."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )


def _depth_bar(figure: Figure, axes: Any, depth: Mapping[str, Any]) -> None:
    bar = figure.colorbar(ScalarMappable(depth["norm"], depth["cmap"]), ax=axes, pad=0.02, aspect=35)
    count = depth["norm"].Ncmap
    bar.ax.yaxis.set_major_locator(FixedLocator(range(0, count, -(-count // 16))))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=8, length=0)
    bar.set_label("layer", fontsize=9)


def _bootstrap_layers(effects: NDArray[np.float64], resamples: int) -> pd.DataFrame:
    per_image = effects.mean(axis=2)  # [image layer]
    images = len(per_image)
    weights = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=resamples) / images
    low, high = np.quantile(weights @ per_image, (0.025, 0.975), axis=0)
    mean = per_image.mean(axis=0)
    return pd.DataFrame({"layer": np.arange(len(mean)), "mean": mean, "ci_low": low, "ci_high": high})


def _label_points(ax: Axes, points: NDArray[np.float64], names: Sequence[str], count: int) -> None:
    """Name the `count` points farthest from the median (up or across, in turns), clear of points and labels.

    Greedy: the nearest free place in rings of 16 directions; a name that finds no place is left out.
    """
    figure = _figure(ax)
    figure.draw_without_rendering()  # settles the layout, so that pixels are final
    pixels, frame = ax.transData.transform(points), ax.get_window_extent()
    scale = figure.dpi / 72
    outwards = np.argsort(-np.abs(points - np.median(points, axis=0)), axis=0, kind="stable")[:, ::-1]  # effect first
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in pixels]
    angles = np.pi / 8 * np.array([0, 8, 4, 12, 2, 6, 14, 10, 1, 15, 7, 9, 3, 5, 13, 11])
    for index in list(dict.fromkeys(outwards.ravel().tolist()))[:count]:
        width, height = (5.2 * len(names[index]) * scale, 9 * scale)
        for radius, angle in ((radius, angle) for radius in (4, 12, 22, 34) for angle in angles):
            dx, dy = np.cos(angle) * (radius * scale + width / 2), np.sin(angle) * (radius * scale + height)
            x, y = pixels[index] + (dx, dy)
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            inside = frame.x0 < box[0] and box[2] < frame.x1 and frame.y0 < box[1] and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.4", "shrinkA": 0, "shrinkB": 3}
                ax.annotate(
                    names[index],
                    tuple(points[index]),
                    xytext=(dx / scale, dy / scale),
                    fontsize=7.5,
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    zorder=5,
                    arrowprops=line if radius > 4 else None,
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
                break


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
