"""Does attention follow the thing, or stay where it is? Attention before and after a twin's edit.

Takes lifts (density of attention over chance) on where the thing was and where it is now, before and after the edit;
gives three statistics a head. The first two are 1 where it acts on content and 0 where it acts on position; the third
is 1 where other letters make no difference to it, be it for content or for position. Knows no model.

``let_go`` (thing removed): the part of the excess over chance that leaves the place, (lift - lift after) / (lift - 1).
``follow`` (thing moved): with the contrast of the two places D = lift(here) - lift(there), (D before + D after) /
(2 D before), places shared by both left out: 1 where attention moves along, 0 where it stays. ``keep`` (replaced by its
like): (lift after - 1) / (lift - 1). All are ratios of sums over pictures. Of edges and corners, which no edit takes
out all of, places are those of the ones that the edit takes out, and of the ones that it makes. A head that does not
look at the thing to begin with (denominator not above :data:`LEAST_EXCESS` a picture) has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import bootstrap_interval, weighted_ratio

STATISTICS = ("let_go", "follow", "keep")
# Concept -> edit -> statistic it gives. Edits are named as :class:`data_synth.twins.Edit` prints itself.
EDITS: dict[str, dict[str, str]] = {
    "chirp": {"chirp_elsewhere": "follow", "without(chirp)": "let_go"},
    "text": {"without(text)": "let_go", "replace(text)": "keep", "grey(text)": "let_go", "move(title)": "follow"},
    "colorbar": {"without(colorbar)": "let_go", "move(colorbar)": "follow"},
}
# Frame and ticks are lines, but most edges are the border of the spectrogram, which stays without them.
EDITS |= {
    concept: {
        "without(frame)": "let_go",
        "without(plot_background)": "let_go",
        "grey(text)": "let_go",
        "move(colorbar)": "follow",
    }
    for concept in ("edge", "corner")
}
LEAST_EXCESS = 0.5
COLUMNS = ("layer", "head", "model", "query", "concept", "edit", "statistic", "value", "ci_low", "ci_high", "n")

Floats = NDArray[np.float64]


def twin_table(
    lifts: Mapping[tuple[str, str], Mapping[str, Floats]], indices: NDArray[np.integer], *, model: str, query: str
) -> pd.DataFrame:
    """One row a head and edit. ``lifts``: (concept, edit) -> ``old_before``, ``old_after``, ``new_before``,
    ``new_after``, float64 [image layer head] each; NaN where the picture does not show the thing, and for ``new_...``
    where nothing moves."""
    parts = []
    for (concept, edit), found in lifts.items():
        statistic = EDITS[concept][edit]
        above, below = statistic_parts(statistic, found)
        count, *shape = above.shape
        above, below = above.reshape(count, -1), below.reshape(count, -1)
        interval = bootstrap_interval(partial(weighted_ratio, above, below), indices)
        known = np.isfinite(above) & np.isfinite(below)
        number = known.sum(axis=0)
        excess = np.where(known, below, 0.0).sum(axis=0) / np.maximum(number, 1)
        looks = excess > (2 * LEAST_EXCESS if statistic == "follow" else LEAST_EXCESS)
        layer, head = (part.ravel() for part in np.indices(shape))
        limits = (interval.value, interval.low, interval.high)
        value, low, high = (np.where(looks, limit, np.nan) for limit in limits)
        columns = {"layer": layer, "head": head, "value": value, "ci_low": low, "ci_high": high, "n": number}
        parts.append(pd.DataFrame(columns).assign(concept=concept, edit=edit, statistic=statistic))
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(parts, ignore_index=True).assign(model=model, query=query)[list(COLUMNS)]


def statistic_parts(statistic: str, lifts: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """Numerator and denominator per picture of a statistic (see above)."""
    before, after = lifts["old_before"], lifts["old_after"]
    if statistic == "let_go":
        return before - after, before - 1
    if statistic == "keep":
        return after - 1, before - 1
    if statistic == "follow":
        contrast = before - lifts["new_before"]
        return contrast + (lifts["new_after"] - after), 2 * contrast
    raise ValueError(f"statistic: expected one of {', '.join(STATISTICS)}, got {statistic!r}")
