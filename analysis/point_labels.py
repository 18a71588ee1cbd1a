"""Names of the points of a scatter: none on another name, a point or a line, and none that seems to name another point.

Takes axes and points; draws on them. Knows no figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from analysis.artists import figure_of
from analysis.cells import CONTROL_INK

LEADER = "_leader"  # label of the line from a point to its name
MARKER = 3.5  # half-width of a marker, in points (1/72 inch)
NEAR = 6.0  # points between a name and its marker beyond which a line joins them
RADII = (5, *range(10, 400, 8))
ANGLES = np.pi / 12 * np.array([0, 12, 2, 22, 10, 14, 4, 20, 8, 16, 6, 18])
Floats = NDArray[np.float64]


def name_all(
    ax: Axes,
    points: Floats,
    names: Sequence[str],
    obstacles: Floats,
    lines: Sequence[Floats],
    grey: NDArray[np.bool_],
) -> None:
    """Name every point at the nearest free place, clear of other names, of `obstacles` and of `lines` (vertices).

    A line joins a name to its point where the two are more than 6 points (of 72 an inch) apart, or where another
    obstacle is nearer to the name.
    """
    _name(ax, points, names, np.argsort(-points[:, 1], kind="stable"), obstacles, lines, grey, RADII)


def label_points(ax: Axes, points: Floats, names: Sequence[str], count: int) -> None:
    """Name the `count` points farthest from the median (up or across, in turns), joined to them as by `name_all`.

    A name that finds no free place within half an inch is left out.
    """
    outwards = np.argsort(-np.abs(points - np.median(points, axis=0)), axis=0, kind="stable")[:, ::-1]  # effect first
    order = list(dict.fromkeys(outwards.ravel().tolist()))[:count]
    near = [radius for radius in RADII if radius <= 36]
    _name(ax, points, names, order, points, (), np.zeros(len(points), dtype=bool), near)


def _name(
    ax: Axes,
    points: Floats,
    names: Sequence[str],
    order: Iterable[int],
    obstacles: Floats,
    lines: Sequence[Floats],
    grey: NDArray[np.bool_],
    radii: Sequence[int],
) -> None:
    figure = figure_of(ax)
    figure.draw_without_rendering()  # settles the layout, so that pixels are final
    scale, frame = figure.dpi / 72, ax.get_window_extent()
    marks = ax.transData.transform(obstacles[np.isfinite(obstacles).all(axis=1)])
    centres, sizes = marks, np.full(len(marks), MARKER * scale)
    for line in lines:  # a line is a row of small boxes
        path = Path(ax.transData.transform(line))
        dots = np.asarray(path.interpolated(max(1, int(ax.bbox.width / 5 / scale))).vertices)
        centres, sizes = np.concatenate([centres, dots]), np.concatenate([sizes, np.full(len(dots), 0.8 * scale)])
    written = [text.get_window_extent() for text in ax.texts if text.get_text()]
    taken = np.concatenate(  # [box x0 y0 x1 y1]
        [
            np.concatenate([centres - sizes[:, None], centres + sizes[:, None]], axis=1),
            np.array([(*box.min, *box.max) for box in written]).reshape(-1, 4),
        ]
    )
    named = taken[len(centres) :]
    for at in order:
        place: tuple[float, float] = (points[at, 0], points[at, 1])
        label: Annotation = ax.annotate(
            names[at],
            place,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=CONTROL_INK if grey[at] else "black",
            ha="center",
            va="center",
            zorder=6,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        box: Bbox = label.get_window_extent()
        half = np.array([1.04 * box.width, box.height]) / 2 + scale  # hinting widens a text
        centre = ax.transData.transform(points[at])
        others = marks[np.abs(marks - centre).max(axis=1) > scale]
        found: tuple[Floats, Floats, bool] | None = None
        for radius in radii:
            steps = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)]) * (radius * scale + half * (1, 0.6))
            boxes = np.concatenate([centre + steps - half, centre + steps + half], axis=1)
            inside = (boxes[:, :2] > np.add(frame.min, 2)).all(axis=1) & (boxes[:, 2:] < np.subtract(frame.max, 2)).all(
                axis=1
            )
            apart = (boxes[:, None, :2] >= taken[None, :, 2:]) | (boxes[:, None, 2:] <= taken[None, :, :2])
            free = np.flatnonzero(inside & np.any(apart, axis=2).all(axis=1))
            if not len(free):
                continue
            far = _gaps(boxes[free], centre[None])[:, 0]
            mistaken = (_gaps(boxes[free], others) < far[:, None]).any(axis=1)
            mistaken |= _cross(centre, boxes[free], named)
            best = int(np.argmin(mistaken))  # the first that is no other point's, if there is one
            joined = bool(mistaken[best] or far[best] > (NEAR + MARKER) * scale)
            if found is None or not mistaken[best]:
                found = (steps[free[best]], boxes[free[best]], joined)
            if not mistaken[best] or radius > 60:
                break
        if found is None:
            if radii[-1] < RADII[-1]:
                label.remove()
            continue
        step, room, joined = found
        label.set_position(tuple(step / scale))
        taken, named = np.concatenate([taken, room[None]]), np.concatenate([named, room[None]])
        if joined:
            end = np.clip(centre, room[:2] + scale, room[2:] - scale) - centre
            dots = centre + np.linspace(0.1, 0.9, 2 + int(np.hypot(*end) / 3 / scale))[:, None] * end
            taken = np.concatenate([taken, np.concatenate([dots - 0.5 * scale, dots + 0.5 * scale], axis=1)])
            ax.annotate(
                "",
                place,
                xytext=tuple(end / scale),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.45", "shrinkA": 0, "shrinkB": 2},
                zorder=3.5,
                label=LEADER,
            )


def _cross(start: Floats, boxes: Floats, named: Floats) -> NDArray[np.bool_]:
    """Whether the straight line from a point to each of these boxes runs over a name."""
    ends = np.clip(start, boxes[:, :2], boxes[:, 2:])
    dots = start + np.linspace(0, 1, 40)[:, None, None] * (ends - start)  # [dot box xy]
    over = (dots[:, :, None] > named[:, :2]) & (dots[:, :, None] < named[:, 2:])
    return np.asarray(np.any(np.all(over, axis=3), axis=(0, 2)))


def _gaps(boxes: Floats, points: Floats) -> Floats:
    """Distance of each point from each box, in pixels, `[box point]`."""
    outside = np.maximum(boxes[:, None, :2] - points[None], points[None] - boxes[:, None, 2:])
    return np.asarray(np.linalg.norm(np.maximum(outside, 0), axis=2))
