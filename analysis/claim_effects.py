"""What the claims say of effects, measured: C1 and C2 from the effects of removing heads, C6 from what irrelevant items
add to them.

Takes effects [image layer head] in % of the label variance and the run's bootstrap; gives rows (columns of
:data:`analysis.verdict_rules.MEASURED`). Judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fieller import ratio_interval
from analysis.fragility import SHARE, LeftOut, largest_share, left_out, mean_without, ratio_without, trimmed
from analysis.intervals import Indices, Interval, bootstrap_interval, interval_over_images, weighted_ratio
from analysis.plan import read_plan
from analysis.verdict_rules import (
    BESIDE_STUDY,
    DEEPER_MINUS,
    DEEPER_RATIO,
    DIVISOR,
    MEAN_EARLY,
    PCT_OF_LOSS,
    REMOVED_TOGETHER,
    SD_OVER_HEADS,
    SHARE_OF_ALL,
    SIXTH_MINUS,
    SIXTH_RATIO,
    SLOPE_OF,
    rule_of,
    word_of,
)
from analysis.verdicts_v1 import ENDING

VAR_PCT = "% of the label variance"
LEVEL = 0.95  # of the intervals of the table joint_removal
Floats = NDArray[np.float64]
Row = dict[str, Any]


def early_heads(effects: Floats, indices: Indices, baseline: float, joint: pd.DataFrame | None = None) -> list[Row]:
    """C1; `baseline` is the intact loss in the unit of the effects, ``joint`` the table of ``joint_removal``."""
    plan = read_plan()["C1"]
    layers = plan["layers"]
    if not _has(effects, layers):
        return [_untested(name, _layers_missing(effects)) for name in
                (MEAN_EARLY, BESIDE_STUDY, SHARE_OF_ALL, REMOVED_TOGETHER)]  # fmt: skip
    heads = {"n_heads": len(layers) * effects.shape[2]}
    of_picture = effects[:, layers].mean(axis=(1, 2))
    mean = of_mean("C1", MEAN_EARLY, VAR_PCT, of_picture, indices) | heads
    mean["value_pct_of_baseline"] = 100 * mean["value"] / baseline
    spread = float(effects[:, layers].mean(axis=0).std(ddof=1))
    sd = {"quantity": SD_OVER_HEADS, "unit": VAR_PCT, "value": spread, "n_pictures": len(effects)} | heads
    sd["value_pct_of_baseline"] = 100 * spread / baseline
    of_loss: Row = {"quantity": PCT_OF_LOSS, "unit": "% of the intact loss", "value": mean["value_pct_of_baseline"]}
    of_loss |= {"n_pictures": len(effects)} | heads
    published = plan["published_var_pct"]
    unit = f"times the study's {published} %"
    return [
        mean,
        of_loss,
        sd,
        of_mean("C1", BESIDE_STUDY, unit, of_picture / published, indices) | heads,
        _share_of_all(effects, layers, indices) | heads,
        _removed_together(joint, layers) | heads,
        _before("C1", MEAN_EARLY, VAR_PCT, of_picture, indices) | heads,
    ]


def _share_of_all(effects: Floats, layers: Sequence[int], indices: Indices) -> Row:
    every = effects.sum(axis=(1, 2))
    level = _level("C1", SHARE_OF_ALL)
    if not interval_over_images(every[:, None], indices(len(every)), level=level).low[0] > 0:
        return _untested(SHARE_OF_ALL, "the sum of all effects cannot be told from 0, or is below it")
    early = effects[:, layers].sum(axis=(1, 2))
    return of_ratio("C1", SHARE_OF_ALL, "share of the sum of all effects", early, every)


def _before(claim: str, quantity: str, unit: str, values: Floats, indices: Indices) -> Row:
    """The mean of ``values`` [image] with the interval that version 1 judged by, BCa at the same level."""
    level = _level(claim, quantity)
    found = interval_over_images(values[:, None], indices(len(values)), method="bca", level=level)
    return _row(quantity + ENDING, unit, found, level, int(np.isfinite(values).sum()))


def deeper_heads(effects: Floats, indices: Indices) -> list[Row]:
    """C2: mean effect of layer 6, and of layers 6 to 12, over that of layers 1 to 3, and minus it; the divisor; and the
    intervals that version 1 judged by."""
    plan, early = read_plan()["C2"], read_plan()["C1"]["layers"]
    pairs = ((SIXTH_RATIO, SIXTH_MINUS, plan["layers"]), (DEEPER_RATIO, DEEPER_MINUS, plan["deeper_layers"]))
    if not _has(effects, [*early, *plan["deeper_layers"]]):
        return [_untested(name, _layers_missing(effects)) for name in
                (SIXTH_RATIO, DEEPER_RATIO, DIVISOR, SIXTH_MINUS, DEEPER_MINUS)]  # fmt: skip
    below = effects[:, early].mean(axis=(1, 2))
    ratios, minus, before = [], [], []
    for ratio, difference, layers in pairs:
        above = effects[:, layers].mean(axis=(1, 2))
        heads = {"n_heads": len(layers) * effects.shape[2]}
        ratios.append(of_ratio("C2", ratio, "ratio", above, below) | heads)
        minus.append(of_mean("C2", difference, VAR_PCT, above - below, indices) | heads)
        of_v1 = partial(weighted_ratio, above[:, None], below[:, None])
        found = bootstrap_interval(of_v1, indices(len(effects)), method="bca", level=plan["level"])
        before.append(_row(ratio + ENDING, "ratio", found, plan["level"], len(effects)) | heads)
    percentiles = interval_over_images(below[:, None], indices(len(effects)), method="percentile", level=plan["level"])
    before.append(_row(DIVISOR + ENDING, VAR_PCT, percentiles, plan["level"], len(effects)))
    divisor = of_mean("C2", DIVISOR, VAR_PCT, below, indices) | {"n_heads": len(early) * effects.shape[2]}
    return [*ratios, divisor, *minus, *before]


def distraction_over_depth(slopes: Mapping[str, Floats], indices: Indices) -> list[Row]:
    """C6: of the slope over depth of what an item adds to the effect of removing heads, [image], NaN where a picture
    does not show it; items of the plan first, and untested where no picture shows them; and the intervals that version
    1 judged by."""
    shown = {item: values for item, values in slopes.items() if np.isfinite(values).any()}
    planned = read_plan()["C6"]["items"]
    rows, before = [], []
    for item in [*planned, *(item for item in shown if item not in planned)]:
        if item in shown:
            rows.append(of_mean("C6", SLOPE_OF + item, f"{VAR_PCT} per layer", shown[item], indices))
            before.append(_before("C6", SLOPE_OF + item, f"{VAR_PCT} per layer", shown[item], indices))
        else:
            rows.append(_untested(SLOPE_OF + item, "pictures without twins, or without the item"))
    return [*rows, *before]


def of_mean(claim: str, quantity: str, unit: str, values: Floats, indices: Indices) -> Row:
    """The mean of ``values`` [image] (NaN: says nothing) with the interval its rule asks, and how fragile it is."""
    level, column, matrix = _level(claim, quantity), values[:, None], indices(len(values))
    found = interval_over_images(column, matrix, level=level)
    row = _row(quantity, unit, found, level, int(np.isfinite(values).sum()))
    inner = interval_over_images(column, matrix, estimator="trimmed", level=level)
    rest = mean_without(values, indices, level)
    return row | trimmed(inner) | _left_out(claim, row, rest) | {SHARE: largest_share(values)}


def of_ratio(claim: str, quantity: str, unit: str, above: Floats, below: Floats) -> Row:
    """The mean of ``above`` over that of ``below``, both [image], with Fieller's interval, and how fragile it is; the
    largest picture is the larger one of the two means'."""
    level = _level(claim, quantity)
    row = _row(quantity, unit, ratio_interval(above[:, None], below[:, None], level=level), level, len(above))
    inner = ratio_interval(above[:, None], below[:, None], level=level, estimator="trimmed")
    share = float(np.fmax(largest_share(above), largest_share(below)))
    return row | trimmed(inner) | _left_out(claim, row, ratio_without(above, below, level)) | {SHARE: share}


def _removed_together(joint: pd.DataFrame | None, layers: Sequence[int]) -> Row:
    if joint is None or joint.empty:
        return _untested(REMOVED_TOGETHER, "the run has no table joint_removal")
    named = f"{min(layers)}-{max(layers)}"
    rows = joint[(joint["level"] == "group") & (joint["layers"].astype(str) == named)]
    if rows.empty:
        return _untested(REMOVED_TOGETHER, f"joint_removal has no group of layers {named}")
    found = rows.iloc[0]
    limits = Interval(*(np.array([found[name]], dtype=np.float64) for name in ("joint_var_pct", "ci_low", "ci_high")))
    level = _level("C1", REMOVED_TOGETHER)
    if level != LEVEL:
        raise ValueError(f"plan.yaml: C1: together_level: expected {LEVEL:g}, that of joint_removal, got {level:g}")
    row = _row(REMOVED_TOGETHER, VAR_PCT, limits, level, int(found["n"]))
    note = f"the effects of the single heads add up to {found['sum_of_single_var_pct']:.3g} %"
    return row | {"note": note, SHARE: abs(found.get("largest_picture_share", np.nan))}


def _left_out(claim: str, row: Row, rest: LeftOut) -> Row:
    says = partial(word_of, claim, row["quantity"])
    return left_out(row["value"], says(row["ci_low"], row["ci_high"]), rest, says)


def _row(quantity: str, unit: str, found: Interval, level: float, count: int) -> Row:
    limits = {"value": float(found.value[0]), "ci_low": float(found.low[0]), "ci_high": float(found.high[0])}
    return {"quantity": quantity, "unit": unit} | limits | {"level": level, "n_pictures": count}


def _level(claim: str, quantity: str) -> float:
    rule = rule_of(claim, quantity)
    assert rule is not None and rule.level is not None
    return rule.level


def _untested(quantity: str, note: str) -> Row:
    return {"quantity": quantity, "note": note}


def _has(effects: Floats, layers: Sequence[int]) -> bool:
    return effects.shape[1] > max(layers)


def _layers_missing(effects: Floats) -> str:
    return f"the model has {effects.shape[1]} layers"
