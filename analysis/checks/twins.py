"""Attention before and after a thing is taken out, moved or replaced: position or content?

Takes pictures that have twins; gives one pass, which compares the attention of every head in a picture and in its
twins, before and after fine-tuning, and the table of what follows (:mod:`analysis.twin_effects`). Where edges and
corners are is seen anew in every twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.checks.concepts import models_of
from analysis.checks.evidence import Evidence, Orders
from analysis.checks.twins_shown import shown_pass
from analysis.concept_masks import DRAWN, Masks, concept_masks, drawn_masks, sink_mask
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource, region_indices
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.twin_batches import TwinBatch, twin_batch
from analysis.twin_effects import COLUMNS, EDITS, twin_table
from attribution.batch import Batch
from attribution.heads import QUERIES, attention_maps
from attribution.method import Method
from attribution.token_norms import patch_token_norms
from attribution.vit import HeadLayout, ViTRegressor, head_layout
from data_synth.twins import CHIRP_ELSEWHERE, Edit, grey_box, move, replace_text, without

NAME = "check_twins"
PARTS = ("old_before", "old_after", "new_before", "new_after")
MOVES = {str(edit): edit for edit in (CHIRP_ELSEWHERE, move("title"), move("colorbar"))}
TAKEN_OUT = ("chirp", "text", "colorbar", "frame", "plot_background")
BY_NAME: dict[str, Edit] = MOVES | {
    str(edit): edit for edit in (*(without(region) for region in TAKEN_OUT), replace_text("text"), grey_box("text"))
}


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over all pictures: for each model, query, concept, edit and part (`PARTS`) lifts float32 [image layer
    head], NaN where the edit changes nothing of the concept; none for pictures without twins."""
    if source.twin is None:
        return []
    builds = models_of(opened, settings.seed)
    held: dict[str, ViTRegressor] = {}

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        models = {name: held.setdefault(name, build()) for name, build in builds.items()}
        return {NAME: lifts_of(opened, models, source, batch, batch_size)}

    depends_on = {"seed": settings.seed, "edits": EDITS, "scikit-image": version("scikit-image")}
    of_all = Pass(NAME, {NAME: depends_on}, compute, len(builds) * (1.0 + 2.0 * (1 + len(BY_NAME))))
    return [of_all, shown_pass(opened, source, list(BY_NAME.values()))]


def table(evidence: Evidence) -> pd.DataFrame:
    """Rows of :func:`analysis.twin_effects.twin_table`, for each model and query."""
    if evidence.source.twin is None:
        return pd.DataFrame(columns=list(COLUMNS))
    found = evidence.read(NAME)
    parts = []
    for model in models_of(evidence.opened, evidence.settings.seed):
        for query in QUERIES:
            lifts = {
                (concept, edit): {
                    part: found[f"{model}|{query}|{concept}|{edit}|{part}"].astype(np.float64) for part in PARTS
                }
                for concept, edits in EDITS.items()
                for edit in edits
            }
            shown = {pair: values for pair, values in lifts.items() if np.isfinite(values["old_before"]).any()}
            count = len(next(iter(lifts.values()))["old_before"])
            parts.append(twin_table(shown, evidence.indices(count), model=model, query=query))
    return pd.concat(parts, ignore_index=True)


def lifts_of(
    opened: OpenedModel, models: Mapping[str, ViTRegressor], source: PictureSource, batch: Batch, batch_size: int
) -> Arrays:
    """Lifts by ``<model>|<query>|<concept>|<edit>|<part>``, float32 [image layer head]; a twin is drawn once, and
    passes once through each model."""
    pictures, layout = source.draw(batch.indices.tolist()), head_layout(opened.model)
    assert pictures.patch_labels is not None
    intact = {name: _maps(model, batch, batch_size) for name, model in models.items()}
    sinks = {
        name: sink_mask(patch_token_norms(model, batch.pixel_values, batch_size=batch_size).numpy())
        for name, model in models.items()
    }
    drawn = drawn_masks(pictures.images, layout.num_rows, layout.num_cols)
    found: Arrays = {}
    for edit, change in BY_NAME.items():
        twins = twin_batch(opened, source, batch, change)
        shown = [] if twins is None else list(twins.places)
        before = Seen(pictures.patch_labels[shown], {name: mask[shown] for name, mask in drawn.items()})
        after = before if twins is None else seen(twins, layout)
        for name, model in models.items():
            maps = {} if twins is None else _maps(model, twins.batch, batch_size)
            for concept in (concept for concept, edits in EDITS.items() if edit in edits):
                old, new = places(concept, edit, before, after, sinks[name][shown])
                sides = {"old": old, "new": new} if edit in MOVES else {"old": old}
                for query in QUERIES:
                    lifts = {part: np.full((len(batch), *intact[name][query].shape[1:3]), np.nan) for part in PARTS}
                    for number, place in enumerate(shown):
                        for side, masks in sides.items():
                            lifts[f"{side}_before"][place] = lift_on(intact[name][query][place], masks[number])
                            lifts[f"{side}_after"][place] = lift_on(maps[query][number], masks[number])
                    found |= {
                        f"{name}|{query}|{concept}|{edit}|{part}": values.astype(np.float32)
                        for part, values in lifts.items()
                    }
    return found


@dataclass(frozen=True, eq=False)
class Seen:
    """Some pictures on the patch grid: ``labels`` uint8 [image row col], and where corners and edges are ``drawn``."""

    labels: NDArray[np.uint8]
    drawn: Mapping[str, Masks]


def seen(twins: TwinBatch, layout: HeadLayout) -> Seen:
    """Twins on the patch grid."""
    return Seen(twins.patch_labels, drawn_masks(twins.images, layout.num_rows, layout.num_cols))


def places(concept: str, edit: str, before: Seen, after: Seen, sinks: Masks) -> tuple[Masks, Masks]:
    """Where a concept was before an edit and is no more, and where it is since, `[image row col]` each.

    Of a thing that does not move: where it was. Edges and corners are judged by the pixels alone as to what is gone or
    new: a patch that is only labelled otherwise has lost nothing. ``sinks`` are those of the pictures before the edit.
    """
    if concept in DRAWN:
        was, now = (concept_masks(one.labels, one.drawn, sinks)[concept] for one in (before, after))
        return was & ~after.drawn[concept], now & ~before.drawn[concept]
    region = region_indices()["title" if edit == "move(title)" else concept]
    was, now = (np.isin(one.labels, region) for one in (before, after))
    return (was & ~now, now & ~was) if edit in MOVES else (was, now)


def lift_on(maps: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mass of maps `[layer head row col]` on a mask `[row col]` over its share of the patches; NaN for an empty one."""
    if not mask.any():
        return np.full(maps.shape[:2], np.nan)
    return maps[..., mask].sum(axis=-1, dtype=np.float64) / mask.mean()


def _maps(model: ViTRegressor, batch: Batch, batch_size: int) -> dict[str, NDArray[np.floating]]:
    found = attention_maps(model, batch.pixel_values, batch_size=batch_size).maps
    return {query: maps.cpu().numpy() for query, maps in found.items()}
