"""Where a head's effect goes: by which tokens it acts, by which route it reaches the answer, by which part it is made.

Takes pictures, their labels of patches and their counterfactuals where there are any; gives one pass and a table that
splits the whole effect of every head three times over, exactly, with what is left as interaction
(:mod:`attribution.paths`). Knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.checks.evidence import Evidence, Orders
from analysis.checks.knockout import sha256_of_labels
from analysis.intervals import interval_over_images
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.truth_passes import sweep_forwards
from attribution.batch import Batch
from attribution.gradient_readings import COUNTERFACTUAL
from attribution.method import Method
from attribution.paths import (
    ANSWER,
    DIRECT,
    HEADS,
    MLPS,
    OTHER,
    PATTERN,
    READ_OUT,
    VALUES,
    by_part,
    by_route,
    by_token,
    whole_effects,
)
from attribution.vit import HeadLayout, head_layout
from data_synth import REGIONS

NAME = "check_paths"
TOKEN, ROUTE, PART = "token", "route", "part"
WHOLE, INTERACTION = "whole", "interaction"
# By which the table splits an effect -> (its whole, the parts); of a route but `direct` what it adds to that.
SPLITS = {
    TOKEN: ("zero", (READ_OUT, ANSWER, OTHER)),
    ROUTE: ("zero", (DIRECT, MLPS, HEADS)),
    PART: ("counterfactual", (PATTERN, VALUES)),
}
COLUMNS = (
    *("layer", "head", "split", "place", "effect_var_pct", "ci_low", "ci_high", "trimmed_var_pct"),
    *("share_of_whole", "largest_picture_share", "n"),
)
SMALLEST_EFFECT = 0.05  # % of the label variance, below which a share of it says nothing
# A sweep in which the attention of later blocks responds and MLPs do not: about so much of one.
ATTENTION_ALONE = 0.5

Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass over the first pictures, an array float64 [image layer head] of every whole and part.

    Without known regions of the answer tokens are the read-out row and all others; without counterfactuals there are no
    parts.
    """
    answer, layout = _answer(source), head_layout(opened.model)
    has_twin = source.counterfactual is not None

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        labels = source.draw(batch.indices.tolist()).patch_labels if answer else None
        found = by_token(opened.model, batch, token_masks(labels, answer, layout, len(batch)), batch_size=batch_size)
        found |= by_route(opened.model, batch, batch_size=batch_size)
        if has_twin:
            found |= by_part(opened.model, batch, batch_size=batch_size)
        found |= whole_effects(opened.model, batch, batch_size=batch_size)
        return {NAME: {name: effects.numpy() for name, effects in found.items()}}

    rows = first_rows(settings.curve_pictures, source.count)
    sweeps = 2 + bool(answer) + ATTENTION_ALONE + 1 + (3 if has_twin else 0)
    depends_on = {
        "answer": answer,
        "labels": sha256_of_labels(source, range(source.count) if rows is None else rows) if answer else "",
    }
    forwards = 2 + sweeps * sweep_forwards(opened)
    return [Pass(NAME, {NAME: depends_on}, compute, forwards, rows=rows, needs=(COUNTERFACTUAL,) if has_twin else ())]


def token_masks(
    patch_labels: NDArray[np.uint8] | None, answer: Sequence[str], layout: HeadLayout, num_images: int
) -> dict[str, Tensor]:
    """Bool `[image token]`: the read-out row (the first token), patches that show what is to be read where that is
    known, and all other tokens, special ones included."""
    num_patches = layout.num_rows * layout.num_cols
    first = torch.zeros(num_images, layout.num_special_tokens + num_patches, dtype=torch.bool)
    first[:, 0] = True
    if patch_labels is None:
        return {READ_OUT: first, OTHER: ~first}
    chosen = np.isin(patch_labels, [REGIONS.index(name) for name in answer]).reshape(num_images, num_patches)
    shown = torch.zeros_like(first)
    shown[:, layout.num_special_tokens :] = torch.from_numpy(chosen)
    return {READ_OUT: first, ANSWER: shown, OTHER: ~(first | shown)}


def table(evidence: Evidence) -> pd.DataFrame:
    """For every head and split its parts, the interaction (whole less all parts) and the whole; means over the first n
    pictures in % of the label variance, with 95 % intervals and 10 % trimmed means.

    ``share_of_whole``: the mean over that of the whole, NaN where that is below 0.05 % in size; shares of a split add
    up to 1. ``largest_picture_share``: what the picture with the largest effect by size adds to the sum over pictures.
    """
    found = evidence.read(NAME)
    indices = evidence.indices(len(found["zero"]))
    frames = []
    for split, (whole, names) in SPLITS.items():
        if whole not in found:
            continue
        parts = {name: found[name] for name in names if name in found}
        if split == ROUTE:
            parts = {name: effect - (0.0 if name == DIRECT else parts[DIRECT]) for name, effect in parts.items()}
        parts[INTERACTION] = found[whole] - sum(parts.values())
        parts[WHOLE] = found[whole]
        frames += [_rows(split, place, 100 * effect, 100 * found[whole], indices) for place, effect in parts.items()]
    order = {
        place: number for number, place in enumerate(dict.fromkeys(row for frame in frames for row in frame["place"]))
    }
    splits = {split: number for number, split in enumerate(SPLITS)}
    joined = pd.concat(frames, ignore_index=True)
    places = np.lexsort((joined["place"].map(order), joined["split"].map(splits), joined["head"], joined["layer"]))
    return joined.iloc[places].reset_index(drop=True)


def _rows(split: str, place: str, effects: Floats, whole: Floats, indices: NDArray[np.integer]) -> pd.DataFrame:
    num_layers, num_heads = effects.shape[1:]
    layer, head = (axis.ravel() for axis in np.indices((num_layers, num_heads)))
    mean = interval_over_images(effects, indices)
    of_all = whole.mean(axis=0)
    sums = effects.sum(axis=0)
    largest = np.take_along_axis(effects, np.abs(effects).argmax(axis=0)[None], axis=0)[0]
    columns = {
        "layer": layer,
        "head": head,
        "split": split,
        "place": place,
        "effect_var_pct": mean.value.ravel(),
        "ci_low": mean.low.ravel(),
        "ci_high": mean.high.ravel(),
        "trimmed_var_pct": interval_over_images(effects, indices, estimator="trimmed").value.ravel(),
        "share_of_whole": _over(mean.value, np.where(np.abs(of_all) < SMALLEST_EFFECT, 0.0, of_all)).ravel(),
        "largest_picture_share": _over(largest, sums).ravel(),
        "n": len(effects),
    }
    return pd.DataFrame(columns)[list(COLUMNS)]


def _over(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def _answer(source: PictureSource) -> tuple[str, ...]:
    return source.answer_regions if source.draw(range(1)).patch_labels is not None else ()
