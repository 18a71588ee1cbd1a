"""Methods that are one method under several names: their scores agree to rounding, so tables show them once.

Takes oriented scores `[image layer head]`; gives for each method the one that stands for it.
Does not know: models, truths, why two methods coincide.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.9999


def duplicate_groups(scores: Mapping[str, NDArray[np.floating]], threshold: float = THRESHOLD) -> dict[str, str]:
    """Method -> the method that stands for it, the first in order; itself where it resembles none before it.

    Two methods are one when Pearson's r of their scores, flattened over image, layer and head of the first pictures
    that both have, is above `threshold`; opposite signs are two methods. A method joins the first representative it
    resembles, never by way of a third method: two that are alike only through a chain stay two. Scores that are all
    equal resemble nothing.

    ValueError for scores of other heads, or not finite.
    """
    stands_for: dict[str, str] = {}
    for name, found in scores.items():
        alike = (other for other in dict.fromkeys(stands_for.values()) if similarity(scores[other], found) > threshold)
        stands_for[name] = next(alike, name)
    return stands_for


def similarity(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Pearson's r of scores `[image layer head]` on the first pictures both have, NaN where either is constant."""
    n = min(len(a), len(b))
    if a.shape[1:] != b.shape[1:] or not n:
        raise ValueError(f"scores: expected [image layer head] of the same heads, got {list(a.shape)}, {list(b.shape)}")
    x, y = (np.asarray(part[:n], dtype=np.float64).ravel() for part in (a, b))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("scores: expected finite scores")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    # Scaled first: scores of gradients may be so small that their squares vanish.
    x, y = (part / np.abs(part).max() for part in (x - x.mean(), y - y.mean()))
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))
