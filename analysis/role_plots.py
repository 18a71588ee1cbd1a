"""Figures of the roles of heads: what each looks at, and whether its attention follows the thing or keeps the place.

Takes the tidy tables of the roles; gives a `Figure` or draws on an `Axes`, by the conventions of `analysis.plots`.
A concept has one colour (Okabe-Ito) and a code of two letters, so that no reading hangs on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.stats import spearmanr

from analysis.artists import (
    EFFECT,
    OKABE_ITO,
    depth_bar,
    depth_colours,
    dress,
    effect_label,
    effect_scale,
    head_name,
    ink_on,
    new_axes,
    query_words,
    require_columns,
    require_heads,
    rows_where,
    tiles,
    true_minus,
)
from analysis.median_lines import median_lines
from analysis.point_labels import label_points, name_all

BLUE, ORANGE, GREEN, PINK, _, VERMILLION, YELLOW = OKABE_ITO  # no sky blue: a pale blue looks the same
KINDS = {"chirp": BLUE, "text": VERMILLION, "colorbar": GREEN, "edge": PINK, "corner": YELLOW, "sink": ORANGE}
CODES = dict(zip(KINDS, ("ch", "tx", "cb", "ed", "co", "si"), strict=True))
KINDS |= {"polysemantic": "0.3", "diffuse": "0.9"}
MARKS = {"detector": "D", "position prior": "P", "undecided": "?", "untested": "–"}
SHADES = {"detector": 1.0, "position prior": 0.5}  # of bars; the other verdicts are palest
MODELS = {"finetuned": "fine-tuned", "pretrained": "pretrained"}
DIFFERENCE = ["difference_var_pct", "ci_low", "ci_high"]
SLOPE = ["slope_var_pct_per_layer", "ci_low", "ci_high"]
LIFTS = ["lift_before", "lift_after"]
FLOOR = 0.01  # of a lift on a logarithmic axis
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}


def role_map(
    roles: pd.DataFrame, *, query: str = "cls", tau: float = 3.0, models: Sequence[str] = ("finetuned", "pretrained")
) -> Figure:
    """Layer x head map of the roles, a panel for each of `models` that the table has.

    Colour: the concept; shade: the evidence, clipped to 0..1 (palest: 0 or none). Texts: code of the concept and mark
    of the verdict ("+": unclassified), or the number of concepts of a polysemantic head. White: no row.
    """
    tables = {model: _heads(rows, tau) for model, rows in _by_model(roles, query, models).items()}
    every = pd.concat(tables.values())
    num_layers, num_heads = every[["layer", "head"]].max() + 1
    width = max(6.0, 0.9 + len(tables) * (0.2 + 0.36 * num_heads))
    figure = Figure((width, 2.1 + 0.25 * num_layers), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for panel, (model, table) in zip(panels, tables.items(), strict=True):
        cells = np.ones((num_layers, num_heads, 3))
        for row in table.to_dict("records"):
            kind, place, more = row["kind"], (row["layer"], row["head"]), "+" * (row["semanticity"] == "unclassified")
            cells[place] = _colour(kind, row["evidence"])
            mark = str(row["count"]) if kind == "polysemantic" else MARKS.get(row["verdict"], "–")
            ink = "0.5" if kind == "diffuse" else _ink(cells[place])
            panel.text(*place[::-1], f"{CODES.get(kind, '')} {mark}{more}".strip(), color=ink, **CENTRED)
        panel.imshow(cells, aspect="auto", interpolation="nearest")
        panel.set(xticks=range(num_heads), yticks=range(num_layers))
        dress(panel, "head", "layer" if panel is panels[0] else "", MODELS.get(model, model))
    figure.suptitle(f"Roles of the heads ({query_words(query)}, τ = {tau:g})", fontsize=10)
    _role_legend(figure, set(every["kind"]), "shades: evidence 0 or none, 0.5, 1    + and others    number: concepts")
    return figure


def lifts_before_after(concepts: pd.DataFrame, *, query: str = "cls", labelled: int = 4) -> Figure:
    """Lift of each concept before and after fine-tuning: a panel per concept, a point per head, logarithmic axes.

    A concept that no head has both lifts of has no panel, unless no concept has one. Lifts below 0.01 are drawn at
    0.01; Spearman's rho is that of the lifts themselves. Lines: no change, and chance (lift 1). Named are the
    `labelled` heads with the largest ratio of the two lifts.
    """
    _require_once(concepts, "concepts", ["layer", "head", "model", "query", "concept"], ["lift"])
    rows = rows_where(concepts, "concepts", query=query)
    sides = [rows_where(rows, "concepts", model=model) for model in ("pretrained", "finetuned")]
    pairs = sides[0].merge(sides[1], on=["concept", "layer", "head"], suffixes=("_before", "_after"))
    pairs = pairs.dropna(subset=LIFTS)
    every = list(dict.fromkeys(rows["concept"]))
    names = [name for name in every if (pairs["concept"] == name).any()] or every
    limits = np.quantile(np.append(pairs[LIFTS].clip(FLOOR), [0.4, 2.5]), (0, 1)) * (1 / 1.4, 1.4)
    figure, panels = _grid_of_panels(len(names), 3, (2.4, 2.6))
    depth, named = depth_colours(rows["layer"]), []
    for panel, name in zip(panels, names, strict=True):
        both = pairs[pairs["concept"] == name]
        points = both[LIFTS].clip(FLOOR).to_numpy(float)
        panel.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=(1,) if limits[1] / limits[0] > 100 else (1, 3)))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"≤{FLOOR:g}" if v < FLOOR * 1.01 else f"{v:g}"))
            axis.set_minor_formatter(NullFormatter())
        panel.axline((1, 1), (2, 2), color="0.5", linewidth=0.8, linestyle="--", zorder=1)
        panel.axhline(1, color="0.85", linewidth=0.8, zorder=0)
        panel.axvline(1, color="0.85", linewidth=0.8, zorder=0)
        panel.scatter(points[:, 0], points[:, 1], c=both["layer"], s=20, edgecolors="white", linewidths=0.3, **depth)
        varied = len(both) > 2 and (both[LIFTS].nunique() > 1).all()
        rho = true_minus(f"{spearmanr(*both[LIFTS].to_numpy().T).statistic:.2f}") if varied else "–"
        note = f"Spearman ρ = {rho}, {len(both)} heads" if len(both) else "no head with both lifts"
        dress(panel, None, None, f"{name}\n{note}")
        most = np.argsort(-np.abs(np.diff(np.log(points), axis=1)[:, 0]), kind="stable")[:labelled]
        named.append((panel, points, most, [head_name(*pair) for pair in both[["layer", "head"]].to_numpy()[most]]))
    depth_bar(figure, panels, depth)
    figure.supxlabel(f"lift before fine-tuning ({query_words(query)}, 1 = chance)", fontsize=9)
    figure.supylabel("lift after fine-tuning (1 = chance)", fontsize=9)
    for panel, points, most, heads in named:
        diagonal = np.column_stack([limits, limits])
        name_all(panel, points[most], heads, points, [diagonal], np.zeros(len(most), dtype=bool))
    return figure


def quadrant_by_role(
    scorecard: pd.DataFrame,
    roles: pd.DataFrame,
    *,
    ax: Axes | None = None,
    query: str = "cls",
    tau: float = 3.0,
    effect: str = EFFECT,
    labelled: int = 16,
) -> Axes:
    """Overlap with the chirp against the effect of removal, a point per head: colour the concept, marker the verdict.

    Roles are those of the fine-tuned model. Dashed: medians over heads. Named: the `labelled` heads farthest out.
    """
    looks = "iou_chirp_adjusted"
    require_heads(scorecard, looks, effect)
    heads = _heads(_by_model(roles, query, ("finetuned",))["finetuned"], tau)
    table = scorecard[["layer", "head", looks, effect]].merge(heads, on=["layer", "head"], how="left")
    for row in table[table["kind"].isna()].itertuples():
        raise ValueError(f"roles: no row for {head_name(row.layer, row.head)}, expected one for every head scored")
    known = table.dropna(subset=[looks, effect])
    ax = new_axes(ax, 8.4, 5.4)
    for (kind, verdict), group in known.groupby(["kind", "verdict"], sort=False):
        ax.scatter(group[looks], group[effect], label=f"{kind} {verdict}".strip(), **_point(str(kind), str(verdict)))
    effect_scale(ax, "y", known[effect], effect_label(effect))
    missing = f"; {len(table) - len(known)} heads without a value" if len(known) < len(table) else ""
    title = f"Where a head looks, and whether it helps ({query_words(query)}, τ = {tau:g}{missing})"
    dress(ax, "adjusted IoU with the chirp (0 = chance)", None, title)
    if known.empty:
        ax.text(0.5, 0.5, "no head has both values", transform=ax.transAxes, ha="center", color="0.4")
        return ax
    ax.margins(0.09, 0.13)
    median_lines(ax, known[looks], known[effect])
    key = {kind: _point(kind, "detector") for kind in sorted(set(known["kind"]), key=list(KINDS).index)}
    key |= {name: {**_point("chirp", name), "color": "0.3"} for name in (*SHADES, "undecided or untested")}
    entries = [ax.scatter([], [], **look) for look in key.values()]
    ax.legend(entries, list(key), loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    names = [head_name(*pair) for pair in known[["layer", "head"]].to_numpy()]
    label_points(ax, known[[looks, effect]].to_numpy(float), names, labelled)
    return ax


def role_counts(roles: pd.DataFrame, *, query: str = "cls") -> Figure:
    """How many heads have each role, a bar per threshold tau, a panel per model; numbers where there is room."""
    models = _by_model(roles, query, list(MODELS))
    bars = {model: {tau: _heads(rows, tau) for tau in sorted(rows["tau"].unique())} for model, rows in models.items()}
    rows = [len(taus) + 0.4 for taus in bars.values()]
    figure = Figure((7.6, 1.9 + 0.4 * len(bars) + 0.36 * sum(rows)), layout="constrained")
    panels = figure.subplots(len(bars), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    pieces = []
    for panel, (model, taus) in zip(panels, bars.items(), strict=True):
        for at, heads in enumerate(taus.values()):
            sizes, left = heads.groupby(["kind", "verdict"]).size(), 0
            for kind, verdict in ((k, v) for k in KINDS for v in (*MARKS, "") if (k, v) in sizes):
                count, colour = int(sizes[kind, verdict]), _colour(kind, SHADES.get(verdict, 0.0))
                role = f"{kind} {verdict}".strip()
                (bar,) = panel.barh(at, count, 0.82, left, color=colour, edgecolor="white", label=role)
                text = f"{MARKS.get(verdict, '–')}\n{count}" if kind in CODES else str(count)
                pieces.append((bar, panel.text(left + count / 2, at, text, color=_ink(colour), **CENTRED)))
                left += count
        names = [f"τ = {tau:g}" for tau in taus]
        panel.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        panel.spines[["top", "right", "left"]].set_visible(False)
        dress(panel, "number of heads" if panel is panels[-1] else "", "", MODELS.get(model, model))
    every = [heads for taus in bars.values() for heads in taus.values()]
    panels[0].set_xlim(0, max(map(len, every)))
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"Roles of the heads ({query_words(query)})", fontsize=10)
    _role_legend(figure, set(pd.concat(every)["kind"]), "shades: undecided or untested, position prior, detector")
    figure.draw_without_rendering()  # settles the layout, so that the width of a bar is final
    for bar, label in pieces:
        if label.get_window_extent().width > bar.get_window_extent().width - 1:
            label.remove()
    return figure


def distraction_profile(distraction: pd.DataFrame, slopes: pd.DataFrame) -> Figure:
    """What an item of the picture changes in the effect of a layer's heads: a panel per item, intervals as bars.

    Drawn are the rows of whole layers (no head). Each title has the slope over layers with its interval.
    """
    require_columns(distraction, ("head",), "distraction")
    layers = distraction[distraction["head"].isna()].sort_values("layer", kind="stable")
    _require_once(layers, "distraction", ["item", "layer"], DIFFERENCE)
    _require_once(slopes, "distraction_slopes", ["item"], SLOPE)
    trends = slopes.set_index("item")[SLOPE]
    figure, panels = _grid_of_panels(layers["item"].nunique(), 4, (2.3, 2.2))
    for panel, (item, rows) in zip(panels, layers.groupby("item", sort=False), strict=True):
        panel.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        panel.vlines(rows["layer"], rows["ci_low"], rows["ci_high"], colors=BLUE, linewidth=2, alpha=0.5, zorder=2)
        panel.plot(rows["layer"], rows[DIFFERENCE[0]], "o-", color=BLUE, linewidth=0.8, markersize=4, zorder=3)
        trend = trends.reindex([item]).to_numpy(float)[0]
        title = "slope {:.4f} [{:.4f}, {:.4f}]".format(*trend) if np.isfinite(trend[0]) else "no slope"
        dress(panel, "", "", f"{str(item).replace('_', ' ')}\n{true_minus(title)}")
    effect_scale(panels[0], "y", layers[DIFFERENCE].to_numpy(float).ravel(), "(% of the label variance)")
    label = f"effect with minus effect without the item\n{panels[0].get_ylabel()}"
    panels[0].set_ylabel("")
    panels[0].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    figure.supylabel(label, fontsize=9, ma="center")
    figure.supxlabel("layer (mean of its heads; bar: interval; slope: per layer)", fontsize=9)
    return figure


def _by_model(roles: pd.DataFrame, query: str, models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The rows of each of these models that the table has; ValueError where it has none of them."""
    columns = ("layer", "head", "model", "query", "tau", "semanticity", "concepts", "verdict", "evidence")
    require_columns(roles, columns, "roles")
    rows = rows_where(roles, "roles", query=query)
    tables = {model: rows[rows["model"] == model] for model in models if (rows["model"] == model).any()}
    if not tables:
        raise ValueError(f"roles: no rows with model {' or '.join(models)}")
    return tables


def _heads(rows: pd.DataFrame, tau: float) -> pd.DataFrame:
    """The heads at one threshold, with `kind` (the one concept, polysemantic or diffuse) and `count` of concepts."""
    rows = rows_where(rows.assign(tau=rows["tau"].map("{:g}".format)), "roles", tau=f"{tau:g}")
    require_heads(rows, "evidence", table="roles")
    names, verdict = (rows[column].astype(object).fillna("") for column in ("concepts", "verdict"))  # empty cells
    kind = rows["semanticity"].where(rows["semanticity"].isin(["polysemantic", "diffuse"]), names)
    for column, found, known in (("concepts, semanticity", kind, KINDS), ("verdict", verdict, ("", *MARKS))):
        for other in found[~found.isin(list(known))]:
            raise ValueError(f"roles: {column}: unknown {other!r}, expected one of {', '.join(filter(None, known))}")
    heads = rows[["layer", "head", "semanticity", "evidence"]].astype({"layer": int, "head": int, "evidence": float})
    return heads.assign(kind=kind, verdict=verdict, count=names.str.count(";") + 1)


def _require_once(table: pd.DataFrame, name: str, key: list[str], columns: list[str]) -> None:
    require_columns(table, (*key, *columns), name)
    if table.duplicated(key).any():
        raise ValueError(f"{name}: more than one row for the same {', '.join(key)}, expected one")


def _grid_of_panels(count: int, most: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Panels of this size (inches) with shared axes; the lowest of each column keeps its numbers."""
    num_rows, num_cols = tiles(count, most)
    figure = Figure((1.3 + num_cols * size[0], 0.6 + num_rows * size[1]), layout="constrained")
    panels = figure.subplots(num_rows, num_cols, squeeze=False, sharex=True, sharey=True).ravel()
    for at, panel in enumerate(panels[count:], count):
        panels[at - num_cols].tick_params(labelbottom=True)
        panel.remove()
    return figure, list(panels[:count])


def _colour(kind: str, share: float) -> Any:
    """RGB of a kind; that of a concept from palest (share 0 or none) to full (1)."""
    depth = 0.35 + 0.65 * np.clip(np.nan_to_num(share), 0, 1) if kind in CODES else 1.0
    return 1 - depth * (1 - np.array(to_rgb(KINDS[kind])))


def _ink(colour: Any) -> str:
    return ink_on(ScalarMappable(Normalize(0, 1), ListedColormap([colour])), 0.0)


def _point(kind: str, verdict: str) -> dict[str, Any]:
    """How `scatter` draws a head of this kind and verdict."""
    if kind == "diffuse":
        return {"color": "0.7", "s": 9, "linewidths": 0, "zorder": 2}
    hollow = {} if verdict in SHADES or kind == "polysemantic" else {"facecolors": "white", "linewidths": 1.4}
    marker = "D" if kind == "polysemantic" else "s" if verdict == "position prior" else "o"
    return {"color": KINDS[kind], "marker": marker, "s": 34, "zorder": 3, **hollow}


def _role_legend(figure: Figure, kinds: set[str], note: str) -> None:
    """Colours, shades and marks of the roles below all panels."""
    names = sorted(kinds, key=list(KINDS).index)
    swatches: list[Any] = [tuple(Patch(color=_colour(kind, share)) for share in (0, 0.5, 1)) for kind in names]
    labels = [f"{kind} ({CODES[kind]})" if kind in CODES else kind for kind in names]
    marks = "    ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items()) + " or none"
    look: dict[str, Any] = {"title": f"{marks}\n{note}", "title_fontsize": 8, "fontsize": 8, "frameon": False}
    handler = {tuple: HandlerTuple(ndivide=None, pad=0)}
    figure.legend(swatches, labels, loc="outside lower center", ncols=4, handler_map=handler, **look)


def role_swap_dots(table: pd.DataFrame, *, query: str = "cls") -> Figure:
    """Where the heads that matter look, in two tasks: lift weighted by effect; how many of the top ten look there."""
    columns = ("run", "query", "region", "lift_of_what_matters", "lift_of_all", "num_top_10_above_3")
    require_columns(table, columns, "role_swap")
    found = rows_where(table, "role_swap", query=query)
    regions, runs = list(dict.fromkeys(found["region"])), list(dict.fromkeys(found["run"]))
    figure = Figure((9.0, 1.5 + 0.42 * len(regions)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(0.6, 0.4))
    places = np.arange(len(regions))[::-1]
    for number, run in enumerate(runs):
        rows = found[found["run"] == run].set_index("region").reindex(regions)
        shift = 0.12 - 0.24 * number
        look: dict[str, Any] = {"color": OKABE_ITO[number], "zorder": 3}
        left.scatter(rows["lift_of_what_matters"], places + shift, s=46, label=f"{run}: heads that matter", **look)
        left.scatter(
            rows["lift_of_all"], places + shift, s=30, facecolors="none", edgecolors=OKABE_ITO[number], zorder=2,
            label=f"{run}: all heads",
        )  # fmt: skip
        right.barh(places + shift, rows["num_top_10_above_3"], height=0.22, label=run, **look)
    left.axvline(1, color="0.8", linewidth=0.8, zorder=0)
    left.set_xscale("log")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set_yticks(places, [region.replace("_", " ") for region in regions])
    dress(left, "lift of attention (1 = chance, log scale)", "", "Where they look")
    dress(right, "of the ten heads that matter most", "", "Lift of 3 or more")
    right.set_xlim(0, 10.4)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
