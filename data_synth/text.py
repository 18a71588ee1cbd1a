"""Text as matplotlib's Agg renderer draws it: a bitmap of coverage cropped to its ink.

Takes a string, font family, size and rotation; gives a read-only uint8 array ``[row col]`` (255 = fully inked).
The crop is the text's exact bounding box, so the box in a mask and the ink in a picture come from the same drawing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

DPI = 100


@lru_cache(maxsize=2)
def _canvas(upright: bool) -> tuple[Figure, FigureCanvasAgg]:
    figure = Figure(figsize=(0.8, 8.0) if upright else (8.0, 0.8), dpi=DPI)
    figure.patch.set_visible(False)
    return figure, FigureCanvasAgg(figure)


@lru_cache(maxsize=8192)
def text_bitmap(string: str, family: str, size_pt: float, rotation_deg: int = 0) -> NDArray[np.uint8]:
    """Ink of one line of text.

    At most 800 px long and 80 px high; ``rotation_deg`` is 0, or 90 for text that runs upwards. Raises ValueError if
    the string leaves no ink or does not fit.
    """
    figure, canvas = _canvas(upright=rotation_deg == 90)
    renderer = canvas.get_renderer()
    renderer.clear()
    artist = figure.text(
        0.5,
        0.5,
        string,
        family=family,
        fontsize=size_pt,
        rotation=rotation_deg,
        ha="center",
        va="center",
        color="black",
        parse_math=False,
    )
    try:
        artist.draw(renderer)
    finally:
        artist.remove()
    alpha = np.asarray(renderer.buffer_rgba())[:, :, 3]
    rows, cols = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not len(rows):
        raise ValueError(f"text {string!r}: no ink in font {family!r}")
    if rows[0] == 0 or cols[0] == 0 or rows[-1] + 1 == alpha.shape[0] or cols[-1] + 1 == alpha.shape[1]:
        raise ValueError(f"text {string!r}: longer than 800 px or higher than 80 px at {size_pt} pt")
    ink = alpha[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].copy()
    ink.setflags(write=False)
    return ink
