"""Does a map tell what a head does? Attention on a region against what the region does through that head (C5).

The attention is that of the map, as the claim is about maps: of the CLS query, on patches alone, which sum to 1. Beside
it stands the share of the whole attention, which special tokens take from; it bounds what hiding a region can do.

Takes the tables of ``knockout``, ``patching`` and ``concepts``; gives rows (columns of
:data:`analysis.verdict_rules.MEASURED`). The statistic is the mean over regions of Spearman's correlation over heads,
its interval by the jackknife over heads on Fisher's scale. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

from analysis.artists import head_name
from analysis.fragility import LeftOut, left_out
from analysis.intervals import Interval
from analysis.plan import read_plan
from analysis.verdict_rules import DISATTENUATED, KNOCKED_OUT, KNOCKED_OUT_WHOLE, PATCHED, in_region, word_of

LEAST_HEADS = 5
NEARLY_ONE = 1 - 1e-9  # a correlation of 1 has no place on Fisher's scale

Floats = NDArray[np.float64]
Row = dict[str, Any]


def maps_tell(
    tables: Mapping[str, pd.DataFrame],
    model: str,
    *,
    shown: pd.DataFrame | None = None,
    reliability: Mapping[str, float] | None = None,
) -> list[Row]:
    """C5's rows on knock-out and patching; untested where the run has no such table. ``model``: whose attention.

    ``shown``: the attention on the items of patching in its own pictures (``layer, head, region, mass``), else that of
    ``concepts``, in all pictures; ``reliability`` of the sizes of the effects of hiding, by region: what noise leaves
    of a correlation is its root.
    """
    rows: list[Row] = []
    for quantity, name in ((KNOCKED_OUT, "knockout"), (PATCHED, "patching")):
        found = tables.get(name)
        if found is None or found.empty:
            beside = [DISATTENUATED, KNOCKED_OUT_WHOLE] if name == "knockout" else []
            rows += [{"quantity": each, "note": f"the run has no table {name}"} for each in (quantity, *beside)]
        elif name == "knockout":
            sized = found.assign(size=found["effect_var_pct"].abs())
            of_map = sized.assign(mass=found["mass_of_map"])
            rows += [_row(quantity, of_map), _without_noise(of_map, reliability or {}), _row(KNOCKED_OUT_WHOLE, sized)]
            rows += _by_region(quantity, of_map)
        else:
            with_mass = _with_mass(found, tables.get("concepts"), model, shown)
            rows += [_row(quantity, with_mass), *_by_region(quantity, with_mass)]
    return rows


def _by_region(quantity: str, found: pd.DataFrame) -> list[Row]:
    """The correlation in each region by itself: their mean may hide that they differ."""
    return [_row(in_region(quantity, str(region)), of) for region, of in found.groupby("region", sort=True) if len(of)]


def _without_noise(found: pd.DataFrame, reliability: Mapping[str, float]) -> Row:
    """The mean over regions of the correlations, each over the root of the effects' reliability (Spearman 1904)."""
    row = _row(DISATTENUATED, found)
    regions = sorted(found["region"].unique())
    known = [reliability.get(str(region), np.nan) for region in regions]
    if "value" not in row or not all(one > 0 for one in known):
        return {"quantity": DISATTENUATED, "note": "the reliability of the effects is not known, or is none"}
    mass, size = (found.pivot(index=["layer", "head"], columns="region", values=name) for name in ("mass", "size"))
    complete = (mass.notna() & size.notna()).all(axis=1)
    each = _spearman(*(np.asarray(one[complete], dtype=np.float64).T for one in (mass, size)))
    scale = float((each / np.sqrt(known)).mean() / each.mean())
    if not scale > 0:  # regions of opposite signs: no one factor makes the limits of the one those of the other
        return {"quantity": DISATTENUATED, "note": "the regions' correlations have opposite signs"}
    limits = {name: float(np.clip(row[name] * scale, -1, 1)) for name in ("value", "ci_low", "ci_high")}
    told = ", ".join(f"{region} {one:.2f}" for region, one in zip(regions, known, strict=True))
    kept = {name: row[name] for name in ("quantity", "unit", "level", "n_heads", "n_pictures")}
    return kept | limits | {"note": f"reliability of the effects: {told}"}


def _with_mass(
    patching: pd.DataFrame, concepts: pd.DataFrame | None, model: str, shown: pd.DataFrame | None
) -> pd.DataFrame:
    found = patching.assign(size=patching["share"].abs(), region=patching["item"])
    if shown is not None:
        return found.merge(shown, on=["layer", "head", "region"], how="left")
    if concepts is None or concepts.empty:
        return found.assign(mass=np.nan)
    concepts = concepts[(concepts["model"] == model) & (concepts["query"] == "cls")]
    mass = concepts.rename(columns={"concept": "region"})[["layer", "head", "region", "mass"]]
    return found.merge(mass, on=["layer", "head", "region"], how="left")


def _row(quantity: str, found: pd.DataFrame) -> Row:
    """Of rows ``layer, head, region, mass, size, n``."""
    level = read_plan()["C5"]["level"]
    mass, size = (found.pivot(index=["layer", "head"], columns="region", values=name) for name in ("mass", "size"))
    known = (mass.notna() & size.notna()).all(axis=1)
    if known.sum() < LEAST_HEADS:
        return {"quantity": quantity, "note": f"fewer than {LEAST_HEADS} heads have both"}
    x, y = (np.asarray(one[known], dtype=np.float64).T for one in (mass, size))  # [region head]
    says = partial(word_of, "C5", quantity)
    value, low, high = correlation(x, y, level)
    each = [correlation(np.delete(x, head, axis=1), np.delete(y, head, axis=1), level) for head in range(x.shape[1])]
    rest = LeftOut([head_name(*head) for head in mass.index[known]], Interval(*np.array(each).T))
    unit = f"Spearman's rho over heads, mean of {', '.join(mass.columns)}"
    row: Row = {"quantity": quantity, "unit": unit, "value": value, "ci_low": low, "ci_high": high}
    row |= {"level": level, "n_heads": int(known.sum()), "n_pictures": int(found["n"].max())}
    return row | left_out(value, says(low, high), rest, says)


def correlation(x: Floats, y: Floats, level: float) -> tuple[float, float, float]:
    """Mean over regions of Spearman's correlation of ``x`` and ``y`` [region head] over heads, and its limits."""
    count = x.shape[1]
    value = float(_spearman(x, y).mean())
    places = np.arange(count - 1)[None] + (np.arange(count - 1)[None] >= np.arange(count)[:, None])
    scale = np.arctanh(np.clip(_spearman(x[:, places], y[:, places]).mean(axis=0), -NEARLY_ONE, NEARLY_ONE))
    error = np.sqrt((count - 1) / count * ((scale - scale.mean()) ** 2).sum())
    half = student.ppf((1 + level) / 2, count - 1) * error
    centre = np.arctanh(np.clip(value, -NEARLY_ONE, NEARLY_ONE))
    return value, float(np.tanh(centre - half)), float(np.tanh(centre + half))


def _spearman(x: Floats, y: Floats) -> Floats:
    """Over the last axis; NaN where one is constant."""
    one, other = (rankdata(values, axis=-1) for values in (x, y))
    one, other = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * other).sum(axis=-1) / np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
