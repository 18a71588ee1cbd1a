"""Where does each head look? Non-negative maps against region masks, on the patch grid.

Takes: maps `[image ... row col]` (any axes between, such as `layer head`; renormalised over patches here,
special tokens already dropped) and boolean masks `[image row col]`, or patch labels `[image row col]` with
regions as name -> label indices.
Gives: each metric per picture `[image ...]` and its value by chance (tables: `analysis.localization_table`). The
same functions serve pixel grids.
Does not know: models, methods, what a region shows.

Conventions: N patches, a region S of k = |S|. A picture without the region is NaN, and so is a metric it
cannot have (ROC-AUC when S is everything); nothing becomes 0. Equal values are never ordered by position: a
tie counts by its expectation over random orders. Rank metrics order the values as given, so no rounding makes
or breaks a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.nulls import (
    average_precision_chance,
    expected_iou,
    iou_chance,
)
from analysis.ranked_maps import Floats, Located, Maps, Mask, locate, top_patches
from analysis.ranked_maps import rank_maps as rank_maps


def region_masks(
    patch_labels: NDArray[np.integer], regions: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[np.bool_]]:
    """Mask `[image row col]` of each region: the patches whose label is among its indices."""
    if np.ndim(patch_labels) != 3 or not np.issubdtype(np.asarray(patch_labels).dtype, np.integer):
        raise ValueError(f"patch labels: expected integers [image row col], got shape {list(np.shape(patch_labels))}")
    return {name: np.isin(patch_labels, list(indices)) for name, indices in regions.items()}


def iou_area_matched(maps: Maps, mask: Mask = None) -> Floats:
    """IoU of S with the k highest patches: h/(2k − h), h of them in S; the expectation over ties is exact."""
    view = locate(maps, mask)
    return view.spread(_iou_of_top(view, np.broadcast_to(view.area, view.hits.shape[:2])))


def iou_mass(maps: Maps, mask: Mask = None) -> Floats:
    """IoU of S with the fewest highest patches that hold 60 % of the mass (DINO: Caron et al. 2021, sec. 4.2.2).

    `rank_maps` takes another share. Sums of mass within 1e-12 of the share reach it.
    """
    view = locate(maps, mask)
    return view.spread(_iou_of_top(view, view.rows(view.ranked.num_holding)))


def quantile_overlap(maps: Maps, mask: Mask = None) -> tuple[Floats, Floats]:
    """Intersection and union `[image ...]`, in patches, of S with the patches above a map's dataset-level threshold.

    Network Dissection (Bau et al. 2017, sec. 2.2): per unit the threshold that a share of all patches of *all*
    pictures exceed, and the unit's IoU is Σ intersections / Σ unions over the pictures that contain the concept. The
    share is the paper's 0.005 (about one patch of a 16 x 16 grid; `rank_maps` takes another), so a region of a share
    s of the picture cannot score much above 0.005/s: compare heads by it, not regions. Patches tied at the threshold
    enter by the share of them that is taken.
    """
    view = locate(maps, mask)
    member = view.rows(view.ranked.above_threshold)
    intersection = np.matmul(member, view.mask[:, :, None])[..., 0]
    return view.spread(intersection), view.spread(member.sum(axis=2) + view.area - intersection)


def iou_quantile(maps: Maps, mask: Mask = None) -> Floats:
    """Each picture's intersection / union of `quantile_overlap`; the table holds the ratio of their sums."""
    intersection, union = quantile_overlap(maps, mask)
    return intersection / union


def mass(maps: Maps, mask: Mask = None) -> Floats:
    """Share of the map's mass that lies on S."""
    view = locate(maps, mask)
    return view.spread(np.matmul(view.rows(view.ranked.mass), view.mask[:, :, None])[..., 0])


def lift(maps: Maps, mask: Mask = None) -> Floats:
    """Mass on S over the share of patches in S: mass / (k/N); 1 for a uniform map."""
    view = locate(maps, mask)
    share = view.area / view.num_patches
    return view.spread(np.matmul(view.rows(view.ranked.mass), view.mask[:, :, None])[..., 0] / share)


def rank_accuracy(maps: Maps, mask: Mask = None) -> Floats:
    """Share of the k highest patches that lie in S (relevance rank accuracy, Arras et al. 2022)."""
    view = locate(maps, mask)
    certain, tied, tied_inside, drawn = top_patches(view, np.broadcast_to(view.area, view.hits.shape[:2]))
    return view.spread((certain + drawn * tied_inside / tied) / view.area)


def roc_auc(maps: Maps, mask: Mask = None) -> Floats:
    """Chance that a patch in S outranks one outside, ties half (Mann-Whitney); NaN where S is the whole picture."""
    view = locate(maps, mask)
    inside = np.diff(view.hits, axis=2)
    twice_rank = (
        2 * view.num_patches + 1 - view.rows(view.ranked.above).astype(np.int64) - view.rows(view.ranked.through)
    )
    area = view.area.astype(np.float64)
    rank_sum = (inside * twice_rank).sum(axis=2) / 2
    with np.errstate(invalid="ignore"):
        return view.spread((rank_sum - area * (area + 1) / 2) / (area * (view.num_patches - area)))


def average_precision(maps: Maps, mask: Mask = None) -> Floats:
    """Σ (R_n − R_(n−1)) P_n over distinct values, as scikit-learn: tied patches share the precision at the
    end of the tie."""
    view = locate(maps, mask)
    through = view.rows(view.ranked.through).astype(np.intp)
    precision = np.take_along_axis(view.hits, through, axis=2) / through
    return view.spread((np.diff(view.hits, axis=2) * precision).sum(axis=2) / view.area)


def pointing_game(maps: Maps, mask: Mask = None) -> Floats:
    """Is the maximum in S (Zhang et al. 2018)? With several maxima, the share of them that is."""
    view = locate(maps, mask)
    maxima = view.rows(view.ranked.through)[..., :1].astype(np.intp)
    return view.spread((np.take_along_axis(view.hits, maxima, axis=2) / maxima)[..., 0])


METRICS: dict[str, Callable[[Maps, Mask], Floats]] = {
    "iou": iou_area_matched,
    "iou_quantile": iou_quantile,
    "iou_mass60": iou_mass,
    "mass": mass,
    "lift": lift,
    "rank_accuracy": rank_accuracy,
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    "pointing_game": pointing_game,
}


def per_picture(maps: Maps, mask: Mask = None, metrics: Sequence[str] = tuple(METRICS)) -> dict[str, Floats]:
    """Every metric per picture, name -> `[image ...]`."""
    view = locate(maps, mask)
    return {name: METRICS[name](view, None) for name in metrics}


def chance_per_picture(maps: Maps, mask: Mask = None, metrics: Sequence[str] = tuple(METRICS)) -> dict[str, Floats]:
    """What each metric would be for patches in random order, name -> `[image ...]`, NaN where the metric is.

    Exact, given the number of patches selected; that of `average_precision` is for maps without ties, that of
    `iou_quantile` the ratio of the expected intersection and union.
    """
    view = locate(maps, mask)
    share = view.area / view.num_patches

    exact: dict[str, Callable[[], Floats]] = {
        "iou": lambda: view.spread(iou_chance(view.num_patches, view.area, view.area)),
        "iou_quantile": lambda: np.divide(*quantile_overlap_by_chance(view)),
        "iou_mass60": lambda: view.spread(iou_chance(view.num_patches, view.rows(view.ranked.num_holding), view.area)),
        "lift": lambda: view.spread(np.ones_like(share)),
        "roc_auc": lambda: view.spread(np.where(share == 1, np.nan, 0.5)),
        "average_precision": lambda: view.spread(average_precision_chance(view.num_patches, view.area)),
    }
    return {name: exact[name]() if name in exact else view.spread(share) for name in metrics}


def adjusted_for_chance(value: Floats, chance: Floats) -> Floats:
    """(value − chance) / (1 − chance): 0 by chance, 1 at best; NaN where chance leaves no room."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance == 1, np.nan, (value - chance) / (1 - chance))


def quantile_overlap_by_chance(view: Located) -> tuple[Floats, Floats]:
    """Intersection and union `[image ...]` expected when as many patches of each picture are taken at random."""
    intersection, union = quantile_overlap(view)
    area = view.spread(view.area.astype(np.float64))
    expected = (intersection + union - area) * area / view.num_patches
    return expected, intersection + union - expected


def _iou_of_top(view: Located, selected: NDArray[np.integer]) -> Floats:
    certain, tied, tied_inside, drawn = top_patches(view, selected)
    return expected_iou(certain, tied, tied_inside, drawn, selected, view.area)
