"""How much every head attends to every concept, before and after fine-tuning.

Takes pictures whose patches are labelled; gives one pass, for what labels cannot say (edges, corners, sinks) and for
the attention of the backbone as it was before fine-tuning, and the table of lifts (:mod:`analysis.concept_tables`).
Other checks that look at both models take them from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.checks.evidence import Evidence, Orders
from analysis.concept_masks import CONCEPTS, concept_masks, drawn_masks, sink_mask
from analysis.concept_tables import COLUMNS, concept_table
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource
from analysis.ranked_maps import Blocks
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.batch import Batch
from attribution.heads import QUERIES, attention_maps
from attribution.method import Method
from attribution.randomised import not_finetuned
from attribution.token_norms import patch_token_norms
from attribution.vit import ViTRegressor, head_layout

NAME = "check_concepts"
FINETUNED, PRETRAINED = "finetuned", "pretrained"
Build = Callable[[], ViTRegressor]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over all pictures: ``corner``, ``edge`` and ``sink_<model>`` uint8 [image row col], and of the backbone
    before fine-tuning ``<query>_map`` float32 [image layer head row col]. None for a source without patch labels."""
    if not is_labelled(source):
        return []
    layout = head_layout(opened.model)
    builds = models_of(opened, settings.seed)
    held: dict[str, ViTRegressor] = {}

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        found: Arrays = {}
        images = source.draw(batch.indices.tolist()).images
        for name, mask in drawn_masks(images, layout.num_rows, layout.num_cols).items():
            found[name] = mask.astype(np.uint8)
        for name, build in builds.items():
            model = held.setdefault(name, build())
            norms = patch_token_norms(model, batch.pixel_values, batch_size=batch_size).numpy()
            found[f"sink_{name}"] = sink_mask(norms).astype(np.uint8)
            if name == PRETRAINED:
                maps = attention_maps(model, batch.pixel_values, batch_size=batch_size).maps
                found |= {f"{query}_map": maps[query].float().cpu().numpy() for query in QUERIES}
        return {NAME: found}

    depends_on = {
        "seed": settings.seed,
        "scikit-image": version("scikit-image"),
    }
    return [Pass(NAME, {NAME: depends_on}, compute, 1.0 + 2.0 * (len(builds) - 1))]


def table(evidence: Evidence) -> pd.DataFrame:
    """Rows of :func:`analysis.concept_tables.concept_table`, for each model and query."""
    if evidence.patch_labels is None:
        return pd.DataFrame(columns=list(COLUMNS))
    found, settings = evidence.read(NAME), evidence.settings
    drawn = {name: found[name].astype(bool) for name in ("corner", "edge")}
    parts = []
    for model in models_of(evidence.opened, settings.seed):
        masks = concept_masks(evidence.patch_labels, drawn, found[f"sink_{model}"].astype(bool))
        for query in QUERIES:
            maps: Blocks = evidence.maps[query] if model == FINETUNED else found[f"{query}_map"]
            indices = evidence.indices(len(evidence.patch_labels))
            parts.append(
                concept_table(
                    maps,
                    masks,
                    CONCEPTS,
                    indices,
                    model=model,
                    query=query,
                    seed=settings.seed,
                    num_permutations=settings.num_permutations,
                )
            )
    return pd.concat(parts, ignore_index=True)


def models_of(opened: OpenedModel, seed: int) -> dict[str, Build]:
    """The model, and its backbone before fine-tuning where that can be had: by name, made when called."""
    model = opened.model
    found: dict[str, Build] = {FINETUNED: lambda: model}
    if hasattr(model.backbone, "unload"):  # adapters, which can be taken off
        found[PRETRAINED] = lambda: not_finetuned(model, seed)
    return found


def is_labelled(source: PictureSource) -> bool:
    """Whether the patches of these pictures are labelled."""
    return source.draw(range(1)).patch_labels is not None


def mean_lift(maps: Blocks, patch_labels: NDArray[np.uint8], region: Sequence[int]) -> NDArray[np.float64]:
    """Mean lift of every head's map on a region (numbers of patch labels), [layer head], over pictures that show it."""
    mask = np.isin(patch_labels, list(region))
    present = mask.any(axis=(1, 2))
    total = np.zeros(maps.shape[1:3])
    for image in np.flatnonzero(present):
        own = np.asarray(maps[slice(int(image), int(image) + 1)])[0].astype(np.float64)
        total += (own * mask[image]).sum(axis=(2, 3)) / own.sum(axis=(2, 3)) / mask[image].mean()
    return total / max(1, int(present.sum()))
