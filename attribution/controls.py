"""Head methods that look at no picture: what any method must do better than.

Takes a model, a batch and settings like any head method; gives `[image layer head]` without a pass of the model.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, output_projections


def random_scores(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Control: uniform on [0, 1), drawn for each picture from `default_rng([seed, 7, index])`."""
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    rows = [np.random.default_rng([settings.seed, 7, int(index)]).random(shape) for index in batch.indices]
    return torch.from_numpy(np.stack(rows))


def layer_index(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Control: the number of the layer, from 0."""
    modules = attention_modules(model)
    layers = torch.arange(len(modules), dtype=torch.float64)
    return layers[None, :, None].repeat(len(batch), 1, num_heads_of(modules[0]))


@torch.no_grad()
def parameter_norm(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Control: Frobenius norm of W_o^h W_v^h, the same for every picture.

    An active LoRA on the values counts, LayerScale, norms and biases do not. Takes `v_proj`, or the last third of a
    fused `qkv`. Raises `ValueError` for DoRA and other adapters whose weight is not base plus difference.
    """
    layers = []
    for attention, projection in zip(attention_modules(model), output_projections(model), strict=True):
        num_heads = num_heads_of(attention)
        output = projection.weight.unflatten(1, (num_heads, -1))  # [channel head head_dim]
        value = _value_weight(attention, projection.in_features).unflatten(
            0, (num_heads, -1)
        )  # [head head_dim channel]
        # ‖O V‖² = trace(OᵀO VVᵀ): products of head_dim x head_dim instead of channel x channel.
        grams = torch.einsum("chd,che->hde", output, output) * torch.einsum("hdc,hec->hde", value, value)
        layers.append(grams.sum((1, 2)).clamp_min(0).sqrt())
    return torch.stack(layers).repeat(len(batch), 1, 1)


def _value_weight(attention: Any, width: int) -> Tensor:
    """Weight `[head*head_dim channel]` of the value projection, an active LoRA added."""
    split = hasattr(attention, "v_proj")
    projection = attention.v_proj if split else attention.qkv
    rows = slice(None) if split else slice(2 * width, 3 * width)
    weight: Any = getattr(getattr(projection, "base_layer", projection), "weight", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"parameter_norm: expected a linear value projection, got a {type(projection).__name__}")
    if hasattr(projection, "base_layer"):
        if not hasattr(projection, "get_delta_weight") or len(getattr(projection, "lora_magnitude_vector", ())):
            raise ValueError("parameter_norm: expected a value projection under plain LoRA, found another adapter")
        if not projection.merged and not projection.disable_adapters:
            names = [name for name in projection.active_adapters if name in projection.lora_A]
            weight = weight + sum(projection.get_delta_weight(name) for name in names)
    return weight[rows]
