"""Head scores by gradients under frozen rules: attention weights and the layer norms' deviations held constant.

Takes a model in eval mode and a batch; gives `[image layer head]`: context times gradient at the input of each output
projection, summed over tokens and the head's channels, where the backward pass takes the attention weights and the
standard deviation in each layer norm for constants (Ali et al. 2022, 2202.07304, sections 3.1 and 3.2: the rules under
which relevance is conserved through attention heads and layer norms). Activation functions keep their gradient.

Sign: positive = removing the head raises the loss.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attribution.batch import Batch, MethodSettings
from attribution.contributions import PICTURES_PER_PASS, summed_per_head
from attribution.gates import composed_loss_change
from attribution.layer_gradients import Scalars, context_gradients, each_output, loss_of
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval


def frozen_rules(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ z·∂ℓ/∂z under the frozen rules. Raises `ValueError` for a model in train mode, and for attention whose query
    and key projections are not found."""
    require_eval(model)
    parts = batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS))
    return torch.cat([-_attributed(model, part, loss_of(part.labels))[1][:, 0] for part in parts])


def frozen_rules_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ z·∂ŷ_k/∂z under the frozen rules. Raises as `frozen_rules`."""
    require_eval(model)
    found = []
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        predictions, removed = _attributed(model, part, each_output)
        found.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(found)


@contextmanager
def frozen(model: ViTRegressor) -> Iterator[None]:
    """Within the block outputs stay, and backward passes take attention weights and deviations for constants.

    Queries and keys are detached, so that the weights made of them are; a layer norm's output is formed again with its
    deviation detached, and given the value it had.
    """
    handles = []
    try:
        for attention in attention_modules(model):
            module: Any = attention
            if hasattr(module, "q_proj") and hasattr(module, "k_proj"):
                handles += [part.register_forward_hook(_detached) for part in (module.q_proj, module.k_proj)]
            elif hasattr(module, "qkv"):
                handles.append(module.qkv.register_forward_hook(_detached_but_values))
            else:
                raise ValueError(f"{type(module).__name__}: expected q_proj and k_proj, or qkv, to hold constant")
        norms = [module for module in model.modules() if type(module) is nn.LayerNorm]
        handles += [norm.register_forward_hook(_constant_deviation) for norm in norms]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detached(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output.detach()


def _detached_but_values(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    queries_and_keys = 2 * output.shape[-1] // 3
    return torch.cat((output[..., :queries_and_keys].detach(), output[..., queries_and_keys:]), dim=-1)


def _constant_deviation(norm: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    entered = args[0]
    axes = tuple(range(-len(norm.normalized_shape), 0))
    centred = entered - entered.mean(axes, keepdim=True)
    deviation = (entered.detach().var(axes, correction=0, keepdim=True) + norm.eps).sqrt()
    again = centred / deviation * (1 if norm.weight is None else norm.weight)
    return output.detach() + (again - again.detach())  # the bias is a constant anyway


def _attributed(model: ViTRegressor, batch: Batch, scalars: Scalars) -> tuple[Tensor, Tensor]:
    """Predictions `[image target]` and gradient times context `[image scalar layer head]`."""
    num_heads = num_heads_of(attention_modules(model)[0])
    with frozen(model):
        predictions, contexts, gradients = context_gradients(model, batch.pixel_values, scalars)
    layers = [summed_per_head(context * found, num_heads) for context, found in zip(contexts, gradients, strict=True)]
    return predictions, torch.stack(layers, dim=2).transpose(0, 1)
