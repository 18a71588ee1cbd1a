"""Verdicts by version 1 of the plan, from measured values: what stood before version 2, beside it.

Takes the measured rows of a claim; gives supported, not supported or untestable by the thresholds of ``plan-v1.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.plan import read_plan

SUPPORTED, NOT_SUPPORTED, UNTESTABLE = "supported", "not supported", "untestable"
MIXED = "not in every model"
ENDING = ", interval of version 1"


def verdict_v1(claim: str, rows: pd.DataFrame) -> str:
    """Of one claim and run. Untestable where a test cannot be made, supported where all tests are met."""
    by_name = {str(row["quantity"]): row for row in rows.to_dict("records")}
    tests = list(TESTS[claim](by_name))
    if not tests or None in tests:
        return UNTESTABLE
    return SUPPORTED if all(tests) else NOT_SUPPORTED


def over_models_v1(verdicts: pd.Series) -> str:
    """The verdict over models: that of all, or in how many it is supported."""
    if verdicts.nunique() == 1:
        return str(verdicts.iloc[0])
    if set(verdicts) <= {NOT_SUPPORTED, UNTESTABLE}:
        return NOT_SUPPORTED
    return f"{MIXED} ({int((verdicts == SUPPORTED).sum())} of {len(verdicts)})"


Row = Mapping[Any, Any]
Rows = Mapping[str, Row]


def _c1(rows: Rows) -> Iterable[bool | None]:
    """By its own interval, BCa."""
    margin = read_plan(1)["C1"]["margin_var_pct"]
    row = rows.get("mean effect of layers 1-3" + ENDING)
    yield _met(row, lambda row: -margin < row["ci_low"] and row["ci_high"] < margin)


def _c2(rows: Rows) -> Iterable[bool | None]:
    """Its interval, BCa, holds the ratio and not what is excluded; its guard, by percentiles, is not about 0."""
    plan = read_plan(1)["C2"]
    guard = rows.get("effect of layers 1-3, by which is divided" + ENDING)
    for name in ("layer 6", "layers 6-12"):
        row = rows.get(f"effect of {name} over that of layers 1-3{ENDING}")
        about_zero = guard is None or not (guard["ci_low"] > 0 or guard["ci_high"] < 0)
        yield (
            None
            if about_zero
            else _met(
                row,
                lambda row: (
                    row["ci_low"] <= plan["ratio"] <= row["ci_high"]
                    and not row["ci_low"] <= plan["excluded"] <= row["ci_high"]
                ),
            )
        )


def _c3(rows: Rows) -> Iterable[bool | None]:
    least = read_plan(1)["C3"]["least_share"]
    earlier = rows.get("the same share of layers 1-5")
    yield _met(
        rows.get("share of layers 6-11 that is monosemantic for the chirp"),
        lambda row: row["value"] >= least and earlier is not None and row["ci_low"] > earlier["value"],
    )


def _c4(rows: Rows) -> Iterable[bool | None]:
    """By the CLS query alone."""
    quantity = "detectors of text, colour bar, edges or corners in layers 1-4 that do not matter"
    row = rows.get(f"{quantity}, by the cls query")
    yield _met(row, lambda row: row["value"] >= read_plan(1)["C4"]["least_heads"])


def _c5(rows: Rows) -> Iterable[bool | None]:
    plan = read_plan(1)["C5"]
    yield _met(
        rows.get("kappa of roles between two halves of the pictures"), lambda row: row["value"] >= plan["least_kappa"]
    )
    yield _met(
        rows.get("share of monosemantic heads that twins confirm"), lambda row: row["value"] >= plan["least_confirmed"]
    )


def _c6(rows: Rows) -> Iterable[bool | None]:
    """By its own interval, BCa."""
    for item in read_plan(1)["C6"]["items"]:
        row = rows.get(f"slope over layers of the effect with minus without {item}{ENDING}")
        yield _met(row, lambda row: row["ci_low"] > 0)


def _met(row: Row | None, test: Callable[[Row], bool]) -> bool | None:
    """None: there is nothing to test."""
    return None if row is None or np.isnan(row["value"]) else bool(test(row))


TESTS: Mapping[str, Callable[[Rows], Iterable[bool | None]]] = {
    "C1": _c1,
    "C2": _c2,
    "C3": _c3,
    "C4": _c4,
    "C5": _c5,
    "C6": _c6,
}
