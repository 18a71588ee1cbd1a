"""The lines that part the heads of a scatter in four, and what they tell: overlap against effect, by the medians.

Takes axes and values; draws on them.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

# A line is no bound of what helps: heads below the median may well help.
CORNERS = {(0, 1): ("more", "less"), (1, 1): ("more", "more"), (0, 0): ("less", "less"), (1, 0): ("less", "more")}


def median_lines(
    ax: Axes,
    looks: pd.Series,
    effects: pd.Series,
    looks_line: float | None = None,
    effect_line: float | None = None,
) -> None:
    """Dashed lines at the medians over heads, or at the lines given, named in the title, and what each corner holds."""
    are_medians = looks_line is None and effect_line is None
    ax.axvline(
        looks.median() if looks_line is None else looks_line, color="0.5", linewidth=0.8, linestyle="--", zorder=1
    )
    ax.axhline(
        effects.median() if effect_line is None else effect_line, color="0.5", linewidth=0.8, linestyle="--", zorder=1
    )
    if are_medians:
        ax.set_title(f"{ax.get_title()}\ndashed: medians over heads", fontsize=9)
    than = "the median head" if are_medians else "the dashed line"
    for (x, y), (helps, there) in CORNERS.items():
        ax.annotate(
            f"helps {helps} than {than},\nlooks there {there}",
            (x, y),
            xycoords="axes fraction",
            xytext=(6 - 14 * x, 4 - 8 * y),
            textcoords="offset points",
            ha=("left", "right")[x],
            va=("bottom", "top")[y],
            fontsize=7.5,
            style="italic",
            color="0.45",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
