"""Figures of the checks: removal curves, attention knockout, randomised models, settings, planted truths, seeds.

Takes the tidy tables of the checks; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.artists import (
    CONTROLS,
    OKABE_ITO,
    PLAIN,
    depth_bar,
    depth_colours,
    draw_cells,
    dress,
    effect_label,
    effect_scale,
    head_grid,
    head_name,
    ink_on,
    label_points,
    largest_size,
    linear_within,
    require_columns,
    require_heads,
    rows_where,
    shared_legend,
    symlog_ticks,
    tiles,
    true_minus,
)
from analysis.league_plots import CONTROL_INK, CORRELATION, grid_of, slant, table_cells
from analysis.method_plots import names_with_n

ENDS = {"most_first": "most important head first", "least_first": "least important head first"}
TRUTH_ORDER = "ablation_zero"
KNOCKOUT = "effect_var_pct"
KNOCKOUT_LABEL = "effect of hiding the region\n(% of the label variance)"
SENSITIVITY = {
    "spearman_with_default": "ρ with its own\nscores as set",
    "change_of_agreement": "change of its ρ\nwith the truth",
    "top_10_kept": "share kept of\nits first ten heads",
}


def removal_curves(
    curves: pd.DataFrame, *, methods: Sequence[str] | None = None, coloured: int = 5, control: str = "random"
) -> Figure:
    """Mean rise of the loss against the number of heads removed, in each method's order: from either end.

    In colour, with intervals: `methods`, or the `coloured` best by area (most first minus least first). The others are
    thin and grey, `control` is dashed, and the order of the truth itself, where the table has it, is black.
    """
    require_columns(curves, ("method", "order", "removed", "loss_rise_var_pct", "ci_low", "ci_high", "area"), "curves")
    if curves.duplicated(["method", "order", "removed"]).any():
        raise ValueError("curves: more than one row for a method, order and number removed, expected one")
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
    drawn = [0.0]
    for panel, (end, title) in zip(panels, ENDS.items(), strict=True):
        lines = dict(tuple(halves[end].sort_values("removed").groupby("method")))
        panel.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        for name in (name for name in present if name not in (*methods, *apart) and name in lines):
            line = lines[name]
            panel.plot(
                line["removed"], line["loss_rise_var_pct"], color="0.75", linewidth=0.8, zorder=1, label="other methods"
            )
        for name, style in ((control, {"color": "0.3", "linestyle": "--"}), (TRUTH_ORDER, {"color": "black"})):
            if name in lines and name not in methods:
                line = lines[name]
                panel.plot(line["removed"], line["loss_rise_var_pct"], linewidth=1.6, zorder=2, label=name, **style)
        for name in (name for name in methods if name in lines):
            line = lines[name]
            panel.fill_between(
                line["removed"], line["ci_low"], line["ci_high"], color=colours[name], alpha=0.13, linewidth=0, zorder=2
            )
            panel.plot(
                *(line["removed"], line["loss_rise_var_pct"]),
                *("o-",),
                color=colours[name],
                markersize=3,
                linewidth=1.5,
                zorder=4,
                label=name,
            )
            drawn += [*line["ci_low"], *line["ci_high"]]
        drawn += [*halves[end]["loss_rise_var_pct"]]
        dress(panel, "heads removed", "", title)
    label = "rise of the loss (% of the label variance)"
    effect_scale(panels[0], "y", drawn, label, linear_within(drawn))
    panels[0].yaxis.label.set_fontsize(9)
    known = panels[0].get_legend_handles_labels()[1]
    names = dict.fromkeys((*methods, TRUTH_ORDER, control, "other methods"))
    shared_legend(figure, panels[0], [name for name in names if name in known])
    return figure


def knockout_table(knockout: pd.DataFrame, *, regions: Sequence[str] | None = None) -> Figure:
    """For each region what a head loses when it cannot look there, and below it how much it looks there.

    One colour scale for all effects, one for all masses. A dot marks effects whose interval excludes 0.
    """
    tables = _by_region(knockout, regions, ("ci_low", "ci_high"))
    effects = {region: head_grid(table, KNOCKOUT, "knockout") for region, table in tables.items()}
    masses = {region: head_grid(table, "mass", "knockout") for region, table in tables.items()}
    num_layers, num_heads = (max(grid.shape[axis] for grid in effects.values()) for axis in (0, 1))
    strips, num_cols = tiles(len(tables), 4 if num_heads <= 6 else 2)
    width, height = max(1.6, 0.4 + 0.29 * num_heads), max(1.5, 0.6 + 0.22 * num_layers)
    figure = Figure((1.7 + num_cols * width, 0.3 + 2 * strips * height), layout="constrained")
    panels = figure.subplots(2 * strips, num_cols, squeeze=False)
    every = np.concatenate([grid.ravel() for grid in effects.values()])
    limit, linear = largest_size(every), linear_within(every)
    norm = Normalize(-limit, limit) if linear is None else SymLogNorm(linear, vmin=-limit, vmax=limit)
    looks = Normalize(0, largest_size(np.concatenate([grid.ravel() for grid in masses.values()])))
    images: dict[str, AxesImage] = {}
    used = {"effect": [], "mass": []}  # type: dict[str, list[Axes]]
    for at, (region, table) in enumerate(tables.items()):
        strip, col = divmod(at, num_cols)
        top, below = panels[2 * strip, col], panels[2 * strip + 1, col]
        images["effect"] = draw_cells(top, effects[region], norm, "RdBu_r", _short, 5.5)
        low, high = (head_grid(table, f"ci_{side}", "knockout") for side in ("low", "high"))
        layers, heads = np.nonzero((low > 0) | (high < 0))
        ink = [ink_on(images["effect"], value) for value in effects[region][layers, heads]]
        top.scatter(heads + 0.38, layers - 0.32, s=5, c=ink, linewidths=0, label="interval excludes 0")
        images["mass"] = draw_cells(below, masses[region], looks, "viridis", _short, 5.5)
        dress(top, "", "layer" if col == 0 else "", f"{region}: effect of hiding it")
        dress(below, "head", "layer" if col == 0 else "", f"{region}: attention on it")
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
    """How much a head looks at a region against what it loses when it cannot: a panel per region, a point per head."""
    tables = _by_region(knockout, regions, ())
    num_rows, num_cols = tiles(len(tables), 3)
    figure = Figure((1.4 + 2.8 * num_cols, 0.6 + 2.9 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_cols, squeeze=False, sharey=True).ravel()
    depth = depth_colours(knockout["layer"])
    pairs = []
    for panel, (region, table) in zip(panels, tables.items(), strict=False):
        panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        known = table.dropna(subset=["mass", KNOCKOUT])
        panel.scatter(
            known["mass"], known[KNOCKOUT], c=known["layer"], s=24, edgecolors="white", linewidths=0.3, **depth
        )
        panel.margins(0.12, 0.1)
        missing = len(table) - len(known)
        dress(panel, "attention on the region", "", region + (f" ({missing} heads without a value)" if missing else ""))
        pairs.append((panel, known))
    effect_scale(panels[0], "y", knockout[KNOCKOUT], KNOCKOUT_LABEL)
    label = panels[0].get_ylabel()
    panels[0].set_ylabel("")
    for panel in panels[len(tables) :]:
        panel.remove()
    figure.supylabel(label, fontsize=9, ma="center")
    depth_bar(figure, list(panels[: len(tables)]), depth)
    for panel, known in pairs:
        if len(known):
            names = [head_name(*pair) for pair in zip(known["layer"], known["head"], strict=True)]
            label_points(panel, known[["mass", KNOCKOUT]].to_numpy(float), names, labelled)
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
        low, high = (grid.to_numpy() for grid in grids[1:])
        rows, cols = np.nonzero((low > 0) | (high < 0))
        ink = [ink_on(image, value) for value in grids[0].to_numpy(float)[rows, cols]]
        panel.scatter(cols + 0.42, rows - 0.3, s=5, c=ink, linewidths=0, label="interval excludes 0")
        dress(panel, "", "", title)
        slant(panel)
    panels[1].tick_params(labelleft=False)
    _grey_names(panels[0], order, controls)
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
    names = names_with_n(table.groupby("method", sort=False)[["n"]].max())
    num_methods, num_variants = table["method"].nunique(), table["variant"].nunique()
    figure = Figure((2.6 + 3 * max(1.6, 0.56 * num_variants), 1.7 + 0.3 * num_methods), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (column, title) in zip(panels, SENSITIVITY.items(), strict=True):
        values = grid_of(table, "sensitivity", "method", "variant", column)
        values = values.set_axis([str(name).replace("_", " ") for name in values], axis=1)
        whole = column == "top_10_kept" and all_kept == 10
        title = title.replace("share", "number") if whole else title
        _distance_cells(
            panel, values.set_axis(names, axis=0), [ideals[column]] * values.shape[1], "g" if whole else ".2f"
        )
        dress(panel, "", "", f"{title}\n(ideal {ideals[column]:g})")
        slant(panel)
        panel.tick_params(labelleft=panel is panels[0])
    _distance_bar(figure, panels[-1])
    return figure


def planted_heatmap(
    planted: pd.DataFrame, *, ideals: Mapping[str, float] | None = None, controls: Iterable[str] = CONTROLS
) -> Figure:
    """Each method on models whose answer is known because it was planted; white is at the ideal.

    `ideals` maps a statistic to what a right method scores; 1 where it is silent.
    """
    require_columns(planted, ("method", "plant", "statistic", "value", "n"), "planted")
    best = dict(ideals or {})
    kinds = planted[["plant", "statistic"]].drop_duplicates().sort_values("plant", kind="stable")
    targets = [best.get(str(name), 1.0) for name in kinds["statistic"]]
    named = planted.assign(column=planted["plant"] + "|" + planted["statistic"])
    values = grid_of(named, "planted", "method", "column", "value")[[*(kinds["plant"] + "|" + kinds["statistic"])]]
    miss = (values - targets).abs().mean(axis=1)
    order = miss.sort_values(kind="stable", na_position="last").index
    names = names_with_n(planted.groupby("method")[["n"]].max().reindex(order))
    labels = [
        f"{plant}: {str(statistic).replace('_', ' ')} (ideal {ideal:g})"
        for plant, statistic, ideal in zip(kinds["plant"], kinds["statistic"], targets, strict=True)
    ]
    figure = Figure((3.4 + 0.8 * len(labels), 2.6 + 0.24 * len(values)), layout="constrained")
    ax = figure.add_subplot()
    _distance_cells(ax, values.reindex(order).set_axis(names, axis=0).set_axis(labels, axis=1), targets)
    dress(ax, "", "", "Planted truths: what each method finds, best first")
    slant(ax)
    _grey_names(ax, order, controls)
    _distance_bar(figure, ax)
    return figure


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


def _by_region(knockout: pd.DataFrame, regions: Sequence[str] | None, more: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The rows of each region, in the order asked for or of the table."""
    require_columns(knockout, ("layer", "head", "region", KNOCKOUT, "mass", *more), "knockout")
    names = list(dict.fromkeys(knockout["region"])) if regions is None else regions
    tables = {name: rows_where(knockout, "knockout", region=name) for name in names}
    for table in tables.values():
        require_heads(table, KNOCKOUT, "mass", table="knockout")
    return tables


def _short(value: float) -> str:
    """A number in at most four characters and a sign: `.12`, `1.2`, `12`."""
    if abs(value) >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2f}".replace("0.", ".", 1)


def _distance_cells(ax: Axes, values: pd.DataFrame, ideals: Sequence[float], form: str = ".2f") -> None:
    """Numbers coloured by their distance from the ideal of their column, in units of it where it is larger than 1."""
    target = np.asarray(ideals, dtype=np.float64)
    distance = (values - target).abs().div(np.maximum(1, np.abs(target)))
    table_cells(ax, distance, Normalize(0, 1), "Oranges")
    for text, value in zip(ax.texts, values.to_numpy(float).ravel(), strict=True):
        if np.isfinite(value):
            text.set_text(true_minus(f"{value:{form}}"))


def _distance_bar(figure: Figure, ax: Axes) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "Oranges"), ax=ax, extend="max", extendfrac=0.03, pad=0.03, aspect=30
    )
    bar.set_label("distance from the ideal", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _grey_names(ax: Axes, names: Iterable[str], controls: Iterable[str]) -> None:
    grey = set(controls)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        if name in grey:
            label.set(color=CONTROL_INK, style="italic")
