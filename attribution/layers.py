"""Head scores by attributing through the heads' contexts: layer methods at the input of each output projection.

Takes a model in eval mode, a batch with a baseline picture, and settings; gives `[image layer head]`: attribution times
activation, summed over tokens and the head's channels, so that no basis of a head is preferred. Does not know gates or
attention weights.

Sign: positive = removing the head raises the loss, hence the negated attribution of the loss. There is no completeness
error to report: the residual stream passes the contexts by, so one block's scores need not add up to the loss change.
"""

from collections.abc import Callable

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.gates import composed_loss_change, gauss_legendre
from attribution.vit import (
    ViTRegressor,
    attention_modules,
    loss_per_image,
    num_heads_of,
    output_projections,
    require_eval,
)

Scalars = Callable[[Tensor], list[Tensor]]  # predictions [image target] -> numbers per picture, [image] each


def layer_conductance(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the conductance of ℓ through every head baseline to picture (Dhamdhere et al. 2018, 1805.12233).

    Equal to Captum's LayerConductance block by block, but all blocks share one forward and one backward per node.
    """
    require_eval(model)
    parts = []
    for part in batch.chunks(settings.internal_batch_size):
        parts.append(-_conductance(model, part, settings, _loss_of(part.labels))[:, 0])
    return torch.cat(parts)


def conductance_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from the conductance of each output: one forward, one backward per target and node.

    It predicts what putting a head back to its context in the baseline picture does, not what zeroing it does.
    """
    require_eval(model)
    parts = []
    for part in batch.chunks(settings.internal_batch_size):
        with torch.no_grad():
            predictions = model(part.pixel_values)
        removed = _conductance(model, part, settings, lambda outputs: list(outputs.unbind(1)))
        parts.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(parts)


def layer_ig(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the integrated gradients of ℓ along the straight line between a block's contexts at baseline and picture.

    Captum's LayerIntegratedGradients, one block at a time: given a list, it moves all blocks at once, which for blocks
    that feed each other is another quantity.
    """
    require_eval(model)
    num_heads = num_heads_of(attention_modules(model)[0])

    def loss(pixel_values: Tensor, labels: Tensor) -> Tensor:
        return loss_per_image(model(pixel_values), labels)

    parts = []
    for part in batch.chunks(settings.internal_batch_size):
        blocks = []
        for projection in output_projections(model):
            attributed = LayerIntegratedGradients(loss, projection).attribute(
                part.pixel_values,
                baselines=part.baseline_pixel_values.expand_as(part.pixel_values),
                additional_forward_args=(part.labels,),
                n_steps=settings.steps,
                method="gausslegendre",
                internal_batch_size=settings.internal_batch_size,
                attribute_to_layer_input=True,
            )
            context = attributed[0] if isinstance(attributed, tuple) else attributed  # [image token head*head_dim]
            blocks.append(-_per_head(context.detach(), num_heads))
        parts.append(torch.stack(blocks, dim=1))
    return torch.cat(parts)


def _loss_of(labels: Tensor) -> Scalars:
    def scalars(predictions: Tensor) -> list[Tensor]:
        repeats = len(predictions) // len(labels)
        return [loss_per_image(predictions, labels.repeat(repeats, 1))]

    return scalars


def _per_head(context: Tensor, num_heads: int) -> Tensor:
    """Sum `[... token head*head_dim]` over tokens and the head's channels -> `[... head]`."""
    return context.unflatten(-1, (num_heads, -1)).sum(dim=(-3, -1))


def _conductance(model: ViTRegressor, batch: Batch, settings: MethodSettings, scalars: Scalars) -> Tensor:
    """Conductance `[image scalar layer head]`.

    Captum's discretisation: n + 1 Gauss–Legendre nodes on the way from baseline to picture, and at each of the first
    n the gradient there times the way the activation goes until the next node. Neighbouring passes share no node: the
    last node of a pass is kept until the first of the next one is known.
    """
    num_heads = num_heads_of(attention_modules(model)[0])
    nodes, _ = gauss_legendre(settings.steps + 1)
    nodes_per_pass = max(1, settings.internal_batch_size // len(batch))
    baseline = batch.baseline_pixel_values
    total: Tensor | None = None
    previous: list[tuple[Tensor, Tensor]] = []  # per layer: activation, gradient [scalar] at the last node seen
    for start in range(0, len(nodes), nodes_per_pass):
        alphas = nodes[start : start + nodes_per_pass]
        pictures = torch.cat([baseline + alpha * (batch.pixel_values - baseline) for alpha in alphas])
        activations, gradients = _contexts_and_gradients(model, pictures, scalars)
        layers = []
        for layer, (activation, gradient) in enumerate(zip(activations, gradients, strict=True)):
            activation = activation.unflatten(0, (len(alphas), -1))  # [node image token channel]
            gradient = gradient.unflatten(1, (len(alphas), -1))  # [scalar node image token channel]
            last = (activation[-1:].clone(), gradient[:, -1:].clone())
            if start:
                activation = torch.cat((previous[layer][0], activation))
                gradient = torch.cat((previous[layer][1], gradient), dim=1)
                previous[layer] = last
            else:
                previous.append(last)
            flow = gradient[:, :-1] * (activation[1:] - activation[:-1])
            layers.append(_per_head(flow, num_heads).sum(1))  # [scalar image head]
        part = torch.stack(layers, dim=2).transpose(0, 1)  # [image scalar layer head]
        total = part if total is None else total + part
    assert total is not None
    return total


def _contexts_and_gradients(
    model: ViTRegressor, pixel_values: Tensor, scalars: Scalars
) -> tuple[list[Tensor], list[Tensor]]:
    """Per layer the context `[image token channel]` and the gradients of each scalar `[scalar image token channel]`."""
    seen: list[Tensor] = []

    def hook(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        seen.append(context)
        return (context, *args[1:])

    handles = [projection.register_forward_pre_hook(hook) for projection in output_projections(model)]
    try:
        with torch.enable_grad():
            values = scalars(model(pixel_values))
            rows = [torch.autograd.grad(value.sum(), seen, retain_graph=True) for value in values]
    finally:
        for handle in handles:
            handle.remove()
    gradients = [torch.stack([row[layer] for row in rows]) for layer in range(len(seen))]
    return [context.detach() for context in seen], gradients
