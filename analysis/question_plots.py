"""The figure of each method by its own question.

Takes the table of `analysis.own_question`; gives a `Figure`. The conventions are those of `analysis.plots`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.artists import CONTROLS, PLAIN, dress, require_columns
from analysis.captions import fewer_pictures, names_with_n
from analysis.cells import CORRELATION, grey_names, grid_of, slant, table_cells
from analysis.own_question import ABLATION

PANELS = {"over all heads": "value_cross", "within layers": "within_layers_cross"}


def question_heatmap(questions: pd.DataFrame, *, controls: Iterable[str] = CONTROLS) -> Figure:
    """Methods x kinds of ablation, over all heads and within layers, scores and truth of different pictures.

    Methods that expand the same kind stand together, best first, controls last; a frame marks the kind that a method
    expands, bold figures are the best of a column, controls apart.
    """
    require_columns(questions, ("method", "expands", "truth", "n", *PANELS.values()), "league_by_question")
    kinds = list(dict.fromkeys(questions["truth"]))
    short = [str(kind).removeprefix(ABLATION) for kind in kinds]
    expands = questions.drop_duplicates("method").set_index("method")["expands"].fillna("").astype(str)
    grey = [name for name in expands.index if name in set(controls)]
    grids = {
        title: grid_of(questions, "league_by_question", "method", "truth", value)[kinds]
        for title, value in PANELS.items()
    }
    best = grids["over all heads"].max(axis=1).fillna(-2.0)
    group = {name: short.index(kind) if kind in short else len(short) for name, kind in expands.items()}
    order = sorted(expands.index, key=lambda name: (name in grey, group[name], -best[name], str(name)))
    counts = questions.groupby("method")["n"].max().reindex(order).to_frame("n")
    figure = Figure((4.6 + 1.1 * len(kinds), max(3.2, 1.9 + 0.25 * len(order))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for panel, (title, grid) in zip((left, right), grids.items(), strict=True):
        shown = grid.reindex(order)
        labelled = shown.set_axis(names_with_n(counts), axis=0).set_axis(short, axis=1)
        image = table_cells(panel, labelled, CORRELATION, "RdBu_r")
        _frame(panel, [(order.index(name), group[name]) for name in order if group[name] < len(short)])
        trial = shown.drop(index=grey)
        firsts = (trial == trial.max()).to_numpy().nonzero()
        _embolden(panel, zip(*(found.tolist() for found in firsts), strict=True))
        dress(panel, "", "", title)
        slant(panel)
    right.tick_params(labelleft=False)
    grey_names(left, order, grey)
    bar = figure.colorbar(image, ax=right, pad=0.03, aspect=35)
    bar.set_label("Spearman with each kind of ablation,\nscores and truth of different pictures", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter(PLAIN)
    if note := fewer_pictures(counts):
        figure.supxlabel(note, fontsize=8)
    return figure


def _frame(panel: Axes, places: Iterable[tuple[int, int]]) -> None:
    for row, column in places:
        panel.add_patch(
            Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, linewidth=1.3, edgecolor="black", zorder=3)
        )


def _embolden(panel: Axes, places: Iterable[tuple[int, int]]) -> None:
    chosen = {(column, row) for row, column in places}
    for text in panel.texts:
        across, down = text.get_position()
        if (round(across), round(down)) in chosen:
            text.set_fontweight("bold")
