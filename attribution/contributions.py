"""What every head adds to every output, to first order: the gradient of the output times the head's context.

Takes a model in eval mode and a batch; gives predictions and one number per picture, output, layer and head, for one
forward and one backward pass per output. Backward passes end at the first block's contexts, and weights get no
gradient. Does not know labels or losses, nor gates: the derivative for a gate at 1 is the same number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.batch import Batch
from attribution.blocks import Block, TakenApart, parts_of
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, output_projections, require_eval

PICTURES_PER_PASS = 8  # of passes that keep a graph: larger ones are no faster


def output_contributions(
    model: ViTRegressor, batch: Batch, *, batch_size: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Predictions `[image target]` and a = Σ z·∂ŷ_k/∂z `[image target layer head]`, over tokens and channels.

    z is a head's context at the input of its output projection, so a = g·∂ŷ_k/∂g for its gate g = 1. Blocks that can
    be taken apart are (`attribution.blocks`): the last one then computes the first token's row alone. Other models
    run as they are, under hooks. At most `batch_size` pictures in a pass; the graph of one picture of 257 tokens takes
    about 45 MB in 12 blocks of 384 channels in float32. `dtype` torch.bfloat16 runs matrix products in it, where that
    is good enough (results are in the model's dtype; predictions then have three digits). Raises `ValueError` for
    another dtype or a float64 model in bfloat16, for a model in train mode, and for batches of less than one picture.
    """
    require_eval(model)
    require_dtype(model, dtype)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    with torch.autocast(model.device.type, enabled=False):
        parts = parts_of(model, batch.pixel_values[:1])
        passes = [_of_pass(model, parts, part, dtype) for part in batch.pixel_values.split(batch_size)]
    predictions, contributions = (torch.cat(found) for found in zip(*passes, strict=True))
    return predictions, contributions


def require_dtype(model: ViTRegressor, dtype: torch.dtype | None) -> None:
    """ValueError for another dtype of matrix products than the model's or bfloat16, and a float64 model in bfloat16."""
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"dtype: expected None or torch.bfloat16, got {dtype}")
    if dtype is not None and model.dtype == torch.float64:
        raise ValueError("dtype: torch.bfloat16 is for a float32 model, got a torch.float64 one")


def _of_pass(
    model: ViTRegressor, parts: TakenApart | None, pixel_values: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """One forward and one backward pass per output; each output's gradients are reduced before the next one's."""
    num_heads = num_heads_of(attention_modules(model)[0])
    with torch.enable_grad():
        with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None):
            outputs, contexts = (
                contexts_in_graph(model, pixel_values) if parts is None else contexts_of_parts(parts, pixel_values)
            )
        sums = outputs.sum(0).unbind()
    contributions = []
    for number, value in enumerate(sums, start=1):
        gradients = torch.autograd.grad(value, contexts, retain_graph=number < len(sums))
        layers = [
            summed_per_head(context.detach().to(model.dtype) * gradient.to(model.dtype), num_heads)
            for context, gradient in zip(contexts, gradients, strict=True)
        ]
        contributions.append(torch.stack(layers, dim=1))
    return outputs.detach().to(model.dtype), torch.stack(contributions, dim=1)


def contexts_in_graph(model: ViTRegressor, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs of the model, and per layer the contexts `[image token head*head_dim]` they follow from, for gradients.

    The first block's contexts are a leaf: gradients of these contexts never go back to what comes before. Gradients
    must be enabled around the call.
    """
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        follows = bool(seen) and args[0].requires_grad
        seen.append(args[0] if follows else args[0].detach().requires_grad_())
        return (seen[-1], *args[1:])

    handles = [projection.register_forward_pre_hook(hook) for projection in output_projections(model)]
    try:
        return model(pixel_values), seen
    finally:
        for handle in handles:
            handle.remove()


def summed_per_head(context: Tensor, num_heads: int) -> Tensor:
    """Sum `[... token head*head_dim]` over tokens and the head's channels -> `[... head]`."""
    return context.unflatten(-1, (num_heads, -1)).sum(dim=(-3, -1))


def contexts_of_parts(parts: TakenApart, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """As `contexts_in_graph`; of the last block the contexts of the first token alone, the others change no output."""
    states = parts.embed(pixel_values)
    contexts: list[Tensor] = []
    for layer, block in enumerate(parts.blocks):
        if layer + 1 < len(parts.blocks):
            context = _contexts(block, states)
        else:
            context, states = block.first_contexts(states), states[:, :1]
        contexts.append(context if contexts else context.detach().requires_grad_())
        # Out of place, for the backward pass, and so that the states stay in float32 under autocast.
        states = states + F.linear(contexts[-1], block.output_weight, block.output_bias)
        states = states + F.linear(block.mlp(block.norm2(states)), block.mlp_weight, block.mlp_bias)
    return parts.read(states), contexts


def _contexts(block: Block, states: Tensor) -> Tensor:
    """`Block.contexts`; by plain products in bfloat16 on a CPU, where the fused kernel's backward pass is slow."""
    if not (states.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return block.contexts(states)
    projected = F.linear(block.norm1(states), block.qkv_weight, block.qkv_bias)
    query, key, value = projected.unflatten(-1, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attention = torch.softmax((query * block.scaling) @ key.transpose(-2, -1), dim=-1)  # sums in float32 all the same
    return (attention @ value).transpose(1, 2).flatten(2)
