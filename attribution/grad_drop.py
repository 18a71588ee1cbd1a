"""Head scores by gradients with one block dropped at a time, so that effects of opposite sign cannot cancel.

Takes a model in eval mode whose blocks stand in a list, and a batch; gives `[image layer head]`, unsigned. GradDrop
(Kramár et al. 2024, 2403.00745, section 3.2): the gradient with block m dropped leaves out every path from a head to
the output that goes through what block m adds to the residual stream; with L blocks
c = 1/(L − 1) · Σ_m |predicted effect with block m dropped|. A head's own block dropped leaves nothing, hence L − 1.

One forward pass serves all. Dropping block m changes gradients below it alone, and there the gradient that leaves
block m by its output enters at its input: one backward pass per scalar gives these, and one for each m through the
blocks below m, (L + 1) / 2 whole backward passes in all.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attribution.batch import Batch, MethodSettings
from attribution.contributions import PICTURES_PER_PASS, contexts_in_graph, summed_per_head
from attribution.gates import composed_loss_change
from attribution.layer_gradients import Scalars, each_output, loss_of
from attribution.prefix import block_list
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval


def grad_drop(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """1/(L − 1)·Σ_m |Σ z·∂ℓ/∂z with block m dropped|: `gate_ixg` that cannot cancel between blocks.

    Raises `ValueError` for a model in train mode, without a list of blocks, and of one block alone.
    """

    def effect(part: Batch, predictions: Tensor, dropped: Tensor) -> Tensor:
        return -dropped[:, 0]

    return _dropped(model, batch, settings, lambda part: loss_of(part.labels), effect)


def grad_drop_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """1/(L − 1)·Σ_m |composed loss change from Σ z·∂ŷ_k/∂z with block m dropped|: `gate_ixg_out` likewise.

    Raises as `grad_drop`.
    """

    def effect(part: Batch, predictions: Tensor, dropped: Tensor) -> Tensor:
        return composed_loss_change(predictions, part.labels, dropped)

    return _dropped(model, batch, settings, lambda part: each_output, effect)


def _dropped(
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
    scalars_of: Callable[[Batch], Scalars],
    effect: Callable[[Batch, Tensor, Tensor], Tensor],
) -> Tensor:
    require_eval(model)
    blocks = block_list(model)
    if blocks is None or len(blocks) < 2:
        raise ValueError(f"{type(model.backbone).__name__}: expected a model with a list of two blocks or more")
    num_heads = num_heads_of(attention_modules(model)[0])
    found = []
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        with torch.enable_grad():
            predictions, contexts, entered, left = _graph(model, blocks, part.pixel_values)
            scalars = scalars_of(part)(predictions)
            gradients = [_with_each_dropped(value.sum(), contexts, entered, left) for value in scalars]
        total = torch.zeros((), device=predictions.device)
        for dropped in range(len(blocks)):
            layers = [
                torch.stack(
                    [summed_per_head(context.detach() * of[dropped][layer], num_heads) for of in gradients], dim=1
                )
                for layer, context in enumerate(contexts)
            ]
            total = total + effect(part, predictions.detach(), torch.stack(layers, dim=2)).abs()
        found.append(total / (len(blocks) - 1))
    return torch.cat(found)


def _graph(
    model: ViTRegressor, blocks: nn.ModuleList, pixel_values: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Predictions, the heads' contexts, and what enters and leaves each block, all in one graph."""
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def entering(_: nn.Module, args: tuple[Any, ...]) -> None:
        entered.append(args[0])

    def leaving(_: nn.Module, __: Any, output: Any) -> None:
        left.append(output)

    handles = [block.register_forward_pre_hook(entering) for block in blocks]
    handles += [block.register_forward_hook(leaving) for block in blocks]
    try:
        predictions, contexts = contexts_in_graph(model, pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    if not all(isinstance(state, Tensor) for state in (*entered, *left)) or len(left) != len(blocks):
        raise ValueError(f"{type(model.backbone).__name__}: expected blocks that take and give plain hidden states")
    return predictions, contexts, entered, left


def _with_each_dropped(
    value: Tensor, contexts: list[Tensor], entered: list[Tensor], left: list[Tensor]
) -> list[list[Tensor]]:
    """For every dropped block, the gradients of a scalar at the contexts of every layer."""
    whole = torch.autograd.grad(value, [*contexts, *left], retain_graph=True)
    plain, at_ends = list(whole[: len(contexts)]), whole[len(contexts) :]
    found = []
    for dropped in range(len(contexts)):
        below: list[Tensor] = []
        if dropped:
            below = list(torch.autograd.grad(entered[dropped], contexts[:dropped], at_ends[dropped], retain_graph=True))
        found.append([*below, torch.zeros_like(plain[dropped]), *plain[dropped + 1 :]])
    return found
