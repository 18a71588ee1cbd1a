"""Masks for a picture that `chirp-spectrogram-generator` drew, which come with none.

Takes a picture's pixels and its chirp; gives the region of every pixel. The chirp is the generator's ridge above half
its peak, computed from the label; the frame and the colour bar stand where matplotlib's default figure has them; texts
are boxes around the ink that is seen, so other versions of matplotlib will do. A picture that is no such figure, or
that shows its chirp elsewhere than its label says, is refused. Does not know folders.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from .chirp import NUM_BINS, ChirpParams, chirp_mask, ridge
from .figure import Layout
from .layouts import grid_cols, grid_rows
from .published import published_layout
from .raster import CANVAS_COLS, CANVAS_ROWS, REGION_INDEX

# Lines are black and colours viridis, but for their last bits and the half-inked pixels beside a line.
DARKEST_LINE, COLOUR_TOLERANCE = 64, 8
MIN_BLANK_PX = 4
# In standard deviations of the background: refused is what is fainter than FAINT where the chirp should be and brighter
# than BRIGHT elsewhere, or fainter than NOTHING. That held for none of 34,000 spectrograms of the published recipe, nor
# for 21,000 of its shortest and noisiest chirps; for five of six that were given the row of another.
FAINT, BRIGHT, NOTHING = 1.0, 6.0, -0.5


@dataclass(frozen=True)
class Figure:
    """What every figure of the generator has in the same place, from one that is drawn here.

    ``labels`` uint8 [480 640]: frame, colour bar, background and margin alone. ``lines`` [480 640]: the middle of each
    spine and tick line. ``bar_tick_cols``: the columns of the tick lines of the colour bar, whose rows differ.
    """

    layout: Layout
    labels: NDArray[np.uint8]
    lines: NDArray[np.bool_]
    bar: tuple[slice, slice]
    bar_tick_cols: slice
    x_ticks: NDArray[np.float64]
    y_ticks: NDArray[np.float64]


@lru_cache(maxsize=1)
def default_figure() -> Figure:
    """Where matplotlib's default figure has its frame and its colour bar."""
    layout = published_layout("", (0.0, 1.0))
    labels = layout.label_map.copy()
    bar = _box(labels == REGION_INDEX["colorbar"])
    labels[labels < REGION_INDEX["colorbar"]] = REGION_INDEX["margin"]
    frame = labels == REGION_INDEX["frame"]
    # Ticks at both ends of this bar: their lines begin on the bar, and half of each lies above or below it.
    bar_ticks = frame.copy()
    bar_ticks[:, : bar[1].start] = False
    labels[bar_ticks] = REGION_INDEX["margin"]
    frame &= ~bar_ticks
    rows, cols = _box(frame)
    return Figure(
        layout,
        labels,
        binary_erosion(frame, np.ones((3, 3), dtype=bool)),
        bar,
        _box(bar_ticks)[1],
        _centres(frame[rows.stop - 2]),
        _centres(frame[:, cols.start + 1]),
    )


def read_canvas(path: Path) -> NDArray[np.uint8]:
    """The pixels uint8 [480 640 3] of a picture as the generator wrote it.

    Raises FileNotFoundError if there is none, ValueError for another format or size, or transparent pixels.
    """
    return canvas_of(read_source(path), path)


def read_source(path: Path) -> bytes:
    """The bytes of a picture. Raises FileNotFoundError if there is none, ValueError for what is no readable file."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found")
    if not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path}: expected a PNG file, not a {'folder' if path.is_dir() else 'device or pipe'}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not a readable PNG file ({error})") from error


def canvas_of(content: bytes, path: Path) -> NDArray[np.uint8]:
    """The pixels uint8 [480 640 3] of the bytes of a picture; ``path`` is for what is said of it.

    Raises ValueError for another format or size, or transparent pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.mode not in ("RGB", "RGBA") or picture.size != (CANVAS_COLS, CANVAS_ROWS):
                found = f"{picture.mode} of {picture.width} x {picture.height}"
                raise ValueError(f"{path}: expected RGB or RGBA of {CANVAS_COLS} x {CANVAS_ROWS} pixels, got {found}")
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable PNG file ({error})") from error
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise ValueError(f"{path}: has transparent pixels, expected opaque ones")
    return np.ascontiguousarray(pixels[..., :3])


def shown_values(canvas: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The spectrogram [frequency bin, time bin] that a picture shows, in shares of its colour bar.

    Read from the green channel, which grows all along viridis, in the middle of each bin.
    """
    axes = default_figure().layout.axes
    middle = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    rows = axes.row1 - 1 - (middle * (axes.row1 - axes.row0)).astype(int)
    cols = axes.col0 + (middle * (axes.col1 - axes.col0)).astype(int)
    ramp = _viridis()[:, 1]
    return np.interp(canvas[np.ix_(rows, cols)][..., 1], ramp, np.linspace(0, 1, len(ramp)))


def reconstruct_label_map(canvas: NDArray[np.uint8], params: ChirpParams) -> NDArray[np.uint8]:
    """The region of every pixel uint8 [480 640] of the generator's picture of a chirp.

    Raises ValueError saying what was expected where the picture is no such figure or does not show this chirp.
    """
    figure = default_figure()
    if canvas.shape != (CANVAS_ROWS, CANVAS_COLS, 3):
        raise ValueError(f"expected pixels [{CANVAS_ROWS} {CANVAS_COLS} 3], got {list(canvas.shape)}")
    _check_figure(canvas, figure)
    labels = figure.labels.copy()
    ink = canvas.min(axis=2) < 255
    # The outline of the bar inks the column beside it too: a tick line goes further out.
    ticked = ink[:, figure.bar[1].stop + 1 : figure.bar_tick_cols.stop - 1].all(axis=1)
    labels[ticked, figure.bar_tick_cols] = np.minimum(labels[ticked, figure.bar_tick_cols], REGION_INDEX["frame"])
    _label_texts(labels, ink, figure, _centres(ticked))
    clean = ridge(params, "published")
    mask = chirp_mask(clean)
    if mask.any():
        _check_chirp(shown_values(canvas), clean, mask)
    axes = figure.layout.axes
    labels[axes.slices][mask[np.ix_(grid_rows(axes), grid_cols(axes))]] = REGION_INDEX["chirp"]
    return labels


def _check_figure(canvas: NDArray[np.uint8], figure: Figure) -> None:
    dark = canvas.max(axis=2) <= DARKEST_LINE
    if not dark[figure.lines].all():
        row, col = np.argwhere(figure.lines & ~dark)[0]
        axes = figure.layout.axes
        where = f"rows {axes.row0} to {axes.row1}, columns {axes.col0} to {axes.col1}"
        raise ValueError(f"expected axes around {where}, but row {row}, column {col} is not dark")
    rows, cols = figure.bar
    shown = canvas[rows.start + 3 : rows.stop - 3, (cols.start + cols.stop) // 2].astype(float)
    ramp = _viridis()
    place = np.linspace(len(ramp) - 1, 0, len(shown))
    expected = np.stack([np.interp(place, np.arange(len(ramp)), band) for band in ramp.T], axis=1)
    if np.abs(shown - expected).max() > COLOUR_TOLERANCE:
        where = f"rows {rows.start} to {rows.stop - 1}, columns {cols.start} to {cols.stop - 1}"
        raise ValueError(f"expected a colour bar of viridis in {where}, got other colours")


def _check_chirp(values: NDArray[np.float64], clean: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    background = values[clean < 0.01 * clean.max()]
    middle = np.median(background)
    spread = max(1.4826 * float(np.median(np.abs(background - middle))), 1e-3)
    chirp, brightest = (values[mask].mean() - middle) / spread, (background.max() - middle) / spread
    if (chirp < FAINT and brightest > BRIGHT) or chirp < NOTHING:
        raise ValueError(
            f"expected a chirp where its row of labels.csv says, but it is {chirp:.1f} standard deviations above the "
            f"background there, and the brightest spot elsewhere {brightest:.1f}"
        )


def _label_texts(
    labels: NDArray[np.uint8], ink: NDArray[np.bool_], figure: Figure, bar_ticks: NDArray[np.float64]
) -> None:
    """Label the boxes of all texts; ``bar_ticks``: the rows of the ticks of the colour bar."""
    rows, cols = _box(figure.lines)
    # The highest tick label of an axis reaches above it, and a long title beside it: there a blank column parts them.
    top, above, below = figure.bar[0].start, figure.bar[0].start - 6, rows.stop + 2
    left, right = cols.start - 1 - MIN_BLANK_PX, figure.bar_tick_cols.stop
    title = ink.copy()
    title[above:, :left] = title[above:, right:] = title[top:] = False
    if not title.any():
        raise ValueError("expected a title above the axes, got none")
    _label_box(labels, title, "title")
    between = slice(top, below), slice(left, right)
    stray = ink[between] & (labels[between] == REGION_INDEX["margin"]) & ~_beside_bar(figure)[between]
    if stray.any():
        row, col = np.argwhere(stray)[0] + (top, left)
        raise ValueError(f"expected white paper around axes and colour bar, but row {row}, column {col} is not white")
    beside_y, beside_bar = (slice(above, below), slice(None, left)), (slice(above, below), slice(right, None))
    _label_axis(labels[below:], ink[below:], "x", ("ticks", "label"), figure.x_ticks)
    _label_axis(labels[beside_y].T, ink[beside_y].T, "y", ("label", "ticks"), figure.y_ticks - above)
    _label_axis(labels[beside_bar].T, ink[beside_bar].T, "colorbar", ("ticks", "label"), bar_ticks - above)


def _label_axis(
    labels: NDArray[np.uint8],
    ink: NDArray[np.bool_],
    name: str,
    order: tuple[str, str],
    ticks: NDArray[np.float64],
) -> None:
    """Label the texts of one axis that runs along the columns; ``order``: which of them comes first, row by row."""
    used = np.flatnonzero(ink.any(axis=1))
    gaps = np.diff(used)
    # The label stands 4 points from the tick labels; nothing within either is as far apart.
    if len(ticks) < 2 or len(gaps) == 0 or gaps.max() <= MIN_BLANK_PX:
        raise ValueError(f"expected ticks, tick labels and a label apart from them at the {name} axis")
    cut = int(used[gaps.argmax()]) + 1
    nearest = np.abs(np.arange(ink.shape[1])[:, None] - ticks).argmin(axis=1)
    for kind, part in zip(order, (slice(None, cut), slice(cut, None)), strict=True):
        if kind == "label":
            _label_box(labels[part], ink[part], f"{name}_label")
            continue
        for number in range(len(ticks)):
            own = ink[part] & (nearest == number)
            if not own.any():
                raise ValueError(f"expected a label at each of the {len(ticks)} ticks of the {name} axis")
            _label_box(labels[part], own, f"{name}_ticks")


def _label_box(labels: NDArray[np.uint8], ink: NDArray[np.bool_], region: str) -> None:
    inside = labels[_box(ink)]
    np.minimum(inside, REGION_INDEX[region], out=inside)


def _box(ink: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, cols = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _beside_bar(figure: Figure) -> NDArray[np.bool_]:
    near = np.zeros(figure.labels.shape, dtype=bool)
    rows, cols = figure.bar
    near[rows.start - 1 : rows.stop + 1, cols.start - 1 : cols.stop + 1] = True
    return near


def _centres(used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The middle of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], used, [False]]).astype(np.int8)))
    return (edges[::2] + edges[1::2] - 1) / 2


def _viridis() -> NDArray[np.float64]:
    return colormaps["viridis"](np.arange(256))[:, :3] * 255
