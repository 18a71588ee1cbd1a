"""Attention knockout: what a head loses when its CLS query may not look at the chirp, the text or the colour bar.

Takes pictures whose patches are labelled; gives one pass, and a table that sets the effect of hiding a region beside
the attention that lay on it and beside the effect of removing the whole head. Knows no method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.checks.evidence import Evidence, Orders
from analysis.intervals import interval_over_images, weighted_mean
from analysis.models import OpenedModel
from analysis.passes import BACKWARD_COST, Pass, first_rows
from analysis.pictures import PictureSource, region_indices
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from analysis.survey import in_pieces
from analysis.truth_passes import sweep_forwards
from attribution.batch import Batch
from attribution.knockout import attention_knockout
from attribution.knockout_predicted import predicted_knockout
from attribution.method import Method

NAME = "check_knockout"
REGIONS = ("chirp", "text", "colorbar")
SMALLEST_ABLATION = 0.05  # % of the label variance, below which a share of it says nothing
COLUMNS = (
    *("layer", "head", "region", "effect_var_pct", "ci_low", "ci_high", "effect_var_pct_trimmed"),
    *("mass", "mass_of_map", "ablation_zero_var_pct", "share_of_ablation"),
    *("predicted_var_pct", "predicted_by_gradient_var_pct", "n"),
)


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass, ``delta_loss``, what predicts it (``predicted``, ``predicted_by_gradient``) and ``mass`` float64
    [image region layer head], regions in the order of ``REGIONS``; none for a source without patch labels. Per picture
    and region it costs as much as a sweep over all heads."""
    if not _is_labelled(source):
        return []

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        labels = source.draw(batch.indices.tolist()).patch_labels
        assert labels is not None
        masks = {name: torch.from_numpy(mask) for name, mask in masks_of(labels).items()}
        found = attention_knockout(opened.model, batch, masks, batch_size=batch_size)
        predicted = predicted_knockout(opened.model, batch, masks, batch_size=batch_size)
        arrays = {"delta_loss": found.delta_loss, "mass": found.mass}
        arrays |= {"predicted": predicted.renormalised, "predicted_by_gradient": predicted.gradient}
        return {NAME: {name: values.numpy() for name, values in arrays.items()}}

    forwards = 3 + len(REGIONS) * sweep_forwards(opened) + BACKWARD_COST * len(opened.model.config.target_names)
    rows = first_rows(settings.curve_pictures, source.count)
    depends_on = {
        "regions": REGIONS,
        "masks": sha256_of_labels(source, range(source.count) if rows is None else rows),
    }
    return [Pass(NAME, {NAME: depends_on}, compute, forwards, rows=rows)]


def sha256_of_labels(source: PictureSource, rows: Sequence[int]) -> str:
    """Digest of the patch labels of some pictures: they are no part of a picture's own digest, and those of a folder
    can change without its pictures."""
    digest = hashlib.sha256()
    for piece in in_pieces(rows):
        labels = source.draw(piece).patch_labels
        assert labels is not None
        digest.update(np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a head and region, over the n pictures that contain the region; regions that none contains are left out.

    ``effect_var_pct`` [% of the label variance]: hidden minus intact, positive = the head helps by looking there, with
    its 95 % interval; ``mass``: share of the CLS query's whole attention on the region, special tokens included;
    ``mass_of_map``: that of its map, the attention on patches alone; ``ablation_zero_var_pct``: removing the whole
    head, same pictures; ``share_of_ablation``: the one effect divided by the other, NaN where that is below 0.05 %;
    ``predicted_var_pct``: the effect as gradients predict it with the attention that is left formed exactly,
    ``predicted_by_gradient_var_pct``: from the gradient at the attention alone (:mod:`attribution.knockout_predicted`).
    """
    if not _is_labelled(evidence.source):
        return pd.DataFrame(columns=list(COLUMNS))
    found = evidence.read(NAME)
    effect, mass = 100 * found["delta_loss"], found["mass"]
    num_images, num_regions, num_layers, num_heads = effect.shape
    indices = evidence.indices(num_images)
    # Removing the head, where hiding the region from it has an effect at all.
    removed = np.where(np.isnan(effect), np.nan, 100 * evidence.truth.delta_loss[:num_images, None])
    present = ~np.asarray(np.isnan(mass).all(axis=(0, 2, 3)))
    region, layer, head = (axis.ravel() for axis in np.indices((num_regions, num_layers, num_heads)))
    hidden, ablation = interval_over_images(effect, indices), _mean(removed)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(np.abs(ablation) < SMALLEST_ABLATION, np.nan, hidden.value / ablation)
    columns = {
        "layer": layer,
        "head": head,
        "region": np.array(REGIONS)[region],
        "effect_var_pct": hidden.value.ravel(),
        "ci_low": hidden.low.ravel(),
        "ci_high": hidden.high.ravel(),
        "effect_var_pct_trimmed": interval_over_images(effect, indices, estimator="trimmed").value.ravel(),
        "mass": _mean(mass).ravel(),
        "mass_of_map": _mean(_of_maps(evidence, mass)).ravel(),
        "ablation_zero_var_pct": ablation.ravel(),
        "share_of_ablation": share.ravel(),
        "predicted_var_pct": _mean(100 * found["predicted"]).ravel(),
        "predicted_by_gradient_var_pct": _mean(100 * found["predicted_by_gradient"]).ravel(),
        "n": np.isfinite(effect).sum(axis=0).ravel(),
    }
    rows = pd.DataFrame(columns)[list(COLUMNS)][present[region]]
    order = rows["region"].map({name: place for place, name in enumerate(REGIONS)})
    places = np.lexsort((order, rows["head"], rows["layer"]))
    return rows.iloc[places].reset_index(drop=True)


def _of_maps(evidence: Evidence, mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the CLS maps on each region, [image region layer head], NaN where ``mass`` is."""
    num_images = len(mass)
    assert evidence.patch_labels is not None
    maps = np.asarray(evidence.maps["cls"][:num_images], dtype=np.float64)
    masks = masks_of(evidence.patch_labels[:num_images])
    found = np.stack([np.einsum("ilhrc,irc->ilh", maps, masks[name]) for name in REGIONS], axis=1)
    total = maps.sum(axis=(-2, -1))[:, None]
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(mass), np.nan, found / total)


def masks_of(patch_labels: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
    """Bool masks [image row col] of the regions, from patch labels of the same shape."""
    numbers = region_indices()
    return {name: np.isin(patch_labels, numbers[name]) for name in REGIONS}


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over pictures, NaN ones left out."""
    return weighted_mean(values.reshape(len(values), -1), np.ones((1, len(values)))).reshape(values.shape[1:])


def _is_labelled(source: PictureSource) -> bool:
    return source.draw(range(1)).patch_labels is not None
