"""Where does a pixel map look? Pixel maps against pixel coverage, with the ceiling a patch grid puts on them.

Takes: maps per method `[image row col]` (full resolution, or one value per patch, then drawn as flat patches)
and coverage `[image region row col]` in [0, 1]; a pixel is inside a region that covers at least half of it.
Gives: the tidy table. Metrics, chance and intervals are those of the patch grid, with pixels for patches.
Does not know: models, methods, what a region shows.

Pixel IoU stands apart from the IoU on the patch grid because no map made of patches can draw a thin line: its
ceiling, the IoU of the best union of patches, is given beside it. The ceiling binds maps made of patches; a
full-resolution map may pass it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import index_counts, interval_over_images, weighted_mean
from analysis.localization import adjusted_for_chance, chance_per_picture, per_picture
from analysis.ranked_maps import PICTURES_AT_ONCE, Blocks, locate, rank_maps

Floats = NDArray[np.float64]

PIXEL_METRICS = ("iou", "mass", "lift", "roc_auc", "average_precision")
COLUMNS = (
    *("method", "region", "metric", "value", "chance", "adjusted"),
    *("ci_low", "ci_high", "n", "ceiling"),
)
_HALF = 0.5 - 1e-6


def pixel_masks(coverage: NDArray[np.floating], regions: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.bool_]]:
    """Mask `[image row col]` of each region: the pixels its labels together cover by half or more.

    ValueError unless coverage `[image region row col]` lies in [0, 1] and the regions' indices in it.
    """
    coverage = np.asarray(coverage)
    if coverage.ndim != 4 or not np.issubdtype(coverage.dtype, np.floating):
        raise ValueError(
            f"coverage: expected floats [image region row col], got {coverage.dtype} {list(coverage.shape)}"
        )
    if not (coverage.min(initial=0) >= -1e-5 and coverage.max(initial=0) <= 1 + 1e-5):
        raise ValueError("coverage: expected values from 0 to 1")
    for name, indices in regions.items():
        if not indices or min(indices) < 0 or max(indices) >= coverage.shape[1]:
            raise ValueError(f"region {name}: expected indices from 0 to {coverage.shape[1] - 1}, got {list(indices)}")
    return {name: coverage[:, list(indices)].sum(axis=1) >= _HALF for name, indices in regions.items()}


def draw_patches(maps: NDArray[np.floating], num_rows: int, num_cols: int) -> NDArray[np.floating]:
    """Patch maps `[image row col]` as flat patches of `num_rows` x `num_cols` pixels; pixels of one patch stay
    tied."""
    if num_rows % maps.shape[1] or num_cols % maps.shape[2]:
        raise ValueError(
            f"patch maps: expected a grid that divides {num_rows} x {num_cols} pixels, "
            f"got {maps.shape[1]} x {maps.shape[2]}"
        )
    taller = np.repeat(maps, num_rows // maps.shape[1], axis=1)
    return np.repeat(taller, num_cols // maps.shape[2], axis=2)


def iou_ceiling(mask: NDArray[np.bool_], grid: tuple[int, int]) -> Floats:
    """The highest IoU of a pixel mask `[image row col]` with any union of the patches of `grid` (rows, cols),
    `[image]`.

    Of all unions of j patches the j best covered ones hit most, so the best prefix of the patches in order of
    coverage is the best union. NaN where the mask is empty.
    """
    num_images, num_rows, num_cols = mask.shape
    if num_rows % grid[0] or num_cols % grid[1]:
        raise ValueError(f"ceiling: expected a grid that divides {num_rows} x {num_cols} pixels, got {list(grid)}")
    height, width = num_rows // grid[0], num_cols // grid[1]
    covered = mask.reshape(num_images, grid[0], height, grid[1], width).sum(axis=(2, 4)).reshape(num_images, -1)
    hits = np.cumsum(-np.sort(-covered, axis=1), axis=1)
    area = covered.sum(axis=1, keepdims=True)
    union = area + height * width * np.arange(1, hits.shape[1] + 1) - hits
    return np.where(area[:, 0] > 0, (hits / union).max(axis=1), np.nan)


def pixel_localization_table(
    maps: Mapping[str, NDArray[np.floating]],
    coverage: Blocks,
    regions: Mapping[str, Sequence[int]],
    indices: NDArray[np.integer],
    *,
    grid: tuple[int, int] = (16, 16),
) -> pd.DataFrame:
    """The tidy table, one row per method, region and metric, in that order.

    `maps` of each method `[image row col]` on the pixels of `coverage [image region row col]` or on `grid`;
    `indices [replicate image]` the shared bootstrap. `value`, `chance` and `n` are over the pictures that
    contain the region, `ci_*` is the 95 % interval of `value`, `adjusted` is NaN for lift, `ceiling`
    (mean over the same pictures) stands at `iou` alone.
    """
    if not maps or not regions:
        raise ValueError(f"pixel localization: expected methods and regions, got {len(maps)} and {len(regions)}")
    if len(coverage.shape) != 4:
        raise ValueError(f"coverage: expected floats [image region row col], got {list(coverage.shape)}")
    num_images, _, num_rows, num_cols = coverage.shape
    index_counts(indices, num_images)
    for name, scores in maps.items():
        if np.shape(scores) not in ((num_images, num_rows, num_cols), (num_images, *grid)):
            raise ValueError(
                f"{name}: expected maps [image row col] of {num_images} pictures on {num_rows} x {num_cols} pixels "
                f"or {grid[0]} x {grid[1]} patches, got {list(np.shape(scores))}"
            )
    blocks: list[tuple[Floats, Floats, Floats]] = []
    for start in range(0, num_images, PICTURES_AT_ONCE):
        rows = slice(start, start + PICTURES_AT_ONCE)
        masks = pixel_masks(coverage[rows], regions)
        measured = [_measure(f"{name}, pictures from {start}", found[rows], masks) for name, found in maps.items()]
        values, chances = (np.stack(part, axis=1) for part in zip(*measured, strict=True))
        blocks.append((values, chances, np.stack([iou_ceiling(mask, grid) for mask in masks.values()], axis=1)))
    value, chance, ceiling = (np.concatenate(part) for part in zip(*blocks, strict=True))
    columns = value.reshape(num_images, -1)
    is_lift = np.array(PIXEL_METRICS) == "lift"
    highest = np.broadcast_to(np.where(is_lift, np.inf, 1.0), value.shape[1:]).ravel()
    found = interval_over_images(columns, indices, bounds=(0.0, highest))
    ones = np.ones((1, num_images))
    mean_chance = weighted_mean(chance.reshape(num_images, -1), ones)[0]
    method, region, metric = (part.ravel() for part in np.indices(value.shape[1:]))
    ceilings = weighted_mean(ceiling, ones)[0]
    adjusted = adjusted_for_chance(found.value, mean_chance)
    table = pd.DataFrame(
        {
            "method": np.array(list(maps), dtype=object)[method],
            "region": np.array(list(regions), dtype=object)[region],
            "metric": np.array(PIXEL_METRICS, dtype=object)[metric],
            "value": found.value,
            "chance": mean_chance,
            "adjusted": np.where(metric == PIXEL_METRICS.index("lift"), np.nan, adjusted),
            "ci_low": found.low,
            "ci_high": found.high,
            "n": np.isfinite(columns).sum(axis=0),
            "ceiling": np.where(metric == PIXEL_METRICS.index("iou"), ceilings[region], np.nan),
        }
    )
    return table[list(COLUMNS)]


def _measure(name: str, maps: NDArray[np.floating], masks: Mapping[str, NDArray[np.bool_]]) -> tuple[Floats, Floats]:
    """Metrics of one method and their chance, each `[image region metric]`."""
    num_rows, num_cols = next(iter(masks.values())).shape[1:]
    try:
        ranked = rank_maps(draw_patches(np.asarray(maps), num_rows, num_cols))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    views = [locate(ranked, mask) for mask in masks.values()]
    found = []
    for measure in (per_picture, chance_per_picture):
        regions = [measure(view, None, PIXEL_METRICS) for view in views]
        found.append(np.stack([[region[key] for key in PIXEL_METRICS] for region in regions]).transpose(2, 0, 1))
    return found[0], found[1]
