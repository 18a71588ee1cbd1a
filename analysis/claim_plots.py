"""A figure a claim: what was published, what the released procedure gives, what was measured in each model and what
that says, where the plan draws its lines, and what leaving one picture out or trimming makes of it.

Takes the tables of :mod:`analysis.claim_tables`; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.artists import GREY, OKABE_ITO, dress, effect_scale, linear_within
from analysis.plan import read_plan
from analysis.verdict_rules import BESIDE, GUARD, MEASURED_ONLY, PCT_OF_LOSS, VERSION_1, rule_of

# Of the study, in the units of the quantities (0.11 % and 0.34 % of a baseline of 2465.65, label variance 654).
PUBLISHED = {
    "mean effect of layers 1-3": 0.41,
    "sd over their heads": 0.34,
    "mean effect of layers 1-3 over the study's own": 1.0,
    "effect of layer 6 over that of layers 1-3": 3.1,
}
STUDY_LAYERS = "layers as the study counts them, from 1 (its layers 1-3 are L0-L2)"
WIDTH = 44
MOST_TICKS = 5
BAND = "0.9"
OFFSET = 0.27  # of a row, to the trimmed mean above and to what is left without one below

Row = Mapping[Hashable, Any]


def claim_figure(table: pd.DataFrame, verdicts: pd.DataFrame, claim: str) -> Figure:
    """Every quantity of a claim, a panel each, a row a run; but what version 1 of the plan judged by. Quantities that
    differ in their last word alone share one range. The title says how layers are counted where a quantity counts them.
    ValueError for a claim that the tables do not have."""
    found = table[(table["claim"] == claim) & (table["part"] != VERSION_1) & (table["quantity"] != PCT_OF_LOSS)]
    if found.empty:
        raise ValueError(f"claims: no rows of {claim}")
    quantities = list(dict.fromkeys(found["quantity"]))
    runs = list(dict.fromkeys(found["run"]))
    presets = list(dict.fromkeys(found["preset"]))
    num_columns = min(2, len(quantities))
    num_rows = -(-len(quantities) // num_columns)
    figure = Figure((4.8 * num_columns, 1.7 + num_rows * (1.4 + 0.42 * len(runs))), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, gridspec_kw={"wspace": 0.04}).ravel()
    kinds: dict[tuple[str, str], list[tuple[Axes, str]]] = {}
    drawn: dict[tuple[str, str], list[float]] = {}
    for ax, quantity in zip(panels[: len(quantities)], quantities, strict=True):
        rows = found[found["quantity"] == quantity]
        units = rows["unit"].dropna()
        kind = (quantity.rpartition(" ")[0] or quantity, str(units.iloc[0]) if len(units) else "")
        kinds.setdefault(kind, []).append((ax, quantity))
        drawn.setdefault(kind, []).extend(_panel(ax, rows, quantity, runs, presets))
    for kind, alike in kinds.items():
        _scale(alike, claim, kind[1], drawn[kind])
    for ax in panels[len(quantities) :]:
        ax.remove()
    told = verdicts[verdicts["claim"] == claim]
    judged = "; ".join(f"{row['preset']} pictures: {row['verdict']}" for _, row in told.iterrows())
    title = f"{claim}: {read_plan()[claim]['claim']}\n{judged}"
    if any(re.search(r"\blayers? \d", quantity) for quantity in quantities):
        title += f"\n{STUDY_LAYERS}"
    figure.suptitle("\n".join(fill(line, 52 * num_columns) for line in title.splitlines()), fontsize=10)
    known: dict[str, Artist] = {}
    for ax in panels[: len(quantities)]:
        for artist, label in zip(*ax.get_legend_handles_labels(), strict=True):
            known.setdefault(label, artist)
    if known:
        columns = 3 if num_columns > 1 else 2
        figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=columns, fontsize=8,
                      frameon=False)  # fmt: skip
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, quantity: str, runs: list[str], presets: list[str]) -> list[float]:
    """All of a panel but its scale. Gives the numbers drawn."""
    by_run = {str(row["run"]): row for row in rows.to_dict("records")}
    drawn: list[float] = []
    for place, run in enumerate(runs):
        row = by_run.get(run)
        if row is not None and np.isfinite(row["value"]):
            drawn += _measured(ax, row, place, OKABE_ITO[presets.index(row["preset"]) % len(OKABE_ITO)])
        else:
            ax.text(0.5, place, "not tested", transform=ax.get_yaxis_transform(), ha="center", va="center", color=GREY)
        if row is not None and row["word"]:
            ax.text(1.02, place, row["word"], transform=ax.get_yaxis_transform(), ha="left", va="center", fontsize=8)
    for label, style, value in _references(rows, quantity):
        ax.axvline(value, color="0.35", linestyle=style, linewidth=1.4, label=label)
        drawn.append(value)
    ax.set_yticks(range(len(runs)), runs)
    ax.set_ylim(len(runs) - 0.5, -0.5)
    part = str(rows["part"].iloc[0])
    told = {BESIDE: "beside: ", GUARD: "guard: ", MEASURED_ONLY: "beside: "}.get(part, "")
    dress(ax, None, "", fill(told + quantity, WIDTH))
    return drawn


def _scale(alike: list[tuple[Axes, str]], claim: str, unit: str, drawn: list[float]) -> None:
    """Label, ticks and range of panels of one kind, from the numbers drawn in any of them, with the claimed ranges."""
    if not drawn:
        for ax, _ in alike:
            ax.set_xticks([])
        return
    heavy = max(abs(value) for value in drawn) > 20 * max(1e-9, float(np.median(np.abs(drawn))))
    for ax, _ in alike:
        if heavy:
            effect_scale(ax, "x", drawn, unit, linear_within(drawn))
        else:
            ax.set_xlabel(unit, fontsize=9)
        if ax.get_xscale() == "linear":
            ax.xaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=unit == "heads"))
    claimed = {quantity: rule.claimed for _, quantity in alike if (rule := rule_of(claim, quantity)) is not None}
    ends = [end for range_ in claimed.values() for end in (range_.low, range_.high) if np.isfinite(end)]
    shown = [*drawn, *ends]
    margin = 0.06 * ((max(shown) - min(shown)) or abs(max(shown)) or 1.0) if ends else np.nan
    limits = np.array([ax.get_xlim() for ax, _ in alike])
    low, high = np.fmin(limits[:, 0].min(), min(shown) - margin), np.fmax(limits[:, 1].max(), max(shown) + margin)
    for ax, quantity in alike:
        if quantity in claimed:
            start, stop = max(claimed[quantity].low, low), min(claimed[quantity].high, high)
            ax.axvspan(start, stop, color=BAND, zorder=0, label="what is claimed")
        ax.set_xlim(low, high)


def _measured(ax: Axes, row: Row, place: int, colour: str) -> list[float]:
    """The value with its interval, filled where no single picture or head changes its word; above it the trimmed mean,
    below it, where one does, what is left without. Gives the numbers drawn."""
    drawn = [row["value"], *_interval(ax, row, "", place, colour, 2.0)]
    is_fragile = row["changes_without_one"] == "yes"
    ax.plot([], [], "o", color=colour, markersize=6, label=f"measured, {row['preset']} pictures")
    inside = "white" if is_fragile else colour
    ax.plot(row["value"], place, "o", color=colour, markerfacecolor=inside, markersize=6, zorder=3)
    if is_fragile:
        ax.plot(
            [], [], "o", color=GREY, markerfacecolor="white", markersize=6, label="one picture (head) changes the word"
        )
        limits = _interval(ax, row, "without_", place + OFFSET, GREY, 1.0)
        ax.plot(row["without_value"], place + OFFSET, "x", color=GREY, markersize=5, label="without that one")
        drawn += [row["without_value"], *limits]
    if np.isfinite(row["trimmed_value"]):
        limits = _interval(ax, row, "trimmed_", place - OFFSET, GREY, 1.0)
        ax.plot(row["trimmed_value"], place - OFFSET, "d", color=GREY, markersize=4, label="10 % trimmed mean")
        drawn += [row["trimmed_value"], *limits]
    return drawn


def _interval(ax: Axes, row: Row, kind: str, place: float, colour: str, width: float) -> list[float]:
    low, high = row[f"{kind}ci_low"], row[f"{kind}ci_high"]
    if not (np.isfinite(low) and np.isfinite(high)):
        return []
    ax.hlines(place, low, high, color=colour, linewidth=width)
    return [low, high]


def _references(rows: pd.DataFrame, quantity: str) -> list[tuple[str, str, float]]:
    """Label, line style and value of what others say of the quantity."""
    known = rows.dropna(subset=["as_released"]).head(1)
    found = [
        (f"released procedure, {preset} pictures", ":", float(value))
        for preset, value in zip(known["preset"], known["as_released"], strict=True)
    ]
    return found + ([("published", "--", PUBLISHED[quantity])] if quantity in PUBLISHED else [])
