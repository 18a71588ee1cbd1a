"""Whether the measured rows of a run can be what the run measured, and whether they are this run's.

Takes measured rows (:data:`analysis.verdict_rules.MEASURED`), the manifest and the scorecard beside them; refuses rows
that no run writes: values outside their own limits, numbers of pictures and heads that are none, tables of another run,
and one model counted twice. Judges nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.artists import EFFECT
from analysis.manifest import pictures_done, read_manifest, weights_and_data
from analysis.plan import read_plan
from analysis.tables import require_all_heads, require_numbers
from analysis.verdict_rules import DEEPER_RATIO, KAPPA, MEAN_EARLY, NAMED_DETECTORS, POLYSEMANTIC
from analysis.verdicts_v1 import ENDING

CLAIMS_SHA256 = "claims_sha256"
KINDS = ("", "without_", "trimmed_")


def table_sha256(path: Path) -> str:
    """Digest of a table's bytes, by which the manifest of a run knows its own."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def require_values(rows: pd.DataFrame, path: Path) -> None:
    """ValueError naming the first row whose value does not lie within its own limits, or whose numbers of pictures and
    heads are none.

    Every estimator of the claims lies within its limits (Student's t, Fieller's, Clopper and Pearson's, square and add,
    the jackknife on Fisher's scale, counts) but those by BCa and percentiles of resamples: kappa, and what version 1
    judged by, whose values are those of the rows beside them.
    """
    beside = rows.set_index(["claim", "quantity"])["value"].to_dict()
    for place, row in enumerate(rows.to_dict("records"), start=2):
        found = _wrong_value(row, beside) or _wrong_count(row)
        if found:
            raise ValueError(f"{path}: row {place} ({row['quantity']}): {found}")


def _wrong_value(row: Mapping[Any, Any], beside: Mapping[Any, float]) -> str:
    quantity = str(row["quantity"])
    by_resamples = quantity == KAPPA or quantity.endswith(ENDING)
    for kind in KINDS:
        value, low, high = (row[f"{kind}{name}"] for name in ("value", "ci_low", "ci_high"))
        if kind == "" and np.isnan(value) and not (np.isnan(low) and np.isnan(high)):
            return f"expected a value between its limits, got none (limits {low} and {high})"
        rounding = 1e-8 * np.nanmax(np.abs([value, low, high, 1e-6]))
        if not by_resamples and (value < low - rounding or value > high + rounding):
            return f"expected {kind}value between {low} and {high}, got {value}"
        if quantity == KAPPA and abs(value) > 1 + rounding:
            return f"expected {kind}value between -1 and 1, got {value}"
    main = beside.get((row["claim"], quantity.removesuffix(ENDING)), row["value"])
    if not np.isclose(row["value"], main, rtol=1e-6, atol=1e-12, equal_nan=True):
        return f"expected the value {main} of the row {quantity.removesuffix(ENDING)!r}, got {row['value']}"
    return ""


def _wrong_count(row: Mapping[Any, Any]) -> str:
    least_heads = 0 if row["quantity"] == NAMED_DETECTORS else 1  # there need be no head that looks at one thing alone
    for name, least in (("n_pictures", 1), ("n_heads", least_heads)):
        count = row[name]
        if np.isnan(count):
            if name == "n_pictures" and np.isfinite(row["value"]):
                return "n_pictures: expected a whole number >= 1, got none"
        elif count < least or count != int(count):
            return f"{name}: expected a whole number >= {least}, got {count:g}"
    return ""


def require_own_tables(folder: Path, record: dict[str, Any], rows: pd.DataFrame, scorecard: pd.DataFrame) -> None:
    """ValueError unless the measured rows can be those of the run whose manifest and scorecard stand beside them.

    By the digest that the manifest has of ``claims.csv``, where it has one (earlier makes had none); by the numbers of
    pictures and heads; and by the effects of the scorecard, where they were swept.
    """
    path, table = folder / "manifest.json", folder / "claims.csv"
    done = pictures_done(path, record)
    if CLAIMS_SHA256 in record and record[CLAIMS_SHA256] != table_sha256(table):
        raise ValueError(f"{table}: not the table that the run wrote (claims_sha256 of {path.name})")
    num_layers, num_heads = require_all_heads(scorecard, folder / "head_scorecard.csv")
    early, deeper = read_plan()["C1"]["layers"], read_plan()["C2"]["deeper_layers"]
    whole = {
        MEAN_EARLY: len(early) * num_heads,
        DEEPER_RATIO: len(deeper) * num_heads,
        POLYSEMANTIC: num_layers * num_heads,
    }
    for place, row in enumerate(rows.to_dict("records"), start=2):
        at = f"{table}: row {place} ({row['quantity']})"
        if row["n_pictures"] > done:
            raise ValueError(f"{at}: n_pictures: expected at most the {done} of the run, got {row['n_pictures']:g}")
        heads = row["n_heads"]
        if heads > num_layers * num_heads or (np.isfinite(heads) and heads != whole.get(row["quantity"], heads)):
            raise ValueError(
                f"{at}: n_heads {heads:g} do not belong to the {num_layers} x {num_heads} heads of head_scorecard.csv"
            )
    value = float(rows.loc[rows["quantity"] == MEAN_EARLY, "value"].iloc[0])
    if EFFECT in scorecard and np.isfinite(value):
        require_numbers(scorecard, folder / "head_scorecard.csv", [EFFECT])
        expected = float(scorecard.loc[scorecard["layer"].isin(early), EFFECT].mean())
        if not np.isclose(value, expected, rtol=1e-5, atol=1e-9):
            raise ValueError(
                f"{table}: {MEAN_EARLY}: expected {expected:.6g}, as head_scorecard.csv says, got {value:.6g}"
            )


def require_different_models(folders: Sequence[Path]) -> None:
    """ValueError naming two runs of the same weights over the same make of pictures: evidence counts once."""
    known = []
    for folder in folders:
        path = folder / "manifest.json"
        weights, data = weights_and_data(path, read_manifest(path))
        known.append((folder, weights, str(data.get("preset", data.get("folder")))))
    for (one, weights, preset), (other, *same) in combinations(known, 2):
        if same == [weights, preset]:
            raise ValueError(
                f"{one} and {other}: the same weights, on {preset} pictures both; expected one run of them"
            )
