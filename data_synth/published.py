"""The figure of the published generator: a matplotlib default figure around a spectrogram, with masks.

Takes spectrogram values, a chirp and an index; gives the picture as matplotlib draws it and the label map of the same
drawing. The recipe (figure, labels, title, colour bar, automatic colour limits) is that of
``chirp-spectrogram-generator`` 0.1.6; the masks are new. Slow: one matplotlib figure a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from .chirp import FREQ_SPAN_HZ, TIME_SPAN_S, ChirpParams
from .figure import Layout
from .layouts import Projection, project
from .placement import Box
from .raster import CANVAS_COLS, CANVAS_ROWS, REGION_INDEX, REGIONS, area_sums, canvas_weights
from .style import FigureStyle

PUBLISHED_STYLE = FigureStyle(
    font_family="DejaVu Sans",
    title="Synthetic Spectrogram",
    title_pt=12,
    title_side="top",
    title_align=0.5,
    x_label="Time (s)",
    y_label="Frequency (Hz)",
    label_pt=10,
    tick_pt=10,
    x_tick_step_s=10,
    y_tick_step_hz=20,
    x_side="bottom",
    y_side="left",
    colorbar_side="right",
    colorbar_gap_px=20,
    colorbar_thickness_px=18,
    colorbar_label="Intensity",
    colorbar_range=(0.0, 1.0),
    colorbar_num_ticks=5,
    colormap="viridis",
    frame="box",
    line_px=1,
    tick_length_px=5,
    paper=255,
    axes_scale=(1.0, 1.0),
    axes_offset=(0.5, 0.5),
)


@dataclass(frozen=True)
class PublishedFigure:
    """A published-style figure: colour limits are frozen to those of the original values, so that a twin keeps them."""

    title: str
    limits: tuple[float, float]
    hidden: frozenset[str]

    @cached_property
    def layout(self) -> Layout:
        """Where everything stands, drawn when first asked for: a picture alone needs no masks."""
        return published_layout(self.title, self.limits, self.hidden)

    def canvas(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The 480 x 640 picture of other values in the same figure, uint8 [480 640 3]."""
        figure, artists, _ = _build(values, self.title, self.limits)
        for region in self.hidden:
            for artist in artists[region]:
                # Transparent text keeps its place in the layout; a bar's axes are laid out once and can go.
                if isinstance(artist, Text):
                    artist.set_alpha(0.0)
                else:
                    artist.set_visible(False)
        return _draw(figure)

    def image(self, values: NDArray[np.float32], image_size: int) -> NDArray[np.uint8]:
        """The picture averaged down to ``image_size`` squared, uint8 [row col 3]."""
        return averaged(self.canvas(values), image_size)

    def project(self, image_size: int, patch_size: int) -> Projection:
        """The layout at one picture size, for masks."""
        return project(self.layout, image_size, patch_size)


def averaged(canvas: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """A canvas uint8 [480 640 3] averaged down to ``image_size`` squared, uint8 [row col 3]."""
    whole = canvas_weights(image_size)[2]
    pixels = canvas.astype(np.float32)
    total = np.stack([area_sums(pixels[..., band], image_size) for band in range(3)], axis=-1)
    return np.floor(total / np.float32(whole) + np.float32(0.5 + 1e-4)).astype(np.uint8)


def published_title(params: ChirpParams, index: int) -> str:
    """The published title; pictures count from 1 there. It leaks the chirp type."""
    return f"Synthetic Spectrogram {index + 1} ({params.chirp_type} chirp)"


def published_figure(
    values: NDArray[np.float32],
    params: ChirpParams,
    index: int,
    *,
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    hidden: frozenset[str] = frozenset(),
) -> PublishedFigure:
    """The figure of a chirp's values; ``limits`` default to the values' own range, as published. Draws nothing yet."""
    title = published_title(params, index) if title is None else title
    limits = (float(values.min()), float(values.max())) if limits is None else limits
    return PublishedFigure(title, limits, hidden)


def published_layout(title: str, limits: tuple[float, float], hidden: frozenset[str] = frozenset()) -> Layout:
    """Draw the figure once and label its pixels. Where things stand depends on the title and, by the ticks of the
    colour bar, on the limits; not on what the spectrogram shows."""
    figure, artists, axes_artist = _build(np.zeros((2, 2), dtype=np.float32), title, limits)
    _draw(figure)
    labels = np.full((CANVAS_ROWS, CANVAS_COLS), REGION_INDEX["margin"], dtype=np.uint8)
    extent = axes_artist.get_window_extent()
    # Spines are centred on the edge of the axes; the spectrogram is what lies inside them.
    axes = Box(
        int(np.ceil(CANVAS_ROWS - extent.y1)),
        int(np.floor(CANVAS_ROWS - extent.y0)),
        int(np.ceil(extent.x0)),
        int(np.floor(extent.x1)),
    )
    labels[axes.slices] = REGION_INDEX["plot_background"]
    for region in reversed(REGIONS):
        if region in hidden:
            continue
        for artist in artists.get(region, ()):
            if region == "frame":
                if "colorbar" in hidden and artist in artists["colorbar_lines"]:
                    continue
                ink = _ink(figure, artist)
                labels[ink] = np.minimum(labels[ink], REGION_INDEX[region])
            elif region == "colorbar":
                box = artist.get_window_extent()
                inside = labels[
                    int(np.floor(CANVAS_ROWS - box.y1)) : int(np.ceil(CANVAS_ROWS - box.y0)),
                    int(np.floor(box.x0)) : int(np.ceil(box.x1)),
                ]
                np.minimum(inside, REGION_INDEX[region], out=inside)
            else:
                ink = _ink(figure, artist)
                rows, cols = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
                if len(rows):
                    inside = labels[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
                    np.minimum(inside, REGION_INDEX[region], out=inside)
    return Layout(PUBLISHED_STYLE, axes, (), np.zeros((CANVAS_ROWS, CANVAS_COLS, 3), np.uint8), labels)


def _build(
    values: NDArray[np.float32], title: str, limits: tuple[float, float]
) -> tuple[Figure, dict[str, list[Artist]], Any]:
    figure = Figure(figsize=(CANVAS_COLS / 100, CANVAS_ROWS / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        values,
        aspect="auto",
        origin="lower",
        cmap="viridis",
        extent=(0, TIME_SPAN_S, 0, FREQ_SPAN_HZ),
        vmin=limits[0],
        vmax=limits[1],
    )
    axes.set_xlabel("Time (s)")
    axes.set_ylabel("Frequency (Hz)")
    axes.set_title(title)
    colorbar = figure.colorbar(image, label="Intensity")
    figure.canvas.draw()
    bar = colorbar.ax
    # Locators also offer ticks beyond the ends of an axis; those are never drawn.
    low, high = bar.get_ylim()
    bar_ticks = [tick for tick in bar.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    lines = [tick.tick1line for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()]
    bar_lines = [tick.tick2line for tick in bar_ticks]
    artists: dict[str, list[Artist]] = {
        "title": [axes.title],
        "x_label": [axes.xaxis.label],
        "y_label": [axes.yaxis.label],
        "x_ticks": list(axes.get_xticklabels()),
        "y_ticks": list(axes.get_yticklabels()),
        "colorbar_label": [bar.yaxis.label],
        "colorbar_ticks": [tick.label2 for tick in bar_ticks],
        "colorbar": [bar],
        "frame": [*axes.spines.values(), *lines, *bar_lines],
        "colorbar_lines": list(bar_lines),
    }
    return figure, artists, axes


def _draw(figure: Figure) -> NDArray[np.uint8]:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _ink(figure: Figure, artist: Artist) -> NDArray[np.bool_]:
    """Pixels that an artist inks when it is drawn alone."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    renderer.clear()
    artist.draw(renderer)
    return np.asarray(renderer.buffer_rgba())[:, :, 3] > 0
