"""Verdicts from measured values: what the plan asks of every quantity, and what its limits say.

Takes a table of measured quantities (:data:`MEASURED`); gives it with tests and words (:data:`JUDGED`), all of them
made anew from values, limits and the plan. Measures nothing, and believes no word that a table brings along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.fragility import LEFT_OUT, SHARE, TRIMMED, read_changing
from analysis.plan import CLAIMS, read_plan
from analysis.verdict_words import REFUTED, SUPPORTED, UNTESTABLE, Claimed, together
from analysis.verdicts_v1 import verdict_v1

# What a row is: one of the claim's tests; what makes them mean something; a word of its own, which decides nothing; a
# measured value without a word; what version 1 of the plan judged by.
TEST, GUARD, BESIDE, MEASURED_ONLY, VERSION_1 = "test", "guard", "beside", "measured", "version 1"
MEASURED = (
    *("claim", "quantity", "unit", "value", "ci_low", "ci_high", "level", "value_pct_of_baseline"),
    *("n_pictures", "n_heads", *LEFT_OUT, *TRIMMED, SHARE, "note"),
)
JUDGED = ("part", "test", "word", "verdict", "verdict_v1", "why", "changes_without_one", "without_verdict",
          "trimmed_verdict")  # fmt: skip

MEAN_EARLY = "mean effect of layers 1-3"
BESIDE_STUDY = "mean effect of layers 1-3 over the study's own"
SHARE_OF_ALL = "share of layers 1-3 in the sum of all effects"
REMOVED_TOGETHER = "effect of removing layers 1-3 together"
SIXTH_RATIO = "effect of layer 6 over that of layers 1-3"
DEEPER_RATIO = "effect of layers 6-12 over that of layers 1-3"
DIVISOR = "effect of layers 1-3, by which is divided"
SIXTH_MINUS = "effect of layer 6 minus that of layers 1-3"
DEEPER_MINUS = "effect of layers 6-12 minus that of layers 1-3"
CHIRP_SHARE = "share of layers 6-11 that is monosemantic for the chirp"
CHIRP_MINUS = "that share minus the same share of layers 1-5"
CHIRP_DETECTED = "share of layers 6-11 that looks at the chirp, whatever else attracts it"
DETECTORS = "detectors of text, colour bar, edges or corners in layers 1-4 that do not matter"
NAMED_DETECTORS = "monosemantic detectors of text, edges or corners in layers 1-4 that do not matter"
POLYSEMANTIC = "polysemantic heads"
KAPPA = "kappa of roles between two halves of the pictures"
CONFIRMED = "share of monosemantic heads that twins confirm"
KNOCKED_OUT = "rank correlation of attention with the effect of hiding the region"
DISATTENUATED = "the same, were these effects free of the noise of few pictures"
KNOCKED_OUT_WHOLE = "the same, of the whole attention, special tokens included"
PCT_OF_LOSS = "the same in % of the intact loss (the study: 0.11 % of a loss in raw units)"
SD_OVER_HEADS = "sd over their heads"
PATCHED = "rank correlation of attention with the share of the region's effect through the head"
IN_REGION = ", of the region "
SLOPE_OF = "slope over layers of the effect with minus without "


@dataclass(frozen=True)
class Rule:
    """What a quantity is asked: its part in the verdict, the range claimed, the level of its interval (None: it is no
    interval over a sample), the same in words, and why the claim is untestable where a guard is not met."""

    part: str
    claimed: Claimed
    level: float | None
    sentence: str
    unmet: str = ""

    def word(self, low: float, high: float) -> str:
        """What limits say; a guard that is not met makes untestable, and refutes nothing."""
        found = self.claimed.word(low, high)
        return UNTESTABLE if self.part == GUARD and found != SUPPORTED else found


def by_query(query: str) -> str:
    return f"{DETECTORS}, by the {query} query"


def by_tau(quantity: str, tau: float) -> str:
    """The same with another threshold of looking than 3."""
    return f"{quantity}, at tau {tau:g}"


def in_region(quantity: str, region: str) -> str:
    """One of the correlations that a mean is made of."""
    return f"{quantity}{IN_REGION}{region}"


@lru_cache(maxsize=1)
def rules() -> Mapping[tuple[str, str], Rule]:
    """Claim and quantity -> its rule; items of C6 that the plan does not name: :func:`rule_of`."""
    plan = read_plan()
    c1, c2, c3, c4, c5, c6 = (plan[claim] for claim in CLAIMS)
    margin = c1["margin_var_pct"]
    within = Claimed(-margin, margin)
    ratio, positive, some = (
        Claimed(c2["ratio"][0], c2["ratio"][1], closed=True),
        Claimed(low=0.0),
        Claimed(c4["least_heads"], closed=True),
    )
    asked = "{} % interval lies {}"
    times = asked.format(f"{100 * c2['level']:.0f}", f"from {c2['ratio'][0]:g} to {c2['ratio'][1]:g}")
    above = asked.format(f"{100 * c2['level']:.0f}", "above 0")
    level3, level5 = f"{100 * c3['level']:.0f}", f"{100 * c5['level']:.0f}"
    heads = (
        f"≥ {c4['least_heads']} head(s) that twins confirm, with the {100 * c1['level']:.0f} % interval of the effect "
        f"within ±{margin} %, counted from those that surely are to those that may be"
    )
    found = {
        ("C1", MEAN_EARLY): Rule(
            *(TEST, within, c1["level"]),
            f"two one-sided tests: the {100 * c1['level']:.0f} % interval lies within ±{margin} %",
        ),
        ("C1", BESIDE_STUDY): Rule(
            *(BESIDE, Claimed(high=1.0, closed=True), c1["level"]),
            f"no larger than the study's own {c1['published_var_pct']} %",
        ),
        ("C1", SHARE_OF_ALL): Rule(
            *(BESIDE, Claimed(high=c1["share_of_all"]), c1["all_heads_level"]),
            f"below their share of the heads, {c1['share_of_all']:g}",
        ),
        ("C1", REMOVED_TOGETHER): Rule(
            *(BESIDE, within, c1["together_level"]),
            asked.format(f"{100 * c1['together_level']:.0f}", f"within ±{margin} %"),
        ),
        ("C2", SIXTH_RATIO): Rule(TEST, ratio, c2["level"], times),
        ("C2", DEEPER_RATIO): Rule(TEST, ratio, c2["level"], times),
        ("C2", DIVISOR): Rule(
            *(GUARD, positive, c2["level"], above),
            "the effect of layers 1-3 cannot be told from 0, so a ratio to it says nothing",
        ),
        ("C2", SIXTH_MINUS): Rule(BESIDE, positive, c2["level"], above),
        ("C2", DEEPER_MINUS): Rule(BESIDE, positive, c2["level"], above),
        ("C3", CHIRP_SHARE): Rule(
            *(TEST, Claimed(c3["least_share"], closed=True), c3["level"]),
            asked.format(level3, f"at or above {c3['least_share']:g} (Clopper-Pearson over heads)"),
        ),
        ("C3", CHIRP_MINUS): Rule(TEST, positive, c3["level"], asked.format(level3, "above 0")),
        ("C4", DETECTORS): Rule(TEST, some, None, heads),
        **{
            ("C4", quantity): Rule(BESIDE, some, None, f"≥ {c4['least_heads']}")
            for quantity in (
                *map(by_query, c4["queries"]),
                NAMED_DETECTORS,
                *(by_tau(DETECTORS, tau) for tau in c4["taus_beside"]),
            )
        },
        ("C5", POLYSEMANTIC): Rule(
            *(GUARD, Claimed(c5["least_polysemantic"], closed=True), None, f"≥ {c5['least_polysemantic']}"),
            f"fewer than {c5['least_polysemantic']} heads are polysemantic: nothing to be told apart",
        ),
        ("C5", KAPPA): Rule(
            *(TEST, Claimed(c5["least_kappa"], closed=True), c5["level"]),
            asked.format(level5, f"at or above {c5['least_kappa']:g}"),
        ),
        ("C5", CONFIRMED): Rule(
            *(TEST, Claimed(c5["least_confirmed"], closed=True), c5["level"]),
            asked.format(level5, f"at or above {c5['least_confirmed']:g} (Clopper-Pearson over heads)"),
        ),
    }
    share = found["C3", CHIRP_SHARE]
    for quantity in (CHIRP_DETECTED, *(by_tau(CHIRP_SHARE, tau) for tau in c3["taus_beside"])):
        found["C3", quantity] = replace(share, part=BESIDE)
    told = Rule(
        *(TEST, Claimed(c5["least_correlation"]), c5["level"]),
        asked.format(level5, f"above {c5['least_correlation']:g} (jackknife over heads)"),
    )
    found |= {("C5", KNOCKED_OUT): told, ("C5", PATCHED): told}
    found |= {("C5", quantity): replace(told, part=BESIDE) for quantity in (DISATTENUATED, KNOCKED_OUT_WHOLE)}
    return found | {("C6", SLOPE_OF + item): _slope_rule(TEST) for item in c6["items"]}


def rule_of(claim: str, quantity: str) -> Rule | None:
    """The rule of a quantity; None where it has no word."""
    found = rules().get((claim, quantity))
    if found is None and claim == "C5" and IN_REGION in quantity:
        return replace(rules()["C5", KNOCKED_OUT], part=BESIDE)
    if found is None and claim == "C6" and quantity.startswith(SLOPE_OF) and not quantity.endswith(VERSION_1):
        return _slope_rule(BESIDE)
    return found


def judge(rows: pd.DataFrame) -> pd.DataFrame:
    """Measured rows (:data:`MEASURED`) of one run with the columns :data:`JUDGED`. A claim's verdict stands in all of
    its rows; ``word`` is a row's own."""
    rows = rows.reindex(columns=list(MEASURED))
    parts = [_judged(claim, rows[rows["claim"] == claim]) for claim in CLAIMS]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)[[*MEASURED, *JUDGED]]


def word_of(claim: str, quantity: str, low: float, high: float) -> str:
    """What limits say of a quantity; empty for one that has no rule."""
    rule = rule_of(claim, quantity)
    return "" if rule is None else rule.word(low, high)


def verdict_of(words: pd.Series, parts: pd.Series) -> str:
    """A claim's verdict from the words of its rows and the parts they play."""
    return together(words[parts == TEST], words[parts == GUARD])


def verdicts_without(rows: pd.DataFrame) -> dict[str, str]:
    """What is left out -> the claim's verdict without it, from judged rows of one claim and run; of those pictures and
    heads alone that change the word of a test or guard."""
    changing = [read_changing(told) for told in _texts(rows["changing"])]
    names = dict.fromkeys(name for found in changing for name in found)
    return {
        name: verdict_of(
            pd.Series([found.get(name, word) for found, word in zip(changing, rows["word"], strict=True)]),
            rows["part"].reset_index(drop=True),
        )
        for name in names
    }


def trimmed_verdict(rows: pd.DataFrame) -> str:
    """The claim's verdict by trimmed means, where its rows have them; empty where none of its tests has."""
    tests = rows["part"].isin([TEST, GUARD])
    told = pd.Series(_texts(rows["trimmed_verdict"]), index=rows.index)
    return verdict_of(told.where(told != "", rows["word"]), rows["part"]) if (told[tests] != "").any() else ""


def problem(rows: pd.DataFrame) -> str:
    """What is wrong with measured rows as a record of the plan's quantities; empty where nothing is."""
    known = set(zip(rows["claim"], rows["quantity"], strict=True))
    missing = [quantity for pair in rules() if pair not in known for quantity in pair[1:]]
    if missing:
        return f"missing row(s) {'; '.join(missing)}"
    if rows.duplicated(["claim", "quantity"]).any():
        return f"more than one row for {rows.loc[rows.duplicated(['claim', 'quantity']), 'quantity'].iloc[0]!r}"
    for place, row in enumerate(rows.to_dict("records"), start=2):
        found = _problem_of_row(row)
        if found:
            return f"row {place} ({row['quantity']}): {found}"
    return ""


def _problem_of_row(row: Mapping[Any, Any]) -> str:
    rule = rule_of(row["claim"], row["quantity"])
    if rule is None or pd.isna(row["value"]):
        return ""
    if rule.level is not None and not np.isclose(row["level"], rule.level):
        return f"level {row['level']}, the plan asks {rule.level}"
    limits = {kind: (row[f"{kind}ci_low"], row[f"{kind}ci_high"]) for kind in ("", "without_", "trimmed_")}
    for kind, (low, high) in limits.items():
        if low > high:
            return f"{kind}ci_low {low} above {kind}ci_high {high}"
    if isinstance(row["left_out"], str):
        changing, word = row["changing"] if isinstance(row["changing"], str) else "", rule.word(*limits[""])
        without = rule.word(*limits["without_"])
        if read_changing(changing).get(row["left_out"], word) != without:
            return f"changing is {changing!r}, but without {row['left_out']} its limits say {without}"
    return ""


def _judged(claim: str, rows: pd.DataFrame) -> pd.DataFrame:
    found = [rule_of(claim, quantity) for quantity in rows["quantity"]]
    names, changing = _texts(rows["left_out"]), _texts(rows["changing"])
    without, inner = _words(rows, found, "without_"), _words(rows, found, "trimmed_")
    judged = rows.assign(
        part=[_part(str(quantity), rule) for quantity, rule in zip(rows["quantity"], found, strict=True)],
        test=[rule.sentence if rule else "" for rule in found],
        word=_words(rows, found, ""),
        changes_without_one=[name and ("yes" if told else "no") for name, told in zip(names, changing, strict=True)],
        without_verdict=[name and word for name, word in zip(names, without, strict=True)],
        trimmed_verdict=[
            word if known else "" for known, word in zip(rows["trimmed_value"].notna(), inner, strict=True)
        ],
    )
    verdict = verdict_of(judged["word"], judged["part"])
    why = [_why(row, rule, judged) for row, rule in zip(judged.to_dict("records"), found, strict=True)]
    return judged.assign(verdict=verdict, verdict_v1=verdict_v1(claim, rows), why=why)


def _part(quantity: str, rule: Rule | None) -> str:
    return rule.part if rule else VERSION_1 if quantity.endswith(VERSION_1) else MEASURED_ONLY


def _words(rows: pd.DataFrame, found: list[Rule | None], kind: str) -> list[str]:
    limits = zip(rows[f"{kind}ci_low"], rows[f"{kind}ci_high"], strict=True)
    return [rule.word(*pair) if rule else "" for rule, pair in zip(found, limits, strict=True)]


def _why(row: Mapping[Any, Any], rule: Rule | None, judged: pd.DataFrame) -> str:
    """What was noted; else, of tests and guards, which guard is not met; and of C1 what the heads cost together."""
    told = [row["note"]] if isinstance(row["note"], str) and row["note"] else []
    if rule is not None and rule.part in (TEST, GUARD) and not told:
        unmet = judged.loc[(judged["part"] == GUARD) & (judged["word"] != SUPPORTED), "quantity"]
        told += [guard.unmet for guard in (rule_of(row["claim"], quantity) for quantity in unmet) if guard]
    if row["quantity"] == MEAN_EARLY and row["word"] == SUPPORTED:
        at_once = judged[(judged["quantity"] == REMOVED_TOGETHER) & (judged["word"] == REFUTED)]
        told += [
            f"one at a time, not together: {_told(found)} % when all of them are removed at once"
            for found in at_once.to_dict("records")
        ]
    return "; ".join(told)


def _told(row: Mapping[Any, Any]) -> str:
    return f"{row['value']:.3g} [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"


def _texts(cells: pd.Series) -> list[str]:
    return [cell if isinstance(cell, str) else "" for cell in cells]


def _slope_rule(part: str) -> Rule:
    level = read_plan()["C6"]["level"]
    return Rule(part, Claimed(low=0.0), level, f"{100 * level:.0f} % interval lies above 0")
