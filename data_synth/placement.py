"""Where everything stands around the axes of a default-preset figure.

Takes a :class:`~data_synth.style.FigureStyle`; gives the axes rectangle and a list of :class:`Item`, each with its box
in whole pixels of the 480 x 640 canvas. Draws nothing (that is :mod:`data_synth.figure`).

Placement works outwards from the axes, side by side: ticks, tick labels, axis label, colour bar with its ticks and
label, title. Every layout keeps room for its colour bar on the opposite side and for its title below, so that a twin
(:mod:`data_synth.twins`) can move them without moving anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .chirp import FREQ_SPAN_HZ, TIME_SPAN_S
from .raster import CANVAS_COLS, CANVAS_ROWS
from .style import (
    COLORBAR_MAXIMA,
    COLORBAR_TICK_LENGTH_PX,
    COLORBAR_TICK_LINE_PX,
    COLORBAR_TICK_PT,
    COLORBAR_TICKS_PER_UNIT,
    OPPOSITE,
    FigureStyle,
    Side,
)
from .text import DPI, text_bitmap

PAD_PX = 4
EDGE_PX = 5
MIN_AXES_PX = (280, 220)  # cols, rows


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels, end exclusive."""

    row0: int
    row1: int
    col0: int
    col1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.row0, self.row1), slice(self.col0, self.col1)

    def inside_canvas(self) -> bool:
        return self.row0 >= 0 and self.col0 >= 0 and self.row1 <= CANVAS_ROWS and self.col1 <= CANVAS_COLS


@dataclass(frozen=True)
class Item:
    """One drawn thing: its region, its box, and what fills it (a text's ink, a flat grey, or a colour gradient)."""

    region: str
    box: Box
    text: str | None = None
    size_pt: float = 0.0
    rotation_deg: int = 0
    grey: int = 0
    gradient: Side | None = None  # direction in which the colour bar's value grows
    owner: str = "axes"  # "colorbar" for the bar's own ticks, tick labels and label


def px(points: float) -> int:
    """Points to whole pixels at the figure's resolution."""
    return round(points * DPI / 72)


def _tick_texts(style: FigureStyle, axis: str) -> list[tuple[float, str]]:
    """Relative positions (0 to 1 along the axis) and texts of ticks; empty if there are none."""
    if axis == "colorbar" and style.colorbar_max is not None:
        return [(value / style.colorbar_max, f"{value:.1f}") for value in _colorbar_values(style.colorbar_max)]
    if axis == "colorbar":
        low, high = style.colorbar_range
        values = np.linspace(low, high, style.colorbar_num_ticks)
        decimals = 0 if high - low >= 20 else 1 if high - low > 1.5 else 2
        return [((value - low) / (high - low), f"{value:.{decimals}f}") for value in values]
    step, span = (style.x_tick_step_s, TIME_SPAN_S) if axis == "x" else (style.y_tick_step_hz, FREQ_SPAN_HZ)
    return [(value / span, str(value)) for value in range(0, int(span) + 1, step)] if step else []


def _colorbar_values(colorbar_max: float) -> list[float]:
    number = int(colorbar_max * COLORBAR_TICKS_PER_UNIT + 1e-9)
    return [step / COLORBAR_TICKS_PER_UNIT for step in range(number + 1)]


class _Placer:
    """Stacks items outwards from the axes on each side; ``reach`` is how far each side's stack has grown."""

    def __init__(self, style: FigureStyle, axes: Box):
        self.style, self.axes = style, axes
        line = style.line_px if style.frame != "none" else 0
        self.reach: dict[Side, int] = {"left": line, "right": line, "top": line, "bottom": line}
        self.items: list[Item] = []

    def _box(self, side: Side, along: float, length: int, depth: int) -> Box:
        """A box beyond the stack on ``side``: ``depth`` px outwards, ``length`` px along, centred at ``along``."""
        near = self.reach[side]
        low = int(np.floor(along - length / 2 + 0.5))
        high = low + length
        axes = self.axes
        if side == "left":
            return Box(low, high, axes.col0 - near - depth, axes.col0 - near)
        if side == "right":
            return Box(low, high, axes.col1 + near, axes.col1 + near + depth)
        if side == "top":
            return Box(axes.row0 - near - depth, axes.row0 - near, low, high)
        return Box(axes.row1 + near, axes.row1 + near + depth, low, high)

    def _position(self, side: Side, fraction: float) -> float:
        """Canvas coordinate of a fraction along the axis that runs beside ``side`` (rows grow downwards)."""
        axes = self.axes
        if side in ("left", "right"):
            return axes.row1 - 0.5 - fraction * (axes.row1 - axes.row0 - 1)
        return axes.col0 + 0.5 + fraction * (axes.col1 - axes.col0 - 1)

    def frame(self) -> None:
        axes, line = self.axes, self.style.line_px
        if self.style.frame == "none":
            return
        sides = [self.style.x_side, self.style.y_side] if self.style.frame == "open" else list(OPPOSITE)
        for side in sides:
            box = {
                "left": Box(axes.row0 - line, axes.row1 + line, axes.col0 - line, axes.col0),
                "right": Box(axes.row0 - line, axes.row1 + line, axes.col1, axes.col1 + line),
                "top": Box(axes.row0 - line, axes.row0, axes.col0 - line, axes.col1 + line),
                "bottom": Box(axes.row1, axes.row1 + line, axes.col0 - line, axes.col1 + line),
            }[side]
            self.items.append(Item("frame", box))

    def ticks(self, side: Side, axis: str, region: str) -> None:
        """Tick lines, then tick labels, each label centred on its tick."""
        marks = _tick_texts(self.style, axis)
        if not marks:
            return
        size_pt, length, line = self.style.tick_pt, self.style.tick_length_px, self.style.line_px
        if axis == "colorbar" and self.style.colorbar_max is not None:
            size_pt, length, line = COLORBAR_TICK_PT, COLORBAR_TICK_LENGTH_PX, COLORBAR_TICK_LINE_PX
        for fraction, _ in marks:
            along = self._position(side, fraction)
            self.items.append(Item("frame", self._box(side, along, line, length)))
        self.reach[side] += length + PAD_PX - 1
        inks = [text_bitmap(text, self.style.font_family, size_pt).shape for _, text in marks]
        beside = side in ("left", "right")
        room = inks
        if axis == "colorbar" and self.style.colorbar_max is not None:
            # As much room whatever the maximum, so that what stands beyond does not tell it.
            texts = [f"{value:.1f}" for value in _colorbar_values(COLORBAR_MAXIMA[1])]
            room = [text_bitmap(text, self.style.font_family, size_pt).shape for text in texts]
        depth = max(shape[1] if beside else shape[0] for shape in room)
        for (fraction, text), (height, width) in zip(marks, inks, strict=True):
            along = self._position(side, fraction)
            box = self._box(side, along, height if beside else width, width if beside else height)
            self.items.append(Item(region, box, text, size_pt))
        self.reach[side] += depth

    def text(self, side: Side, region: str, string: str | None, size_pt: float, align: float = 0.5) -> None:
        """One line of text along a side, beyond everything already there."""
        if string is None:
            return
        rotation = 90 if side in ("left", "right") else 0
        height, width = text_bitmap(string, self.style.font_family, size_pt, rotation).shape
        length, depth = (height, width) if rotation else (width, height)
        room = self.axes.row1 - self.axes.row0 if rotation else self.axes.col1 - self.axes.col0
        along = self._position(side, 0.5) + (align - 0.5) * (room - length)
        limit = CANVAS_ROWS if rotation else CANVAS_COLS
        along = float(np.clip(along, EDGE_PX + length / 2 + 1, limit - EDGE_PX - length / 2 - 1))
        self.reach[side] += PAD_PX
        self.items.append(Item(region, self._box(side, along, length, depth), string, size_pt, rotation))
        self.reach[side] += depth

    def colorbar(self, side: Side) -> None:
        """The bar with its ticks, tick labels and label."""
        style, axes, first = self.style, self.axes, len(self.items)
        self.reach[side] += style.colorbar_gap_px
        beside = side in ("left", "right")
        length = axes.row1 - axes.row0 if beside else axes.col1 - axes.col0
        box = self._box(side, self._position(side, 0.5), length, style.colorbar_thickness_px)
        self.items.append(Item("colorbar", box, gradient="top" if beside else "right"))
        self.reach[side] += style.colorbar_thickness_px
        self.ticks(side, "colorbar", "colorbar_ticks")
        self.text(side, "colorbar_label", style.colorbar_label, style.label_pt)
        self.items[first:] = [replace(item, owner="colorbar") for item in self.items[first:]]


def _place_axes_items(style: FigureStyle, axes: Box) -> _Placer:
    placer = _Placer(style, axes)
    placer.frame()
    placer.ticks(style.x_side, "x", "x_ticks")
    placer.ticks(style.y_side, "y", "y_ticks")
    placer.text(style.x_side, "x_label", style.x_label, style.label_pt)
    placer.text(style.y_side, "y_label", style.y_label, style.label_pt)
    return placer


def _place(style: FigureStyle, axes: Box) -> _Placer:
    placer = _place_axes_items(style, axes)
    if style.colorbar_side is not None:
        placer.colorbar(style.colorbar_side)
    placer.reach[style.title_side] += PAD_PX
    placer.text(style.title_side, "title", style.title, style.title_pt, style.title_align)
    return placer


def _place_moved(style: FigureStyle, axes: Box, region: str) -> tuple[_Placer, tuple[Item, ...]]:
    if region == "colorbar":
        placer = _place(replace(style, colorbar_side=None), axes)
        before = len(placer.items)
        if style.colorbar_side is None:
            raise ValueError("move: this picture has no colorbar")
        placer.colorbar(OPPOSITE[style.colorbar_side])
    elif region == "title":
        placer = _place(replace(style, title=None), axes)
        before = len(placer.items)
        placer.reach[OPPOSITE[style.title_side]] += PAD_PX
        placer.text(OPPOSITE[style.title_side], "title", style.title, style.title_pt, style.title_align)
    else:
        raise ValueError(f"move: expected colorbar or title, got {region!r}")
    return placer, tuple(placer.items[before:])


def colorbar_items(style: FigureStyle, axes: Box) -> tuple[Item, ...]:
    """The bar with its ticks and label, on its own side; its box is the same for any range. Empty if there is none."""
    placer = _place_axes_items(style, axes)
    before = len(placer.items)
    if style.colorbar_side is not None:
        placer.colorbar(style.colorbar_side)
    return tuple(placer.items[before:])


def moved_items(style: FigureStyle, axes: Box, region: str) -> tuple[Item, ...]:
    """The items of ``region`` (colorbar or title) on the side opposite to theirs, beyond everything that stands there;
    nothing else moves. Raises ValueError if the picture has no such thing."""
    return _place_moved(style, axes, region)[1]


def place_axes(style: FigureStyle) -> Box | None:
    """The axes rectangle of a style, with room for everything and for what a twin may move; None if it does not fit."""
    probe = Box(150, 330, 200, 440)
    reach = _place(style, probe).reach
    for region, present in (("colorbar", style.colorbar_side is not None), ("title", style.title is not None)):
        if present:
            moved = _place_moved(style, probe, region)[0].reach
            reach = {side: max(depth, moved[side]) for side, depth in reach.items()}
    # The outermost tick labels reach beyond the ends of the axes by up to half their size.
    room = {side: EDGE_PX + max(depth, px(style.tick_pt)) for side, depth in reach.items()}
    free_cols, free_rows = CANVAS_COLS - room["left"] - room["right"], CANVAS_ROWS - room["top"] - room["bottom"]
    cols, rows = int(free_cols * style.axes_scale[0]), int(free_rows * style.axes_scale[1])
    if cols < MIN_AXES_PX[0] or rows < MIN_AXES_PX[1]:
        return None
    col0 = room["left"] + int((free_cols - cols) * style.axes_offset[0])
    row0 = room["top"] + int((free_rows - rows) * style.axes_offset[1])
    return Box(row0, row0 + rows, col0, col0 + cols)


def place_items(style: FigureStyle, axes: Box) -> tuple[Item, ...]:
    """Every item of a style around the given axes."""
    return tuple(_place(style, axes).items)
