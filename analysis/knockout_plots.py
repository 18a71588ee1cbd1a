"""Figures of attention knockout: where a head looks, and what it loses when it cannot look there.

Takes the tidy table of the knockout; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from analysis.artists import (
    PLAIN,
    depth_bar,
    depth_colours,
    draw_cells,
    dress,
    effect_scale,
    head_grid,
    head_name,
    largest_size,
    linear_within,
    require_columns,
    require_heads,
    rows_where,
    symlog_ticks,
    tiles,
)
from analysis.cells import dot_sure_cells
from analysis.point_labels import label_points

KNOCKOUT = "effect_var_pct"
PRINTED = 0.01  # what the numbers in the cells tell apart
MASS_TICKS = np.array([0, 0.05, 0.25, 0.5, 1])
KNOCKOUT_LABEL = "effect of hiding the region\n(% of the label variance)"


def knockout_table(knockout: pd.DataFrame, *, regions: Sequence[str] | None = None) -> Figure:
    """For each region what a head loses when it cannot look there, and below it how much it looks there.

    One colour scale for all effects, one for all masses; effects that print as .00 are as good as white. A dot marks
    effects whose interval excludes 0. Titles have the number of pictures, where the table has it.
    """
    tables = _by_region(knockout, regions, ("ci_low", "ci_high"))
    effects = {region: head_grid(table, KNOCKOUT, "knockout") for region, table in tables.items()}
    masses = {region: head_grid(table, "mass", "knockout") for region, table in tables.items()}
    num_layers, num_heads = (max(grid.shape[axis] for grid in effects.values()) for axis in (0, 1))
    strips, num_cols = tiles(len(tables), 4 if num_heads <= 6 else 2)
    width, height = max(1.6, 0.4 + 0.29 * num_heads), max(1.6, 0.7 + 0.22 * num_layers)
    figure = Figure((1.7 + num_cols * width, 0.3 + 2 * strips * height), layout="constrained")
    panels = figure.subplots(2 * strips, num_cols, squeeze=False)
    every = np.concatenate([grid.ravel() for grid in effects.values()])
    limit, linear = max(largest_size(every), PRINTED), linear_within(every)
    if linear is not None:
        linear = max(linear, PRINTED)
    norm = (
        Normalize(-limit, limit)
        if linear is None
        else SymLogNorm(linear, linscale=0.3, vmin=-limit, vmax=limit)  # the linear part is a small part of the colours
    )
    looks = Normalize(0, largest_size(np.concatenate([grid.ravel() for grid in masses.values()])))
    images: dict[str, AxesImage] = {}
    used: dict[str, list[Axes]] = {"effect": [], "mass": []}
    for at, (region, table) in enumerate(tables.items()):
        strip, col = divmod(at, num_cols)
        top, below = panels[2 * strip, col], panels[2 * strip + 1, col]
        images["effect"] = draw_cells(top, effects[region], norm, "RdBu_r", _short, 5.5)
        limits = [head_grid(table, f"ci_{side}", "knockout") for side in ("low", "high")]
        dot_sure_cells(top, images["effect"], effects[region], limits, (0.38, 0.32))
        images["mass"] = draw_cells(below, masses[region], looks, "viridis", _short, 5.5)
        dress(top, "", "layer" if col == 0 else "", f"{_with_pictures(region, table)}:\neffect of hiding it")
        dress(below, "head", "layer" if col == 0 else "", f"{region.replace('_', ' ')}: attention on it")
        for panel, kind in ((top, "effect"), (below, "mass")):
            panel.tick_params(labelsize=7, labelleft=col == 0, labelbottom=kind == "mass")
            used[kind].append(panel)
    for panel in panels.ravel():
        if not panel.images:
            panel.remove()
    note = "" if linear is None else f"\nsymmetric-log colours, linear within ±{linear:g}"
    bars = {"effect": f"{KNOCKOUT_LABEL}{note}", "mass": "mean share of the\nCLS attention on the region"}
    for kind, label in bars.items():
        last = used[kind][num_cols - 1 :: num_cols] or used[kind][-1:]
        bar = figure.colorbar(images[kind], ax=last, pad=0.04, aspect=20 * len(last))
        bar.set_label(label, fontsize=8)
        if kind == "effect" and linear is not None:
            bar.ax.yaxis.set_major_locator(FixedLocator(symlog_ticks(-limit, limit, linear)))
            bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(PLAIN)
        bar.ax.tick_params(labelsize=7)
    figure.supxlabel("dot: interval excludes 0", fontsize=8)
    return figure


def mass_against_knockout(knockout: pd.DataFrame, *, regions: Sequence[str] | None = None, labelled: int = 6) -> Figure:
    """How much a head looks at a region against what it loses when it cannot: a panel per region, a point per head.

    All panels share both axes; that of the attention is a square root, as most heads give a region little.
    """
    tables = _by_region(knockout, regions, ())
    num_rows, num_cols = tiles(len(tables), 3)
    figure = Figure((1.4 + 2.8 * num_cols, 0.6 + 2.9 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_cols, squeeze=False, sharex=True, sharey=True).ravel()
    depth = depth_colours(knockout["layer"])
    pairs = []
    for panel, (region, table) in zip(panels[: len(tables)], tables.items(), strict=True):
        panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        known = table.dropna(subset=["mass", KNOCKOUT])
        panel.scatter(
            known["mass"], known[KNOCKOUT], c=known["layer"], s=24, edgecolors="white", linewidths=0.3, **depth
        )
        missing = len(table) - len(known)
        note = f" ({missing} heads without a value)" if missing else ""
        dress(panel, "", "", _with_pictures(region, table) + note)
        pairs.append((panel, known))
    effect_scale(panels[0], "y", knockout[KNOCKOUT], KNOCKOUT_LABEL)
    panels[0].margins(0.12, 0.1)
    most = largest_size(knockout["mass"].to_numpy(float))
    panels[0].set_xscale("function", functions=(_signed_root, _signed_square))
    panels[0].set_xlim(_signed_square(np.array([-0.06, 1.16]) * np.sqrt(most)))
    ticks = MASS_TICKS * 10.0 ** np.floor(np.log10(3 * most))
    panels[0].xaxis.set_major_locator(FixedLocator(ticks[ticks <= 1.1 * most].tolist()))
    panels[0].xaxis.set_major_formatter(PLAIN)
    label = panels[0].get_ylabel()
    panels[0].set_ylabel("")
    for at, panel in enumerate(panels[len(tables) :], len(tables)):
        panels[at - num_cols].tick_params(labelbottom=True)
        panel.remove()
    figure.supxlabel("share of the CLS attention on the region (square-root axis)", fontsize=9)
    figure.supylabel(label, fontsize=9, ma="center")
    depth_bar(figure, list(panels[: len(tables)]), depth)
    for panel, known in pairs:
        if len(known):
            names = [head_name(*pair) for pair in zip(known["layer"], known["head"], strict=True)]
            label_points(panel, known[["mass", KNOCKOUT]].to_numpy(float), names, labelled)
    return figure


def _by_region(knockout: pd.DataFrame, regions: Sequence[str] | None, more: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The rows of each region, in the order asked for or of the table."""
    require_columns(knockout, ("layer", "head", "region", KNOCKOUT, "mass", *more), "knockout")
    names = list(dict.fromkeys(knockout["region"])) if regions is None else regions
    tables = {name: rows_where(knockout, "knockout", region=name) for name in names}
    for table in tables.values():
        require_heads(table, KNOCKOUT, "mass", table="knockout")
    return tables


def _with_pictures(region: str, table: pd.DataFrame) -> str:
    name = region.replace("_", " ")
    return f"{name} (n={table['n'].max():.0f})" if "n" in table else name


def _signed_root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.abs(values)


def _short(value: float) -> str:
    """A number in at most four characters and a sign: `.12`, `1.2`, `12`."""
    if abs(value) >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2f}".replace("0.", ".", 1)
