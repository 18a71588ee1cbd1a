"""Verdicts of several runs put together: one word over models, how fragile it is, and what version 1 said.

Takes judged rows of runs (:func:`analysis.verdict_rules.judge`); gives the tables of ``analysis.claims`` and the same
to be read. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fragility import read_changing
from analysis.plan import CLAIMS, read_plan
from analysis.verdict_rules import (
    BESIDE,
    GUARD,
    JUDGED,
    MEASURED,
    MEASURED_ONLY,
    TEST,
    trimmed_verdict,
    verdicts_without,
)
from analysis.verdict_words import DIFFERS, over_models
from analysis.verdicts_v1 import over_models_v1

STUDY = "a supervised ViT-B/16 of 12 x 12 heads, fine-tuned on 100,000 published pictures"
COLUMNS = (
    *("claim", "quantity", "unit", "preset", "run", "value", "ci_low", "ci_high", "level", "value_pct_of_baseline"),
    *("as_released", "as_released_pct_of_baseline", "as_released_of"),
    *(name for name in (*MEASURED, *JUDGED) if name not in ("claim", "quantity", "unit", "value", "ci_low", "ci_high",
                                                          "level", "value_pct_of_baseline")),
    "differs",
)  # fmt: skip
VERDICT_COLUMNS = (
    *(
        "claim",
        "statement",
        "published",
        "as_released",
        "as_released_of",
        "preset",
        "measured",
        "verdict",
        "by_model",
        "why",
        "verdict_v1",
    ),
    *("fragility", "changes_without_one", "trimmed_verdict", "largest_picture_share", "beside", "models", "differs"),
)
MOST_NAMED = 3
NOT_MEASURED = "not measured by it"


@dataclass(frozen=True, eq=False)
class ClaimRun:
    """What a finished run says of the claims: its name, preset, judged rows, what differs from the study's model, and
    claims whose stored verdict is not that of the measured values."""

    name: str
    preset: str
    rows: pd.DataFrame
    differs: str
    not_believed: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Released:
    """What the released procedure gives of a model on pictures of a preset: quantity -> value in its unit, and in % of
    the procedure's baseline (NaN where that is no unit of it)."""

    model: str
    preset: str
    num_pictures: int
    values: Mapping[str, tuple[float, float]]

    def told(self) -> str:
        """Of what model and pictures."""
        return f"of our model `{self.model}`, {self.num_pictures} {self.preset} pictures"


def claims_table(runs: Sequence[ClaimRun], released: Released | None) -> pd.DataFrame:
    """Rows of all runs (`COLUMNS`), claim by claim and quantity by quantity; beside those of its own preset of pictures
    what the released procedure gives."""
    parts = []
    for run in runs:
        part = run.rows.assign(preset=run.preset, run=run.name, differs=run.differs)
        known = released.values if released is not None and released.preset == run.preset else {}
        values = [known.get(str(name), (np.nan, np.nan)) for name in part["quantity"]]
        part["as_released"], part["as_released_pct_of_baseline"] = zip(*values, strict=True)
        part["as_released_of"] = "" if released is None else released.told()
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    quantities = list(dict.fromkeys(table["quantity"]))
    order = np.lexsort((table["quantity"].map(quantities.index), table["claim"]))
    return table.iloc[order].reset_index(drop=True)[list(COLUMNS)]


def verdicts_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a claim and preset (`VERDICT_COLUMNS`): the word that all models have, on as many pictures each, or that
    they differ; ``by_model`` and the columns of fragility say it of each."""
    rows = []
    for claim in CLAIMS:
        plan = read_plan()[claim]
        for preset, found in table[table["claim"] == claim].groupby("preset", sort=False):
            of_run = dict(list(found.groupby("run", sort=False)))
            words = {str(run): str(of["verdict"].iloc[0]) for run, of in of_run.items()}
            tests = found[found["part"] == TEST]
            known = tests.dropna(subset=["as_released"]).drop_duplicates("quantity")
            by_it = "; ".join(f"{_named(row)}{row['as_released']:.3g}" for row in known.to_dict("records"))
            unequal = unequal_pictures(found)
            fragile = {str(run): fragility(of) for run, of in of_run.items()}
            rows.append(
                {
                    "claim": claim,
                    "statement": plan["claim"],
                    "published": plan["published"],
                    "as_released": by_it or NOT_MEASURED,
                    "as_released_of": found["as_released_of"].iloc[0],
                    "preset": preset,
                    "measured": measured(tests),
                    "verdict": DIFFERS if unequal else over_models(words),
                    "by_model": "; ".join([*(f"{run}: {word}" for run, word in words.items()), *unequal]),
                    "why": _by_run({str(run): reasons(of) for run, of in of_run.items()}),
                    "verdict_v1": over_models_v1(found.groupby("run", sort=False)["verdict_v1"].first()),
                    "fragility": _by_run({run: one.told() for run, one in fragile.items()}),
                    "changes_without_one": _by_run({run: one.changes() for run, one in fragile.items()}),
                    "trimmed_verdict": _by_run({run: one.by_trimmed for run, one in fragile.items()}),
                    "largest_picture_share": tests["largest_picture_share"].max(),
                    "beside": measured(found[found["part"].isin([BESIDE, GUARD, MEASURED_ONLY])], beside=True),
                    "models": len(words),
                    "differs": "; and ".join(dict.fromkeys(found["differs"])),
                }
            )
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))


def reasons(rows: pd.DataFrame) -> str:
    """What the tests and guards of one claim and run say beside their words, each once."""
    told = rows.loc[rows["part"].isin([TEST, GUARD]), "why"]
    return "; ".join(dict.fromkeys(part for text in told if isinstance(text, str) for part in text.split("; ") if part))


def unequal_pictures(found: pd.DataFrame) -> list[str]:
    """Of rows of one claim: the first test or guard that models make on different numbers of pictures, in words."""
    asked = found[found["part"].isin([TEST, GUARD])].dropna(subset=["n_pictures"])
    for quantity, of in asked.groupby("quantity", sort=False):
        if of["n_pictures"].nunique() > 1:
            counts = ", ".join(f"{row['run']} {row['n_pictures']:.0f}" for row in of.to_dict("records"))
            return [f"not on as many pictures ({quantity}): {counts}"]
    return []


@dataclass(frozen=True)
class Fragility:
    """Of one claim and run: its word, what is left out -> the word that it changes to, "picture", "head" or "picture's
    effect" (empty where nothing could be left out), the word by trimmed means (empty: none), the largest picture's
    share, and where words of its tests change although that of the claim does not."""

    word: str
    without: Mapping[str, str]
    kind: str
    by_trimmed: str
    share: float
    of_rows: str = ""

    def changes(self) -> str:
        return "" if not self.kind else "yes" if self.without else "no"

    def told(self) -> str:
        """In words; empty where nothing can be said."""
        parts = []
        if self.without:
            parts += _without(self.without, self.kind)
        elif self.kind:
            parts.append(f"no single {self.kind} changes it")
        if self.by_trimmed:
            parts.append(f"by trimmed means {self.by_trimmed}")
        if np.isfinite(self.share):
            digits = ".2g" if self.share < 0.1 else ".0f"
            told = f"{100 * self.share:{digits}} % of" if self.share <= 1 else "larger than"
            parts.append(f"largest picture {told} the effect")
        return "; ".join([", ".join(parts), self.of_rows]) if self.of_rows else ", ".join(parts)


def fragility(rows: pd.DataFrame) -> Fragility:
    """Of judged rows of one claim and run."""
    word = str(rows["verdict"].iloc[0])
    asked = rows[rows["part"].isin([TEST, GUARD])]
    names = [name for name in asked["left_out"] if isinstance(name, str)]
    kind = "" if not names else _kind(names[0])
    if kind == "picture" and (rows["claim"] == "C4").all():
        kind = "picture's effect"  # roles are told of all pictures: they are not told anew without one
    without = {name: other for name, other in verdicts_without(rows).items() if other != word}
    by_trimmed = trimmed_verdict(rows)
    told = [row_fragility(row, without, by_trimmed != word) for row in asked.to_dict("records")]
    told = told if len(told) > 1 else []  # of one test its word is that of the claim
    share = float(asked["largest_picture_share"].max())
    return Fragility(word, without, kind, by_trimmed, share, "; ".join(part for part in told if part))


def row_fragility(row: Mapping[Any, Any], told: Mapping[str, str] | None = None, trimmed_told: bool = False) -> str:
    """What one row's word becomes without a picture or head, and by trimmed means, where that is another; of what is
    not told already (what is left out -> the claim's word; that trimmed means change it)."""
    changing = read_changing(row["changing"]) if isinstance(row["changing"], str) else {}
    changing = {name: word for name, word in changing.items() if name not in (told or {})}
    parts = _without(changing, _kind(next(iter(changing)))) if changing else []
    inner = row["trimmed_verdict"]
    if isinstance(inner, str) and inner and inner != row["word"] and not trimmed_told:
        parts.append(f"by trimmed means {inner}")
    if not parts:
        return ""
    return ", ".join(parts) if told is None else f"of these, {row['quantity']}: {', '.join(parts)}"


def _without(changes: Mapping[str, str], kind: str) -> list[str]:
    by_word: dict[str, list[str]] = {}
    for name, word in changes.items():
        by_word.setdefault(word, []).append(name)
    parts = []
    for word, names in by_word.items():
        several = f"any of {len(names)} {kind}s ({', '.join(_bare(name) for name in names[:MOST_NAMED])}, …)"
        parts.append(f"without {several if len(names) > MOST_NAMED else ' or '.join(names)} {word}")
    return parts


def _kind(name: str) -> str:
    return "picture" if name.startswith("picture") else "head"


def measured(found: pd.DataFrame, *, beside: bool = False) -> str:
    """Quantities with what each run measured and what that says, in words; ``beside`` a verdict also what is asked, and
    without which picture or head the row would say something else."""
    parts = []
    for _, of in found.groupby("quantity", sort=False):
        rows = of.to_dict("records")
        asked = f" ({rows[0]['test']})" if beside and rows[0]["test"] else ""
        told = [_told(row) + (_fragile(row) if beside else "") for row in rows]
        parts.append(f"{_named(rows[0]).removesuffix(': ')}{asked}: " + ", ".join(told))
    return "; ".join(parts)


def _fragile(row: Mapping[Any, Any]) -> str:
    told = row_fragility(row)
    return f" ({told})" if told else ""


def markdown(verdicts: pd.DataFrame) -> str:
    """The verdicts as Markdown tables: each with what differs from the study's model and how fragile it is; what stands
    beside them; what version 1 of the plan said, what changed, and why."""
    of = next((str(told) for told in verdicts["as_released_of"].dropna() if told), "")
    head = (f"claim, and its published figure ({STUDY})", f"released procedure ({of})" if of else "released procedure",
            "in our models", "measured", "verdict", "how fragile")  # fmt: skip
    first, beside = [], []
    before: dict[str, list[str]] = {}
    for row in verdicts.astype(object).where(verdicts.notna(), "").to_dict("records"):
        claim, preset = row["claim"], row["preset"]
        word = f"**{row['verdict']}**" + (f" ({row['by_model']})" if row["verdict"] == DIFFERS else "")
        word += f"; {row['why']}" if row["why"] else ""
        models = f"{row['models']} of {str(row['differs']).split('; the study')[0]}"
        first.append((f"**{claim}** {row['statement']}: {row['published']}", row["as_released"], models,
                      row["measured"], word, row["fragility"]))  # fmt: skip
        beside += [(f"{claim}, {preset} pictures", part) for part in str(row["beside"]).split("; ") if part]
        before.setdefault(claim, []).append(f"{preset} pictures: {row['verdict_v1']} → **{row['verdict']}**")
    changes = [(claim, "; ".join(words), _changed(claim), read_plan()[claim]["because"])
               for claim, words in before.items()]  # fmt: skip
    return (
        _table(head, first)
        + "\nBeside the verdicts; of these, guards alone decide anything, whether a claim can be tested:\n\n"
        + _table(("claim", "quantity (what it is asked), model by model"), beside)
        + "\nVersion 2 of the plan is not blind: the verdicts by version 1, and what they rest on, were known. What "
        "version 1 asks is asked here of the runs above; what it said of its own stands in claims-v1.\n\n"
        + _table(("claim", "these runs by version 1 → by version 2", "what changed", "why"), changes)
    )


def _changed(claim: str) -> str:
    """What version 2 changed, and what was changed within it after its first verdicts."""
    plan = read_plan()[claim]
    corrected = f"; corrected within version 2: {plan['corrected']}" if "corrected" in plan else ""
    return f"{plan['changed']}{corrected}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |" for cells in rows]
    return "\n".join(lines) + "\n"


def _by_run(told: Mapping[str, str]) -> str:
    """What holds of each run; said once where it is the same of all, and not at all where it is nothing."""
    said = {run: text for run, text in told.items() if text}
    if len(said) == len(told) and len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{run}: {text}" for run, text in said.items())


def _bare(name: str) -> str:
    return name.removeprefix("picture ")


def _named(row: Mapping[Any, Any]) -> str:
    """The quantity, with its unit where that is more than its kind."""
    unit = str(row["unit"])
    return f"{row['quantity']} ({unit}): " if unit.startswith("%") else f"{row['quantity']}: "


def _told(row: Mapping[Any, Any]) -> str:
    """A value with its limits and what they say."""
    word = f" {row['word']}" if row["word"] else ""
    if np.isnan(row["value"]):
        return "–" + word
    low, high = (f"{one:.3g}" if np.isfinite(one) else "?" for one in (row["ci_low"], row["ci_high"]))
    limits = "" if (low, high) == ("?", "?") else f" [{low}, {high}]"
    return f"{row['value']:.3g}{limits}{word}"
