"""Exact area averaging between pixel grids, in whole numbers.

Takes sizes and label maps; gives integer weight matrices, coverages and patch labels. Knows the region names and their
order of precedence, but not what they look like. Everything is an integer divided by one common denominator, so results
do not depend on the order of summation, the number of threads or the machine.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

REGIONS = (
    "chirp",
    "title",
    "x_label",
    "y_label",
    "x_ticks",
    "y_ticks",
    "colorbar_label",
    "colorbar_ticks",
    "colorbar",
    "frame",
    "plot_background",
    "margin",
)
TEXT_REGIONS = ("title", "x_label", "y_label", "x_ticks", "y_ticks", "colorbar_label", "colorbar_ticks")
REGION_INDEX = {name: index for index, name in enumerate(REGIONS)}
CANVAS_ROWS, CANVAS_COLS = 480, 640
CHIRP_PATCH_SHARE = 0.01
REGION_PATCH_SHARE = 0.05


@lru_cache(maxsize=32)
def area_weights(source: int, target: int) -> tuple[NDArray[np.float32], int]:
    """Integer weights ``[target, source]`` and their row sum: target pixel t averages the source pixels it covers.

    float32 holds them exactly; products with 8-bit pixels stay below 2**24, so matrix products are exact too.
    """
    divisor = gcd(source, target)
    wide, narrow = source // divisor, target // divisor
    starts, ends = np.arange(target) * wide, (np.arange(target) + 1) * wide
    pixels = np.arange(source) * narrow
    overlap = np.minimum(ends[:, None], pixels[None] + narrow) - np.maximum(starts[:, None], pixels[None])
    return np.maximum(overlap, 0).astype(np.float32), wide


def canvas_weights(image_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Row weights, column weights and the denominator that take a 480 x 640 canvas to ``image_size`` squared."""
    rows, row_sum = area_weights(CANVAS_ROWS, image_size)
    cols, col_sum = area_weights(CANVAS_COLS, image_size)
    return rows, cols, row_sum * col_sum


@lru_cache(maxsize=8)
def _sparse_weights(image_size: int) -> tuple[csr_array, csr_array]:
    rows, cols, _ = canvas_weights(image_size)
    return csr_array(rows), csr_array(cols)


def area_sums(canvas: NDArray[np.float32], image_size: int) -> NDArray[np.float32]:
    """Numerators of the area average of a canvas [480 640], float32 [row col]; exact for whole numbers up to 255."""
    rows, cols = _sparse_weights(image_size)
    return np.ascontiguousarray((cols @ (rows @ canvas).T).T)


def coverage_counts(label_map: NDArray[np.uint8], image_size: int) -> NDArray[np.int32]:
    """Numerators ``[region row col]`` of the share of each region in each pixel.

    The denominator is :func:`canvas_weights`'s. Raises ValueError for a label map of another size than 480 x 640 or
    with unknown region numbers.
    """
    if label_map.shape != (CANVAS_ROWS, CANVAS_COLS):
        raise ValueError(f"label map: expected {CANVAS_ROWS} x {CANVAS_COLS} pixels, got {label_map.shape}")
    if label_map.max() >= len(REGIONS):
        raise ValueError(f"label map: expected region numbers below {len(REGIONS)}, got {int(label_map.max())}")
    counts = np.zeros((len(REGIONS), image_size, image_size), dtype=np.int32)
    for index in np.unique(label_map):
        counts[index] = area_sums((label_map == index).astype(np.float32), image_size)
    return counts


def patch_counts(counts: NDArray[np.int32], patch_size: int) -> NDArray[np.int64]:
    """Sum of coverage numerators over square patches, ``[..., row col]`` to ``[..., patch row, patch col]``."""
    *lead, height, width = counts.shape
    grid = counts.reshape(*lead, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.sum(axis=(-3, -1), dtype=np.int64)


def patch_labels(counts: NDArray[np.int64], whole: int) -> NDArray[np.uint8]:
    """One region per patch from patch counts ``[region row col]`` where a full patch counts ``whole``.

    The first region in the order of :data:`REGIONS` that covers at least 5 % of the patch (the chirp: 1 %); if none but
    plot background and margin does, the larger of the two.
    """
    threshold = np.full((len(REGIONS), 1, 1), REGION_PATCH_SHARE * whole)
    threshold[REGION_INDEX["chirp"]] = CHIRP_PATCH_SHARE * whole
    background, margin = REGION_INDEX["plot_background"], REGION_INDEX["margin"]
    enough = counts[:background] >= threshold[:background] - 1e-9 * whole
    fallback = np.where(counts[background] >= counts[margin], background, margin)
    return np.where(enough.any(axis=0), enough.argmax(axis=0), fallback).astype(np.uint8)
