"""The pool of layouts of each split, and what a picture of a given size needs from a layout.

Takes a seed, a split and a number; gives layouts, made lazily and kept. Layout j of a split is drawn from
``default_rng([seed, split, j, 1 + attempt])``, so the pools of training, validation and test are disjoint and do not
depend on which layouts were asked for before.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .chirp import NUM_BINS
from .figure import Layout, colormap_lut, compose, takes_colorbar_max
from .placement import Box
from .raster import area_sums, canvas_weights, coverage_counts, patch_counts
from .style import sample_style

SPLITS = ("train", "validation", "test")
MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class Projection:
    """A layout at one image size, as integers over ``whole``: all that is fixed before the chirp is known.

    ``chrome`` float32 [row col 3]: the picture without its spectrogram. ``rows`` [row, frequency bin] and ``cols``
    [time bin, col]: the picture of a spectrogram's colours c is ``(chrome + rows @ c @ cols) / whole``. ``crops``: per
    region drawn, its corner and coverage counts; ``patches`` [region row col]: the counts summed over patches.
    """

    layout: Layout
    whole: int
    lut: NDArray[np.uint8]
    chrome: NDArray[np.float32]
    rows: NDArray[np.float32]
    cols: NDArray[np.float32]
    crops: dict[int, tuple[int, int, NDArray[np.float32]]]
    patches: NDArray[np.int64]


def grid_rows(axes: Box) -> NDArray[np.int64]:
    """Frequency bin shown by each canvas row of the axes, top row first (nearest neighbour, 0 Hz at the bottom)."""
    count = axes.row1 - axes.row0
    return NUM_BINS - 1 - ((2 * np.arange(count) + 1) * NUM_BINS) // (2 * count)


def grid_cols(axes: Box) -> NDArray[np.int64]:
    """Time bin shown by each canvas column of the axes (nearest neighbour)."""
    count = axes.col1 - axes.col0
    return ((2 * np.arange(count) + 1) * NUM_BINS) // (2 * count)


def project(layout: Layout, image_size: int, patch_size: int) -> Projection:
    """Precompute what pictures of ``image_size`` need from a layout."""
    row_weights, col_weights, whole = canvas_weights(image_size)
    canvas = layout.canvas.astype(np.float32)
    chrome = np.stack([area_sums(canvas[..., band], image_size) for band in range(3)], axis=-1)
    axes = layout.axes
    rows = np.zeros((image_size, NUM_BINS), dtype=np.float32)
    cols = np.zeros((NUM_BINS, image_size), dtype=np.float32)
    np.add.at(rows.T, grid_rows(axes), row_weights[:, axes.row0 : axes.row1].T)
    np.add.at(cols, grid_cols(axes), col_weights[:, axes.col0 : axes.col1].T)
    counts = coverage_counts(layout.label_map, image_size)
    crops = {int(region): _cropped(counts[region]) for region in np.flatnonzero(counts.any(axis=(1, 2)))}
    return Projection(
        layout, whole, colormap_lut(layout.style.colormap), chrome, rows, cols, crops, patch_counts(counts, patch_size)
    )


def _cropped(counts: NDArray[np.int32]) -> tuple[int, int, NDArray[np.float32]]:
    used_rows, used_cols = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    row0, col0 = int(used_rows[0]), int(used_cols[0])
    return row0, col0, counts[row0 : used_rows[-1] + 1, col0 : used_cols[-1] + 1].astype(np.float32)


def project_again(projection: Projection, layout: Layout, image_size: int, patch_size: int) -> Projection:
    """What :func:`project` gives of ``layout``, from the projection of one with the same axes, paper and colours.

    Only the box that holds the items in which the two differ is averaged anew: as exact, and many times as fast.
    """
    before, after = projection.layout, layout
    changed = [item.box for item in set(before.items) ^ set(after.items)]
    if not changed:
        return replace(projection, layout=layout)
    box = Box(
        min(each.row0 for each in changed),
        max(each.row1 for each in changed),
        min(each.col0 for each in changed),
        max(each.col1 for each in changed),
    )
    row_weights, col_weights, _ = canvas_weights(image_size)
    row_weights, col_weights = row_weights[:, box.row0 : box.row1], col_weights[:, box.col0 : box.col1]
    used_rows, used_cols = np.flatnonzero(row_weights.any(axis=1)), np.flatnonzero(col_weights.any(axis=1))
    touched = slice(int(used_rows[0]), int(used_rows[-1]) + 1), slice(int(used_cols[0]), int(used_cols[-1]) + 1)
    row_weights, col_weights = row_weights[touched[0]], col_weights[touched[1]]

    difference = after.canvas[box.slices].astype(np.float32) - before.canvas[box.slices]
    chrome = projection.chrome.copy()
    for band in range(3):
        chrome[touched][..., band] += row_weights @ difference[..., band] @ col_weights.T
    crops, patches = dict(projection.crops), projection.patches.copy()
    old_labels, new_labels = before.label_map[box.slices], after.label_map[box.slices]
    for region in np.union1d(old_labels, new_labels).tolist():
        change = (new_labels == region).astype(np.float32) - (old_labels == region)
        counts = np.zeros((image_size, image_size), dtype=np.int32)
        counts[touched] = (row_weights @ change @ col_weights.T).astype(np.int32)
        patches[region] += patch_counts(counts, patch_size)
        if region in crops:
            row0, col0, crop = crops.pop(region)
            counts[row0 : row0 + crop.shape[0], col0 : col0 + crop.shape[1]] += crop.astype(np.int32)
        if counts.any():
            crops[region] = _cropped(counts)
    return replace(projection, layout=layout, chrome=chrome, crops=crops, patches=patches)


def make_layout(seed: int, split: str, index: int) -> Layout:
    """Layout ``index`` of a split's pool: the first style of its stream whose items fit."""
    split_number = SPLITS.index(split)
    for attempt in range(MAX_ATTEMPTS):
        layout = compose(sample_style(np.random.default_rng([seed, split_number, index, 1 + attempt])))
        if layout is not None:
            return layout
    raise RuntimeError(f"layout {index} of {split}: no style fitted in {MAX_ATTEMPTS} attempts")


def layout_pool(
    seed: int, split: str, image_size: int, patch_size: int, keep: int, *, compact: bool = False
) -> Callable[[int], Projection]:
    """A function from pool index to :class:`Projection` that remembers the ``keep`` last used.

    One takes 2.5 MB at 224 pixels; ``compact`` keeps it compressed, in 50 kB, and unpacks it in 2 ms.
    """

    def make(index: int) -> Projection:
        return project(make_layout(seed, split, index), image_size, patch_size)

    if not compact:
        return lru_cache(maxsize=keep)(make)

    @lru_cache(maxsize=keep)
    def packed(index: int) -> bytes:
        return zlib.compress(pickle.dumps(make(index), pickle.HIGHEST_PROTOCOL), level=1)

    # What is unpacked was packed by this very function, in this process.
    return lambda index: pickle.loads(zlib.decompress(packed(index)))


def first_with_room(pool: Callable[[int], Projection], num_layouts: int) -> Callable[[int], int]:
    """A function from pool index to the first index from there on, round the pool, whose bar takes every maximum.

    It raises ValueError if no layout of the pool does.
    """

    @lru_cache(maxsize=num_layouts)
    def has_room(index: int) -> bool:
        return takes_colorbar_max(pool(index).layout)

    def first(index: int) -> int:
        for step in range(num_layouts):
            if has_room((index + step) % num_layouts):
                return (index + step) % num_layouts
        raise ValueError(f"num_layouts: expected a layout with a colour bar among them, got none in {num_layouts}")

    return first
