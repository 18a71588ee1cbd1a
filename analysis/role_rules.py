"""What a head is, by rule: which concepts it attends to, and whether it does so for what they are or where they are.

Takes the tables of :mod:`analysis.concept_tables` and :mod:`analysis.twin_effects`; gives one role a head, model, query
and threshold. Knows no pictures and no model.

- *Detected* is a concept with lift >= tau in at least 80 % of the pictures that contain it, at q < 0.05. Where a
  concept never moves no permutation can reject (p is empty): there the lift decides, and twins judge.
- *Monosemantic*: exactly one detected concept, and no other with lift above 1 at q < 0.05. *Polysemantic*: two or more
  detected. *Unclassified*: one detected, and others that attract it too. *Positional*: none, but some concept has such
  lifts all the same: the head looks where the thing tends to be, whether it is there or not. *Diffuse*: neither.
- A head with one such concept (of several positional ones that of the highest lift) is a *detector* where every twin of
  the concept says content (lower limits above a half), a *position prior* where one says that attention stays (upper
  limit below a half), else *undecided*.
  Concepts without twins (edges, corners, sinks) stay *untested*.
- Text that is let go only when its box goes too, not when a grey box takes its place, is *text box*, not *text*.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analysis.concept_masks import CONCEPTS
from analysis.concept_tables import TAUS
from analysis.twin_effects import EDITS

SHARE_OF_PICTURES = 0.8
SIGNIFICANT = 0.05
CONTENT = 0.5  # above: attention acts on content; below: on position
GREY = "grey(text)"
# Titles are but a part of text: what they tell is reported, not required.
REPORTED_ONLY = ("move(title)", GREY)
VERDICTS = ("detector", "position prior", "undecided", "untested")
COLUMNS = (
    *("layer", "head", "model", "query", "tau", "semanticity", "concepts", "verdict", "role"),
    *("evidence", "evidence_low", "evidence_high", "n"),
)
COUNT_COLUMNS = ("model", "query", "tau", "role", "heads", "share")


def role_table(concepts: pd.DataFrame, twins: pd.DataFrame, taus: Iterable[float] = TAUS) -> pd.DataFrame:
    """One row a model, query, tau and head. ``evidence``: the twin statistic that speaks least for content, with its
    interval; NaN where there is none. ``n``: pictures that contain the concept (the fewest, of several)."""
    rows = []
    tested = concepts[concepts["concept"].isin(CONCEPTS)]
    twins_of = dict(list(twins.groupby(["model", "query", "layer", "head", "concept"])))
    for tau in taus:
        for (model, query, layer, head), found in tested.groupby(["model", "query", "layer", "head"], sort=False):
            of_head = {
                concept: twins_of.get((model, query, layer, head, concept), twins.iloc[:0])
                for concept in found["concept"]
            }
            role = _role(found, of_head, tau)
            rows.append({"layer": layer, "head": head, "model": model, "query": query, "tau": tau} | role)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def detected(concepts: pd.DataFrame, tau: float) -> pd.Series:
    """Whether each row's concept is detected at tau."""
    return _looks(concepts, tau) & ((concepts["q_value"] < SIGNIFICANT) | concepts["p"].isna())


def _looks(concepts: pd.DataFrame, tau: float) -> pd.Series:
    return concepts[f"share_above_{tau:g}"] >= SHARE_OF_PICTURES


def role_counts(roles: pd.DataFrame) -> pd.DataFrame:
    """How many heads have each role, per model, query and tau, and their share of all heads."""
    keys = ["model", "query", "tau"]
    counts = roles.groupby([*keys, "role"], sort=False).size().rename("heads").reset_index()
    totals = counts.groupby(keys)["heads"].transform("sum")
    return counts.assign(share=counts["heads"] / totals)[list(COUNT_COLUMNS)]


def _role(found: pd.DataFrame, twins: dict[str, pd.DataFrame], tau: float) -> dict[str, Any]:
    is_detected, looks = detected(found, tau), _looks(found, tau)
    attracts = (found["lift"] > 1) & (found["q_value"] < SIGNIFICANT)
    names = found.loc[is_detected, "concept"].tolist()
    if len(names) > 1:
        count = int(found.loc[is_detected, "n"].min())
        return _named("polysemantic", names, "", "polysemantic", count)
    if not names and not looks.any():
        return _named("diffuse", [], "", "diffuse", int(found["n"].max()))
    chosen = found[is_detected if names else looks].nlargest(1, "lift").iloc[0]
    concept, count = str(chosen["concept"]), int(chosen["n"])
    verdict, evidence = judged(concept, twins[concept])
    thing = "text box" if concept == "text" and _is_of_boxes(twins[concept]) else concept
    role = f"{thing} {verdict}" if verdict in ("detector", "position prior") else f"{thing} ({verdict})"
    if not names:
        return _named("positional", [concept], verdict, role, count) | evidence
    if (attracts & ~is_detected).any():
        return _named("unclassified", names, verdict, f"{role}, among others", count) | evidence
    return _named("monosemantic", names, verdict, role, count) | evidence


def _named(semanticity: str, concepts: list[str], verdict: str, role: str, count: int) -> dict[str, Any]:
    named = {"semanticity": semanticity, "concepts": ";".join(concepts), "verdict": verdict, "role": role, "n": count}
    return named | {"evidence": np.nan, "evidence_low": np.nan, "evidence_high": np.nan}


def judged(concept: str, twins: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """The verdict of a concept's twins on one head, and the statistic that speaks least for content."""
    none = {"evidence": np.nan, "evidence_low": np.nan, "evidence_high": np.nan}
    if concept not in EDITS:
        return "untested", none
    rows = twins[~twins["edit"].isin(REPORTED_ONLY)].dropna(subset=["value", "ci_low", "ci_high"])
    if rows.empty:
        return "undecided", none
    least = int(rows["value"].to_numpy().argmin())
    limits = {"evidence": "value", "evidence_low": "ci_low", "evidence_high": "ci_high"}
    evidence = {name: float(rows[column].iloc[least]) for name, column in limits.items()}
    required = {edit for edit in EDITS[concept] if edit not in REPORTED_ONLY}
    if (rows["ci_high"] < CONTENT).any():
        # Text that is let go when its letters change is not a matter of position.
        stays = rows[(rows["ci_high"] < CONTENT) & (rows["statistic"] != "keep")]
        return ("position prior" if len(stays) else "undecided"), evidence
    if set(rows["edit"]) == required and (rows["ci_low"] > CONTENT).all():
        return "detector", evidence
    return "undecided", evidence


def _is_of_boxes(twins: pd.DataFrame) -> bool:
    grey = twins[twins["edit"] == GREY]
    return bool((grey["ci_high"] < CONTENT).any())
