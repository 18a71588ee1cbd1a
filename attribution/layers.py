"""Head scores by attributing through the heads' contexts: layer methods at the input of each output projection.

Takes a model in eval mode, a batch with a baseline picture, and settings; gives `[image layer head]`: attribution times
activation, summed over tokens and the head's channels, so that no basis of a head is preferred. Does not know gates or
attention weights.

Sign: positive = removing the head raises the loss, hence the negated attribution of the loss. There is no completeness
error to report: the residual stream passes the contexts by, so one block's scores need not add up to the loss change.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.contributions import summed_per_head
from attribution.gates import composed_loss_change, gauss_legendre
from attribution.layer_gradients import Scalars, context_gradients, contexts_of, each_output, gradients_of, loss_of
from attribution.prefix import prefix_states, starting_at
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, output_projections, require_eval


def layer_conductance(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the conductance of ℓ through every head baseline to picture (Dhamdhere et al. 2018, 1805.12233).

    Equal to Captum's LayerConductance block by block, but all blocks share one forward and one backward per node.
    """
    require_eval(model)
    parts = []
    for part in batch.chunks(settings.internal_batch_size):
        parts.append(-_conductance(model, part, settings, loss_of(part.labels))[:, 0])
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
        removed = _conductance(model, part, settings, each_output)
        parts.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(parts)


def internal_influence(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the internal influence on ℓ (Leino et al. 2018, 1802.03788) times the picture's context.

    The influence of a context is its mean gradient on the way from the baseline picture to the picture; a sum of it
    over channels would depend on their basis, its product with the context does not. Equal to Captum's
    InternalInfluence block by block, times the context, but all blocks share one forward and one backward per node.
    """
    require_eval(model)
    parts = batch.chunks(settings.internal_batch_size)
    return torch.cat([-_influence(model, part, settings, loss_of(part.labels))[1][:, 0] for part in parts])


def internal_influence_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from the internal influence on each output times the picture's context.

    One forward per node and one for the contexts, one backward per target and node.
    """
    require_eval(model)
    parts = []
    for part in batch.chunks(settings.internal_batch_size):
        predictions, removed = _influence(model, part, settings, each_output)
        parts.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(parts)


def layer_ig(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the integrated gradients of ℓ along the straight line between a block's contexts at baseline and picture.

    Captum's LayerIntegratedGradients (Sundararajan et al. 2017, 1703.01365), one block at a time: given a list, it
    moves all blocks at once, which for blocks that feed each other is another quantity. Passes start at the block
    moved where the model has a list of blocks (`attribution.prefix`), and end there on their way back.
    """
    parts = [
        -_integrated(model, part, settings, loss_of(part.labels), starts)[1][:, 0]
        for part, starts in _with_starts(model, batch, settings)
    ]
    return torch.cat(parts)


def layer_ig_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from the integrated gradients of each output, block by block: one backward per target.

    It predicts what putting a head back to its context in the baseline picture does; along a block's own line the
    parts of its heads add up to what putting back all of them does to an output.
    """
    parts = []
    for part, starts in _with_starts(model, batch, settings):
        predictions, removed = _integrated(model, part, settings, each_output, starts)
        parts.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(parts)


def _influence(model: ViTRegressor, batch: Batch, settings: MethodSettings, scalars: Scalars) -> tuple[Tensor, Tensor]:
    """Predictions, and internal influence times context `[image scalar layer head]`."""
    num_heads = num_heads_of(attention_modules(model)[0])
    nodes, weights = _captum_quadrature(settings.steps)
    predictions, ends = contexts_of(model, batch.pixel_values)  # [image layer token channel]
    total = torch.zeros((), device=ends.device)
    passes = _node_passes(model, batch, nodes, settings, scalars)
    for (_, gradients), step_sizes in zip(passes, weights.split(_nodes_per_pass(batch, settings)), strict=True):
        # Gradients are [scalar node image token channel] per layer.
        flows = [summed_per_head(ends[:, layer] * found, num_heads) for layer, found in enumerate(gradients)]
        total = total + torch.einsum("n,snilh->islh", step_sizes.to(ends), torch.stack(flows, dim=3))
    return predictions, total


def _with_starts(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Iterator[tuple[Batch, Tensor]]:
    """A few pictures at a time, with the baseline's contexts `[image layer token channel]`, one row or one each."""
    require_eval(model)
    shared = batch.baseline_pixel_values.dim() == 3
    starts = contexts_of(model, batch.baseline_pixel_values[None])[1] if shared else None
    for part in batch.chunks(settings.internal_batch_size):
        yield part, contexts_of(model, part.baseline_pixel_values)[1] if starts is None else starts


def _integrated(
    model: ViTRegressor, batch: Batch, settings: MethodSettings, scalars: Scalars, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Predictions, and integrated gradients `[image scalar layer head]` of every block's contexts on its own line."""
    num_heads = num_heads_of(attention_modules(model)[0])
    nodes, weights = _captum_quadrature(settings.steps)
    nodes_per_pass = _nodes_per_pass(batch, settings)
    predictions, ends = contexts_of(model, batch.pixel_values)  # [image layer token channel]
    states = prefix_states(model, batch.pixel_values, len(batch))
    layers = []
    for layer in range(ends.shape[1]):
        start, way = starts[:, layer], ends[:, layer] - starts[:, layer]
        total = torch.zeros((), device=ends.device)
        for first in range(0, len(nodes), nodes_per_pass):
            alphas = nodes[first : first + nodes_per_pass]
            points = torch.cat([start + alpha * way for alpha in alphas])  # [node*image token channel]
            entering = None if states is None else states[layer].repeat(len(alphas), 1, 1)
            gradients = _gradients_at(model, batch, layer, points, entering, scalars).unflatten(1, (len(alphas), -1))
            step_sizes = weights[first : first + nodes_per_pass].to(ends)
            total = total + torch.einsum("n,snih->ish", step_sizes, summed_per_head(way * gradients, num_heads))
        layers.append(total)
    return predictions, torch.stack(layers, dim=2)


def _gradients_at(
    model: ViTRegressor, batch: Batch, layer: int, points: Tensor, entering: Tensor | None, scalars: Scalars
) -> Tensor:
    """Gradients `[scalar node*image token channel]` at contexts z = `points` `[node*image token channel]` of a block.

    The pass starts at that block: `entering` are the states that enter it, once per node; without them it is full.
    """
    points = points.detach().requires_grad_()
    pixel_values = batch.pixel_values.repeat(len(points) // len(batch), 1, 1, 1)
    handle = output_projections(model)[layer].register_forward_pre_hook(lambda _, args: (points, *args[1:]))
    try:
        with torch.enable_grad(), nullcontext() if entering is None else starting_at(model, layer, entering):
            return gradients_of(scalars(model(pixel_values)), [points])[0]
    finally:
        handle.remove()


def _nodes_per_pass(batch: Batch, settings: MethodSettings) -> int:
    return max(1, settings.internal_batch_size // len(batch))


def _captum_quadrature(steps: int) -> tuple[list[float], Tensor]:
    """Gauss–Legendre nodes, and weights in float32, to which Captum rounds them (6e-8 of a result)."""
    nodes, weights = gauss_legendre(steps)
    return nodes, torch.tensor(weights, dtype=torch.float32)


def _conductance(model: ViTRegressor, batch: Batch, settings: MethodSettings, scalars: Scalars) -> Tensor:
    """Conductance `[image scalar layer head]`.

    Captum's discretisation: n + 1 Gauss–Legendre nodes on the way from baseline to picture, and at each of the first
    n the gradient there times the way the activation goes until the next node. Neighbouring passes share no node: the
    last node of a pass is kept until the first of the next one is known.
    """
    num_heads = num_heads_of(attention_modules(model)[0])
    nodes, _ = gauss_legendre(settings.steps + 1)
    total: Tensor | None = None
    previous: list[tuple[Tensor, Tensor]] = []  # per layer: activation, gradient [scalar] at the last node seen
    for activations, gradients in _node_passes(model, batch, nodes, settings, scalars):
        layers, last = [], []
        for layer, (activation, gradient) in enumerate(zip(activations, gradients, strict=True)):
            last.append((activation[-1:].clone(), gradient[:, -1:].clone()))
            if previous:
                activation = torch.cat((previous[layer][0], activation))
                gradient = torch.cat((previous[layer][1], gradient), dim=1)
            flow = gradient[:, :-1] * (activation[1:] - activation[:-1])
            layers.append(summed_per_head(flow, num_heads).sum(1))  # [scalar image head]
        previous = last
        part = torch.stack(layers, dim=2).transpose(0, 1)  # [image scalar layer head]
        total = part if total is None else total + part
    assert total is not None
    return total


def _node_passes(
    model: ViTRegressor, batch: Batch, nodes: list[float], settings: MethodSettings, scalars: Scalars
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """One forward pass and one backward pass per scalar for some nodes at a time, from baseline picture to picture.

    Gives per layer the contexts `[node image token channel]` and the gradients `[scalar node image token channel]`.
    """
    nodes_per_pass = _nodes_per_pass(batch, settings)
    baseline = batch.baseline_pixel_values
    for first in range(0, len(nodes), nodes_per_pass):
        alphas = nodes[first : first + nodes_per_pass]
        pictures = torch.cat([baseline + alpha * (batch.pixel_values - baseline) for alpha in alphas])
        _, contexts, gradients = context_gradients(model, pictures, scalars)
        sizes = (len(alphas), len(batch))
        yield [context.unflatten(0, sizes) for context in contexts], [found.unflatten(1, sizes) for found in gradients]
