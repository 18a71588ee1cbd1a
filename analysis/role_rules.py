"""What a head is, by rule: which concepts it attends to, and whether it does so for what they are or where they are.

Takes the tables of :mod:`analysis.concept_tables` and :mod:`analysis.twin_effects`; gives one role a head, model, query
and threshold. Knows no pictures and no model.

- *Detected* is a concept with lift >= tau in at least 80 % of the pictures that contain it, five or more, at q < 0.05.
- *Monosemantic*: exactly one detected concept, and no other with lift above 1 at q < 0.05. *Polysemantic*: two or more
  detected. *Unclassified*: one detected, and others that attract it too. *Diffuse*: none.
- Two kinds of head without a detected concept have such lifts all the same, and are told from diffuse ones:
  *positional*, where the permutation does not reject: the head looks where the thing tends to be and does not follow
  it; and *position fixed*, where the thing never moves and no permutation could: there twins alone judge.
- A head with one concept (of several without detection that of the highest lift) is a *detector* where every twin of
  the concept says content (lower limits above a half), a *position prior* where one says that attention stays (upper
  limit below a half) and none that it follows, else *undecided*. Without twins in five or more pictures it is
  *untested*: sinks, edges and corners that no twin takes out, and all concepts of a folder's pictures. A twin takes out
  but a part of the edges and corners: one whose part a head does not look at does not judge it. A positional head is
  never a detector.
- Text that is let go when its box goes too, but not when a grey box takes its place, is *text box*, not *text*.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analysis.concept_masks import CONCEPTS, DRAWN
from analysis.concept_tables import TAUS
from analysis.twin_effects import EDITS

SHARE_OF_PICTURES = 0.8
SIGNIFICANT = 0.05
CONTENT = 0.5  # above: attention acts on content; below: on position
LEAST_PICTURES = 5  # with fewer the permutation test can hardly reject
GREY = "grey(text)"
# Titles are but a part of text, and what stands beside a text or a bar but a few of the edges and corners: what they
# tell is reported, not required.
REPORTED_ONLY = {
    "text": ("move(title)", GREY),
    "edge": (GREY, "move(colorbar)"),
    "corner": (GREY, "move(colorbar)"),
}
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
    return _looks(concepts, tau) & (concepts["q_value"] < SIGNIFICANT)


def _looks(concepts: pd.DataFrame, tau: float) -> pd.Series:
    return (concepts[f"share_above_{tau:g}"] >= SHARE_OF_PICTURES) & (concepts["n"] >= LEAST_PICTURES)


def _is_fixed(concepts: pd.DataFrame) -> pd.Series:
    """Whether a concept stands in the same place in all pictures, so that no permutation can reject."""
    return concepts["p"].isna() & (concepts["n"] >= LEAST_PICTURES)


def role_counts(roles: pd.DataFrame) -> pd.DataFrame:
    """How many heads have each role, per model, query and tau, and their share of all heads."""
    keys = ["model", "query", "tau"]
    counts = roles.groupby([*keys, "role"], sort=False).size().rename("heads").reset_index()
    totals = counts.groupby(keys)["heads"].transform("sum")
    return counts.assign(share=counts["heads"] / totals)[list(COUNT_COLUMNS)]


def _role(found: pd.DataFrame, twins: dict[str, pd.DataFrame], tau: float) -> dict[str, Any]:
    is_detected, looks, fixed = detected(found, tau), _looks(found, tau), _is_fixed(found)
    attracts = (found["lift"] > 1) & ((found["q_value"] < SIGNIFICANT) | fixed)
    names = found.loc[is_detected, "concept"].tolist()
    if len(names) > 1:
        count = int(found.loc[is_detected, "n"].min())
        return _named("polysemantic", names, "", "polysemantic", count)
    if not names and not looks.any():
        return _named("diffuse", [], "", "diffuse", int(found["n"].max()))
    candidates = found[is_detected if names else looks]
    first = int(candidates["lift"].to_numpy().argmax())
    concept, count = str(candidates["concept"].iloc[first]), int(candidates["n"].iloc[first])
    verdict, evidence = judged(concept, twins[concept])
    semanticity = "position fixed" if _is_fixed(candidates).iloc[first] else "positional"
    if names:
        semanticity = "unclassified" if (attracts & ~is_detected).any() else "monosemantic"
    elif semanticity == "positional" and verdict == "detector":
        verdict = "undecided"  # twins and permutation contradict each other
    thing = (
        "text box" if concept == "text" and verdict != "position prior" and _is_of_boxes(twins[concept]) else concept
    )
    role = f"{thing} {verdict}" if verdict in ("detector", "position prior") else f"{thing} ({verdict})"
    role += ", among others" if semanticity == "unclassified" else ""
    return _named(semanticity, [concept], verdict, role, count) | evidence


def _named(semanticity: str, concepts: list[str], verdict: str, role: str, count: int) -> dict[str, Any]:
    named = {"semanticity": semanticity, "concepts": ";".join(concepts), "verdict": verdict, "role": role, "n": count}
    return named | {"evidence": np.nan, "evidence_low": np.nan, "evidence_high": np.nan}


def judged(concept: str, twins: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """The verdict of a concept's twins on one head, and the statistic that decided it, or speaks least for content.

    The twins that five pictures or more have decide; those of :data:`REPORTED_ONLY` do not.
    """
    offered = twins[~twins["edit"].isin(REPORTED_ONLY.get(concept, ())) & (twins["n"] >= LEAST_PICTURES)]
    if concept not in EDITS or offered.empty:
        return "untested", _evidence(offered.iloc[:0])
    rows = offered.dropna(subset=["value", "ci_low", "ci_high"])
    if concept in DRAWN:  # a twin takes out a part of them, which a head need not look at
        offered = rows
    of_place = rows[rows["statistic"] != "keep"]  # other letters in the same place say nothing of the place
    stays, follows = of_place[of_place["ci_high"] < CONTENT], of_place[of_place["ci_low"] > CONTENT]
    if len(stays) and not len(follows):
        return "position prior", _evidence(stays)
    if len(rows) and len(rows) == len(offered) and (rows["ci_low"] > CONTENT).all():
        return "detector", _evidence(rows)
    return "undecided", _evidence(rows)


def _evidence(rows: pd.DataFrame) -> dict[str, float]:
    """The row with the smallest value; NaN where there is none."""
    limits = {"evidence": "value", "evidence_low": "ci_low", "evidence_high": "ci_high"}
    if rows.empty:
        return dict.fromkeys(limits, np.nan)
    least = int(rows["value"].to_numpy().argmin())
    return {name: float(rows[column].iloc[least]) for name, column in limits.items()}


def _is_of_boxes(twins: pd.DataFrame) -> bool:
    """Whether attention lets go of text, but not of a grey box in its place."""
    gone, grey = twins[twins["edit"] == "without(text)"], twins[twins["edit"] == GREY]
    return bool((gone["ci_low"] > CONTENT).any() and (grey["ci_high"] < CONTENT).any())
