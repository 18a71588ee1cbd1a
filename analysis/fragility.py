"""How fragile a word is: would it change without any single picture, what does the trimmed mean say, and how much of
the effect is one picture's?

Takes the interval of all and of all but each one, and the claimed range; gives columns of a claims table. What is left
out is a picture (its index in the run) or, where heads are counted, a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.fieller import ratio_interval
from analysis.intervals import Indices, Interval, interval_over_images

Floats = NDArray[np.float64]
Word = Callable[[float, float], str]  # limits -> what they say of the claim
# measured
LEFT_OUT = ("left_out", "without_value", "without_ci_low", "without_ci_high", "changing")
TRIMMED = ("trimmed_value", "trimmed_ci_low", "trimmed_ci_high")
SHARE = "largest_picture_share"


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The names of what was left out, one at a time, and value and limits of the rest, one entry each."""

    names: Sequence[str]
    without: Interval


def without_each(values: Floats) -> Floats:
    """Column i holds ``values`` [image] but those of picture i, [image − 1 image]."""
    count = len(values)
    places = np.arange(count - 1)[:, None]
    return values[places + (places >= np.arange(count)[None])]


def picture_names(pictures: Iterable[int]) -> list[str]:
    return [f"picture {picture}" for picture in pictures]


def mean_without(values: Floats, indices: Indices, level: float) -> LeftOut:
    """Of the mean over pictures, ``values`` [image]; those that are NaN say nothing and are not left out."""
    present = np.flatnonzero(np.isfinite(values))
    if len(present) < 3:
        return _nothing()
    found = interval_over_images(without_each(values)[:, present], indices(len(values) - 1), level=level)
    return LeftOut(picture_names(present), found)


def ratio_without(numerator: Floats, denominator: Floats, level: float) -> LeftOut:
    """Of a ratio of means, Fieller's interval; both [image]."""
    if len(numerator) < 3:
        return _nothing()
    found = ratio_interval(without_each(numerator), without_each(denominator), level=level)
    return LeftOut(picture_names(range(len(numerator))), found)


def left_out(value: float, word: str, found: LeftOut, says: Word) -> dict[str, Any]:
    """Columns :data:`LEFT_OUT`. Told is, of those without which the word would change, the one that moves the value
    most; where there is none, the one that moves it most of all. ``changing``: all of the former, by the new word."""
    if not found.names:
        return {}
    words = [says(low, high) for low, high in zip(found.without.low, found.without.high, strict=True)]
    changed = np.array([other != word for other in words])
    # Where no number is left (nothing to divide by), none says how far it moved: told last, but counted by its word.
    moved = np.abs(found.without.value - value)
    moved = np.where(np.isnan(moved), -1.0, moved)
    first = int(np.where(changed == changed.any(), moved, -2.0).argmax())
    by_word: dict[str, list[str]] = {}
    for name, other in zip(found.names, words, strict=True):
        if other != word:
            by_word.setdefault(other, []).append(name)
    limits = found.without
    return dict(
        zip(
            LEFT_OUT,
            (
                found.names[first],
                *(float(one[first]) for one in (limits.value, limits.low, limits.high)),
                "; ".join(f"{other}: {', '.join(names)}" for other, names in by_word.items()),
            ),
            strict=True,
        )
    )


def read_changing(told: str) -> dict[str, str]:
    """What was left out -> the word without it, from the column ``changing``. ValueError for another form."""
    found: dict[str, str] = {}
    for part in told.split("; ") if told else ():
        word, separator, names = part.partition(": ")
        if not separator or not names:
            raise ValueError(f"changing: expected 'word: picture 0, picture 1; …', got {told!r}")
        found |= dict.fromkeys(names.split(", "), word)
    return found


def trimmed(found: Interval, place: int = 0) -> dict[str, Any]:
    """Columns :data:`TRIMMED` from the interval of the trimmed estimator."""
    return {name: float(one[place]) for name, one in zip(TRIMMED, (found.value, found.low, found.high), strict=True)}


def largest_share(values: Floats) -> float:
    """How many times the sum of ``values`` [image] the largest of them is, in size: above 1 where others cancel it; NaN
    where they sum to 0. Pictures that are NaN say nothing."""
    known = values[np.isfinite(values)]
    whole = abs(float(known.sum()))
    return float(np.abs(known).max()) / whole if whole > 0 else float("nan")


def _nothing() -> LeftOut:
    nothing = np.empty(0)
    return LeftOut((), Interval(nothing, nothing, nothing))
