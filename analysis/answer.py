"""The short answer of a run, in sentences: which heads matter, which method would have told, and how sure that is.

Takes the tables of a run and of the committed reference run; gives lines of text for terminal and report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.artists import CONTROLS
from analysis.differences import DIFFERENT
from analysis.intervals import indicative
from analysis.own_question import describe_questions
from analysis.scorecard import effect_column
from analysis.tables import read_table

SIGNIFICANT = 0.05
REFERENCE_FOLDER = Path(__file__).resolve().parents[1] / "results" / "reference"


@dataclass(frozen=True, eq=False)
class Reference:
    """Scorecard and agreement of the reference run, and the weights and pictures it was made with."""

    scorecard: pd.DataFrame
    agreement: pd.DataFrame
    weights_sha256: str
    data: dict[str, Any]


def read_reference(folder: Path = REFERENCE_FOLDER) -> Reference | None:
    """The committed reference run, or None where the source tree has none (an installed package, say)."""
    paths = [folder / name for name in ("head_scorecard.csv", "agreement.csv", "manifest.json")]
    if not all(path.exists() for path in paths):
        return None
    try:
        record = json.loads(paths[2].read_text(encoding="utf-8"))
        return Reference(read_table(paths[0]), read_table(paths[1]), record["model"]["weights_sha256"], record["data"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{paths[2]}: expected the manifest of a run ({error!r})") from error


def method_ranking(agreement: pd.DataFrame, truth: str | None = None) -> pd.DataFrame:
    """Methods on trial (no controls) by Spearman's ρ with a truth (the table's first unless named) of other pictures
    (`value_cross`), best first."""
    rows = agreement[
        (agreement["truth"] == (agreement["truth"].iloc[0] if truth is None else truth))
        & (agreement["estimator"] == "mean")
        & (agreement["statistic"] == "spearman")
        & ~agreement["method"].isin(CONTROLS)
    ]
    return rows.dropna(subset=["value_cross"]).sort_values("value_cross", ascending=False, kind="stable")


def first_by_truth(agreement: pd.DataFrame) -> pd.DataFrame:
    """The row of the first of `method_ranking` under each kind of ablation, in the order of the table; empty where no
    method on trial orders heads."""
    truths = [name for name in dict.fromkeys(agreement["truth"]) if _is_ablation(str(name))]
    return pd.concat([method_ranking(agreement, name).head(1) for name in truths], ignore_index=True)


def closest(first: pd.DataFrame) -> str | None:
    """The method that is first under at least three truths of four, or under all where there are fewer; None where no
    method is. Takes `first_by_truth`."""
    counts = first["method"].value_counts()
    return str(counts.index[0]) if len(counts) and counts.iloc[0] >= min(3, len(first)) else None


def describe_run(
    scorecard: pd.DataFrame, agreement: pd.DataFrame | None, differences: pd.DataFrame | None = None
) -> list[str]:
    """What these pictures say. ``differences`` tell how sure the lead of the closest method is."""
    count = int(scorecard["n"].iloc[0])
    column = effect_column(scorecard)
    kind = _kind(column.removesuffix("_var_pct"))
    top = scorecard.sort_values(column, ascending=False, kind="stable").head(3)
    names = zip(top["layer"].astype(int), top["head"].astype(int), top[column], strict=True)
    heads = ", ".join(f"L{layer}H{head} ({effect:+.2f} %)" for layer, head, effect in names)
    lines = [f"Heads that matter most on {count} pictures ({kind} ablation, % of the label variance): {heads}."]
    if agreement is not None:
        lines += _describe_methods(agreement, count)
        if differences is not None and lines[1:]:
            lines += describe_lead(closest(first_by_truth(agreement)), differences)
    return lines


def _describe_methods(agreement: pd.DataFrame, count: int) -> list[str]:
    """Which method is closest to ablation and which farthest; nothing where none orders heads."""
    first = first_by_truth(agreement)
    if not len(first):
        return []
    best = closest(first)

    def standing(row: Mapping[Any, Any]) -> str:
        limits = [row.get(name, np.nan) for name in ("cross_ci_low", "cross_ci_high")]  # too few pictures have none
        interval = f" [{limits[0]:.2f}, {limits[1]:.2f}]" if np.isfinite(limits).all() else ""
        fewer = f" on {int(row['n'])} pictures" if row["n"] < count else ""
        return f"{_kind(row['truth'])} {row['value_cross']:.2f}{interval}{fewer}"

    def under(rows: pd.DataFrame) -> str:
        return ", ".join(standing(row) for row in rows.to_dict("records"))

    others = first[first["method"] != best]
    groups = [f"{name} under {under(rows)}" for name, rows in others.groupby("method", sort=False)]
    what = "closest to ablation, on other pictures than the truth's (Spearman over heads, 95 % intervals)"
    if best is not None:
        rest = f"; but {'; '.join(groups)}" if groups else ""
        line = f"Method {what}: {best} under {under(first[first['method'] == best])}{rest}."
    else:
        need = f"{min(3, len(first))} of {len(first)} truths"
        line = f"No method is {what}, under {need}: {'; '.join(groups)}."
    last = method_ranking(agreement, first["truth"].iloc[0]).iloc[-1]
    fewer = f", on {int(last['n'])} pictures" if last["n"] < count else ""
    return [
        f"{line} Farthest from {_kind(last['truth'])} ablation: {last['method']} ({last['value_cross']:.2f}{fewer})."
    ]


def describe_lead(best: str | None, differences: pd.DataFrame) -> list[str]:
    """Over which methods the closest one is ahead on other pictures, under every truth under which it is first."""
    rows = differences[
        (differences["pictures"] == DIFFERENT)
        & (differences["best"] == best)
        & differences["truth"].map(lambda name: _is_ablation(str(name)))
        & ~differences["method"].isin(CONTROLS)
        & differences["p_holm"].notna()
    ]
    if not len(rows):
        return []
    sure = ((rows["difference"] > 0) & (rows["p_holm"] < SIGNIFICANT)).groupby(rows["method"], sort=False).all()
    unsure = f"; not of {', '.join(sure.index[~sure])}" if not sure.all() else ""
    return [
        f"{best} is ahead of {int(sure.sum())} of {len(sure)} other methods under every truth under which it is first "
        f"(differences tested over pictures, Holm's p below {SIGNIFICANT}){unsure}."
    ]


def _is_ablation(truth: str) -> bool:
    return truth.startswith("ablation_") and not truth.endswith("_abs")


def _kind(truth: str) -> str:
    return re.sub(r"(\w+)_estimated", r"estimated \1", truth.removeprefix("ablation_"))


def describe_league(
    league: pd.DataFrame | None, truths: pd.DataFrame | None, questions: pd.DataFrame | None = None
) -> list[str]:
    """What the truths say of each other, and the league of the methods: how many beat depth, and their own price."""
    lines = describe_questions(questions)
    if truths is not None:
        pairs = truths[(truths["statistic"] == "spearman") & (truths["estimator"] == "mean") & truths["value"].notna()]
        if len(pairs):
            worst = pairs.iloc[int(pairs["value"].to_numpy().argmin())]
            names = " and ".join(str(worst[key]).removeprefix("ablation_") for key in ("truth_a", "truth_b"))
            lines.append(
                f"The truths, two by two, agree with a Spearman of {pairs['value'].min():.2f} to "
                f"{pairs['value'].max():.2f} over heads (least: {names})."
            )
    if league is None:
        return lines
    trial = league[~league["is_control"].astype(bool) & (league["same_as"] == "")]
    count = len([name for name in league.columns if str(name).startswith("rank_")])
    better = trial[trial["num_truths_better_than_layer_index"] == count]
    if trial["num_truths_better_than_layer_index"].notna().any():
        named = ", ".join(better["method"]) if len(better) else "none"
        under = "under every truth" if count > 1 else "by this truth"
        lines.append(
            f"Methods that order heads better than their depth alone {under}: {len(better)} of {len(trial)} ({named})."
        )
    paid = trial[trial["beats_ablation_at_cost"].notna()]
    if len(paid):
        worth = paid["method"][paid["beats_ablation_at_cost"].eq(True)]
        lines.append(
            f"Of {len(paid)} methods whose price pays for ablation of at least one picture in a half, {len(worth)} "
            f"agree better with the effects of the other half than that ablation does ({', '.join(worth) or 'none'})."
        )
    return lines


def compare_with_reference(
    scorecard: pd.DataFrame,
    agreement: pd.DataFrame | None,
    reference: Reference | None,
    weights_sha256: str,
    data: Mapping[str, Any],
) -> list[str]:
    """Whether these pictures agree with the committed reference run of the same model.

    ``data`` is the identity of the pictures: other pictures than the reference's kind are named as such, and pictures
    that are among the reference's own too, since they agree with it in part by being the same.
    """
    caution = indicative(int(scorecard["n"].iloc[0]))
    if reference is None:
        return [f"No reference run to compare with. {caution}".strip()]
    if reference.weights_sha256 != weights_sha256:
        return [f"The reference run explains another model, so it is not compared with. {caution}".strip()]
    lines = [
        f"Reference run, {line[0].lower()}{line[1:]}" for line in describe_run(reference.scorecard, reference.agreement)
    ]
    mine, theirs = (
        table.set_index(["layer", "head"])[effect_column(table)].rename(name)
        for table, name in ((scorecard, "here"), (reference.scorecard, "reference"))
    )
    both = mine.to_frame().join(theirs, how="inner", validate="1:1")
    rho = spearmanr(both["here"], both["reference"]).statistic
    top = lambda table: set(table.set_index(["layer", "head"])[effect_column(table)].nlargest(10).index)  # noqa: E731
    shared = len(top(scorecard) & top(reference.scorecard))
    verdict = "agree" if np.isfinite(rho) and rho >= 0.7 else "do not agree well"
    kinds = [
        {key: found.get(key) for key in ("preset", "seed", "version", "folder")} for found in (data, reference.data)
    ]
    count, known = (int(table["n"].iloc[0]) for table in (scorecard, reference.scorecard))
    which = "These pictures, of another kind,"
    if kinds[0] == kinds[1]:
        own = "which are among its own" if count <= known else f"{known} of which are its own"
        which = f"These pictures, {own},"
    estimated = " (these effects are estimates, its are not)" if "_estimated" in effect_column(scorecard) else ""
    lines.append(
        f"{which} {verdict} with it{estimated}: Spearman {rho:.2f} over heads, {shared} of the 10 top heads shared."
        + (f" {caution[0].upper()}{caution[1:]}." if caution else "")
    )
    return lines
