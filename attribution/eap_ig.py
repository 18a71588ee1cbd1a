"""Head scores by integrated gradients from the counterfactual to the picture: EAP-IG at nodes.

Takes a model in eval mode and a batch with counterfactuals; gives `[image layer head]`: (z − b)·gradient, averaged over
a way from b to z, summed over tokens and the head's channels, where z is a head's context in the picture and b that in
the picture without the thing to be read (Hanna, Pezzelle & Belinkov 2024, 2403.17806, eq. 4, for edges; at nodes as in
MIB, 2504.13151). Along inputs, the way is that of the picture, and contexts follow: the embedding of patches is linear,
so mixing pixels mixes embeddings. Along activations, the contexts of one block move, all else as in the picture.
Gauss–Legendre nodes in place of the mean over steps.

Sign: positive = the counterfactual context raises the loss. It expands counterfactual ablation.
"""

from dataclasses import replace

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.contributions import summed_per_head
from attribution.gates import composed_loss_change, gauss_legendre
from attribution.layer_gradients import Scalars, context_gradients, contexts_of, each_output, loss_of
from attribution.layers import layer_ig, layer_ig_out
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval


def eap_ig_inputs(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus (z − b) times the mean of ∂ℓ/∂z on the way of the picture. Two forwards more than steps."""
    require_eval(model)
    parts = from_counterfactual(batch).chunks(settings.internal_batch_size)
    return torch.cat([-_along_inputs(model, part, settings, loss_of(part.labels))[1][:, 0] for part in parts])


def eap_ig_inputs_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from (z − b) times the mean of ∂ŷ_k/∂z on the way of the picture."""
    require_eval(model)
    found = []
    for part in from_counterfactual(batch).chunks(settings.internal_batch_size):
        predictions, removed = _along_inputs(model, part, settings, each_output)
        found.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(found)


def eap_ig_activations(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the integrated gradients of ℓ along the straight line from a block's contexts in the counterfactual to
    those in the picture: `layer_ig` with the counterfactual as baseline."""
    return layer_ig(model, from_counterfactual(batch), settings)


def eap_ig_activations_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from the integrated gradients of each output along that line: `layer_ig_out` likewise."""
    return layer_ig_out(model, from_counterfactual(batch), settings)


def from_counterfactual(batch: Batch) -> Batch:
    """The batch with each picture's counterfactual as its baseline picture."""
    return replace(batch, baseline_pixel_values=batch.required("counterfactual_pixel_values"))


def _along_inputs(
    model: ViTRegressor, batch: Batch, settings: MethodSettings, scalars: Scalars
) -> tuple[Tensor, Tensor]:
    """Predictions, and (z − b) times the mean gradient `[image scalar layer head]`."""
    num_heads = num_heads_of(attention_modules(model)[0])
    start, end = batch.baseline_pixel_values, batch.pixel_values
    predictions, contexts = contexts_of(model, end)
    moved = contexts - contexts_of(model, start)[1]  # [image layer token channel]
    total = torch.zeros((), device=end.device)
    for node, weight in zip(*gauss_legendre(settings.steps), strict=True):
        _, _, gradients = context_gradients(model, start + node * (end - start), scalars)
        layers = [summed_per_head(moved[:, layer] * found, num_heads) for layer, found in enumerate(gradients)]
        total = total + weight * torch.stack(layers, dim=2).transpose(0, 1)
    return predictions, total
