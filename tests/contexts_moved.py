"""What a second derivation of methods at contexts needs: outputs with a head's context moved, by plain hooks."""

import torch

from attribution.vit import output_projections


def contexts_by_hooks(model, pixel_values):
    """Contexts `[layer][image token head*head_dim]`, read where they are projected."""
    seen = []
    handles = [
        projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        for projection in output_projections(model)
    ]
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    return seen


def outputs_moved(model, pixel_values, layer, shift):
    """Outputs `[image target]` when `shift` `[image token head*head_dim]` is added to the contexts of one layer."""
    handle = output_projections(model)[layer].register_forward_pre_hook(lambda _, args: (args[0] + shift,))
    try:
        with torch.no_grad():
            return model(pixel_values)
    finally:
        handle.remove()


def of_head(values, head, num_heads=2):
    """The channels of one head, the others 0."""
    found = torch.zeros_like(values)
    width = values.shape[-1] // num_heads
    found[..., head * width : (head + 1) * width] = values[..., head * width : (head + 1) * width]
    return found


def slopes(model, pixel_values, moves, step=1e-4):
    """−∂ŷ_k/∂ε `[image target layer head]` when each head's context z becomes z − ε·move: central differences."""
    layers = []
    for layer, move in enumerate(moves):
        heads = []
        for head in range(2):
            shift = step * of_head(move, head)
            up, down = (outputs_moved(model, pixel_values, layer, sign * shift) for sign in (1, -1))
            heads.append((up - down) / (2 * step))
        layers.append(torch.stack(heads, dim=-1))
    return torch.stack(layers, dim=-2)


def composed(predictions, labels, removed):
    """mean_k (ŷ_k − a_k − y_k)² − (ŷ_k − y_k)², head by head."""
    residual = (predictions - labels)[:, :, None, None]
    return ((residual - removed) ** 2 - residual**2).mean(1)


def far(got, expected):
    """Largest difference, relative to the largest score."""
    return float((got - expected).abs().max() / expected.abs().max())
