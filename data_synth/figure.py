"""Draws the figure around a spectrogram and labels every pixel in the same pass.

Takes a :class:`~data_synth.style.FigureStyle` or placed items; gives a :class:`Layout`: the canvas without its
spectrogram, the rectangle where the spectrogram goes, and the label map. Knows nothing of the chirp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from numpy.typing import NDArray

from .placement import Box, Item, colorbar_items, moved_items, place_axes, place_items
from .raster import CANVAS_COLS, CANVAS_ROWS, REGION_INDEX, REGIONS
from .style import COLORBAR_MAXIMA, COLORBAR_TICKS_PER_UNIT, FigureStyle
from .text import text_bitmap


@dataclass(frozen=True)
class Layout:
    """A drawn figure without its spectrogram.

    ``canvas`` uint8 [480 640 3] is 0 inside ``axes``; ``label_map`` uint8 [480 640] indexes
    :data:`~data_synth.raster.REGIONS` and says plot_background inside ``axes``.
    """

    style: FigureStyle
    axes: Box
    items: tuple[Item, ...]
    canvas: NDArray[np.uint8]
    label_map: NDArray[np.uint8]

    def has(self, region: str) -> bool:
        """Whether the region is drawn in this layout."""
        return any(item.region == region for item in self.items)


def colormap_lut(name: str) -> NDArray[np.uint8]:
    """256 RGB colours of a matplotlib colour map, uint8 [256 3]."""
    return matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3].copy()


def draw(style: FigureStyle, axes: Box, items: tuple[Item, ...]) -> Layout:
    """Draw items on paper and label their pixels; in the label map the region that comes first in REGIONS wins."""
    canvas = np.full((CANVAS_ROWS, CANVAS_COLS, 3), style.paper, dtype=np.uint8)
    label_map = np.full((CANVAS_ROWS, CANVAS_COLS), REGION_INDEX["margin"], dtype=np.uint8)
    canvas[axes.slices] = 0
    label_map[axes.slices] = REGION_INDEX["plot_background"]
    for item in sorted(items, key=lambda item: -REGIONS.index(item.region)):
        _paint(canvas, item, style)
        label_map[item.box.slices] = np.minimum(label_map[item.box.slices], REGION_INDEX[item.region])
    canvas.setflags(write=False)
    label_map.setflags(write=False)
    return Layout(style, axes, items, canvas, label_map)


def _paint(canvas: NDArray[np.uint8], item: Item, style: FigureStyle) -> None:
    height, width = item.box.row1 - item.box.row0, item.box.col1 - item.box.col0
    if item.gradient is not None:
        length = height if item.gradient == "top" else width
        ramp = colormap_lut(style.colormap)[(np.arange(length) * 256) // length]
        bar = np.repeat(ramp[::-1, None], width, 1) if item.gradient == "top" else np.repeat(ramp[None], height, 0)
        canvas[item.box.slices] = bar
        edge = np.ones((height, width), dtype=bool)
        edge[1:-1, 1:-1] = False
        canvas[item.box.slices][edge] = 0
    elif item.text is not None:
        ink = text_bitmap(item.text, style.font_family, item.size_pt, item.rotation_deg)
        rows, cols = min(height, ink.shape[0]), min(width, ink.shape[1])
        target = canvas[item.box.row0 : item.box.row0 + rows, item.box.col0 : item.box.col0 + cols]
        ink = ink[:rows, :cols, None].astype(np.uint16)
        target[...] = ((255 - ink) * target + 127) // 255
    else:
        canvas[item.box.slices] = item.grey


def compose(style: FigureStyle) -> Layout | None:
    """The layout of a style, or None if its items do not all fit on the canvas without touching each other."""
    axes = place_axes(style)
    if axes is None:
        return None
    items = place_items(style, axes)
    return draw(style, axes, items) if _fit(items) else None


def with_colorbar_max(layout: Layout, colorbar_max: float) -> Layout:
    """The layout with its bar's ticks and label placed for a bar from 0 to ``colorbar_max``; nothing else moves.

    For layouts that :func:`takes_colorbar_max` says have room: there is no check for it here.
    """
    style = replace(layout.style, colorbar_max=colorbar_max)
    return draw(style, layout.axes, _without_colorbar(layout) + colorbar_items(style, layout.axes))


def takes_colorbar_max(layout: Layout) -> bool:
    """Whether a layout has a bar with room for every maximum, where it is, and if a twin moves it or the title.

    Every maximum, not that of one picture: which layouts are taken then tells nothing of it.
    """
    if layout.style.colorbar_side is None:
        return False
    axes, others = layout.axes, _without_colorbar(layout)
    untitled = tuple(item for item in others if item.region != "title")
    low, high = (round(maximum * COLORBAR_TICKS_PER_UNIT) for maximum in COLORBAR_MAXIMA)
    # A label reaches furthest, and has least room, where its maximum is a round one.
    for steps in range(low, high + 1):
        style = replace(layout.style, colorbar_max=steps / COLORBAR_TICKS_PER_UNIT)
        bar = colorbar_items(style, axes)
        placed = [others + bar, others + moved_items(style, axes, "colorbar")]
        if style.title is not None:
            placed.append(untitled + bar + moved_items(style, axes, "title"))
        if not all(_fit(items) for items in placed):
            return False
    return True


def _without_colorbar(layout: Layout) -> tuple[Item, ...]:
    return tuple(item for item in layout.items if item.owner != "colorbar")


def _fit(items: tuple[Item, ...]) -> bool:
    texts = [item.box for item in items if item.text is not None]
    return all(item.box.inside_canvas() for item in items) and not _touching(texts)


def _touching(boxes: list[Box]) -> bool:
    taken = np.zeros((CANVAS_ROWS, CANVAS_COLS), dtype=bool)
    for box in boxes:
        if taken[box.slices].any():
            return True
        taken[box.slices] = True
    return False
