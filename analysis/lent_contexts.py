"""What goes with the pictures of a batch, and whether a source of pictures has it.

Takes a model, a batch and a source of pictures; gives the batch with donors, counterfactuals and the mean context, as
they are needed. Knows no method.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from analysis.companions import NUM_DONORS, counterfactual_images, donor_images
from analysis.mean_contexts import held_context
from analysis.models import OpenedModel, preprocessed
from analysis.pictures import PictureSource
from attribution.batch import Batch
from attribution.checkpoint import weights_sha256
from attribution.gradient_readings import COUNTERFACTUAL, DONORS, MEAN
from attribution.vit import ViTRegressor


def with_companions(
    opened: OpenedModel, batch: Batch, source: PictureSource, seed: int, needs: Collection[str]
) -> Batch:
    """The batch with the optional fields that are needed (names of `attribution.batch.OPTIONAL_FIELDS`)."""
    rows = batch.indices.tolist()
    found: dict[str, Tensor] = {}
    if DONORS in needs:
        donors = donor_images(source, rows, seed)
        flat = preprocessed(opened, donors.reshape(-1, *donors.shape[2:]))
        found[DONORS] = flat.unflatten(0, donors.shape[:2])
    if COUNTERFACTUAL in needs:
        found[COUNTERFACTUAL] = preprocessed(opened, counterfactual_images(source, rows))
    if MEAN in needs:
        found[MEAN] = held_context(opened, source).to(opened.model.device)
    return replace(batch, **found)


def of_changed_model(opened: OpenedModel, model: ViTRegressor, source: PictureSource, batch: Batch) -> Batch:
    """The batch for a changed copy of a model: what it holds of the model itself, the mean context, is the copy's."""
    if batch.mean_context is None:
        return batch
    copied = OpenedModel(model, opened.name, weights_sha256(model), opened.is_control)
    return replace(batch, mean_context=held_context(copied, source).to(model.device))


def lacking(source: PictureSource) -> dict[str, str]:
    """Optional fields of a batch that cannot be had of these pictures, and why."""
    found = {}
    if source.counterfactual is None:
        found[COUNTERFACTUAL] = "pictures of a folder have no twin without the thing to be read"
    others = source.num_references - (1 if source.references_are_own else 0)
    if source.reference is None or others < NUM_DONORS:
        found[DONORS] = f"expected at least {NUM_DONORS} other pictures to draw donors from, got {max(0, others)}"
    if source.reference is None or not source.num_references:
        found[MEAN] = "expected reference pictures, there are none"
    return found
