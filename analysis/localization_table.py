"""Where each head looks, as a table: every metric and region with its chance level, interval and test.

Takes: maps `[image layer head row col]`, in memory or on disk, patch labels `[image row col]`, regions as
name -> label indices, and the shared bootstrap.
Gives: the tidy table. The metrics are those of `analysis.localization`.
Does not know: models, methods, what a region shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import bootstrap_interval, index_counts, interval_over_images, weighted_mean, weighted_ratio
from analysis.localization import (
    METRICS,
    adjusted_for_chance,
    chance_per_picture,
    per_picture,
    quantile_overlap,
    quantile_overlap_by_chance,
    region_masks,
)
from analysis.nulls import false_discovery_rate, permutation_null
from analysis.ranked_maps import Blocks, Floats, locate, rank_maps, some_maps

# What bounds memory: patches of all maps that are ranked together (some 100 bytes each), and numbers per picture, map,
# region and metric that are held together (8 bytes each).
MAX_PATCHES = 1_000_000
MAX_NUMBERS = 8_000_000

COLUMNS = (
    *("layer", "head", "query", "region", "metric", "value", "chance", "adjusted"),
    *("ci_low", "ci_high", "n", "p", "q_value"),
)


def localization_table(
    maps: Blocks,
    patch_labels: NDArray[np.integer],
    regions: Mapping[str, Sequence[int]],
    query: str,
    seed: int,
    indices: NDArray[np.integer],
    *,
    extra_masks: Mapping[str, NDArray[np.bool_]] | None = None,
    concepts: Collection[str] | None = None,
    num_permutations: int = 9999,
) -> pd.DataFrame:
    """The tidy table, one row per layer, head, region and metric, in that order.

    `maps [image layer head row col]`, `patch_labels [image row col]`, `indices [replicate image]` the shared
    bootstrap. `extra_masks` adds regions that labels cannot name (edges, corners, sinks). `value` is the mean
    over the pictures that contain the region (for `iou_quantile` the ratio of sums), `n` their number,
    `chance` the same of the exact chance level, `adjusted` the rescaled value (NaN for lift, which has no
    upper end), `ci_*` the 95 % interval of `value` (`analysis.intervals.kind_for`, held to the metric's range; of
    the quantile IoU, a ratio, BCa). `p` and `q_value` stand at `mass` and `lift`: the
    permutation test of the mass, and Benjamini-Hochberg over heads x regions, of the regions in `concepts`
    only where it is given. A region whose position is fixed has neither. Some heads at a time are in memory.
    """
    if len(maps.shape) != 5 or np.shape(patch_labels) != maps.shape[:1] + maps.shape[-2:]:
        raise ValueError(
            "localization: expected maps [image layer head row col] and labels [image row col], "
            f"got {list(maps.shape)} and {list(np.shape(patch_labels))}"
        )
    num_images, *layers_and_heads = maps.shape[:-2]
    index_counts(indices, num_images)
    masks = region_masks(patch_labels, regions) | dict(extra_masks or {})
    unknown = sorted(set(concepts or ()) - set(masks))
    if unknown or not masks:
        raise ValueError(f"localization: expected regions among {sorted(masks)}, got concepts {unknown}")
    num_maps = int(np.prod(layers_and_heads))
    numbers = np.full((len(masks), len(METRICS), num_maps, 6), np.nan)
    p = np.full((len(masks), num_maps), np.nan)
    names = list(masks)
    at_once = max(1, MAX_NUMBERS // (num_images * num_maps * len(METRICS)))
    for first in range(0, len(names), at_once):
        some = names[first : first + at_once]
        found = _measure(maps, {name: masks[name] for name in some}, indices)
        numbers[first : first + at_once] = [found[name] for name in some]
    for place, (name, mask) in enumerate(masks.items()):
        if concepts is None or name in concepts:
            p[place] = permutation_null(maps, mask, seed=seed, num_permutations=num_permutations).p.ravel()
    return _tidy(numbers, p, query, names, tuple(layers_and_heads))


def _measure(maps: Blocks, masks: Mapping[str, NDArray[np.bool_]], indices: NDArray[np.integer]) -> dict[str, Floats]:
    """For each mask value, chance, adjusted, limits and n of every metric, `[metric map 6]`; some maps at a time."""
    num_images, num_maps = maps.shape[0], int(np.prod(maps.shape[1:-2]))
    names = list(METRICS)
    # In place of its IoU per picture the quantile IoU has intersection and union, each summed over pictures.
    values = {name: np.empty((len(names) + 1, num_images, num_maps)) for name in masks}
    chance = {name: np.empty((len(names), num_maps)) for name in masks}
    ones = np.ones((1, num_images))
    step = max(1, MAX_PATCHES // (num_images * int(np.prod(maps.shape[-2:]))))
    for first in range(0, num_maps, step):
        some = slice(first, min(first + step, num_maps))
        ranked = rank_maps(some_maps(maps, some))
        for name, mask in masks.items():
            view = locate(ranked, mask)
            found, lucky = per_picture(view), chance_per_picture(view)
            found["iou_quantile"], values[name][-1, :, some] = quantile_overlap(view)
            for place, metric in enumerate(names):
                values[name][place, :, some] = found[metric]
                if metric == "iou_quantile":
                    chance[name][place, some] = weighted_ratio(*quantile_overlap_by_chance(view), ones)[0]
                else:
                    chance[name][place, some] = weighted_mean(lucky[metric], ones)[0]
    return {name: _intervals(values[name], chance[name], indices) for name in masks}


def _intervals(values: Floats, chance: Floats, indices: NDArray[np.integer]) -> Floats:
    """`[metric map 6]` from values `[metric image map]`, the unions of the quantile IoU last, and `chance [metric
    map]`."""
    *values_of, unions = values
    rows = []
    for metric, columns, by_chance in zip(METRICS, values_of, chance, strict=True):
        if metric == "iou_quantile":
            found = bootstrap_interval(partial(weighted_ratio, columns, unions), indices)
        else:
            found = interval_over_images(columns, indices, bounds=(0.0, np.inf if metric == "lift" else 1.0))
        blank = np.full(len(by_chance), np.nan)
        adjusted = blank if metric == "lift" else adjusted_for_chance(found.value, by_chance)
        count = np.isfinite(columns).sum(axis=0)
        rows.append(np.stack([found.value, by_chance, adjusted, found.low, found.high, count], axis=-1))
    return np.stack(rows)


def _tidy(
    numbers: Floats, p: Floats, query: str, regions: Sequence[str], layers_and_heads: tuple[int, ...]
) -> pd.DataFrame:
    """Rows by layer, head, region, metric from `numbers [region metric map 6]` and `p [region map]`."""
    num_layers, num_heads = layers_and_heads
    names = list(METRICS)
    tested = [names.index("mass"), names.index("lift")]
    p_and_q = np.full((*numbers.shape[:3], 2), np.nan)
    p_and_q[:, tested] = np.stack([p, false_discovery_rate(p)], axis=-1)[:, None]
    rows = np.concatenate([numbers, p_and_q], axis=-1).transpose(2, 0, 1, 3).reshape(-1, 8)
    layer, head, region, metric = (
        part.ravel() for part in np.indices((num_layers, num_heads, len(regions), len(names)))
    )
    table = pd.DataFrame(rows, columns=["value", "chance", "adjusted", "ci_low", "ci_high", "n", "p", "q_value"])
    table = table.assign(
        layer=layer,
        head=head,
        query=query,
        region=np.array(regions, dtype=object)[region],
        metric=np.array(names, dtype=object)[metric],
        n=table["n"].astype(np.int64),
    )
    return table[list(COLUMNS)]
