"""Head scores by attribution patching: what putting another context in place of a head's own does, to first order.

Takes a model in eval mode and a batch; gives `[image layer head]`. With z a head's context at the input of its output
projection and b what stands in for it, a_k = Σ (z − b)·∂ŷ_k/∂z over tokens and channels is what leaves output k when z
becomes b (Nanda 2023, attribution patching; for nodes Kramár et al. 2024, 2403.00745, eq. 4). b is the mean over
reference pictures, the context in each donor, or that in the counterfactual, as the ablation of the same name has it:
the linear expansion of that ablation, where `gate_ixg` is that of zero ablation (b = 0).

What needs nothing but contexts and the outputs' gradients at them shares one pass (`read_gradient_methods` of
`attribution.methods`): one forward, one backward per output, and a forward for every picture that lends its contexts.

Sign: positive = the replacement raises the loss. The loss forms are −Σ (z − b)·∂ℓ/∂z; the `_out` forms compose the
change of the loss from a_k (`composed_loss_change`), over donors one by one, and average the composed changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.blocks import TakenApart, parts_of
from attribution.contributions import contexts_in_graph, contexts_of_parts, summed_per_head
from attribution.gates import PICTURES_PER_PASS, composed_loss_change
from attribution.layer_gradients import each_output, gradients_of
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval

MEAN, DONORS, COUNTERFACTUAL = "mean_context", "donor_pixel_values", "counterfactual_pixel_values"


@dataclass(frozen=True, eq=False)
class GradientReadings:
    """What one forward pass and one backward pass per output give of some pictures.

    `predictions` and `labels` [image target]; per layer `contexts` [image token head*head_dim] and `gradients` [target
    image token head*head_dim] of each output at them, where tokens may be those alone that the outputs depend on;
    `replacements`, by the field of the batch they come from, contexts [image layer][...] of the same form, several
    where there are several donors.
    """

    predictions: Tensor
    labels: Tensor
    contexts: list[Tensor]
    gradients: list[Tensor]
    num_heads: int
    replacements: dict[str, list[list[Tensor]]]

    def removed(self, replacement: list[Tensor] | None = None) -> Tensor:
        """a `[image target layer head]`: what leaves each output, to first order, when contexts become others (0)."""
        layers = []
        for layer, (context, gradient) in enumerate(zip(self.contexts, self.gradients, strict=True)):
            moved = context if replacement is None else context - replacement[layer][:, : context.shape[1]]
            layers.append(summed_per_head(moved * gradient, self.num_heads))
        return torch.stack(layers, dim=2).transpose(0, 1)


def read_gradients(
    model: ViTRegressor, batch: Batch, settings: MethodSettings, replacements: tuple[str, ...] = ()
) -> Iterator[GradientReadings]:
    """Some pictures at a time, at most 8 or fewer by the settings; `replacements` name fields of the batch.

    Raises `ValueError` for a model in train mode, a field that the batch does not have, no donors, and a mean context
    of another form than the model's.
    """
    require_eval(model)
    given = {name: batch.required(name) for name in replacements}
    if DONORS in given and given[DONORS].shape[1] == 0:
        raise ValueError(f"{DONORS}: expected at least one donor per picture, got none")
    num_heads = num_heads_of(attention_modules(model)[0])
    with torch.autocast(model.device.type, enabled=False):
        parts = parts_of(model, batch.pixel_values[:1])
        for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
            with torch.enable_grad():
                outputs, contexts = _passed(model, parts, part.pixel_values)
                gradients = gradients_of(each_output(outputs), contexts)
            yield GradientReadings(
                outputs.detach(),
                part.labels,
                [context.detach() for context in contexts],
                gradients,
                num_heads,
                {name: _replacements(model, parts, part, name) for name in replacements},
            )


def loss_change(readings: GradientReadings, removed: Tensor) -> Tensor:
    """−Σ_k ∂ℓ/∂ŷ_k · a_k, the linear part of the composed change; `[image target layer head]` -> `[image layer head]`.

    ∂ℓ/∂z = Σ_k ∂ℓ/∂ŷ_k ∂ŷ_k/∂z with ∂ℓ/∂ŷ_k = 2 (ŷ_k − y_k) / K, so no backward pass of the loss is needed.
    """
    slopes = 2 * (readings.predictions - readings.labels) / readings.labels.shape[1]
    return -torch.einsum("bk,bklh->blh", slopes, removed)


def patch_of(name: str, readings: GradientReadings) -> Tensor:
    """Loss form for the replacements of one field of the batch, averaged over them."""
    found = [loss_change(readings, readings.removed(other)) for other in readings.replacements[name]]
    return torch.stack(found).mean(0)


def patch_out_of(name: str, readings: GradientReadings) -> Tensor:
    """Composed form for the replacements of one field of the batch, averaged over them."""
    found = [
        composed_loss_change(readings.predictions, readings.labels, readings.removed(other))
        for other in readings.replacements[name]
    ]
    return torch.stack(found).mean(0)


def patch_mean_of(readings: GradientReadings) -> Tensor:
    """`patch_mean` from what a shared pass gave."""
    return patch_of(MEAN, readings)


def patch_mean_out_of(readings: GradientReadings) -> Tensor:
    """`patch_mean_out` from what a shared pass gave."""
    return patch_out_of(MEAN, readings)


def patch_donors_of(readings: GradientReadings) -> Tensor:
    """`patch_donors` from what a shared pass gave."""
    return patch_of(DONORS, readings)


def patch_donors_out_of(readings: GradientReadings) -> Tensor:
    """`patch_donors_out` from what a shared pass gave."""
    return patch_out_of(DONORS, readings)


def patch_counterfactual_of(readings: GradientReadings) -> Tensor:
    """`patch_counterfactual` from what a shared pass gave."""
    return patch_of(COUNTERFACTUAL, readings)


def patch_counterfactual_out_of(readings: GradientReadings) -> Tensor:
    """`patch_counterfactual_out` from what a shared pass gave."""
    return patch_out_of(COUNTERFACTUAL, readings)


def patch_mean(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z with b the head's mean context: expands mean ablation. Raises as `read_gradients`."""
    return torch.cat([patch_mean_of(one) for one in read_gradients(model, batch, settings, (MEAN,))])


def patch_mean_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, b the mean context. Raises as `read_gradients`."""
    return torch.cat([patch_mean_out_of(one) for one in read_gradients(model, batch, settings, (MEAN,))])


def patch_donors(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z, b the context in a donor, averaged over donors: expands resample ablation.

    Raises as `read_gradients`.
    """
    return torch.cat([patch_donors_of(one) for one in read_gradients(model, batch, settings, (DONORS,))])


def patch_donors_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, donor by donor, then averaged. Raises as `read_gradients`."""
    return torch.cat([patch_donors_out_of(one) for one in read_gradients(model, batch, settings, (DONORS,))])


def patch_counterfactual(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z, b the context in the picture without the thing to be read: expands counterfactual ablation.

    Raises as `read_gradients`.
    """
    found = read_gradients(model, batch, settings, (COUNTERFACTUAL,))
    return torch.cat([patch_counterfactual_of(one) for one in found])


def patch_counterfactual_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, b the counterfactual's context. Raises as `read_gradients`."""
    found = read_gradients(model, batch, settings, (COUNTERFACTUAL,))
    return torch.cat([patch_counterfactual_out_of(one) for one in found])


def _passed(model: ViTRegressor, parts: TakenApart | None, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and contexts by layer; of the last one those of the first token alone where the blocks are known."""
    return contexts_in_graph(model, pixel_values) if parts is None else contexts_of_parts(parts, pixel_values)


def _replacements(model: ViTRegressor, parts: TakenApart | None, batch: Batch, name: str) -> list[list[Tensor]]:
    values = batch.required(name)
    if name == MEAN:
        layers = values.to(batch.pixel_values).flatten(2)  # [layer token head*head_dim]
        num_layers, width = len(attention_modules(model)), layers.shape[-1]
        if len(layers) != num_layers:
            raise ValueError(f"{MEAN}: expected {num_layers} layers, got {len(layers)} (of width {width})")
        return [[layer[None] for layer in layers]]
    pictures = values.unbind(1) if name == DONORS else [values]
    found = []
    for others in pictures:
        with torch.no_grad():
            found.append([context.detach() for context in _passed(model, parts, others)[1]])
    return found
