"""What localization would be by chance: exact expectations, and a permutation test that follows the region.

Takes: counts of patches, or maps and masks on one grid. Gives: exact chance levels, p values,
Benjamini-Hochberg q values.
Does not know: regions by name, models, tables.

Two different nulls. *Chance* of a metric is its exact expectation for patches in random order. The
*permutation null* asks more: does the map follow its own picture's region, rather than sit where such regions
usually are? It pairs map i with the mask of picture π(i). Where the region never moves every pairing is the
same, the test cannot reject anything, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from analysis.ranked_maps import PICTURES_AT_ONCE, Blocks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROUNDING = 1e-12
_MAX_CELLS = 4_000_000


@dataclass(frozen=True)
class PermutationNull:
    """Outcome per map: `p`, the mean mass on the own mask `observed`, and its mean over permutations `expected`."""

    p: Floats
    observed: Floats
    expected: Floats
    position_fixed: bool
    num_images: int


def hypergeometric(total: ArrayLike, good: ArrayLike, drawn: ArrayLike) -> tuple[Ints, Floats]:
    """Support and weights of Hypergeom(total, good, drawn), `[case] -> [case outcome]`, both; weights sum to
    1 per case.

    Products of successive ratios from the smallest outcome, in logarithms: no factorial is ever formed, so it
    holds for the 50,176 pixels of a picture as for the 256 patches of a grid. Outcomes beyond the support
    have weight 0.
    """
    total, good, drawn = (np.asarray(part, dtype=np.int64)[:, None] for part in (total, good, drawn))
    lowest = np.maximum(0, good + drawn - total)
    highest = np.minimum(good, drawn)
    width = int((highest - lowest).max(initial=0)) + 1
    outcome = lowest + np.arange(width)
    within = outcome <= highest
    here = np.minimum(outcome, highest)[:, :-1]
    with np.errstate(divide="ignore"):
        steps = np.log((good - here) * (drawn - here)) - np.log((here + 1) * (total - good - drawn + here + 1))
    logs = np.concatenate([np.zeros((len(outcome), 1)), np.cumsum(np.where(within[:, 1:], steps, 0.0), axis=1)], axis=1)
    logs = np.where(within, logs, -np.inf)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.where(within, outcome, highest), weights / weights.sum(axis=1, keepdims=True)


def expected_iou(
    certain: ArrayLike,
    total: ArrayLike,
    good: ArrayLike,
    drawn: ArrayLike,
    selected: ArrayLike,
    area: ArrayLike,
) -> Floats:
    """E[h / (selected + area − h)], h = certain + x, x ~ Hypergeom(total, good, drawn), exactly. Broadcasts
    its arguments.

    h patches of the `selected` lie in a region of `area` patches; of the last `drawn` of them it is only
    known that they come at random out of `total` patches, `good` of which lie in the region. The ratio is not
    linear in h, so the mean of h would not do.
    """
    parts = np.broadcast_arrays(certain, total, good, drawn, selected, area)
    cases, inverse = np.unique(np.stack([part.ravel() for part in parts]), axis=1, return_inverse=True)
    sure, whole, inside, picks, chosen, region = cases.astype(np.int64)
    result = np.empty(cases.shape[1])
    outcomes = np.minimum(inside, picks) - np.maximum(0, inside + picks - whole) + 1
    by_size = np.argsort(outcomes, kind="stable")
    start = 0
    while start < len(by_size):
        stop = start + 1
        while stop < len(by_size) and (stop + 1 - start) * outcomes[by_size[stop]] <= _MAX_CELLS:
            stop += 1
        rows = by_size[start:stop]
        extra, weights = hypergeometric(whole[rows], inside[rows], picks[rows])
        hits = sure[rows, None] + extra
        result[rows] = (weights * hits / (chosen[rows, None] + region[rows, None] - hits)).sum(axis=1)
        start = stop
    return result[inverse.ravel()].reshape(parts[0].shape)


def iou_chance(num_patches: ArrayLike, selected: ArrayLike, area: ArrayLike) -> Floats:
    """Expected IoU of `selected` patches drawn at random with a region of `area` patches. Broadcasts its
    arguments."""
    return expected_iou(0, num_patches, area, selected, selected, area)


def average_precision_chance(num_patches: int, area: ArrayLike) -> Floats:
    """Expected average precision of N patches in random order (no ties), area k: (H + (k−1)/(N−1)·(N−H))/N, H = Σ
    1/i.

    The patch at place i lies inside with probability k/N, and then (i−1)(k−1)/(N−1) of those before it are
    expected to (Bestgen 2015). An area of 0 has no average precision: NaN.
    """
    area = np.asarray(area, dtype=np.float64)
    harmonic = float((1.0 / np.arange(1, num_patches + 1)).sum())
    share = (area - 1) / (num_patches - 1) if num_patches > 1 else np.zeros_like(area)
    return np.where(area > 0, (harmonic + share * (num_patches - harmonic)) / num_patches, np.nan)


def permutation_null(
    maps: Blocks, mask: NDArray[np.bool_], *, seed: int, num_permutations: int = 9999
) -> PermutationNull:
    """Does the mass of maps `[image ... row col]` follow the moving mask `[image row col]`? One result per `...`.

    M[i, j] = mass of map i on the mask of picture j, among pictures that contain the region. Statistic: mean
    of M[i, i]; null: mean of M[i, π(i)] over random permutations π; one-sided p = (1 + #{null ≥ observed}) /
    (1 + num_permutations) (Phipson & Smyth 2010). Maps are renormalised over the grid. `position_fixed`: all
    these masks are equal (so also where one picture alone contains the region); p is then NaN, as it is when
    no picture contains it. Maps are read a few pictures at a time, and M is never held.
    """
    if mask.dtype != bool or mask.ndim != 3 or maps.shape[:1] + maps.shape[-2:] != mask.shape:
        raise ValueError(
            f"permutation null: expected maps [image ... row col] and a boolean mask [image row col], "
            f"got {list(maps.shape)} and {mask.dtype} {list(mask.shape)}"
        )
    shape = maps.shape[1:-2]
    present = np.any(mask, axis=(1, 2), keepdims=True)[:, 0, 0]
    count = int(present.sum())
    masks = mask[present].reshape(count, mask[0].size).astype(np.float64)
    blank = np.full(shape, np.nan)
    if count == 0:
        return PermutationNull(blank, blank, blank, False, 0)
    fixed = bool((masks == masks[0]).all())
    partners = None if fixed else permutations(count, num_permutations, seed)
    observed = np.zeros(int(np.prod(shape)))
    null = np.zeros((0 if partners is None else num_permutations, len(observed)))
    for image, mass in enumerate(_masses(maps, present)):
        on_masks = masks[image : image + 1] @ mass if partners is None else masks @ mass  # [mask map]
        observed += on_masks[0 if partners is None else image]
        if partners is not None:
            null += on_masks[partners[:, image]]
    observed /= count
    own = observed.reshape(shape)
    if fixed:
        return PermutationNull(blank, own, own, True, count)
    null /= count
    reached = (null >= observed * (1 - _ROUNDING)).sum(axis=0)
    p = (1 + reached) / (1 + num_permutations)
    return PermutationNull(p.reshape(shape), own, null.mean(axis=0).reshape(shape), False, count)


def permutations(count: int, num_permutations: int, seed: int) -> NDArray[np.int32]:
    """Random orders of `count` pictures, `[permutation image]`."""
    orders = np.tile(np.arange(count, dtype=np.int32), (num_permutations, 1))
    return np.random.default_rng(seed).permuted(orders, axis=1, out=orders)


def _masses(maps: Blocks, present: NDArray[np.bool_]) -> Iterator[Floats]:
    """The maps of each picture that counts, each of mass 1, `[patch map]`."""
    for start in range(0, len(present), PICTURES_AT_ONCE):
        rows = slice(start, start + PICTURES_AT_ONCE)
        block = np.asarray(maps[rows])[present[rows]].astype(np.float64)
        flat = block.reshape(len(block), int(np.prod(maps.shape[1:-2])), int(np.prod(maps.shape[-2:])))
        flat /= flat.sum(axis=2, keepdims=True)
        yield from flat.transpose(0, 2, 1)


def false_discovery_rate(p: Floats) -> Floats:
    """Benjamini-Hochberg q values over all entries that are not NaN, one family; NaN stays NaN."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return q
