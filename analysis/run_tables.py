"""Every table of a run, by file name, from per-picture results.

Takes :class:`~analysis.explain.Explained` and the shared bootstrap; gives pandas tables. Tables that need
masks are made only where the pictures have them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import agreement_table
from analysis.explain import Explained
from analysis.intervals import ESTIMATORS
from analysis.localization_table import localization_table
from analysis.models import OpenedModel
from analysis.passes import PIXEL, chosen_methods, method_settings
from analysis.pictures import PIXEL_REGIONS, region_indices
from analysis.pixel_localization import pixel_localization_table
from analysis.scorecard import head_scores_table, methods_table, oriented, scorecard_table
from analysis.settings import CompareSettings
from attribution.methods import PIXEL_METHODS
from attribution.vit import head_layout

# Background and margin are no concepts: they are scored, but not tested.
CONCEPTS = ("chirp", "text", "colorbar")
TABLES = ("head_scorecard", "head_scores", "methods", "agreement", "localization", "pixel_localization")


def run_tables(
    settings: CompareSettings,
    opened: OpenedModel,
    explained: Explained,
    indices: NDArray[np.integer],
) -> dict[str, pd.DataFrame]:
    """head_scorecard, head_scores, methods, agreement; with masks localization and pixel_localization too."""
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
                    indices,
                    concepts=CONCEPTS,
                    num_permutations=settings.num_permutations,
                )
                for query, maps in explained.maps.items()
            ],
            ignore_index=True,
        )
    if survey.masks is not None and explained.pixel_maps:
        tables["pixel_localization"] = pixel_localization_table(
            {PIXEL + name: maps for name, maps in explained.pixel_maps.items()},
            survey.masks,
            {name: (place,) for place, name in enumerate(PIXEL_REGIONS)},
            indices,
            grid=(layout.num_rows, layout.num_cols),
        )
    tables["head_scorecard"] = scorecard_table(
        explained.truth,
        explained.scores,
        head_methods,
        tables.get("localization"),
        explained.head_columns,
        config.target_names,
        config.target_units,
        indices,
    )
    if explained.scores:
        tables["head_scores"] = head_scores_table(explained.scores, head_methods, indices)
        tables["agreement"] = agreement_table(
            {name: oriented(found, head_methods[name]) for name, found in explained.scores.items()},
            {explained.truth.name: explained.truth.delta_loss},
            {name: method.signed for name, method in head_methods.items()},
            indices,
            settings.seed,
            estimators=("mean",) if explained.truth.is_estimated else tuple(ESTIMATORS),
            absolute=not explained.truth.is_estimated,
        )
    pixel_methods = chosen_methods(settings.methods, PIXEL_METHODS)
    named = head_methods | {PIXEL + name: method for name, method in pixel_methods.items()}
    timings = {name: explained.timings.get(name, {}) for name in named}
    tables["methods"] = methods_table(
        named,
        method_settings(settings),
        layout.num_layers,
        len(config.target_names),
        timings,
        explained.completeness,
    )
    return tables
