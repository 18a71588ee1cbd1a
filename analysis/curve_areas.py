"""Removal curves: which heads leave when, and what the losses along the way amount to.

Takes mean scores `[layer head]` for the orders, and the losses measured along them `[count image]`; gives the tidy
table of the rises with areas and intervals.
Does not know: models, how losses came about.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import Indices, interval_over_images

Floats = NDArray[np.float64]
Head = tuple[int, int]  # layer, head

REMOVAL_COUNTS = (0, 1, 2, 4, 8, 12, 18, 24, 36, 48, 60, 72)
ORDERS = ("most_first", "least_first")
RANDOM_ORDERS = 20
_RANDOM_ORDER = re.compile(r"random_\d+")
COLUMNS = (
    *("method", "order", "removed", "loss_rise_var_pct", "ci_low", "ci_high", "area", "area_ci_low", "area_ci_high"),
    *("area_gap", "area_gap_ci_low", "area_gap_ci_high", "n"),
)


def removal_counts(num_heads: int) -> tuple[int, ...]:
    """How many heads are gone at each step: `REMOVAL_COUNTS` below the number of heads, and all of them."""
    if num_heads < 1:
        raise ValueError(f"removal counts: expected at least 1 head, got {num_heads}")
    return (*(count for count in REMOVAL_COUNTS if count < num_heads), num_heads)


def head_order(scores_mean: NDArray[np.floating], seed: int = 0) -> tuple[Head, ...]:
    """All heads of mean scores `[layer head]`, highest first.

    Equal heads stand in a random order, drawn from `default_rng([seed, 11])` and the same for every method: the place
    of a head in the model is not to decide.
    """
    if np.ndim(scores_mean) != 2 or not np.isfinite(scores_mean).all():
        raise ValueError(f"head order: expected finite mean scores [layer head], got {list(np.shape(scores_mean))}")
    shuffled = np.random.default_rng([seed, 11]).permutation(scores_mean.size)
    places = shuffled[np.argsort(-scores_mean.ravel()[shuffled], kind="stable")]
    return tuple((int(place) // scores_mean.shape[1], int(place) % scores_mean.shape[1]) for place in places)


def random_orders(heads: Sequence[Head], seed: int, number: int = RANDOM_ORDERS) -> dict[str, tuple[Head, ...]]:
    """So many orders of all heads, ``random_0``, ``random_1``, ..., number i drawn by `default_rng([seed, 23, i])`."""
    draws = [np.random.default_rng([seed, 23, place]).permutation(len(heads)) for place in range(number)]
    return {f"random_{place}": tuple(heads[at] for at in draw) for place, draw in enumerate(draws)}


def is_random_order(name: str) -> bool:
    """Whether a curve is one of `random_orders`, by its name."""
    return _RANDOM_ORDER.fullmatch(name) is not None


def above_random(table: pd.DataFrame, random: Collection[str]) -> pd.DataFrame:
    """A curve table with the column ``above_random``: of what `area_gap` is under random orders, the share that lies
    below the method's own; NaN for the methods named in `random`, which are these orders.

    A random order from its end is as random, so each counts twice: its gap and the negative of it.
    """
    gaps = table.drop_duplicates("method").set_index("method")["area_gap"]
    null = gaps[gaps.index.isin(list(random))].to_numpy()
    null = np.concatenate([null, -null])
    shares = {name: (null < gap).mean() if len(null) else np.nan for name, gap in gaps.items() if name not in random}
    return table.assign(above_random=table["method"].map(shares).astype(np.float64))


def removal_orders(
    scores_mean: NDArray[np.floating], counts: Sequence[int] | None = None, seed: int = 0
) -> dict[str, dict[int, tuple[Head, ...]]]:
    """Which heads are gone at each count: order -> count -> (layer, head) in the order of leaving.

    `scores_mean` `[layer head]`, larger = matters more; `counts` by default `removal_counts`. "least_first" is
    `head_order` from its end.
    """
    order = head_order(scores_mean, seed)
    counts = removal_counts(len(order)) if counts is None else counts
    if not all(0 <= count <= len(order) for count in counts):
        raise ValueError(f"removal orders: expected counts from 0 to {len(order)}, got {list(counts)}")
    orders = dict(zip(ORDERS, (order, order[::-1]), strict=True))
    return {name: {count: leaving[:count] for count in counts} for name, leaving in orders.items()}


def curve_table(
    losses: Mapping[str, Mapping[str, NDArray[np.floating]]], counts: Sequence[int], indices: Indices
) -> pd.DataFrame:
    """One row per method, order and count, in the order given: `COLUMNS`.

    `losses` method -> order ("most_first", "least_first") -> loss per picture `[count image]` with `counts` heads gone,
    the first count 0 and the last all heads; `indices(n)` -> the bootstrap matrix `[replicate image]`.
    `loss_rise_var_pct`: 100 · (loss − intact loss), mean over pictures, in % of the label variance. `area`: by
    trapezoid over the share of heads removed, in the same unit, on every row of its method and order. `area_gap` =
    area most first − area least first, on every row of its method: a good method has a large one. Each is a mean of
    numbers per picture; the intervals are theirs at 95 %, gaps paired by picture.

    ValueError for counts that do not rise from 0, and for losses of another shape, of other orders or not finite.
    """
    steps = np.asarray(counts, dtype=np.float64)
    if len(steps) < 2 or steps[0] != 0 or (np.diff(steps) <= 0).any():
        raise ValueError(f"curves: expected counts that rise from 0, got {list(counts)}")
    tables = []
    for method, curves in losses.items():
        rises = _rises(method, curves, len(steps))
        n = next(iter(rises.values())).shape[1]
        areas = {order: np.trapezoid(rise, steps / steps[-1], axis=0) for order, rise in rises.items()}
        gap = areas["most_first"] - areas["least_first"]
        for order in ORDERS:
            # Columns: the counts, then the area, then the gap.
            columns = np.concatenate([rises[order], areas[order][None], gap[None]]).T
            found = interval_over_images(columns, indices(n))
            value, low, high = found.value, found.low, found.high
            row: dict[str, object] = {"method": method, "order": order, "removed": [int(count) for count in counts]}
            row |= {"loss_rise_var_pct": value[:-2], "ci_low": low[:-2], "ci_high": high[:-2]}
            row |= {"area": value[-2], "area_ci_low": low[-2], "area_ci_high": high[-2]}
            row |= {"area_gap": value[-1], "area_gap_ci_low": low[-1], "area_gap_ci_high": high[-1], "n": n}
            tables.append(pd.DataFrame(row))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def _rises(method: str, curves: Mapping[str, NDArray[np.floating]], num_counts: int) -> dict[str, Floats]:
    """100 · (loss − intact) `[count image]` of both orders."""
    if set(curves) != set(ORDERS):
        raise ValueError(f"{method}: expected losses of {', '.join(ORDERS)}, got {', '.join(sorted(curves)) or 'none'}")
    arrays = {order: np.asarray(curves[order], dtype=np.float64) for order in ORDERS}
    shapes = {found.shape for found in arrays.values()}
    if len(shapes) != 1 or any(len(shape) != 2 or shape[0] != num_counts or not shape[1] for shape in shapes):
        raise ValueError(f"{method}: expected losses [count image] of {num_counts} counts, got {sorted(shapes)}")
    if not all(np.isfinite(found).all() for found in arrays.values()):
        raise ValueError(f"{method}: expected finite losses")
    return {order: 100 * (found - found[:1]) for order, found in arrays.items()}
