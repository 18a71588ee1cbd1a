"""Each method by its own question: the truth whose replacement it has in mind, beside the truths that it has not.

Takes the agreement table and what each method expands (`Method.expands`); gives one row for each method and kind of
ablation, and for each kind the best method that expands it and the best of the others. Knows no scores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

ABLATION = "ablation_"
COLUMNS = (
    *("method", "expands", "truth", "is_own", "value_cross", "cross_ci_low", "cross_ci_high", "rank"),
    *("within_layers_cross", "within_layers_rank", "value", "within_layers", "noise_ceiling", "n"),
)
_KEYS = ["method", "truth"]


def question_table(agreement: pd.DataFrame, expands: Mapping[str, str], unranked: Collection[str]) -> pd.DataFrame:
    """The table `COLUMNS`: every method with every kind of ablation, by Spearman's rho of means.

    `value_cross` over all heads with its interval, `within_layers_cross` within layers: method and truth of different
    pictures; `value` and `within_layers` of the same. `is_own`: the method expands this ablation. Ranks are by the two
    on different pictures among all methods with that truth, 1 the best; those of `unranked` (controls, methods whose
    scores are another's) and methods without a number have none.
    """
    truths = agreement["truth"].astype(str)
    kinds = agreement[
        truths.str.startswith(ABLATION) & ~truths.str.endswith("_abs") & (agreement["estimator"] == "mean")
    ]
    whole = kinds[kinds["statistic"] == "spearman"]
    within = kinds[kinds["statistic"] == "spearman_within_layers"].set_index(_KEYS)
    table = whole.drop(columns=["estimator", "statistic"]).join(
        within[["value", "value_cross"]].rename(
            columns={"value": "within_layers", "value_cross": "within_layers_cross"}
        ),
        on=_KEYS,
        validate="1:1",
    )
    table["expands"] = table["method"].map(lambda name: expands.get(name, ""))
    table["is_own"] = ABLATION + table["expands"] == table["truth"]
    ranked = table[~table["method"].isin(list(unranked))]
    for rank, value in (("rank", "value_cross"), ("within_layers_rank", "within_layers_cross")):
        table[rank] = ranked.groupby("truth")[value].rank(ascending=False, method="min")
    return table[list(COLUMNS)].reset_index(drop=True)


def best_by_question(table: pd.DataFrame, value: str = "value_cross") -> pd.DataFrame:
    """For every truth that some method expands: the best of those (`own`, `own_value`) and the best of the others that
    bear a rank (`other`, `other_value`), by one of the two values on different pictures; in the order of the table."""
    rank = "rank" if value == "value_cross" else "within_layers_rank"
    rows = []
    for truth, found in table[table[rank].notna()].groupby("truth", sort=False):
        own, others = (found[found["is_own"] == is_own].sort_values(value, kind="stable") for is_own in (True, False))
        if len(own) and len(others):
            first, second = own.iloc[-1], others.iloc[-1]
            rows.append((truth, first["method"], first[value], second["method"], second[value]))
    return pd.DataFrame(rows, columns=["truth", "own", "own_value", "other", "other_value"])


def describe_questions(table: pd.DataFrame | None) -> list[str]:
    """One sentence: of how many kinds of ablation the best method is one that expands it, and by how much."""
    if table is None:
        return []
    found = best_by_question(table)
    if not len(found):
        return []
    ahead = int((found["own_value"] > found["other_value"]).sum())
    within = best_by_question(table, "within_layers_cross").set_index("truth")
    parts = []
    for row in found.to_dict("records"):
        inside = within.loc[row["truth"]]
        parts.append(
            f"{str(row['truth']).removeprefix(ABLATION)} {row['own']} {row['own_value']:.2f} against {row['other']} "
            f"{row['other_value']:.2f} (within layers {inside['own']} {inside['own_value']:.2f} against "
            f"{inside['other']} {inside['other_value']:.2f})"
        )
    return [
        f"Each by its own question: under {ahead} of {len(found)} kinds of ablation the method closest to it, on other "
        "pictures, is one that expands that kind; the best of these against the best of the others: "
        f"{'; '.join(parts)}."
    ]
