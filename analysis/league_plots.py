"""Figures of the league: the truths against each other, the methods under each truth, agreement against its price.

Takes the tidy tables of a run (truths, agreement, league); gives an `Axes` for one panel, a `Figure` for several. The
conventions are those of `analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from analysis.artists import (
    GREY,
    OKABE_ITO,
    PLAIN,
    column_of,
    dress,
    figure_of,
    new_axes,
    require_columns,
    rows_where,
    true_minus,
    truth_words,
)
from analysis.captions import fewer_pictures, names_with_n
from analysis.cells import CORRELATION, grey_names, grid_of, slant, table_cells, two_digits
from analysis.point_labels import name_all

FRONT = "best for its price, controls left out"
AVERAGES = {"mean": "averaged over pictures", "trimmed": "as trimmed means over pictures"}
SPLIT_HALF = "spearman_split_half"
BEATS = "better than ablation at its price"


def truth_label(truth: str) -> str:
    """`ablation_zero` -> `zero`: short enough for a column."""
    return truth.removeprefix("ablation_").replace("_", " ")


def truth_matrix(
    truths: pd.DataFrame, *, ax: Axes | None = None, estimator: str = "mean", statistic: str = "spearman"
) -> Axes:
    """How far the truths agree: rank correlation of each with each other over heads, with interval.

    Framed on the diagonal: the correlation of a truth with itself between two halves of the pictures, the most that a
    correlation with it can be expected to reach. A pair may stand in the table once or in both orders. A truth of fewer
    pictures than others bears its number.
    """
    columns = ("truth_a", "truth_b", "value", "ci_low", "ci_high", "n")
    pairs = rows_where(truths, "truths", estimator=estimator)
    require_columns(pairs, (*columns, "statistic"), "truths")
    itself = pairs["truth_a"] == pairs["truth_b"]
    pairs = pairs[(pairs["statistic"] == SPLIT_HALF) & itself | (pairs["statistic"] == statistic) & ~itself]
    if pairs.empty:
        raise ValueError(f"truths: no rows with statistic={statistic!r} or {SPLIT_HALF!r}, expected some")
    if pairs.duplicated(["truth_a", "truth_b"]).any():
        raise ValueError(f"truths: more than one row for a pair with estimator={estimator!r}, expected one")
    names = list(dict.fromkeys([*pairs["truth_a"], *pairs["truth_b"]]))
    place = {name: at for at, name in enumerate(names)}
    grid = np.full((len(names), len(names)), np.nan)
    low, high = grid.copy(), grid.copy()
    # A pair given once fills both cells; given twice, each cell keeps its own row.
    for one, other in (("truth_b", "truth_a"), ("truth_a", "truth_b")):
        cells = (pairs[one].map(place).to_numpy(), pairs[other].map(place).to_numpy())
        for target, column in ((grid, "value"), (low, "ci_low"), (high, "ci_high")):
            target[cells] = pairs[column].to_numpy(float)
    ax = new_axes(ax, 3.0 + 0.95 * len(names), 1.7 + 0.62 * len(names))
    counts = pd.Series({name: pairs["n"][pairs[["truth_a", "truth_b"]].eq(name).any(axis=1)].max() for name in names})
    labels = names_with_n(counts.rename(truth_label).to_frame("n"))
    image = table_cells(ax, pd.DataFrame(grid, index=labels, columns=labels), CORRELATION, "RdBu_r", size=8)
    for text, bottom, top in zip(list(ax.texts), low.ravel(), high.ravel(), strict=True):
        if np.isfinite([bottom, top]).all():
            text.set_text(f"{text.get_text()}\n[{true_minus(two_digits(bottom))}, {true_minus(two_digits(top))}]")
    for at in range(len(names)):
        ax.add_patch(Rectangle((at - 0.46, at - 0.46), 0.92, 0.92, fill=False, edgecolor="black", linewidth=1.6))
    slant(ax)
    bar = figure_of(ax).colorbar(image, ax=ax, pad=0.02)
    bar.set_label(f"{statistic} over heads".capitalize(), fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter(PLAIN)
    note = f" ({counts.max():.0f} pictures)" if counts.notna().any() else ""
    title = f"Truths against each other: effects {AVERAGES.get(estimator, estimator)}{note}"
    dress(ax, "", "", f"{title}\nframed: one half of the pictures with the other")
    return ax


def league_heatmap(
    agreement: pd.DataFrame,
    league: pd.DataFrame,
    *,
    estimator: str = "mean",
    statistic: str = "spearman",
    truths: Sequence[str] | None = None,
) -> Figure:
    """Each method's agreement with each truth on other pictures, and beside it its rank under each on the same ones;
    best first by the league's `value_cross`.

    Names of controls are grey; a method whose scores are another's bears `= other`; methods and truths of fewer
    pictures than others bear their number.
    """
    require_columns(league, ("method", "is_control", "n", "value_cross", "same_as"), "league")
    if league["method"].duplicated().any():
        raise ValueError("league: more than one row for a method, expected one")
    rows = rows_where(agreement, "agreement", estimator=estimator, statistic=statistic)
    values = grid_of(rows, "agreement", "method", "truth", "value_cross")
    names = list(values.columns) if truths is None else list(truths)
    if absent := [name for name in names if name not in values]:
        raise ValueError(f"agreement: no rows with truth={absent[0]!r}, expected one of {', '.join(values.columns)}")
    ordered = league.sort_values("value_cross", ascending=False, kind="stable", na_position="last").set_index("method")
    ranks = pd.DataFrame({name: column_of(ordered, f"rank_{name}") for name in names}, index=ordered.index)
    shown = values.reindex(index=ordered.index)[names]
    labels = names_with_n(ordered)
    twin = ordered["same_as"].astype(object).fillna("").astype(str)
    labels = [f"{label}  = {other}" if other else label for label, other in zip(labels, twin, strict=True)]
    counts = rows.groupby("truth")["n"].max().reindex(names) if "n" in rows else pd.Series(np.nan, index=names)
    short = names_with_n(counts.rename(truth_label).to_frame("n"))
    figure = Figure((max(8.6, 4.2 + 1.02 * len(names)), max(3.2, 1.5 + 0.25 * len(ordered))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(0.58, 0.42))
    image = table_cells(left, shown.set_axis(labels, axis=0).set_axis(short, axis=1), CORRELATION, "RdBu_r")
    last = np.nanmax([2.0, *ranks.to_numpy(float).ravel()])
    table_cells(
        right,
        ranks.set_axis(labels, axis=0).set_axis(short, axis=1),
        Normalize(1 - last, 1.1 * last),
        "Greys_r",
        text=lambda rank: f"{rank:g}",
    )
    right.tick_params(labelleft=False)
    grey_names(left, ordered.index, ordered.index[ordered["is_control"].astype(bool)])
    dress(left, "", "", f"{statistic.capitalize()} with each truth,\nscores and truth of different pictures")
    ranked = (
        f"rank by {statistic.capitalize()} on the same pictures\nunder each truth, of those that all have (1 = best)"
    )
    dress(right, "", "", ranked)
    for panel in (left, right):
        slant(panel)
    if note := fewer_pictures(ordered):
        figure.supxlabel(note, fontsize=8)
    bar = figure.colorbar(image, ax=right, pad=0.03, aspect=35)
    bar.set_label(f"left: {statistic.capitalize()}\n(effects {AVERAGES.get(estimator, estimator)})", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter(PLAIN)
    return figure


def pareto_front(cost: NDArray[np.float64], gain: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places that nothing as cheap or cheaper equals or beats, cheapest first; NaN is on no front."""
    front: list[int] = []
    for at in np.lexsort((-gain, cost)):
        if np.isfinite([cost[at], gain[at]]).all() and (not front or gain[at] > gain[front[-1]]):
            front.append(int(at))
    return np.asarray(front, dtype=np.intp)


def cost_front(league: pd.DataFrame, *, ax: Axes | None = None, truth: str = "ablation_zero") -> Axes:
    """Agreement (different pictures) against the price in forwards, a named point per method; pale: the same pictures.

    The step line is the front of the methods that are no controls. The dashed line is zero ablation on as many
    pictures as a method's price pays for; ringed are the methods that pass the price test (`beats_ablation_at_cost`).
    What costs nothing stands left of the dotted line, at 0. A method judged on fewer pictures than others bears its
    number. `truth` is that of the league, for the label.
    """
    require_columns(league, ("method", "family", "is_control", "forwards", "spearman", "value_cross"), "league")
    known = league["forwards"].notna() & league["value_cross"].notna()
    table = league[known].reset_index(drop=True)
    ax = new_axes(ax, 9.6, 6.2)
    forwards, gain = table["forwards"].to_numpy(float), table["value_cross"].to_numpy(float)
    free = forwards <= 0
    cheapest = forwards[~free].min() if (~free).any() else 1.0
    nothing = cheapest / 4
    cost = np.where(free, nothing, forwards)
    control = table["is_control"].to_numpy(bool)
    ax.set_xscale("log")
    families = [name for name in dict.fromkeys(table["family"]) if not control[table["family"] == name].all()]
    colours = dict(zip(families, [OKABE_ITO[at % 6] for at in range(len(families))], strict=True))
    ax.vlines(cost, gain, table["spearman"], colors="0.85", linewidth=0.8, zorder=1)
    groups = [(name, (table["family"] == name).to_numpy() & ~control, colour) for name, colour in colours.items()]
    for name, members, colour in (*groups, ("control", control, GREY)):
        if members.any():
            ax.scatter(
                cost[members], table["spearman"][members], s=18, color=colour, alpha=0.35, linewidths=0, zorder=2
            )
            ax.scatter(cost[members], gain[members], s=34, color=colour, edgecolors="white", zorder=4, label=name)
    ax.scatter([], [], s=18, color="black", alpha=0.35, linewidths=0, label="the same pictures (pale)")
    if "beats_ablation_at_cost" in table:
        won = table["beats_ablation_at_cost"].eq(True).to_numpy(bool)
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.1}
        ax.scatter(cost[won], gain[won], s=80, zorder=5, label=BEATS, **ring)
    last = cost.max(initial=nothing) * 8  # room for names
    ax.set_xlim(nothing / 1.8, last)
    front = pareto_front(np.where(control, np.nan, cost), gain)
    lines: list[NDArray[np.float64]] = []
    if len(front):
        steps = ([*cost[front], last], [*gain[front], gain[front][-1]])
        ax.step(*steps, where="post", color="black", linewidth=1.1, zorder=3, label=FRONT)
        lines.append(np.column_stack([np.repeat(steps[0], 2)[1:], np.repeat(steps[1], 2)[:-1]]))
    if "ablation_at_cost_matched" in table:
        paid = table.assign(cost=cost)[~free].groupby("cost")["ablation_at_cost_matched"].mean().dropna()
        look: dict[str, Any] = {"color": OKABE_ITO[5], "markersize": 4, "linewidth": 1.1}
        ax.plot(paid.index, paid, "x--", label="ablation at that price", **look)
        lines.append(np.column_stack([paid.index, paid]))
    low, high = np.floor(np.log10(cheapest)), np.ceil(np.log10(last))
    powers = [10.0**power for power in np.arange(low, high + 1) if nothing * 1.5 < 10.0**power <= last]
    ax.xaxis.set_major_locator(FixedLocator([nothing, *powers] if free.any() else powers))
    ax.xaxis.set_major_formatter(lambda at, _: "0" if free.any() and np.isclose(at, nothing) else f"{at:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    if free.any():
        ax.axvline(cheapest / 2, color="0.8", linewidth=0.8, linestyle=":")
    else:
        ax.set_xlim(left=cheapest / 1.8)
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    missing = len(league) - len(table)
    note = f" ({missing} without a price or a value)" if missing else ""
    label = f"Spearman ρ with {truth_words(truth)} (method and truth on different pictures)"
    price = "price: forward equivalents per picture "
    price += "(logarithmic right of the dotted line; 0: no pass)" if free.any() else "(logarithmic)"
    if told := fewer_pictures(league):
        price += f"\n{told}"
    dress(ax, price, label, "What agreement costs" + note)
    ax.yaxis.set_major_formatter(PLAIN)
    ax.margins(y=0.08)
    obstacles = np.column_stack([np.tile(cost, 2), np.concatenate([gain, table["spearman"]])])
    names = np.array(names_with_n(league.set_index("method")))[known]
    name_all(ax, np.column_stack([cost, gain]), names.tolist(), obstacles, lines, control)
    return ax
