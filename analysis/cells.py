"""Labelled heat maps of tables: cells with their numbers, marks, and the names down the side and below.

Takes axes and tables; draws on them. Knows no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from analysis.artists import draw_cells, ink_on, require_columns, true_minus

CONTROL_INK = "0.5"
CORRELATION = Normalize(-1, 1)


def two_digits(value: float) -> str:
    return f"{value:.2f}"


def grid_of(frame: pd.DataFrame, table: str, row: str, column: str, value: str) -> pd.DataFrame:
    """Rows x columns of one value, in the order in which they come; NaN where the table has no row.

    ValueError for a missing column and for two rows of one cell.
    """
    require_columns(frame, (row, column, value), table)
    if frame.duplicated([row, column]).any():
        raise ValueError(f"{table}: more than one row for a {row} and {column}, expected one value of {value} each")
    grid = frame.pivot(index=row, columns=column, values=value).astype(float)
    return grid.reindex(index=frame[row].unique(), columns=frame[column].unique())


def table_cells(
    ax: Axes,
    values: pd.DataFrame,
    norm: Normalize,
    cmap: str,
    *,
    text: Callable[[float], str] = two_digits,
    size: float = 7,
) -> AxesImage:
    """A table as a heat map with its numbers, its index down the side and its columns below."""
    image = draw_cells(ax, values.to_numpy(dtype=np.float64), norm, cmap, text, size)
    ax.set_xticks(range(values.shape[1]), list(map(str, values.columns)))
    ax.set_yticks(range(values.shape[0]), list(map(str, values.index)))
    ax.tick_params(length=0)
    return image


def slant(ax: Axes) -> None:
    """Turn the names below the columns, so that none runs into the next."""
    for label in ax.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor")


def dot_sure_cells(
    ax: Axes,
    image: AxesImage,
    values: NDArray[np.float64],
    limits: Sequence[NDArray[np.float64]],
    offset: tuple[float, float],
) -> None:
    """A dot in each cell whose interval excludes 0: `values` and both `limits` `[row col]`, `offset` right and up."""
    low, high = limits
    rows, cols = np.nonzero((low > 0) | (high < 0))
    ink = [ink_on(image, value) for value in values[rows, cols]]
    ax.scatter(cols + offset[0], rows - offset[1], s=5, c=ink, linewidths=0, label="interval excludes 0")


def distance_cells(ax: Axes, values: pd.DataFrame, ideals: Sequence[float], form: str = ".2f") -> None:
    """Numbers coloured by their distance from the ideal of their column, in units of it where it is larger than 1."""
    target = np.asarray(ideals, dtype=np.float64)
    distance = (values - target).abs().div(np.maximum(1, np.abs(target)))
    table_cells(ax, distance, Normalize(0, 1), "Oranges")
    for text, value in zip(ax.texts, values.to_numpy(float).ravel(), strict=True):
        if np.isfinite(value):
            text.set_text(true_minus(f"{value:{form}}"))


def distance_bar(figure: Figure, ax: Axes) -> None:
    """The colours of `distance_cells`."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "Oranges"), ax=ax, extend="max", extendfrac=0.03, pad=0.03, aspect=30
    )
    bar.set_label("distance from the ideal", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def grey_names(ax: Axes, names: Iterable[str], controls: Iterable[str]) -> None:
    """Grey italics for the names down the side of those of `names` (one a row) that are among the controls."""
    grey = set(controls)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        if name in grey:
            label.set(color=CONTROL_INK, style="italic")
