"""Intervals over pictures for what is measured between halves of the pictures: the jackknife.

Takes random halves as counts `[half image]`, and a statistic with each block of pictures left out in turn; gives
counts, standard errors and limits. A bootstrap would draw the same picture into both halves, which are then no longer
apart. Does not know: what the statistic is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Floats = NDArray[np.float64]

HALVES = 40  # of the random halves of a value; they suffice for its error
MOST_BLOCKS = 256  # more pictures than this are left out some at a time
LEAST_PICTURES = 4  # fewer leave a half without a picture


def blocks_left_out(num_images: int) -> Floats:
    """Counts `[block image]`, all ones but for one picture a row, or one block of them where there are many."""
    blocks = np.array_split(np.arange(num_images), min(num_images, MOST_BLOCKS))
    kept = np.ones((len(blocks), num_images))
    for place, block in enumerate(blocks):
        kept[place, block] = 0
    return kept


def halves_left_out(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """The first `HALVES` of the halves `[half image]` and their rests without each block: `[block · half image]`."""
    kept = blocks_left_out(first.shape[1])[:, None]
    return tuple((kept * part[:HALVES]).reshape(-1, part.shape[1]) for part in (first, second))  # type: ignore[return-value]


def mean_over_halves(rows: Floats, num_halves: int) -> Floats:
    """`[block · half]`, in the order of `halves_left_out` of so many halves -> the mean of each block `[block]`."""
    return rows.reshape(-1, min(num_halves, HALVES)).mean(axis=1)


def jackknife_error(left_out: Floats) -> float:
    """Standard error over pictures from the statistic without each block, `[block]` (Quenouille 1956, Tukey 1958)."""
    return float(np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum()))


def jackknife_interval(
    value: float, left_out: Floats, lowest: float = -1.0, highest: float = 1.0
) -> tuple[float, float]:
    """95 % limits: `value` ± standard errors by Student's t of one degree of freedom less than blocks, within the range
    of the statistic; NaN where the value or a block has none.

    For the mean over random halves of an agreement of ranks. In simulated heavy-tailed effects (72 heads, 16 to 128
    pictures, good and poor methods) it held the value expected at that number of pictures in 91 to 99 %, and the
    difference of two methods in 94 % or more.
    """
    reach = t.ppf(0.975, len(left_out) - 1) * jackknife_error(left_out)
    low, high = np.clip([value - reach, value + reach], lowest, highest)
    return float(low), float(high)
