"""Statements about layers, each of which holds only if it holds in every model.

Takes runs (:mod:`analysis.seed_runs`) and a bootstrap matrix over their pictures; gives the table of statements and its
lines. Does not know: methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import rank_scores, spearman
from analysis.intervals import ESTIMATORS, all_but_one, bca_interval, centred_interval, index_counts
from analysis.seed_runs import EVERY, TRUTHS, Floats, Run, shared_truths


@dataclass(frozen=True)
class Parts:
    """Which layers the statements speak of, as slices, and their names."""

    first_quarter: slice
    last_quarter: slice
    second_half: slice

    @staticmethod
    def of(num_layers: int) -> Parts:
        """Quarters are rounded down, but a layer at least; the second half begins at layer num_layers // 2."""
        quarter = max(1, num_layers // 4)
        return Parts(slice(0, quarter), slice(num_layers - quarter, num_layers), slice(num_layers // 2, num_layers))

    @staticmethod
    def name(part: slice) -> str:
        return f"L{part.start}" if part.stop - part.start == 1 else f"L{part.start}-L{part.stop - 1}"


def statement_texts(num_layers: int) -> dict[str, str]:
    """What each statement says and when it holds, by name."""
    parts = Parts.of(num_layers)
    first, last, second = map(Parts.name, (parts.first_quarter, parts.last_quarter, parts.second_half))
    above = "its 95 % interval is above 0"
    return {
        "last_above_first_quarter": f"mean effect of {last} minus that of {first}; holds if {above}",
        "second_half_to_first_quarter": f"mean effect of {second} over that of {first}; "
        f"no interval where that of {first} reaches 0",
        "effect_rises_with_depth": f"Spearman of mean effect and depth over layers; holds if {above}",
        "largest_layer": "layer with the largest mean effect; holds if it is the same in every model",
        "first_quarter_share": f"share of {first} in the sum of the positive mean effects of heads",
    }


def statements_table(runs: Sequence[Run], indices: NDArray[np.integer]) -> pd.DataFrame:
    """``statements``: each statement of :func:`statement_texts` in every model, then whether it holds in all of them.

    The effect of a layer is that of ``layers_by_seed``, under each estimator; differences and ratios of them have
    intervals over pictures, each resample used for all layers. ``holds`` is empty for what is only a number.
    """
    rows: list[dict[str, Any]] = []
    texts = statement_texts(runs[0].shape[1])
    for truth in shared_truths(runs):
        for estimator in ESTIMATORS:
            found = {run.model: _statements(run.effects[truth], estimator, indices) for run in runs}
            for name, text in texts.items():
                of = {"statement": name, "truth": truth, "estimator": estimator}
                numbers = {model: statements[name] for model, statements in found.items()}
                tested = name in ("last_above_first_quarter", "effect_rises_with_depth")
                for model, (value, low, high) in numbers.items():
                    holds = bool(low > 0) if tested else None
                    row = {"model": model, "value": value, "ci_low": low, "ci_high": high, "holds": holds}
                    rows.append(of | row | {"n": runs[0].shape[0], "text": text})
                values = {value for value, _, _ in numbers.values()}
                every = all(low > 0 for _, low, _ in numbers.values()) if tested else None
                if name == "largest_layer":
                    every = len(values) == 1
                value = values.pop() if name == "largest_layer" and every else np.nan
                row = {"model": EVERY, "value": value, "ci_low": np.nan, "ci_high": np.nan, "holds": every}
                rows.append(of | row | {"n": runs[0].shape[0], "text": text})
    return pd.DataFrame(rows).astype({"holds": object})


def statement_lines(statements: pd.DataFrame, num_layers: int) -> list[str]:
    """What :func:`statements_table` says of means of zero ablation, a line for each statement."""
    lines = []
    statements = statements[(statements["truth"] == TRUTHS[0]) & (statements["estimator"] == "mean")]
    for name, text in statement_texts(num_layers).items():
        rows = statements[statements["statement"] == name].set_index("model")
        shown = ", ".join(
            f"{model} {row['value']:.3g} ({row['ci_low']:.3g} to {row['ci_high']:.3g})"
            for model, row in rows.drop(index=EVERY).iterrows()
        ).replace("nan to nan", "no interval")
        every = rows["holds"].get(EVERY)
        verdict = "" if every is None else f" In every model: {'yes' if every else 'no'}."
        lines.append(f"{text[0].upper()}{text[1:]}: {shown}.{verdict}")
    return lines


def _statements(effects: Floats, estimator: str, indices: NDArray[np.integer]) -> dict[str, tuple[float, float, float]]:
    """Value and 95 % limits of each statement from effects [image layer head] of one model."""
    num_images, num_layers, num_heads = effects.shape
    parts, function = Parts.of(num_layers), ESTIMATORS[estimator]
    counts = np.concatenate([np.ones((1, num_images)), index_counts(indices, num_images), all_but_one(num_images)])
    layers = function(effects.mean(axis=2), counts)  # [row layer]
    positive = np.maximum(function(effects.reshape(num_images, -1), counts), 0).reshape(-1, num_layers, num_heads)
    first, last, second = (
        layers[:, part].mean(axis=1) for part in (parts.first_quarter, parts.last_quarter, parts.second_half)
    )
    depth = rank_scores(np.arange(num_layers, dtype=np.float64)[None, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(first > 0, second / first, np.nan)
        share = positive[:, parts.first_quarter].sum(axis=(1, 2)) / positive.sum(axis=(1, 2))
    # A ratio to what may be nothing is bounded by nothing.
    ratio_limits = _bca(ratio, len(indices)) if _bca(first, len(indices))[1] > 0 else (ratio[0], np.nan, np.nan)
    largest = layers.argmax(axis=1)[: 1 + len(indices)].astype(np.float64)
    in_order = np.sort(largest[1:])  # limits are layers that were drawn, the outer ones where 95 % ends between two
    cut = 0.025 * (len(in_order) - 1)
    layer_limits = in_order[int(cut)], in_order[len(in_order) - 1 - int(cut)]
    return {
        "last_above_first_quarter": _bca(last - first, len(indices)),
        "second_half_to_first_quarter": (float(ratio_limits[0]), ratio_limits[1], ratio_limits[2]),
        "effect_rises_with_depth": _centred(spearman(rank_scores(layers[:, None]), depth), len(indices), -1.0),
        "largest_layer": (float(largest[0]), float(layer_limits[0]), float(layer_limits[1])),
        # Noise has a positive part, so resamples lie above the value where true effects are small.
        "first_quarter_share": _centred(share, len(indices), 0.0),
    }


def _bca(rows: Floats, num_replicates: int) -> tuple[float, float, float]:
    """Value and BCa limits from rows: the value, the replicates, the jackknife."""
    point, replicates, jackknife = np.split(rows[:, None], [1, 1 + num_replicates])
    low, high = bca_interval(replicates, point[0], jackknife)
    return float(point[0, 0]), float(low[0]), float(high[0])


def _centred(rows: Floats, num_replicates: int, least: float) -> tuple[float, float, float]:
    """Value and centred limits, cut at ``least`` and 1, from rows: the value, the replicates, others."""
    point, replicates, _ = np.split(rows[:, None], [1, 1 + num_replicates])
    low, high = np.clip(centred_interval(point[0], replicates), least, 1.0)[:, 0]
    return float(point[0, 0]), float(low), float(high)
