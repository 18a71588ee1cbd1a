"""Figures of the audit: what each fault does to the layer trend, what the order does, and what maps as released show.

Takes the tables of :mod:`analysis.audit`; gives a `Figure`, or writes them all. The conventions are those of
`analysis.plots`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.artists import GREY, OKABE_ITO, dress, effect_scale, linear_within, shared_legend
from analysis.audit import AS_RELEASED_NAME, CONFIGURATIONS, MAPS, SHUFFLED, TRUE_NAME, order_name
from analysis.claim_plots import STUDY_LAYERS

PARTS = {"early": "layers 1 to 3", "sixth": "layer 6", "late": "layers 6 to 12"}
INCREASE = "mean increase of the loss per head (% of the label variance)"
AUDIT_FIGURES = ("faults", "orders", "maps")
WORDS = {AS_RELEASED_NAME: "as released", TRUE_NAME: "true ablation"}
MAP_WORDS = {
    "cls": "CLS query",
    "patch_mean": "mean of the patch queries",
    "as_released": "the same, min-max scaled",
    "patch_0": "query of the first patch",
}


def audit_figures(scenarios: pd.DataFrame, trend: pd.DataFrame, maps: pd.DataFrame | None) -> dict[str, Figure]:
    """``faults``, ``orders`` and, with maps, ``maps``, by name."""
    figures = {"faults": faults_figure(trend), "orders": orders_figure(scenarios)}
    if maps is not None:
        figures["maps"] = maps_figure(maps)
    return figures


def faults_figure(trend: pd.DataFrame) -> Figure:
    """Mean increase of the study's groups of layers in every configuration, original order."""
    rows = trend[trend["order"] == order_name(0)].set_index("configuration")
    names = [name for name in CONFIGURATIONS if name in rows.index]
    figure = Figure((9.0, 1.6 + 0.36 * len(names)), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(names))[::-1]
    values = rows.loc[names, [f"{part}_var_pct" for part in PARTS]].to_numpy()
    for number, (part, words) in enumerate(PARTS.items()):
        found = rows.loc[names, f"{part}_var_pct"].to_numpy()
        ax.scatter(found, places + 0.2 - 0.2 * number, color=OKABE_ITO[number], s=26, label=words, zorder=3)
    for place in places:
        ax.axhline(place - 0.5, color="0.92", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    ax.set_yticks(places, [_words(name) for name in names])
    ax.set_ylim(-0.6, len(names) - 0.4)
    dress(ax, None, "", f"What each fault makes of the layer trend\n{STUDY_LAYERS}")
    effect_scale(ax, "x", values, INCREASE, linear_within(values))
    shared_legend(figure, ax, list(PARTS.values()))
    return figure


def _words(name: str) -> str:
    if name in WORDS:
        return WORDS[name]
    kind, _, fault = name.partition("_")
    words = fault.replace("_", " ").replace("finetuned", "fine-tuned")
    return f"only: {words}" if kind == "only" else f"released without: {words}"


def orders_figure(scenarios: pd.DataFrame) -> Figure:
    """Increase of every scenario against its layer and against its place in the order, for the repeated ones."""
    names = [name for name in SHUFFLED if (scenarios["configuration"] == name).any()]
    figure = Figure((9.6, 3.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for name, (left, right) in zip(names, panels, strict=True):
        found = scenarios[scenarios["configuration"] == name]
        orders = list(dict.fromkeys(found["order"]))
        for order in orders[::-1]:
            rows = found[found["order"] == order].sort_values("position")
            first = order == order_name(0)
            style = {"color": OKABE_ITO[0], "linewidth": 2.0} if first else {"color": GREY, "linewidth": 1.0}
            label = "order as released" if first else "shuffled orders"
            by_layer = rows.groupby("layer")["increase_pct"].mean()
            left.plot(by_layer.index, by_layer, **style, zorder=3 if first else 2, label=label)
            right.plot(rows["position"], rows["increase_pct"], **style, zorder=3 if first else 2, label=label)
        for ax, xlabel in ((left, "layer (from 0), mean of its heads"), (right, "place in the order")):
            ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            dress(ax, xlabel, "increase of the loss (% of the baseline)", WORDS[name])
            ax.yaxis.label.set_fontsize(9)
    shared_legend(figure, panels[0, 0], ["order as released", "shuffled orders"])
    return figure


def maps_figure(maps: pd.DataFrame) -> Figure:
    """Lift on the chirp of every head under each kind of map, against that under the CLS query."""
    wide = maps.pivot(index=["layer", "head"], columns="map", values="chirp_lift")
    others = [name for name in MAPS if name != "cls"]
    figure = Figure((3.3 * len(others) + 0.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(others), sharex=True, sharey=True)
    limit = float(np.nanmax(wide.to_numpy())) * 1.05
    for ax, name in zip(panels, others, strict=True):
        ax.plot([0, limit], [0, limit], color="0.8", linewidth=0.8, zorder=0)
        ax.axhline(3, color="0.9", linewidth=0.8, zorder=0)
        points = ax.scatter(
            wide["cls"], wide[name], c=wide.index.get_level_values("layer"), cmap="viridis", s=20, zorder=2
        )
        dress(ax, "lift on the chirp, CLS query", "", MAP_WORDS[name])
        ax.set(xlim=(0, limit), ylim=(0, limit))
    panels[0].set_ylabel("lift on the chirp", fontsize=9)
    figure.colorbar(points, ax=panels, label="layer")
    return figure
