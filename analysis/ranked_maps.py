"""Maps sorted once, then met with any number of masks: what every localization metric is computed from.

Takes: maps `[image ... row col]` and boolean masks `[image row col]`.
Gives: :class:`RankedMaps` and :class:`Located`. Does not know: metrics, models, what a region shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)
_ROUNDING = 1e-12
PICTURES_AT_ONCE = 16


class Blocks(Protocol):
    """An array whose first axis is the image, perhaps on disk, of which some pictures at a time are read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


def some_maps(maps: Blocks, which: slice) -> NDArray[Any]:
    """Maps of these numbers, `[image map row col]`, of `[image ... row col]`, read a few pictures at a time."""
    found = []
    for start in range(0, maps.shape[0], PICTURES_AT_ONCE):
        block = np.asarray(maps[start : start + PICTURES_AT_ONCE])
        # A copy, so that the rest of the block can go.
        found.append(block.reshape(len(block), -1, *maps.shape[-2:])[:, which].copy())
    return np.concatenate(found)


@dataclass(frozen=True)
class RankedMaps:
    """Maps sorted once, for any number of masks. `order` lists patches from the highest value to the lowest;
    the values tied with the one at a place of that order fill the places `above` to `through` − 1."""

    shape: tuple[int, ...]
    mass: Floats  # [image map patch], sums to 1 over patches
    order: NDArray[np.int32]  # [image map place]
    above: NDArray[np.int32]  # [image map place]
    through: NDArray[np.int32]  # [image map place]
    above_threshold: Floats  # [image map patch], 1 above the dataset-level threshold, a share of 1 at it, else 0
    num_holding: NDArray[np.int64]  # [image map], the fewest highest patches that hold the kept share of the mass


@dataclass(frozen=True)
class Located:
    """Ranked maps against one mask, reduced to the pictures that contain the region; every metric takes this too."""

    ranked: RankedMaps
    present: NDArray[np.bool_]  # [image]
    mask: Floats  # [present patch]
    area: NDArray[np.int64]  # [present 1]
    hits: NDArray[np.int32]  # [present map place], region patches before each place, N + 1 places

    @property
    def num_patches(self) -> int:
        return self.mask.shape[1]

    def rows(self, field: NDArray[Number]) -> NDArray[Number]:
        """One field of the ranking for the pictures that contain the region."""
        return field if self.present.all() else field[self.present]

    def spread(self, values: Floats) -> Floats:
        """`[present map]` (or `[present 1]`) back to `[image ...]`, NaN for the other pictures."""
        result = np.full(self.ranked.mass.shape[:2], np.nan)
        result[self.present] = values
        return result.reshape(self.ranked.shape)


Maps = NDArray[np.floating] | RankedMaps | Located
Mask = NDArray[np.bool_] | None


def rank_maps(maps: NDArray[np.floating], *, top_share: float = 0.005, kept_share: float = 0.6) -> RankedMaps:
    """Check and sort maps `[image ... row col]`. ValueError unless finite, non-negative and not all zero.

    `top_share` of all patches of all pictures pass the dataset-level threshold of `quantile_overlap`; `iou_mass`
    takes the patches that hold `kept_share` of the mass.
    """
    if not (0 < top_share <= 1 and 0 < kept_share <= 1):
        raise ValueError(f"maps: expected shares above 0 and up to 1, got {top_share} and {kept_share}")
    maps = np.asarray(maps)
    if maps.ndim < 3 or maps.size == 0 or not np.issubdtype(maps.dtype, np.floating):
        raise ValueError(f"maps: expected floats [image ... row col], got {maps.dtype} {list(maps.shape)}")
    flat = maps.reshape(len(maps), -1, maps.shape[-2] * maps.shape[-1])
    for wrong, what in ((~np.isfinite(flat), "finite"), (flat < 0, "non-negative")):
        if wrong.any():
            raise ValueError(f"maps: expected {what} values, picture {np.argwhere(wrong)[0][0]} has others")
    total = flat.sum(axis=2, keepdims=True, dtype=np.float64)
    if (total == 0).any():
        raise ValueError(f"maps: expected some mass, a map of picture {np.argwhere(total == 0)[0][0]} is all zero")
    order = np.argsort(-flat, axis=2, kind="stable").astype(np.int32)
    values = np.take_along_axis(flat, order, axis=2)
    places = np.arange(flat.shape[2], dtype=np.int32)
    falls = values[..., 1:] != values[..., :-1]
    above, through = np.zeros_like(order), np.full_like(order, flat.shape[2])
    np.maximum.accumulate(np.where(falls, places[1:], 0), axis=2, out=above[..., 1:])
    ends = np.where(falls, places[1:], flat.shape[2])[..., ::-1]
    through[..., :-1] = np.minimum.accumulate(ends, axis=2)[..., ::-1]
    mass = flat / total
    pooled = np.moveaxis(mass, 1, 0).reshape(mass.shape[1], -1)
    taken = int(np.ceil(top_share * pooled.shape[1]))
    threshold = np.partition(pooled, -taken, axis=1)[:, -taken, None]
    tied_share = (taken - (pooled > threshold).sum(axis=1)) / (pooled == threshold).sum(axis=1)
    above_threshold = (mass > threshold) + (mass == threshold) * tied_share[:, None]
    before = np.cumsum(np.take_along_axis(mass, order, axis=2), axis=2)[..., :-1]
    num_holding = 1 + (before < kept_share - _ROUNDING).sum(axis=2)
    return RankedMaps(maps.shape[:-2], mass, order, above, through, above_threshold, num_holding)


def locate(maps: Maps, mask: Mask = None) -> Located:
    """Join maps with a boolean mask `[image row col]`. ValueError when the mask is of another size or type."""
    if isinstance(maps, Located):
        return maps
    ranked = maps if isinstance(maps, RankedMaps) else rank_maps(maps)
    num_images, _, num_patches = ranked.mass.shape
    if mask is None or mask.dtype != bool or len(mask) != num_images or mask.size != num_images * num_patches:
        got = "none" if mask is None else f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"mask: expected bool [image row col], {num_images} x {num_patches} patches, got {got}")
    if not isinstance(maps, RankedMaps) and mask.shape[1:] != maps.shape[-2:]:
        raise ValueError(f"mask: expected a grid of {list(maps.shape[-2:])}, got {list(mask.shape[1:])}")
    flat = mask.reshape(num_images, num_patches)
    present = np.any(flat, axis=1)
    order = ranked.order if present.all() else ranked.order[present]
    inside = np.take_along_axis(flat[present][:, None, :], order, axis=2)
    hits = np.zeros((*order.shape[:2], num_patches + 1), dtype=np.int32)
    np.cumsum(inside, axis=2, out=hits[..., 1:])
    return Located(ranked, present, flat[present].astype(np.float64), flat[present].sum(axis=1)[:, None], hits)


def top_patches(view: Located, selected: NDArray[np.integer]) -> tuple[NDArray[np.int64], ...]:
    """Of the `selected [present map]` highest patches: sure hits; then size, hits and draws of the tie at the
    boundary."""
    last = selected[..., None].astype(np.intp) - 1
    above = np.take_along_axis(view.rows(view.ranked.above), last, axis=2).astype(np.intp)
    through = np.take_along_axis(view.rows(view.ranked.through), last, axis=2).astype(np.intp)
    certain = np.take_along_axis(view.hits, above, axis=2)
    reached = np.take_along_axis(view.hits, through, axis=2)
    parts = (certain, through - above, reached - certain, last + 1 - above)
    return tuple(part[..., 0].astype(np.int64) for part in parts)
