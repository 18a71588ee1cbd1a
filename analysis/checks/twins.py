"""Attention before and after a thing is taken out, moved or replaced: position or content?

Takes pictures that have twins; gives one pass, which compares the attention of every head in a picture and in its
twins, before and after fine-tuning, and the table of what follows (:mod:`analysis.twin_effects`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.checks.concepts import models_of
from analysis.checks.evidence import Evidence, Orders
from analysis.checks.twins_shown import shown_pass
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource, region_indices
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.twin_batches import twin_batch
from analysis.twin_effects import COLUMNS, EDITS, twin_table
from attribution.batch import Batch
from attribution.heads import QUERIES, attention_maps
from attribution.method import Method
from attribution.vit import ViTRegressor
from data_synth.twins import CHIRP_ELSEWHERE, Edit, grey_box, move, replace_text, without

NAME = "check_twins"
PARTS = ("old_before", "old_after", "new_before", "new_after")
MOVES = {str(edit): edit for edit in (CHIRP_ELSEWHERE, move("title"), move("colorbar"))}
BY_NAME: dict[str, Edit] = MOVES | {
    str(edit): edit for edit in (*(without(region) for region in EDITS), replace_text("text"), grey_box("text"))
}


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over all pictures: for each model, query, edit and part (`PARTS`) lifts float32 [image layer head], NaN
    where the picture does not show the thing; none for pictures without twins."""
    if source.twin is None:
        return []
    builds = models_of(opened, settings.seed)
    held: dict[str, ViTRegressor] = {}

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        models = {name: held.setdefault(name, build()) for name, build in builds.items()}
        return {NAME: lifts_of(opened, models, source, batch, batch_size)}

    depends_on = {"seed": settings.seed, "edits": EDITS}
    of_all = Pass(NAME, {NAME: depends_on}, compute, 2.0 * len(builds) * (1 + len(BY_NAME)))
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
                (concept, edit): {part: found[f"{model}|{query}|{edit}|{part}"].astype(np.float64) for part in PARTS}
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
    """Lifts by ``<model>|<query>|<edit>|<part>``, float32 [image layer head]; a twin is drawn once for all models."""
    labels = source.draw(batch.indices.tolist()).patch_labels
    assert labels is not None
    intact = {name: _maps(model, batch, batch_size) for name, model in models.items()}
    shape = (len(batch), *next(iter(intact.values()))[QUERIES[0]].shape[1:3])
    found: Arrays = {}
    for concept, edits in EDITS.items():
        for edit in edits:
            twins = twin_batch(opened, source, batch, BY_NAME[edit])
            region = region_indices()["title" if edit == "move(title)" else concept]
            for name, model in models.items():
                after = {} if twins is None else _maps(model, twins.batch, batch_size)
                for query in QUERIES:
                    lifts = {part: np.full(shape, np.nan, dtype=np.float32) for part in PARTS}
                    for number, place in enumerate(() if twins is None else twins.places):
                        assert twins is not None
                        old, new = np.isin(labels[place], region), np.isin(twins.patch_labels[number], region)
                        maps = intact[name][query][place], after[query][number]
                        if edit in MOVES:
                            old, new = old & ~new, new & ~old
                            lifts["new_before"][place], lifts["new_after"][place] = (lift_on(one, new) for one in maps)
                        lifts["old_before"][place], lifts["old_after"][place] = (lift_on(one, old) for one in maps)
                    found |= {f"{name}|{query}|{edit}|{part}": values for part, values in lifts.items()}
    return found


def lift_on(maps: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mass of maps `[layer head row col]` on a mask `[row col]` over its share of the patches; NaN for an empty one."""
    if not mask.any():
        return np.full(maps.shape[:2], np.nan)
    return maps[..., mask].sum(axis=-1, dtype=np.float64) / mask.mean()


def _maps(model: ViTRegressor, batch: Batch, batch_size: int) -> dict[str, NDArray[np.floating]]:
    found = attention_maps(model, batch.pixel_values, batch_size=batch_size).maps
    return {query: maps.cpu().numpy() for query, maps in found.items()}
