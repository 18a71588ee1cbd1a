"""The league table: everything that is known of a method's agreement with the truths in one row, best first.

Takes oriented scores and truths that may cover only the first pictures of a run, and the ready tables of
`analysis.agreement`, `differences`, `ablation_at_cost`, `calibration` and `duplicates`. Gives the agreement of methods
that cover different numbers of pictures, their agreement on the pictures all share, and the join.
Does not know: models, how scores or costs came about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.ablation_at_cost import beats_ablation
from analysis.agreement import agreement_table
from analysis.differences import DIFFERENT, SAME, correlation
from analysis.intervals import ESTIMATORS, Indices

LAYER_INDEX = "layer_index"
# Column of the league -> statistic, estimator of the agreement table.
_STATISTICS = {
    "spearman": ("spearman", "mean"),
    "spearman_trimmed": ("spearman", "trimmed"),
    "within_layers": ("spearman_within_layers", "mean"),
    "layer_means_removed": ("spearman_layer_means_removed", "mean"),
    "kendall": ("kendall", "mean"),
    "top_5": ("top_5", "mean"),
    "top_10": ("top_10", "mean"),
    "rbo": ("rbo", "mean"),
}
_DIFFERENCE = {
    "difference_from_best": "difference",
    **{name: name for name in ("difference_ci_low", "difference_ci_high", "p_holm")},
}
_CROSS_DIFFERENCE = {
    "cross_difference_from_best": "difference",
    "cross_difference_ci_low": "difference_ci_low",
    "cross_difference_ci_high": "difference_ci_high",
    "cross_p_holm": "p_holm",
}
_AT_COST = {
    "ablation_at_cost_pictures": "num_pictures_paid",
    "ablation_at_cost_cross": "spearman_cross",
    "ablation_at_cost_same": "spearman_same",
    "ablation_at_cost_matched": "spearman_matched",
}
_CALIBRATION = {"calibration_slope": "slope", "calibration_r2": "r2"}


def agreement_over_groups(
    scores: Mapping[str, NDArray[np.floating]],
    truths: Mapping[str, NDArray[np.floating]],
    signed: Mapping[str, bool],
    indices: Indices,
    seed: int,
    *,
    num_halves: int = 200,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    absolute: bool = True,
) -> pd.DataFrame:
    """`analysis.agreement.agreement_table` where methods and truths cover different numbers of first pictures.

    Each method meets each truth on the first pictures both have, `n` of the row; `indices(n)` -> the bootstrap matrix
    `[replicate image]` of n pictures. Rows in the order of methods, then of truths. Fewer pictures mean more noise and
    lower values: methods compare only with others of the same `n` (or by `analysis.differences`). ValueError as there.
    """
    if not scores or not truths:
        raise ValueError(f"agreement: expected methods and truths, got {len(scores)} and {len(truths)}")
    groups: dict[tuple[int, int], tuple[list[str], list[str]]] = {}
    for length in dict.fromkeys(map(len, scores.values())):
        members = [name for name, found in scores.items() if len(found) == length]
        for truth, effects in truths.items():
            shared = min(length, len(effects))
            groups.setdefault((length, shared), (members, []))[1].append(truth)
    tables = [
        agreement_table(
            {name: scores[name][:n] for name in members},
            {name: truths[name][:n] for name in met},
            signed,
            indices(n),
            seed,
            num_halves=num_halves,
            estimators=estimators,
            absolute=absolute,
        )
        for (_, n), (members, met) in groups.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    labels = [label for name in truths for label in (name, f"{name}_abs")]
    places = {"method": list(scores), "truth": labels}
    keys = pd.DataFrame({key: table[key].map(dict(zip(v, range(len(v)), strict=True))) for key, v in places.items()})
    return table.loc[keys.sort_values(list(places), kind="stable").index].reset_index(drop=True)


def shared_table(
    scores: Mapping[str, NDArray[np.floating]], truths: Mapping[str, NDArray[np.floating]], *, estimator: str = "mean"
) -> pd.DataFrame:
    """Spearman's ρ of every method with every truth on the same pictures: truth, method, spearman, rank, n.

    For each truth the first `n` pictures that it and all methods have, so that no method is the worse for running on
    few. `rank` among all methods, 1 = best, equals share their mean rank; NaN for scores that are all equal.
    """
    shortest = min(len(found) for found in scores.values())
    tables = []
    for name, truth in truths.items():
        n = min(shortest, len(truth))
        found = pd.Series({method: correlation(part[:n], truth[:n], estimator) for method, part in scores.items()})
        found = found.astype(np.float64).round(12)  # two names of one method are not to be ranked by rounding
        row = {"truth": name, "method": list(scores), "spearman": found.to_numpy()}
        tables.append(pd.DataFrame(row | {"rank": found.rank(ascending=False).to_numpy(), "n": n}))
    return pd.concat(tables, ignore_index=True)


def league_table(
    agreement: pd.DataFrame,
    shared: pd.DataFrame,
    families: Mapping[str, str],
    forwards: Mapping[str, float],
    controls: Collection[str],
    *,
    truth: str | None = None,
    differences: pd.DataFrame | None = None,
    at_cost: pd.DataFrame | None = None,
    calibration: pd.DataFrame | None = None,
    duplicates: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """One row per method of the agreement table, highest `value_cross` first (equals in their order there, NaN last).

    `agreement` from `agreement_over_groups`, `shared` from `shared_table`; `families` and `forwards` (forward
    equivalents per picture) by method; `controls`, names. All is said of `truth`, by default the first of `agreement`,
    and of means over pictures, unless a column says otherwise: `spearman_abs` is with |Δ| (unsigned methods alone),
    `rank_<truth>` the rank under each truth of `shared`, `num_truths_better_than_layer_index` under how many of them
    its ρ exceeds that of the control layer_index. `value_cross`, `cross_ci_*` and `noise_ceiling` belong to Spearman's
    ρ. `difference_from_best` and `p_holm` (same pictures), `cross_difference_from_best` and `cross_p_holm` (different
    ones): `analysis.differences`, 0 and NaN for the best itself. `ablation_at_cost_*`: `analysis.ablation_at_cost`, of
    which `_same` stands beside `spearman` and `_matched` beside `value_cross`; `beats_ablation_at_cost` is the price
    test there. `calibration_*`: of means over pictures. `same_as`: the method that stands for this one
    (`analysis.duplicates`), else empty. NaN where something does not apply or was not given.

    ValueError for a truth or method that is not in a table that must have it.
    """
    truth = str(agreement["truth"].iloc[0]) if truth is None else truth
    names = list(dict.fromkeys(agreement["method"]))
    for what, known in (("family", families), ("cost", forwards)):
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"league: expected the {what} of every method, missing for {', '.join(missing)}")
    if truth not in set(agreement["truth"]):
        raise ValueError(f"league: expected agreement with {truth}, got {', '.join(agreement['truth'].unique())}")

    def column(name: str, *, of: str = truth, statistic: str = "spearman", estimator: str = "mean") -> pd.Series:
        keys = (agreement["truth"] == of) & (agreement["statistic"] == statistic)
        rows = agreement[keys & (agreement["estimator"] == estimator)]
        return rows.set_index("method")[name].reindex(names)

    table = pd.DataFrame(index=pd.Index(names, name="method"))
    table["family"] = [families[name] for name in names]
    table["is_control"] = [name in controls for name in names]
    table["n"] = column("n")
    table["forwards"] = [float(forwards[name]) for name in names]
    for name, (statistic, estimator) in _STATISTICS.items():
        table[name] = column("value", statistic=statistic, estimator=estimator)
        if name == "spearman":
            table["spearman_ci_low"], table["spearman_ci_high"] = column("ci_low"), column("ci_high")
    for name in ("value_cross", "cross_ci_low", "cross_ci_high", "noise_ceiling"):
        table[name] = column(name)
    for pictures, columns in ((SAME, _DIFFERENCE), (DIFFERENT, _CROSS_DIFFERENCE)):
        rows = differences
        if rows is not None:
            rows = rows[(rows["truth"] == truth) & (rows["pictures"] == pictures)]
        table = table.join(_picked(rows, columns, names))
        if rows is not None and len(rows):
            table.loc[table.index == rows["best"].iloc[0], next(iter(columns))] = 0.0
    ranks = shared.pivot(index="method", columns="truth", values="rank").reindex(names)
    for name in dict.fromkeys(shared["truth"]):
        table[f"rank_{name}"] = ranks[name]
    table["num_truths_better_than_layer_index"] = _better_than_layer_index(shared, names)
    table["spearman_abs"] = column("value", of=f"{truth}_abs")
    table = table.join(_picked(at_cost, _AT_COST, names))
    table["beats_ablation_at_cost"] = beats_ablation(table["value_cross"], table["ablation_at_cost_matched"])
    means = calibration if calibration is None else calibration[calibration["level"] == "mean"]
    table = table.join(_picked(means, _CALIBRATION, names))
    stands_for = {} if duplicates is None else duplicates
    table["same_as"] = [other if (other := stands_for.get(name, name)) != name else "" for name in names]
    return table.sort_values("value_cross", ascending=False, kind="stable", na_position="last").reset_index()


def _picked(table: pd.DataFrame | None, columns: Mapping[str, str], names: list[str]) -> pd.DataFrame:
    """Columns of a table with a row per method, renamed; NaN for methods without a row, and without a table."""
    if table is None:
        return pd.DataFrame(np.nan, index=pd.Index(names, name="method"), columns=list(columns))
    rows = table.set_index("method").reindex(names)
    return pd.DataFrame({name: rows[source].astype(np.float64) for name, source in columns.items()})


def _better_than_layer_index(shared: pd.DataFrame, names: list[str]) -> pd.Series:
    """Number of truths per method; NaN without the control, and for methods that order nothing under any truth."""
    values = shared.pivot(index="method", columns="truth", values="spearman")
    if LAYER_INDEX not in values.index:
        return pd.Series(np.nan, index=names)
    better = values.gt(values.loc[LAYER_INDEX], axis=1).sum(axis=1).astype(np.float64)
    return better.where(values.notna().any(axis=1)).reindex(names)
