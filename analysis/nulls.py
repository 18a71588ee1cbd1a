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

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

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
    maps: NDArray[np.floating], mask: NDArray[np.bool_], *, seed: int, num_permutations: int = 9999
) -> PermutationNull:
    """Does the mass of maps `[image ... row col]` follow the moving mask `[image row col]`? One result per `...`.

    M[i, j] = mass of map i on the mask of picture j, among pictures that contain the region. Statistic: mean
    of M[i, i]; null: mean of M[i, π(i)] over random permutations π; one-sided p = (1 + #{null ≥ observed}) /
    (1 + num_permutations) (Phipson & Smyth 2010). Maps are renormalised over the grid. `position_fixed`: all
    these masks are equal (so also where one picture alone contains the region); p is then NaN, as it is when
    no picture contains it.
    """
    if mask.dtype != bool or mask.ndim != 3 or maps.shape[:1] + maps.shape[-2:] != mask.shape:
        raise ValueError(
            f"permutation null: expected maps [image ... row col] and a boolean mask [image row col], "
            f"got {list(maps.shape)} and {mask.dtype} {list(mask.shape)}"
        )
    shape = maps.shape[1:-2]
    present = mask.any(axis=(1, 2))
    count = int(present.sum())
    masks = mask[present].reshape(count, mask[0].size)
    fixed = count > 0 and bool((masks == masks[0]).all())
    mass = maps[present].reshape(count, int(np.prod(shape)), masks.shape[1]).astype(np.float64)
    mass = mass / mass.sum(axis=2, keepdims=True)
    on_masks = np.ascontiguousarray(np.einsum("imp,jp->ijm", mass, masks.astype(np.float64), optimize=True))
    blank = np.full(shape, np.nan)
    if count == 0:
        return PermutationNull(blank, blank, blank, False, 0)
    observed = on_masks[np.arange(count), np.arange(count)].mean(axis=0)
    if fixed:
        own = observed.reshape(shape)
        return PermutationNull(blank, own, own, True, count)
    shuffled = np.tile(np.arange(count), (num_permutations, 1))
    shuffled = np.random.default_rng(seed).permuted(shuffled, axis=1)
    null = np.zeros((num_permutations, on_masks.shape[2]))
    for image in range(count):
        null += on_masks[image][shuffled[:, image]]
    null /= count
    reached = (null >= observed * (1 - _ROUNDING)).sum(axis=0)
    p = (1 + reached) / (1 + num_permutations)
    return PermutationNull(p.reshape(shape), observed.reshape(shape), null.mean(axis=0).reshape(shape), False, count)


def false_discovery_rate(p: Floats) -> Floats:
    """Benjamini-Hochberg q values over all entries that are not NaN, one family; NaN stays NaN."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return q
