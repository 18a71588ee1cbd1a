"""Head scores by expected gradients: from other pictures to the picture, through the heads' contexts.

Takes a model in eval mode, a batch with donor pictures, and settings; gives `[image layer head]`: gradient at the input
of each output projection, at one random place on the way from a donor, times how the context differs from the donor's,
summed over tokens and the head's channels, averaged over donors. Knows no baseline picture; adds no noise.

Sign: positive = removing the head raises the loss. Random numbers are drawn per picture by its index.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.contributions import summed_per_head
from attribution.gates import composed_loss_change
from attribution.layer_gradients import Scalars, context_gradients, contexts_of, each_output, loss_of
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval

DRAW = 5  # sets these random numbers apart from others of the same seed and picture


def layer_gradient_shap(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the expected gradients of ℓ (GradientSHAP; Erion et al. 2019, 1906.10670) of every head's context.

    Equal to Captum's LayerGradientShap block by block, without noise and with each donor as baseline once, but all
    blocks share the passes: per donor two forwards and one backward, and one forward of the picture. Raises
    `ValueError` for a batch without donors and for a model in train mode.
    """
    parts = _chunks(model, batch, settings)
    return torch.cat([-_expected(model, part, settings, loss_of(part.labels))[1][:, 0] for part in parts])


def layer_gradient_shap_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from the expected gradients of each output: one backward per target and donor.

    It predicts what giving a head its context in the donors does (their mean), not what zeroing it does. Raises as
    `layer_gradient_shap`.
    """
    parts = []
    for part in _chunks(model, batch, settings):
        predictions, removed = _expected(model, part, settings, each_output)
        parts.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(parts)


def _chunks(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Iterator[Batch]:
    require_eval(model)
    if batch.required("donor_pixel_values").shape[1] == 0:
        raise ValueError("donor_pixel_values: expected at least one donor per picture, got none")
    return batch.chunks(settings.internal_batch_size)


def _expected(model: ViTRegressor, batch: Batch, settings: MethodSettings, scalars: Scalars) -> tuple[Tensor, Tensor]:
    """Predictions `[image target]` and expected gradients `[image scalar layer head]`, one donor per pass."""
    num_heads = num_heads_of(attention_modules(model)[0])
    donors = batch.required("donor_pixel_values")
    alphas = _alphas(batch, settings.seed, donors.shape[1]).to(donors)
    predictions, ends = contexts_of(model, batch.pixel_values)
    total: Tensor | None = None
    for donor, alpha in zip(donors.unbind(1), alphas.unbind(1), strict=True):
        way = ends - contexts_of(model, donor)[1]  # [image layer token channel]
        points = donor + alpha.view(-1, 1, 1, 1) * (batch.pixel_values - donor)
        _, _, gradients = context_gradients(model, points, scalars)
        layers = [summed_per_head(way[:, layer] * found, num_heads) for layer, found in enumerate(gradients)]
        part = torch.stack(layers, dim=2).transpose(0, 1)  # [image scalar layer head]
        total = part if total is None else total + part
    assert total is not None
    return predictions, total / donors.shape[1]


def _alphas(batch: Batch, seed: int, num_donors: int) -> Tensor:
    """Places on the way from donor to picture, uniform in [0, 1), float64 `[image donor]`."""
    rows = [np.random.default_rng([seed, DRAW, int(index)]).random(num_donors) for index in batch.indices]
    return torch.from_numpy(np.stack(rows))
