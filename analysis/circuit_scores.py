"""How much of a model is left when only the heads that an order puts first are kept: faithfulness along the order.

Takes the losses measured with so many heads kept `[count image]` and the shared bootstrap; gives the tidy table of
faithfulness with its two areas, the circuit performance ratio and the circuit-model distance (Mueller et al. 2025,
MIB, 2504.13151, section 3). Does not know: models, how losses came about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import Indices, index_counts, percentile_interval

Floats = NDArray[np.float64]

KEPT_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
COLUMNS = (
    *("method", "kept", "share", "faithfulness", "ci_low", "ci_high"),
    *("performance_ratio", "performance_ratio_ci_low", "performance_ratio_ci_high"),
    *("model_distance", "model_distance_ci_low", "model_distance_ci_high"),
    *("ratio_above_random", "distance_below_random", "n"),
)


def kept_counts(num_heads: int) -> tuple[int, ...]:
    """How many heads are kept: `KEPT_SHARES` of all in whole heads, at least one, each number once."""
    if num_heads < 1:
        raise ValueError(f"kept heads: expected at least 1 head, got {num_heads}")
    return tuple(sorted({max(1, round(share * num_heads)) for share in KEPT_SHARES}))


def circuit_table(
    losses: Mapping[str, NDArray[np.floating]],
    empty: NDArray[np.floating],
    counts: Sequence[int],
    indices: Indices,
    random: Collection[str],
) -> pd.DataFrame:
    """One row an order and number of heads kept: `COLUMNS`.

    `losses` name -> loss per picture `[count image]` with `counts` heads kept, the last of them all; `empty` [image]
    with none. With L the mean loss over pictures, `faithfulness` is (L_empty - L_kept) / (L_empty - L_all): 1 as good
    as the whole model, 0 as bad as without heads. `performance_ratio` is its mean over the logarithm of the share kept
    (by trapezoid, as MIB weighs it, over the whole range), larger is better; `model_distance` the same mean of
    |1 - faithfulness|, smaller is better; on every row of the order. 95 % intervals by percentiles over resampled
    pictures, the ratio and its parts together. `ratio_above_random` and `distance_below_random`: the share of the
    orders named in `random` that the order surpasses; NaN for these themselves.

    ValueError for counts that do not rise to all heads, other shapes, losses that are not finite, and a model that is
    no worse without its heads: nothing is there to be faithful to.
    """
    steps = np.asarray(counts, dtype=np.float64)
    if not len(steps) or steps[0] < 1 or (np.diff(steps) <= 0).any():
        raise ValueError(f"circuits: expected counts that rise from 1 or more, got {list(counts)}")
    none = np.asarray(empty, dtype=np.float64)
    found: dict[str, tuple[Floats, Floats, Floats]] = {}
    for name, values in losses.items():
        kept = np.asarray(values, dtype=np.float64)
        if kept.shape != (len(steps), len(none)) or not (np.isfinite(kept).all() and np.isfinite(none).all()):
            raise ValueError(f"{name}: expected finite losses [{len(steps)} {len(none)}], got {list(kept.shape)}")
        if none.mean() <= kept[-1].mean():
            raise ValueError("circuits: the model is no worse without its heads, so that none can be faithful to it")
        found[name] = _scores(kept, none, steps, index_counts(indices(len(none)), len(none)))
    ratios = np.array([found[name][1][0] for name in losses if name in random])
    distances = np.array([found[name][2][0] for name in losses if name in random])
    tables = []
    for name, (faithful, ratio, distance) in found.items():
        low, high = percentile_interval(faithful[1:])
        row: dict[str, object] = {"method": name, "kept": [int(count) for count in counts], "share": steps / steps[-1]}
        row |= {"faithfulness": faithful[0], "ci_low": low, "ci_high": high}
        for column, values in (("performance_ratio", ratio), ("model_distance", distance)):
            low, high = percentile_interval(values[1:, None])
            row |= {column: values[0], f"{column}_ci_low": low[0], f"{column}_ci_high": high[0]}
        judged = name not in random and len(ratios) > 0
        row["ratio_above_random"] = float((ratios < ratio[0]).mean()) if judged else np.nan
        row["distance_below_random"] = float((distances > distance[0]).mean()) if judged else np.nan
        tables.append(pd.DataFrame(row | {"n": len(none)}))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)] if tables else pd.DataFrame(columns=list(COLUMNS))


def _scores(kept: Floats, empty: Floats, steps: Floats, counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Faithfulness `[1 + replicate count]` and its two areas `[1 + replicate]`, of all pictures and each resample."""
    weights = np.concatenate([np.ones((1, counts.shape[1])), counts])
    loss, none = weights @ kept.T, weights @ empty  # sums: the number of pictures cancels
    faithful = (none[:, None] - loss) / (none - loss[:, -1])[:, None]
    return faithful, log_mean(faithful, steps), log_mean(np.abs(1 - faithful), steps)


def log_mean(values: Floats, steps: Floats) -> Floats:
    """Mean of `[... step]` over the logarithm of the steps, by trapezoid; of one step its own value."""
    if len(steps) == 1:
        return values[..., 0]
    place = np.log(steps)
    return np.trapezoid(values, place, axis=-1) / (place[-1] - place[0])
