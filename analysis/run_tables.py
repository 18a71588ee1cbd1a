"""Every table of a run, by file name, from per-picture results.

Takes :class:`~analysis.explain.Explained` and the shared bootstrap; gives pandas tables. Tables that need
masks are made only where the pictures have them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.checks.concepts import FINETUNED
from analysis.checks.trials import CHECKS
from analysis.explain import Explained
from analysis.intervals import Indices
from analysis.league_tables import LEAGUE_TABLES, league_tables
from analysis.localization_table import localization_table
from analysis.models import OpenedModel
from analysis.passes import PIXEL, chosen_methods, method_settings
from analysis.pictures import PIXEL_REGIONS, PictureSource, region_indices
from analysis.pixel_localization import pixel_localization_table
from analysis.role_rules import role_counts
from analysis.scorecard import head_scores_table, methods_table, scorecard_table
from analysis.settings import CompareSettings
from analysis.survey import PackedMasks
from attribution.method import Method
from attribution.methods import PIXEL_METHODS
from attribution.pixels import to_patch_grid
from attribution.vit import HeadLayout, head_layout

# Background and margin are no concepts: they are scored, but not tested.
CONCEPTS = ("chirp", "text", "colorbar")
TABLES = (
    *("head_scorecard", "head_scores", "methods", "localization", "pixel_localization"),
    *LEAGUE_TABLES,
    *CHECKS,
    "role_counts",
)
Floats = NDArray[np.float64]
# A control that knows where the thing to be read tends to be, and nothing of the picture.
OCCUPANCY = Method(
    "occupancy",
    lambda *_: torch.empty(0),
    "control",
    signed=False,
    direction="+",
    forwards=0,
    note="mean coverage by the chirp over the reference pictures",
)


def run_tables(
    settings: CompareSettings, opened: OpenedModel, source: PictureSource, explained: Explained, indices: Indices
) -> dict[str, pd.DataFrame]:
    """Every table of the run by the name of its file: scorecard, scores, methods; with methods on trial the league and
    what it is made of; with masks localization; and those of the checks."""
    config, layout, survey = opened.model.config, head_layout(opened.model), explained.survey
    head_methods = chosen_methods(settings.methods)
    tables: dict[str, pd.DataFrame] = {}
    if survey.patch_labels is not None:
        tables["localization"] = pd.concat(
            [
                localization_table(
                    maps,
                    survey.patch_labels,
                    region_indices(),
                    query,
                    settings.seed,
                    indices(len(survey)),
                    concepts=CONCEPTS,
                    num_permutations=settings.num_permutations,
                )
                for query, maps in explained.maps.items()
            ],
            ignore_index=True,
        )
    pixel_methods = chosen_methods(settings.methods, PIXEL_METHODS)
    if survey.masks is not None and explained.pixel_maps:
        pixel_maps = dict(explained.pixel_maps)
        if source.occupancy is not None and any(method.family == "control" for method in pixel_methods.values()):
            pixel_methods |= {OCCUPANCY.name: OCCUPANCY}
            pixel_maps[OCCUPANCY.name] = _occupancy(source.occupancy(), len(survey), layout)
        tables["pixel_localization"] = _pixel_localization(pixel_maps, survey.masks, indices, layout)
    tables["head_scorecard"] = scorecard_table(
        explained.truths,
        explained.shapley,
        explained.scores,
        head_methods,
        tables.get("localization"),
        explained.head_columns,
        config.target_names,
        config.target_units,
        indices,
    )
    named = head_methods | {PIXEL + name: method for name, method in pixel_methods.items()}
    tables["methods"] = methods_table(
        named,
        method_settings(settings),
        layout.num_layers,
        len(config.target_names),
        {name: explained.timings.get(name, {}) for name in named},
        explained.completeness,
    )
    if explained.scores:
        tables["head_scores"] = head_scores_table(explained.scores, head_methods, indices)
        tables |= league_tables(settings, opened, explained, head_methods, indices)
    tables |= dict(explained.checks)
    if "roles" in tables and len(tables["roles"]):
        tables["role_counts"] = role_counts(tables["roles"])
        tables["head_scorecard"] = with_roles(tables["head_scorecard"], tables["roles"])
    return tables


def with_roles(scorecard: pd.DataFrame, roles: pd.DataFrame) -> pd.DataFrame:
    """The scorecard with every head's ``role`` (CLS query, tau = 3, after fine-tuning) and its ``role_evidence``."""
    found = roles[(roles["model"] == FINETUNED) & (roles["query"] == "cls") & (roles["tau"] == 3.0)]
    found = found[["layer", "head", "role", "evidence"]].rename(columns={"evidence": "role_evidence"})
    return scorecard.merge(found, on=["layer", "head"], how="left", validate="one_to_one")


def _pixel_localization(
    pixel_maps: Mapping[str, Floats], masks: PackedMasks, indices: Indices, layout: HeadLayout
) -> pd.DataFrame:
    """The table of all pixel methods, each on its pictures: expensive ones cover the first alone."""
    regions = {name: (place,) for place, name in enumerate(PIXEL_REGIONS)}
    grid = (layout.num_rows, layout.num_cols)
    parts = []
    for count in sorted({len(maps) for maps in pixel_maps.values()}, reverse=True):
        group = {PIXEL + name: maps for name, maps in pixel_maps.items() if len(maps) == count}
        coverage = masks.first(count)
        parts.append(pixel_localization_table(group, coverage, regions, indices(count), grid=grid))
    order = {PIXEL + name: place for place, name in enumerate(pixel_maps)}
    joined = pd.concat(parts, ignore_index=True)
    return joined.sort_values("method", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _occupancy(coverage: Floats, count: int, layout: HeadLayout) -> Floats:
    """The mean coverage [row col] per patch, once for each picture."""
    pooled = to_patch_grid(torch.from_numpy(coverage)[None], layout).numpy()
    return np.repeat(pooled / pooled.max(), count, axis=0)
