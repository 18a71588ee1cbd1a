"""Picture galleries: where heads and pixel methods look, drawn over the pictures themselves.

Takes pictures uint8 `[n row col 3]`, maps `[n row col]` of any resolution and, if known, the outline of a
region as masks at picture size; gives a `Figure`, writes nothing. Knows neither models nor regions.

The picture is drawn in pale grey under one hue whose opacity is the map, each map scaled to its own maximum.
Patches stay squares: a smoothed map would claim a resolution that it does not have. Outlines are blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

HEAT = "#D55E00"
OUTLINE = "#0072B2"


def attention_gallery(
    images: NDArray[np.uint8],
    maps: NDArray[np.floating],
    titles: Sequence[str],
    *,
    rows: Sequence[str] | None = None,
    mask_outlines: NDArray[np.generic] | None = None,
    columns: int = 4,
) -> Figure:
    """One panel per map: `images[i]` `[n row col 3]` under `maps[i]` `[n row col]` (non-negative).

    `rows[i]` names the row (a region, say) of panel i: rows in order of first appearance and of any length,
    so a region with fewer heads leaves blanks. Without it the panels wrap at `columns`. `mask_outlines`
    `[n row col]` (at picture size) is outlined at half its range. Below each panel: the share of the map that
    its strongest cell holds.
    """
    maps, outlines = _check(images, maps, mask_outlines, "maps")
    if len(titles) != len(images) or (rows is not None and len(rows) != len(images)):
        raise ValueError(f"attention gallery: expected a title and a row name for each of {len(images)} pictures")
    names = [""] * len(images) if rows is None else list(rows)
    lines = {name: [i for i, at in enumerate(names) if at == name] for name in dict.fromkeys(names)}
    if rows is None:
        lines = {str(at): list(range(at, min(at + columns, len(images)))) for at in range(0, len(images), columns)}
    width = max(len(line) for line in lines.values())
    figure = Figure((0.3 + 2.1 * width, 0.2 + 2.45 * len(lines)), layout="constrained")
    panels = figure.subplots(len(lines), width, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
    for panel_row, (name, line) in zip(panels, lines.items(), strict=True):
        for panel, i in zip(panel_row[: len(line)], line, strict=True):
            _overlay(panel, images[i], maps[i], maps[i].max(), outlines[i] if outlines is not None else None)
            panel.set_title(titles[i], fontsize=9)
            panel.set_xlabel(f"strongest cell {maps[i].max() / maps[i].sum():.1%}", fontsize=7, color="0.35")
        if rows is not None:
            panel_row[0].set_ylabel(name, fontsize=11, fontweight="bold")
    return figure


def pixel_gallery(
    images: NDArray[np.uint8],
    maps: Mapping[str, NDArray[np.floating]],
    *,
    titles: Sequence[str] | None = None,
    mask_outlines: NDArray[np.generic] | None = None,
) -> Figure:
    """A row per picture: the picture `[n row col 3]`, then a column per method with its map `[n row col]`.

    Maps are non-negative and may differ in resolution. A map finer than 64 cells a side is scaled to its
    99.5th percentile instead of its maximum: a few pixels would leave the rest blank.
    """
    if not maps:
        raise ValueError("pixel gallery: expected at least one method")
    checked = {name: _check(images, values, mask_outlines, name) for name, values in maps.items()}
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"pixel gallery: expected a title for each of {len(images)} pictures, got {len(titles)}")
    figure = Figure((0.3 + 2.0 * (len(maps) + 1), 0.2 + 2.1 * len(images)), layout="constrained")
    panels = figure.subplots(len(images), len(maps) + 1, squeeze=False)
    for i, panel_row in enumerate(panels):
        _bare(panel_row[0])
        panel_row[0].imshow(images[i], interpolation="nearest")
        if titles is not None:
            panel_row[0].set_ylabel(titles[i], fontsize=9)
        for panel, (values, outlines) in zip(panel_row[1:], checked.values(), strict=True):
            fine = min(values[i].shape) > 64
            top = np.quantile(values[i], 0.995) if fine else values[i].max()
            _overlay(panel, images[i], values[i], top or values[i].max(), None if outlines is None else outlines[i])
    for panel, name in zip(panels[0], ("picture", *maps), strict=True):
        panel.set_title(name, fontsize=9)
    return figure


def _overlay(
    ax: Axes,
    image: NDArray[np.uint8],
    heat: NDArray[np.float64],
    top: float,
    outline: NDArray[np.float64] | None,
) -> None:
    ax.set_axis_on()
    _bare(ax)
    rows, cols = image.shape[:2]
    grey = image @ np.array([0.299, 0.587, 0.114]) / 255
    ax.imshow(0.4 + 0.6 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    colour = np.empty((*heat.shape, 4))
    colour[..., :3], colour[..., 3] = to_rgb(HEAT), 0.85 * np.clip(heat / top, 0, 1)
    ax.imshow(colour, extent=(-0.5, cols - 0.5, rows - 0.5, -0.5), interpolation="nearest")
    if outline is not None and outline.min() < outline.max():  # a picture without the region has nothing to outline
        level = (outline.min() + outline.max()) / 2
        lines = ax.contour(outline, levels=[level], colors=OUTLINE, linewidths=0.9)
        lines.set_path_effects([withStroke(linewidth=1.8, foreground="white")])


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color="0.7", linewidth=0.6)


def _check(
    images: NDArray[np.uint8], maps: NDArray[np.floating], outlines: NDArray[np.generic] | None, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Maps and outlines as float64, or a ValueError that names what does not fit."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"gallery: expected pictures uint8 [n row col 3], got {images.dtype} {images.shape}")
    values = np.asarray(maps, dtype=np.float64)
    if values.ndim != 3 or len(values) != len(images):
        raise ValueError(f"gallery: expected {name} [{len(images)} row col], got {values.shape}")
    for i, one in enumerate(values):
        if not np.isfinite(one).all() or one.min() < 0 or one.max() == 0:
            raise ValueError(f"gallery: {name}, picture {i}: expected a finite, non-negative map that is not all zero")
    if outlines is None:
        return values, None
    if outlines.shape != images.shape[:3]:
        raise ValueError(f"gallery: expected mask_outlines {images.shape[:3]}, got {outlines.shape}")
    return values, np.asarray(outlines, dtype=np.float64)
