"""What a head may look at: concepts as masks on the patch grid.

Takes patch labels, pictures and token norms; gives boolean masks `[image row col]` by concept. Knows no heads.

Concepts share no patch, or a head that looks at text would be called an edge detector for the edges of letters: the
named things come first (chirp, text, colour bar), then sinks, then corners, then edges of what is left: axes, ticks,
borders of the spectrogram. The noise inside it is full of edges, and of nothing: patches of its background have none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.feature import canny, corner_harris, corner_peaks

from analysis.pictures import region_indices
from data_synth import TEXT_REGIONS

NAMED = ("chirp", "text", "colorbar")
DRAWN = ("corner", "edge")  # seen in the picture's pixels
SINK = "sink"
CONCEPTS = (*NAMED, "edge", "corner", SINK)  # what a role may be about
FINER = TEXT_REGIONS  # parts of text, reported beside the concepts
EDGE_SHARE = 0.05  # of a patch's pixels; a line through a patch of 14 pixels covers 7 %
CORNER_DISTANCE = 3  # pixels between two corners
CORNER_STRENGTH = 0.1  # of the strongest in the picture
FAR_OUT = 3.0  # interquartile ranges beyond the upper quartile (Tukey 1977: far out)

Masks = NDArray[np.bool_]


def concept_masks(patch_labels: NDArray[np.uint8], drawn: Mapping[str, Masks], sinks: Masks) -> dict[str, Masks]:
    """Masks of :data:`CONCEPTS` and, after them, of the parts of text (:data:`FINER`), `[image row col]` each.

    ``drawn``: where the pictures have corners and edges (:func:`drawn_masks`); ``sinks``: see :func:`sink_mask`.
    """
    numbers = region_indices()
    found = {name: np.isin(patch_labels, numbers[name]) for name in NAMED}
    free = ~np.any([found[name] for name in NAMED], axis=0)
    noise = np.isin(patch_labels, numbers["plot_background"])
    for name, mask in ((SINK, sinks), *((name, drawn[name] & ~noise) for name in DRAWN)):
        found[name] = mask & free
        free &= ~mask
    return {name: found[name] for name in CONCEPTS} | {name: np.isin(patch_labels, numbers[name]) for name in FINER}


def drawn_masks(images: NDArray[np.uint8], num_rows: int, num_cols: int) -> dict[str, Masks]:
    """Patches with corners and with edges, `[image row col]` each, from pictures uint8 `[image row col 3]`.

    Edges are scikit-image's Canny edges, where they cover at least 5 % of a patch; corners are peaks of its Harris
    response, any in a patch.
    """
    edges, corners = [], []
    for image in images:
        grey = rgb2gray(image)
        height, width = grey.shape[0] // num_rows, grey.shape[1] // num_cols
        lines = canny(grey).reshape(num_rows, height, num_cols, width)
        edges.append(lines.mean(axis=(1, 3)) >= EDGE_SHARE)
        peaks = corner_peaks(corner_harris(grey), min_distance=CORNER_DISTANCE, threshold_rel=CORNER_STRENGTH)
        has_corner = np.zeros((num_rows, num_cols), dtype=bool)
        has_corner[peaks[:, 0] // height, peaks[:, 1] // width] = True
        corners.append(has_corner)
    return {"corner": np.stack(corners), "edge": np.stack(edges)}


def sink_mask(norms: NDArray[np.floating]) -> Masks:
    """Tokens far longer than the rest of their picture, `[image row col]` from norms of the same shape: more than three
    interquartile ranges above the upper quartile."""
    lower, upper = np.quantile(norms, (0.25, 0.75), axis=(1, 2), keepdims=True)
    return norms > upper + FAR_OUT * (upper - lower)
