"""Every localization metric of one map and one mask, by its definition, in plain Python: what the fast ones must equal.

Takes one map and one mask as lists; gives the metrics of :mod:`analysis.localization` as numbers, None where the
picture lacks the region or the metric is undefined. Nothing is sorted twice by a trick and nothing is shared between
masks: `by_definition` counts what the definition counts (pairs of patches, one pass per threshold), `by_sorting` ranks
the patches once per map and mask, as a careful programmer would. Knows no arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

Metrics = dict[str, float | None]
OneMap = Callable[[Sequence[float], Sequence[bool], float, float], Metrics]

KEPT_SHARE = 0.6
_ROUNDING = 1e-12


def dataset_threshold(maps: Sequence[Sequence[float]], top_share: float = 0.005) -> tuple[float, float]:
    """The mass that the highest `top_share` of all patches of all pictures reach, and the share of those tied at it
    that is still needed. `maps` [image][patch]; each is divided by its sum first."""
    pooled = sorted((value / sum(values) for values in maps for value in values), reverse=True)
    taken = int(-(-top_share * len(pooled) // 1))
    threshold = pooled[taken - 1]
    above = sum(value > threshold for value in pooled)
    return threshold, (taken - above) / sum(value == threshold for value in pooled)


def by_definition(values: Sequence[float], inside: Sequence[bool], threshold: float, tied_share: float) -> Metrics:
    """Every metric by counting: ROC-AUC over pairs of patches, average precision by one pass per threshold."""
    area = sum(inside)
    if area == 0:
        return dict.fromkeys(NAMES)
    inner = [value for value, is_in in zip(values, inside, strict=True) if is_in]
    outer = [value for value, is_in in zip(values, inside, strict=True) if not is_in]
    wins = sum((a > b) + 0.5 * (a == b) for a in inner for b in outer)
    precision = recall = 0.0
    for level in sorted(set(values), reverse=True):
        reached = sum(value >= level for value in values)
        reached_inside = sum(value >= level for value in inner)
        precision += (reached_inside / area - recall) * reached_inside / reached
        recall = reached_inside / area
    auc = wins / (len(inner) * len(outer)) if outer else None
    return _rest(values, inside, threshold, tied_share) | {"roc_auc": auc, "average_precision": precision}


def by_sorting(values: Sequence[float], inside: Sequence[bool], threshold: float, tied_share: float) -> Metrics:
    """The same numbers from one ranking of the patches."""
    area, num = sum(inside), len(values)
    if area == 0:
        return dict.fromkeys(NAMES)
    ranked = sorted(zip(values, inside, strict=True), key=lambda pair: -pair[0])
    hits = start = 0
    rank_sum = precision = 0.0
    while start < num:
        stop, before = start, hits
        while stop < num and ranked[stop][0] == ranked[start][0]:
            hits += ranked[stop][1]
            stop += 1
        rank_sum += (hits - before) * (2 * num + 1 - start - stop) / 2  # ranks from the bottom, ties share theirs
        precision += (hits - before) / area * hits / stop
        start = stop
    auc = (rank_sum - area * (area + 1) / 2) / (area * (num - area)) if area < num else None
    return _rest(values, inside, threshold, tied_share) | {"roc_auc": auc, "average_precision": precision}


def _rest(values: Sequence[float], inside: Sequence[bool], threshold: float, tied_share: float) -> Metrics:
    """The metrics that need neither pairs nor thresholds."""
    num, area, total = len(values), sum(inside), sum(values)
    mass = sum(value for value, is_in in zip(values, inside, strict=True) if is_in) / total
    ordered = sorted(values, reverse=True)
    held, kept = 0.0, num
    for place, value in enumerate(ordered, 1):
        held += value / total
        if held >= KEPT_SHARE - _ROUNDING:
            kept = place
            break
    member = [float(v / total > threshold) + (v / total == threshold) * tied_share for v in values]
    overlap = sum(part for part, is_in in zip(member, inside, strict=True) if is_in)
    highest = [is_in for value, is_in in zip(values, inside, strict=True) if value == ordered[0]]
    top = _top(values, inside, ordered[area - 1], area)
    return {
        "iou": _expected_iou(top, area, area),
        "iou_quantile": overlap / (sum(member) + area - overlap),
        "iou_mass60": _expected_iou(_top(values, inside, ordered[kept - 1], kept), kept, area),
        "mass": mass,
        "lift": mass / (area / num),
        "rank_accuracy": (top[0] + top[3] * top[2] / top[1]) / area,
        "pointing_game": sum(highest) / len(highest),
    }


def _top(values: Sequence[float], inside: Sequence[bool], level: float, selected: int) -> tuple[int, int, int, int]:
    """Of the `selected` highest: sure hits; size, hits and draws of the tie at the boundary value `level`."""
    above = [is_in for value, is_in in zip(values, inside, strict=True) if value > level]
    tied = [is_in for value, is_in in zip(values, inside, strict=True) if value == level]
    return sum(above), len(tied), sum(tied), selected - len(above)


def _expected_iou(top: tuple[int, int, int, int], selected: int, area: int) -> float:
    """Mean over all ways to fill up from the tie."""
    sure, size, good, drawn = top
    ways = comb(size, drawn)
    return sum(
        comb(good, extra) * comb(size - good, drawn - extra) / ways * (sure + extra) / (selected + area - sure - extra)
        for extra in range(max(0, good + drawn - size), min(good, drawn) + 1)
    )


NAMES = (
    *("iou", "iou_quantile", "iou_mass60", "mass", "lift", "rank_accuracy", "roc_auc", "average_precision"),
    "pointing_game",
)
