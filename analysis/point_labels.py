"""A name for every point of a scatter: none left out, none on another name, a point or a line.

Takes axes and points; draws on them. Knows no figure. `analysis.artists.label_points` names the outstanding few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from analysis.artists import figure_of
from analysis.cells import CONTROL_INK


def name_all(
    ax: Axes,
    points: NDArray[np.float64],
    names: Sequence[str],
    obstacles: NDArray[np.float64],
    lines: Sequence[NDArray[np.float64]],
    grey: NDArray[np.bool_],
) -> None:
    """Name every point, clear of other names, of `obstacles` and of `lines` (vertices); far names get a leader line.

    `artists.label_points` leaves out names that find no place near; here each goes to the nearest place that is free.
    """
    figure = figure_of(ax)
    figure.draw_without_rendering()  # settles the layout, so that pixels are final
    scale, frame = figure.dpi / 72, ax.get_window_extent()
    centres = ax.transData.transform(obstacles[np.isfinite(obstacles).all(axis=1)])
    sizes = np.full(len(centres), 3.5 * scale)
    for line in lines:  # a line is a row of small boxes
        path = Path(ax.transData.transform(line))
        dots = np.asarray(path.interpolated(max(1, int(ax.bbox.width / 5 / scale))).vertices)
        centres, sizes = np.concatenate([centres, dots]), np.concatenate([sizes, np.full(len(dots), 0.8 * scale)])
    taken = np.concatenate([centres - sizes[:, None], centres + sizes[:, None]], axis=1)  # [box x0 y0 x1 y1]
    angles = np.pi / 12 * np.array([0, 12, 2, 22, 10, 14, 4, 20, 8, 16, 6, 18])
    for at in np.argsort(-points[:, 1], kind="stable"):
        label: Annotation = ax.annotate(
            names[at],
            (points[at, 0], points[at, 1]),
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
        for radius in (5, *range(10, 400, 8)):
            steps = np.column_stack([np.cos(angles), np.sin(angles)]) * (radius * scale + half * (1, 0.6))
            boxes = np.concatenate([centre + steps - half, centre + steps + half], axis=1)
            inside = (boxes[:, :2] > np.add(frame.min, 2)).all(axis=1) & (boxes[:, 2:] < np.subtract(frame.max, 2)).all(
                axis=1
            )
            apart = (boxes[:, None, :2] >= taken[None, :, 2:]) | (boxes[:, None, 2:] <= taken[None, :, :2])
            free = np.flatnonzero(inside & np.any(apart, axis=2).all(axis=1))
            if len(free):
                label.set_position(tuple(steps[free[0]] / scale))
                taken = np.concatenate([taken, boxes[free[:1]]])
                if radius > 10:
                    ax.annotate(
                        "",
                        (points[at, 0], points[at, 1]),
                        xytext=tuple(steps[free[0]] / scale),
                        textcoords="offset points",
                        arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "0.6", "shrinkA": 0, "shrinkB": 2},
                        zorder=1.5,
                    )
                break
