"""How much every head attends to every concept, against chance and against its own habit.

Takes maps `[image layer head row col]` (renormalised over patches) and masks of concepts; gives one tidy row a head and
concept. Knows no model and no roles.

``lift``: mass on the concept over its share of the patches, per picture, then mean over the pictures that contain it; 1
is chance. ``lift_position``: the same for a head that never looks: its mean map over the *other* pictures in place of
its own, so what is left of the lift is position, not content. ``p``: permutation of the masks over pictures, one-sided
(:func:`analysis.nulls.permutation_null`); ``q_value``: Benjamini-Hochberg over heads x concepts of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import interval_over_images, weighted_mean
from analysis.nulls import false_discovery_rate, permutation_null
from analysis.ranked_maps import PICTURES_AT_ONCE, Blocks

TAUS = (2.0, 3.0, 5.0)
COLUMNS = (
    *("layer", "head", "model", "query", "concept", "lift", "ci_low", "ci_high"),
    *(f"share_above_{tau:g}" for tau in TAUS),
    *("mass", "lift_position", "share_above_3_position", "n", "p", "q_value"),
)

Floats = NDArray[np.float64]


def concept_table(
    maps: Blocks,
    masks: Mapping[str, NDArray[np.bool_]],
    tested: Sequence[str],
    indices: NDArray[np.integer],
    *,
    model: str,
    query: str,
    seed: int,
    num_permutations: int = 9999,
) -> pd.DataFrame:
    """One row a layer, head and concept, in that order. Of ``masks``, those in ``tested`` are one family of tests, the
    others have no p. A concept that no picture contains is left out; one whose place is fixed has no p."""
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    mass, mass_position = concept_masses(maps, masks)
    num_layers, num_heads = maps.shape[1:3]
    names = list(masks)
    layer, head = (part.ravel() for part in np.indices((num_layers, num_heads)))
    p = np.full((len(names), layer.size), np.nan)
    parts = []
    for place, (name, mask) in enumerate(masks.items()):
        if name in tested:
            p[place] = permutation_null(maps, mask, seed=seed, num_permutations=num_permutations).p.ravel()
        share = mask.mean(axis=(1, 2))
        share[share == 0] = np.nan  # pictures without it say nothing
        lift, lift_position = (found[place] / share[:, None] for found in (mass, mass_position))
        interval = interval_over_images(lift, indices, bounds=(0.0, np.inf))
        columns = {"lift": interval.value, "ci_low": interval.low, "ci_high": interval.high}
        columns |= {f"share_above_{tau:g}": _share(lift, tau) for tau in TAUS}
        columns["mass"] = _mean(np.where(np.isnan(lift), np.nan, mass[place]))
        columns["lift_position"] = _mean(lift_position)
        columns["share_above_3_position"] = _share(lift_position, 3.0)
        columns["n"] = np.isfinite(lift).sum(axis=0)
        parts.append(pd.DataFrame({"layer": layer, "head": head, "concept": name} | columns))
    q = false_discovery_rate(p)
    for place, part in enumerate(parts):
        part["p"], part["q_value"] = p[place], q[place]
    table = pd.concat(parts, ignore_index=True).assign(model=model, query=query)
    order = table["concept"].map({name: place for place, name in enumerate(names)})
    return table.iloc[np.lexsort((order, table["head"], table["layer"]))].reset_index(drop=True)[list(COLUMNS)]


def concept_masses(maps: Blocks, masks: Mapping[str, NDArray[np.bool_]]) -> tuple[Floats, Floats]:
    """Mass of each map on the masks of its picture, and that of the head's mean map over the other pictures on them,
    ``[concept image map]`` each. Maps are read a few pictures at a time; one picture alone has no others: NaN."""
    num_images, num_patches = maps.shape[0], int(np.prod(maps.shape[-2:]))
    num_maps = int(np.prod(maps.shape[1:-2]))
    flat_masks = np.stack([mask.reshape(num_images, num_patches) for mask in masks.values()]).astype(np.float64)
    own = np.empty((len(masks), num_images, num_maps))
    total = np.zeros((num_maps, num_patches))
    for start in range(0, num_images, PICTURES_AT_ONCE):
        rows = slice(start, start + PICTURES_AT_ONCE)
        block = np.asarray(maps[rows]).astype(np.float64).reshape(-1, num_maps, num_patches)
        block /= block.sum(axis=2, keepdims=True)
        own[:, rows] = np.einsum("imp,cip->cim", block, flat_masks[:, rows])
        total += block.sum(axis=0)
    everyone = np.einsum("mp,cip->cim", total, flat_masks)
    if num_images < 2:
        return own, np.full_like(own, np.nan)
    return own, (everyone - own) / (num_images - 1)


def _share(lift: Floats, tau: float) -> Floats:
    """Share of the pictures with the concept in which the lift reaches tau."""
    return _mean(np.where(np.isnan(lift), np.nan, (lift >= tau).astype(np.float64)))


def _mean(values: Floats) -> Floats:
    return weighted_mean(values, np.ones((1, len(values))))[0]
