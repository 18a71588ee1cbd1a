"""The words of a verdict: what an interval says of a claimed range, several tests of a claim, and several models.

Takes limits of intervals and claimed ranges; gives one of five words. Knows no claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite

SUPPORTED, REFUTED, UNDECIDED, UNTESTABLE = "supported", "refuted", "undecided", "untestable"
DIFFERS = "differs"
WORDS = (SUPPORTED, REFUTED, UNDECIDED, UNTESTABLE)


@dataclass(frozen=True)
class Claimed:
    """A range that a quantity is claimed to lie in; with its ends (``closed``), or between them."""

    low: float = -inf
    high: float = inf
    closed: bool = False

    def word(self, low: float, high: float) -> str:
        """What the interval from ``low`` to ``high`` says: supported where all of it lies in the range, refuted where
        none does, undecided where it reaches both, untestable without limits (NaN or infinite ones)."""
        if not (isfinite(low) and isfinite(high)):
            return UNTESTABLE
        if self._holds(low) and self._holds(high):
            return SUPPORTED
        beyond = (high < self.low or low > self.high) if self.closed else (high <= self.low or low >= self.high)
        return REFUTED if beyond else UNDECIDED

    def _holds(self, value: float) -> bool:
        return self.low <= value <= self.high if self.closed else self.low < value < self.high


def together(tests: Iterable[str], guards: Iterable[str] = ()) -> str:
    """The word of a claim from those of its tests: untestable where a guard is not met or there is no test; else
    supported if all are, refuted if any is, untestable if any is, undecided otherwise."""
    words = list(tests)
    if not words or any(word != SUPPORTED for word in guards):
        return UNTESTABLE
    if all(word == SUPPORTED for word in words):
        return SUPPORTED
    if REFUTED in words:
        return REFUTED
    return UNTESTABLE if UNTESTABLE in words else UNDECIDED


def over_models(words: Mapping[str, str]) -> str:
    """Model -> word: the word they have in common, else "differs"."""
    found = set(words.values())
    return found.pop() if len(found) == 1 else DIFFERS
