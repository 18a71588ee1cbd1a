"""Drawing primitives of the figures: axes, scales, cells, and files.

Takes axes and plain values; draws on them. `save_figure` alone writes. Knows no figure.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.spatial import cKDTree

from analysis.report import write_atomically

EFFECT = "ablation_zero_var_pct"
CONTROLS = ("random", "layer_index", "parameter_norm")
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
GREY = "0.62"
LEAST_SEEN = 8  # of 255, in any of red, green and blue
CEILING = "noise ceiling of different pictures"
PLAIN = FuncFormatter(lambda value, _: true_minus(f"{value:g}"))
UNITS = {"var_pct": "% of the label variance", "mse_pct": "% of the intact MSE", "s2": "s²", "hz2": "Hz²"}


def save_figure(figure: Figure, path_stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `<path_stem>.png` (150 dots per inch) and `.svg`, each whole or not at all; give both paths.

    Same figure, same library versions, same bytes: no dates, and ids inside the SVG come from a fixed salt. The PNG has
    256 colours, and so a third of the size, where nobody sees the difference.
    """
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "analysis", "svg.fonttype": "path"}):
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        if kind == "png":
            buffer = _with_few_colours(buffer)
        paths.append(write_atomically(f"{os.fspath(path_stem)}.{kind}", buffer.getvalue()))
    return paths[0], paths[1]


def _with_few_colours(png: io.BytesIO) -> io.BytesIO:
    """The picture with a palette of 256 colours: the most frequent half as drawn, so that paper, greys and flat areas
    stay exact, and others spread so that the largest change of any colour is small; each pixel gets the nearest. In all
    its colours, where more than one pixel in 200 would change by what the eye sees: photographs and many hues at
    once."""
    image = Image.open(png).convert("RGB")
    pixels = np.asarray(image)
    packed = pixels.reshape(-1, 3).astype(np.int64) @ (65536, 256, 1)  # a number a colour: sorts faster than three
    found, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, (found >> 8) & 255, found & 255], axis=1).astype(np.uint8)
    frequent = colours[np.argsort(-counts, kind="stable")[:128]]
    spread = image.quantize(256 - len(frequent), method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    others = np.array(spread.getpalette(), dtype=np.uint8).reshape(-1, 3)[: 256 - len(frequent)]
    palette = np.concatenate([frequent, others])
    nearest = cKDTree(palette.astype(np.float64)).query(colours.astype(np.float64))[1].astype(np.uint8)
    change = np.abs(palette[nearest].astype(int) - colours).max(axis=1)
    few = image  # without the opacity, which no figure has
    if counts[change > LEAST_SEEN].sum() <= counts.sum() / 200:
        few = Image.fromarray(nearest[places.ravel()].reshape(pixels.shape[:2]))
        few.putpalette(palette.tobytes())
    found = io.BytesIO()
    few.save(found, "PNG", optimize=True)
    return found


def truth_words(truth: str) -> str:
    """`ablation_zero` -> `zero ablation`: a truth as a sentence names it."""
    kind = truth.removeprefix("ablation_").replace("_", " ")
    return kind if kind == truth else f"{kind} ablation"


def query_words(query: str) -> str:
    """`cls` -> `CLS query`."""
    return f"{query.upper() if query == 'cls' else query} query"


def effect_label(column: str) -> str:
    """Axis label of an effect column `ablation_<kind>_[<target>_]<unit>`; any other name is its own label."""
    match = re.fullmatch(r"ablation_([a-z]+?)(_estimated)?_(?:(\w+)_)?(var_pct|mse_pct|s2|hz2)", column)
    if match is None:
        return column
    kind, estimated, target, unit = match.groups()
    effect = "estimated effect" if estimated else "effect"
    return f"{effect} of {kind} ablation" + (f" on {target}" if target else "") + f"\n({UNITS[unit]})"


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax`, or the axes of a new figure (inches), made without pyplot: no global state, no window."""
    return Figure((width, height), layout="constrained").add_subplot() if ax is None else ax


def tiles(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for this many panels, at most `most` a row, with few places left empty."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def figure_of(ax: Axes) -> Figure:
    return cast(Figure, ax.get_figure(root=True))


def dress(ax: Axes, xlabel: str | None, ylabel: str | None, title: str) -> None:
    """Titles and labels in one size; None keeps a label that is there."""
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(ax.get_xlabel() if xlabel is None else xlabel, fontsize=9)
    ax.set_ylabel(ax.get_ylabel() if ylabel is None else ylabel, fontsize=9)
    ax.tick_params(labelsize=8)


def true_minus(number: str) -> str:
    """A formatted number with a true minus sign, and none before a zero."""
    return number.lstrip("-") if not number.strip("-0.") else number.replace("-", "−")


def head_name(layer: Any, head: Any) -> str:
    return f"L{int(layer)}H{int(head)}"


def require_columns(frame: pd.DataFrame, columns: Iterable[str], table: str) -> None:
    absent = [name for name in columns if name not in frame]
    if absent:
        raise ValueError(f"{table}: missing column(s) {', '.join(absent)}")
    if frame.empty:
        raise ValueError(f"{table}: no rows")


def rows_where(frame: pd.DataFrame, table: str, **chosen: str) -> pd.DataFrame:
    """Rows of a tidy table where every named column has the given value; an error lists what there is."""
    require_columns(frame, chosen, table)
    for column, value in chosen.items():
        present = sorted(map(str, frame[column].unique()))
        frame = frame[frame[column] == value]
        if frame.empty:
            raise ValueError(f"{table}: no rows with {column}={value!r}, expected one of {', '.join(present)}")
    return frame


def rows_by_method(frame: pd.DataFrame, table: str, **chosen: str) -> pd.DataFrame:
    """`rows_where`, one for each method, with the method as the index."""
    rows = rows_where(frame, table, **chosen)
    require_columns(rows, ("method",), table)
    if rows["method"].duplicated().any():
        raise ValueError(f"{table}: more than one row for a method with {chosen}, expected one")
    return rows.set_index("method")


def require_heads(frame: pd.DataFrame, *columns: str, table: str = "head_scorecard") -> None:
    require_columns(frame, ("layer", "head", *columns), table)
    if frame.duplicated(["layer", "head"]).any():
        raise ValueError(f"{table}: more than one row for a head, expected one value of {columns[0]} each")


def column_of(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """The column as floats, NaN where the table does not have it."""
    return frame[name].to_numpy(float) if name in frame else np.full(len(frame), np.nan)


def head_grid(frame: pd.DataFrame, column: str, table: str = "head_scorecard") -> NDArray[np.float64]:
    """A column of a table with one row per head as `[layer head]`, NaN where a head has no row."""
    require_heads(frame, column, table=table)
    layer, head = frame["layer"].to_numpy(int), frame["head"].to_numpy(int)
    grid = np.full((layer.max() + 1, head.max() + 1), np.nan)
    grid[layer, head] = frame[column].to_numpy(float)
    return grid


def draw_cells(
    ax: Axes, grid: NDArray[np.float64], norm: Normalize, cmap: str, text: Callable[[float], str], size: float
) -> AxesImage:
    """A `[layer head]` heat map with a number in each cell, "–" where there is none, grey below the scale."""
    colours = matplotlib.colormaps[cmap].with_extremes(bad="white", under="0.88")
    image = ax.imshow(np.ma.masked_invalid(grid), cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    for (layer, head), value in np.ndenumerate(grid):
        label = true_minus(text(value)) if np.isfinite(value) else "–"
        ax.text(head, layer, label, ha="center", va="center", fontsize=size, color=ink_on(image, value))
    ax.xaxis.set_major_locator(FixedLocator(range(grid.shape[1])))
    ax.yaxis.set_major_locator(FixedLocator(range(grid.shape[0])))
    return image


def ink_on(image: ScalarMappable, value: float) -> str:
    """Black or white, whichever reads better on the colour of this value (relative luminance, WCAG 2)."""
    red, green, blue, _ = image.to_rgba(np.ma.masked_invalid([value]))[0]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.18 else "white"


def largest_size(values: NDArray[np.float64]) -> float:
    """Largest finite |value|, so that no colour is clipped; 1 where there is none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def linear_within(values: ArrayLike) -> float | None:
    """Half-width of the linear part of a symmetric-log scale (near the median); None: linear throughout."""
    size = np.abs(np.asarray(values, dtype=np.float64))
    size = size[np.isfinite(size) & (size > 0)]
    if size.size < 4 or size.max() <= 10 * (middle := max(np.median(size), size.max() / 1000)):
        return None
    power = 10.0 ** np.floor(np.log10(middle))
    return float(power * min((1, 2, 5, 10), key=lambda digit: abs(np.log(digit * power / middle))))


def symlog_ticks(low: float, high: float, linear: float) -> list[float]:
    """0, the ends of the linear part and ± powers of ten from there outwards, within the limits."""
    powers = 10.0 ** np.arange(np.ceil(np.log10(linear)), np.floor(np.log10(max(-low, high, linear))) + 1)
    outwards = np.union1d(linear, powers[~np.isclose(powers, linear)])
    return [float(v) for v in (*-outwards[::-1], 0.0, *outwards) if v == 0 or low <= v <= high]


def symlog_minor_ticks(low: float, high: float, linear: float) -> list[float]:
    """± 2 to 9 times the powers of ten beyond the linear part, within the limits: where no number stands."""
    powers = 10.0 ** np.arange(np.floor(np.log10(linear)), np.floor(np.log10(max(-low, high, linear))) + 1)
    outwards = np.outer(powers, np.arange(2, 10)).ravel()
    outwards = outwards[outwards > 1.001 * linear]
    return [float(v) for v in (*-outwards[::-1], *outwards) if low <= v <= high]


def effect_scale(
    ax: Axes, axis: str, values: ArrayLike, label: str, linear: float | None = None, *, is_narrow: bool = False
) -> None:
    """Label an axis; where values are heavy-tailed or `linear` is given, make it symmetric-log and say so.

    A narrow axis has room for three numbers."""
    linear, along = linear or linear_within(values), ax.xaxis if axis == "x" else ax.yaxis
    if linear is not None:
        getattr(ax, f"set_{axis}scale")("symlog", linthresh=linear, linscale=0.6)
        ax.autoscale_view(scalex=axis == "x", scaley=axis == "y")  # limits may date from the linear scale
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        low, high = 1.5 * finite.min(), 1.5 * finite.max()
        ticks = symlog_ticks(low, high, linear)
        if is_narrow and len(ticks) > 3:
            ticks = [ticks[0], 0.0, ticks[-1]] if ticks[0] < 0 < ticks[-1] else [0.0, *sorted(ticks, key=abs)[-2:]]
        along.set_major_locator(FixedLocator(ticks))
        along.set_minor_locator(FixedLocator(symlog_minor_ticks(low, high, linear)))
        along.set_minor_formatter(NullFormatter())
        label = f"{label[:-1]}, symmetric log)" if label.endswith(")") else f"{label} (symmetric log)"
        along.set_major_formatter(PLAIN)
    along.set_label_text(label)


def depth_colours(layers: pd.Series) -> dict[str, Any]:
    """Colour of a point by its layer: arguments for `scatter`."""
    count = int(layers.max()) + 1
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.93, count)))
    return {"cmap": colours, "norm": BoundaryNorm(np.arange(count + 1) - 0.5, count)}


def shared_legend(figure: Figure, ax: Axes, names: Sequence[str], columns: int = 4, note: str = "") -> None:
    """One legend below all panels, with the artists of `ax` that bear these names, in this order; `note` above it."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
        title=note or None,
        title_fontsize=8,
    )


def depth_bar(figure: Figure, axes: Any, depth: Mapping[str, Any]) -> None:
    bar = figure.colorbar(ScalarMappable(depth["norm"], depth["cmap"]), ax=axes, pad=0.02, aspect=35)
    count = depth["norm"].Ncmap
    bar.ax.yaxis.set_major_locator(FixedLocator(range(0, count, -(-count // 16))))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=8, length=0)
    bar.set_label("layer", fontsize=9)


def bootstrap_layers(effects: NDArray[np.float64], resamples: int) -> pd.DataFrame:
    per_image = effects.mean(axis=2)  # [image layer]
    images = len(per_image)
    weights = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=resamples) / images
    low, high = np.quantile(weights @ per_image, (0.025, 0.975), axis=0)
    mean = per_image.mean(axis=0)
    return pd.DataFrame({"layer": np.arange(len(mean)), "mean": mean, "ci_low": low, "ci_high": high})
