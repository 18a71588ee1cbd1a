"""Words of captions and labels that stand in more than one figure: how many pictures numbers rest on.

Takes tables with a column `n`; gives text.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.intervals import ENOUGH_PICTURES, indicative


def names_with_n(table: pd.DataFrame) -> list[str]:
    """The names in the index, with "(n=32)" behind those whose `n` is below the largest of the table."""
    if "n" not in table:
        return list(map(str, table.index))
    counts = table["n"].to_numpy(float)
    most = np.nanmax(counts, initial=0)
    return [f"{name} (n={n:.0f})" if n < most else str(name) for name, n in zip(table.index, counts, strict=True)]


def fewer_pictures(table: pd.DataFrame) -> str:
    """What "(n=32)" behind a name means; empty where `n` is the same for all, or not known."""
    counts = table["n"].dropna() if "n" in table else pd.Series(dtype=float)
    if counts.nunique() < 2:
        return ""
    return f"n: number of pictures, where it is below {counts.max():.0f}"


def pictures_told(table: pd.DataFrame) -> str:
    """How many pictures the rows of a table rest on, as a caption ends: a range where rows differ."""
    low, high = int(table["n"].min()), int(table["n"].max())
    if low == high:
        return f"The first {high} pictures" + (", indicative only." if indicative(high) else ".")
    caution = ", indicative only." if indicative(high) else f", indicative only below {ENOUGH_PICTURES}."
    return f"{low} to {high} pictures" + (caution if indicative(low) else ".")
