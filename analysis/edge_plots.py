"""The figure of edges between heads: those that carry most of what heads do by way of later heads.

Takes the table of ``edges`` of one or several runs; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from analysis.artists import OKABE_ITO, dress, require_columns
from attribution.edges import INPUTS

CARRIED = 0.8
MOST_DRAWN = 60
WIDEST = 5.0  # points, the largest edge of all panels
COLOURS = dict(zip(INPUTS, (OKABE_ITO[5], OKABE_ITO[1], OKABE_ITO[3]), strict=True))


def edge_map(edges: Mapping[str, pd.DataFrame], *, carried: float = CARRIED) -> Figure:
    """A panel a run: heads by layer and number, and the largest edges that together carry this share of the sizes of
    all exact ones. Width: size of the effect, on one scale; colour: by queries, keys or values; dashed: the loss falls
    when the edge is cut.

    At most 60 edges are drawn, and each panel says how many, and what share they carry.
    """
    tables = {name: largest(table, carried) for name, table in edges.items()}
    widest = max(float(found["effect_var_pct"].abs().max()) for found in tables.values())
    figure = Figure((max(5.2, 4.6 * len(tables)), 4.6), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False).ravel()
    for panel, (name, found) in zip(panels, tables.items(), strict=True):
        _draw(panel, found, edges[name], widest)
        whole = int(edges[name]["effect_var_pct"].notna().sum())
        told = f"{len(found)} of {whole} edges carry {100 * float(found['share_of_exact'].iloc[-1]):.0f} %"
        dress(panel, "layer", "head", f"{name}\n{told}" if name else told)
    handles = [Line2D([], [], color=colour, linewidth=2, label=f"by its {name}") for name, colour in COLOURS.items()]
    handles.append(Line2D([], [], color="0.3", linewidth=1.5, linestyle="--", label="the loss falls without it"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def largest(edges: pd.DataFrame, carried: float = CARRIED) -> pd.DataFrame:
    """The largest exact edges that carry a share of the sizes of all, at most 60."""
    require_columns(edges, ("sender_layer", "sender_head", "layer", "head", "input", "effect_var_pct"), "edges")
    known = edges[edges["effect_var_pct"].notna()]
    if known.empty:
        raise ValueError("edges: no exact edge")
    known = known.iloc[np.argsort(-known["effect_var_pct"].abs().to_numpy(), kind="stable")]
    share = known["effect_var_pct"].abs().cumsum() / known["effect_var_pct"].abs().sum()
    count = int((share < carried).sum()) + 1
    return known.assign(share_of_exact=share).head(min(count, MOST_DRAWN))


def _draw(panel: Axes, found: pd.DataFrame, edges: pd.DataFrame, widest: float) -> None:
    num_layers = int(max(edges["layer"].max(), edges["sender_layer"].max())) + 1
    num_heads = int(max(edges["head"].max(), edges["sender_head"].max())) + 1
    layer, head = (axis.ravel() for axis in np.indices((num_layers, num_heads)))
    panel.scatter(layer, head, s=12, color="0.85", zorder=1)
    for layers, heads in (("sender_layer", "sender_head"), ("layer", "head")):
        panel.scatter(found[layers], found[heads], s=26, color="0.25", zorder=3)
    for row in found.iloc[::-1].to_dict("records"):  # the largest on top
        arrow = FancyArrowPatch(
            (row["sender_layer"], row["sender_head"]),
            (row["layer"], row["head"]),
            connectionstyle=f"arc3,rad={0.12 + 0.1 * INPUTS.index(row['input'])}",
            arrowstyle="-|>",
            mutation_scale=7,
            linewidth=max(0.5, WIDEST * abs(row["effect_var_pct"]) / widest),
            linestyle="-" if row["effect_var_pct"] >= 0 else "--",
            color=COLOURS[row["input"]],
            alpha=0.75,
            shrinkA=3,
            shrinkB=4,
            zorder=2,
        )
        panel.add_patch(arrow)
    panel.set_xlim(-0.6, num_layers - 0.4)
    panel.set_ylim(num_heads - 0.4, -0.6)
    panel.set_xticks(range(num_layers))
    panel.set_yticks(range(num_heads))
