"""The heads' contexts: what each head brings to the output projection, before it is projected.

Takes a model in eval mode and preprocessed pictures; gives `[image layer token head head_dim]`. Knows no losses, no
attention weights.
"""

import torch
from torch import Tensor

from attribution.vit import ViTRegressor, attention_modules, num_heads_of, output_projections, require_eval


@torch.no_grad()
def contexts(model: ViTRegressor, pixel_values: Tensor, *, batch_size: int = 16) -> Tensor:
    """The heads' contexts at the input of the output projections, `[image layer token head head_dim]`.

    Held in memory as a whole: call it on as many pictures as fit.
    """
    require_eval(model)
    num_heads = num_heads_of(attention_modules(model)[0])
    seen: list[Tensor] = []  # [image token head*head_dim], pass by pass and in each pass layer by layer
    handles = [
        projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for projection in output_projections(model)
    ]
    try:
        for part in pixel_values.split(batch_size):
            model(part)
    finally:
        for handle in handles:
            handle.remove()
    layers = len(handles)
    passes = [torch.stack(seen[start : start + layers], dim=1) for start in range(0, len(seen), layers)]
    return torch.cat(passes).unflatten(-1, (num_heads, -1))
