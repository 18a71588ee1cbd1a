"""Gradients of the loss, or of every output, at the contexts of all blocks, for one forward pass.

Takes a model in eval mode and pictures; gives tensors block by block at the input of the output projections. What the
layer methods share; knows no method and no baseline. Backward passes end at the first block's contexts, and weights get
no gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attribution.contributions import contexts_in_graph
from attribution.vit import ViTRegressor, loss_per_image

Scalars = Callable[[Tensor], list[Tensor]]  # predictions [image target] -> numbers per picture, [image] each


def loss_of(labels: Tensor) -> Scalars:
    """The loss alone; predictions may hold the pictures of `labels` several times in a row."""

    def scalars(predictions: Tensor) -> list[Tensor]:
        repeats = len(predictions) // len(labels)
        return [loss_per_image(predictions, labels.repeat(repeats, 1))]

    return scalars


def each_output(predictions: Tensor) -> list[Tensor]:
    """Every output by itself."""
    return list(predictions.unbind(1))


@torch.no_grad()
def contexts_of(model: ViTRegressor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions `[image target]` and contexts `[image layer token channel]`, for one forward pass."""
    predictions, contexts = contexts_in_graph(model, pixel_values)
    return predictions, torch.stack([context.detach() for context in contexts], dim=1)


def context_gradients(
    model: ViTRegressor, pixel_values: Tensor, scalars: Scalars
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Predictions `[image target]`, and per layer contexts `[image token channel]` and gradients at them.

    The gradients of every scalar `[scalar image token channel]`: one forward pass, one backward pass per scalar.
    """
    with torch.enable_grad():
        predictions, contexts = contexts_in_graph(model, pixel_values)
        rows = gradients_of(scalars(predictions), contexts)
    return predictions.detach(), [context.detach() for context in contexts], rows


def gradients_of(values: list[Tensor], points: list[Tensor]) -> list[Tensor]:
    """Gradients `[scalar ...]` at each point of every scalar `[image]`, summed over pictures; uses up the graph."""
    rows = [
        torch.autograd.grad(value.sum(), points, retain_graph=number < len(values))
        for number, value in enumerate(values, start=1)
    ]
    return [torch.stack(found) for found in zip(*rows, strict=True)]
