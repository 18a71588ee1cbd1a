"""A figure a claim: what was published, what the released procedure gives, what was measured, and where the plan draws
its lines.

Takes the tables of :mod:`analysis.claims`; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.artists import GREY, OKABE_ITO, dress, effect_scale, linear_within
from analysis.plan import read_plan

# Of the study, in the units of the quantities (0.11 % and 0.34 % of a baseline of 2465.65, label variance 654).
PUBLISHED = {
    "mean effect of layers 1-3": 0.41,
    "sd over their heads": 0.34,
    "effect of layer 6 over that of layers 1-3": 3.1,
}
WIDTH = 46


def claim_figure(table: pd.DataFrame, verdicts: pd.DataFrame, claim: str) -> Figure:
    """Every quantity of a claim, a panel each, a row a run. ValueError for a claim that the tables do not have."""
    found = table[table["claim"] == claim]
    if found.empty:
        raise ValueError(f"claims: no rows of {claim}")
    quantities = list(dict.fromkeys(found["quantity"]))
    runs = list(dict.fromkeys(found["run"]))
    presets = list(dict.fromkeys(found["preset"]))
    num_columns = min(2, len(quantities))
    num_rows = -(-len(quantities) // num_columns)
    figure = Figure(
        (5.4 * num_columns if num_columns > 1 else 6.8, 1.3 + num_rows * (1.3 + 0.3 * len(runs))), layout="constrained"
    )
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax, quantity in zip(panels[: len(quantities)], quantities, strict=True):
        _panel(ax, found[found["quantity"] == quantity], quantity, runs, presets)
    for ax in panels[len(quantities) :]:
        ax.remove()
    _limits(list(panels[: len(quantities)]), claim, quantities)
    told = verdicts[verdicts["claim"] == claim]
    judged = "; ".join(f"{row['preset']} pictures: {row['verdict']}" for _, row in told.iterrows())
    figure.suptitle(f"{claim}: {read_plan()[claim]['claim']}\n{judged}", fontsize=11)
    known: dict[str, Artist] = {}
    for ax in panels[: len(quantities)]:
        for artist, label in zip(*ax.get_legend_handles_labels(), strict=True):
            known[label] = artist
    if known:
        figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, quantity: str, runs: list[str], presets: list[str]) -> None:
    by_run = {str(row["run"]): row for row in rows.to_dict("records")}
    drawn: list[float] = []
    for place, run in enumerate(runs):
        row = by_run.get(run)
        if row is None or np.isnan(row["value"]):
            ax.text(0.5, place, "not tested", transform=ax.get_yaxis_transform(), ha="center", va="center", color=GREY)
            continue
        colour = OKABE_ITO[presets.index(row["preset"]) % len(OKABE_ITO)]
        label = f"measured, {row['preset']} pictures"
        if np.isfinite(row["ci_low"]):
            ax.hlines(place, row["ci_low"], row["ci_high"], color=colour, linewidth=2)
            drawn += [row["ci_low"], row["ci_high"]]
        ax.plot(row["value"], place, "o", color=colour, markersize=6, label=label)
        drawn.append(row["value"])
    released = rows["as_released"].dropna()
    if len(released):
        ax.axvline(released.iloc[0], color="0.35", linestyle=":", linewidth=1.6, label="released procedure")
        drawn.append(released.iloc[0])
    if quantity in PUBLISHED:
        ax.axvline(PUBLISHED[quantity], color="black", linestyle="--", linewidth=1.2, label="published")
        drawn.append(PUBLISHED[quantity])
    ax.set_yticks(range(len(runs)), runs)
    ax.set_ylim(len(runs) - 0.5, -0.5)
    unit = rows["unit"].dropna()
    dress(ax, None, "", fill(quantity, WIDTH))
    label = unit.iloc[0] if len(unit) else ""
    if drawn and max(abs(value) for value in drawn) > 20 * max(1e-9, float(np.median(np.abs(drawn)))):
        effect_scale(ax, "x", drawn, label, linear_within(drawn))
    else:
        ax.set_xlabel(label, fontsize=9)


def _limits(panels: Sequence[Axes], claim: str, quantities: list[str]) -> None:
    """What the plan asks of a quantity: a band or a line."""
    plan = read_plan()[claim]
    for ax, quantity in zip(panels, quantities, strict=True):
        if claim == "C1" and quantity.startswith("mean"):
            ax.axvspan(-plan["margin_var_pct"], plan["margin_var_pct"], color="0.92", zorder=0, label="margin")
        elif claim == "C2":
            ax.axvline(plan["ratio"], color="0.6", linewidth=1, zorder=0, label="to lie within the interval")
            ax.axvline(plan["excluded"], color="0.8", linewidth=1, zorder=0, label="to lie outside")
        elif claim == "C3" and quantity.startswith("share"):
            ax.axvline(plan["least_share"], color="0.6", linewidth=1, zorder=0, label="asked")
        elif claim == "C4":
            ax.axvline(plan["least_heads"], color="0.6", linewidth=1, zorder=0, label="asked")
        elif claim == "C5":
            least = plan["least_kappa"] if quantity.startswith("kappa") else plan["least_confirmed"]
            ax.axvline(least, color="0.6", linewidth=1, zorder=0, label="asked")
        elif claim == "C6":
            ax.axvline(0, color="0.6", linewidth=1, zorder=0, label="0")
