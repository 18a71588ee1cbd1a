"""The figures of roles and of what does not matter: which ones, from which tables, with which captions.

Takes the tables of a run by name, and a few pictures with their twins; gives (name, title, caption, figure) of those
that can be drawn. Draws nothing itself (:mod:`analysis.role_plots`, :mod:`analysis.gallery`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis import gallery, role_plots
from analysis.artists import figure_of, head_name
from analysis.captions import pictures_told
from analysis.checks.distraction import SLOPE
from analysis.checks.twins_shown import INTACT
from analysis.concept_masks import CONCEPTS, DRAWN, concept_masks, drawn_masks
from analysis.pictures import region_indices
from analysis.score_files import Arrays
from analysis.twin_effects import EDITS

Drawn = tuple[str, str, str, Figure]
TAU, QUERY, FINETUNED = 3.0, "cls", "finetuned"
HEADS_SHOWN = 2  # of each concept
PLAIN_NAME = str.maketrans("_()", "   ")  # of an edit


def role_figures(tables: Mapping[str, pd.DataFrame], shown: Arrays | None) -> Iterator[Drawn]:
    """Role map, counts, lifts before and after fine-tuning, looking against mattering by role, detectors with their
    twins, and effects with and without the irrelevant."""
    roles, concepts = tables.get("roles"), tables.get("concepts")
    if roles is not None and concepts is not None and len(roles):
        note = f" {pictures_told(concepts)}"
        yield (
            "roles",
            "What each head is",
            "Colour and letters: the concept a head attends to (CLS query, lift of at least 3 in 80 % of the pictures "
            "with it; q < 0.05, but for position priors, which follow nothing); D: attention follows the thing "
            "(detector), P: it stays where it was (position prior), ?: undecided, –: no twin to test it." + note,
            role_plots.role_map(roles),
        )
        yield (
            "role_counts",
            "How many heads have which role, at three thresholds",
            "Roles at lifts of 2, 3 and 5." + note,
            role_plots.role_counts(roles),
        )
        if concepts["model"].nunique() > 1:
            yield (
                "lifts_before_after",
                "What fine-tuning made of the heads",
                "Lift of every head on every concept, in the pretrained backbone and after fine-tuning; 1 is chance."
                + note,
                role_plots.lifts_before_after(concepts[concepts["concept"].isin(CONCEPTS)]),
            )
        scorecard = tables.get("head_scorecard")
        if scorecard is not None and scorecard.get("iou_chirp_adjusted", pd.Series(dtype=float)).notna().any():
            yield (
                "looks_at_against_matters_by_role",
                "Looking at the chirp against mattering, by role",
                "Adjusted IoU of the CLS query with the chirp against the effect of setting the head to zero; dashed: "
                "medians over heads, to read by." + note,
                figure_of(role_plots.quadrant_by_role(scorecard, roles)),
            )
        if shown is not None:
            figure = detectors_with_twins(roles, concepts, shown)
            if figure is not None:
                yield (
                    "detectors_with_twins",
                    "The clearest heads of each concept and their twins",
                    "CLS attention on a picture and on its twins, each scaled to its own maximum; in titles the share "
                    "of attention on the thing, or for a twin without it on where it was.",
                    figure,
                )
    distraction = tables.get("distraction")
    if distraction is not None and len(distraction):
        slopes = distraction[distraction["level"] == SLOPE].rename(
            columns={"difference_var_pct": "slope_var_pct_per_layer"}
        )
        if len(slopes):
            yield (
                "distraction",
                "Do deeper heads lose more where there is something irrelevant?",
                "Effect of setting a layer's heads to zero with an item in the picture minus without it, paired over "
                "pictures; in titles the slope over depth." + f" {pictures_told(distraction)}",
                role_plots.distraction_profile(distraction[distraction["level"] != SLOPE], slopes),
            )


def clearest(roles: pd.DataFrame, concepts: pd.DataFrame, concept: str) -> list[tuple[int, int, str]]:
    """Layer, head and role of the heads that tell a concept best: by lift, those with a role about it first; of edges
    and corners those alone."""
    of = (concepts["model"] == FINETUNED) & (concepts["query"] == QUERY) & (concepts["concept"] == concept)
    named = roles[(roles["model"] == FINETUNED) & (roles["query"] == QUERY) & (roles["tau"] == TAU)]
    table = concepts[of].merge(named[["layer", "head", "concepts", "role"]], on=["layer", "head"])
    about = [concept in str(names).split(";") for names in table["concepts"]]
    table = table.assign(about=about).sort_values(["about", "lift"], ascending=False, kind="stable")
    table = table[table["about"]] if concept in DRAWN else table
    return [(int(row["layer"]), int(row["head"]), str(row["role"])) for _, row in table.head(HEADS_SHOWN).iterrows()]


def detectors_with_twins(roles: pd.DataFrame, concepts: pd.DataFrame, shown: Arrays) -> Figure | None:
    """For each concept with twins its clearest heads, a row each: the picture, then its twins. None where no picture
    shows any."""
    images, maps, titles, rows = [], [], [], []
    for concept, every in EDITS.items():
        edits = [edit for edit in every if concept not in DRAWN or shown[f"{edit}|image"].any()]
        picture = _first_with_all(shown, edits)
        if picture is None or not (concepts["concept"] == concept).any():
            continue
        for layer, head, role in clearest(roles, concepts, concept):
            here = _mask(shown, INTACT, picture, concept)
            for edit in (INTACT, *edits):
                found = shown[f"{edit}|map"][picture, layer, head]
                there = _mask(shown, edit, picture, concept)
                stays = concept in DRAWN and EDITS[concept].get(edit) != "follow"
                on = there if there.any() and not stays else here
                images.append(shown[f"{edit}|image"][picture])
                maps.append(found)
                titles.append(f"{edit.translate(PLAIN_NAME).strip()}: {100 * found[on].sum() / found.sum():.0f} %")
                rows.append(f"{head_name(layer, head)} on {concept}:\n{role}")
    if not images:
        return None
    return gallery.attention_gallery(np.stack(images), np.stack(maps), titles, rows=rows)


def _first_with_all(shown: Arrays, edits: list[str]) -> int | None:
    whole = [
        all(shown[f"{edit}|image"][place].any() for edit in edits) for place in range(len(shown[f"{INTACT}|image"]))
    ]
    return whole.index(True) if True in whole and edits else None


def _mask(shown: Arrays, edit: str, picture: int, concept: str) -> NDArray[np.bool_]:
    """Where a picture shows a concept, [row col]; of edges and corners without regard to sinks."""
    labels = shown[f"{edit}|labels"][picture]
    if concept not in DRAWN:
        return np.isin(labels, region_indices()[concept])
    drawn = drawn_masks(shown[f"{edit}|image"][picture][None], *labels.shape)
    return concept_masks(labels[None], drawn, np.zeros((1, *labels.shape), dtype=bool))[concept][0]
