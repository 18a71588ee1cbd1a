"""How long the patch tokens are when they leave the last block: a few that are far longer than the rest are sinks.

Takes a model in eval mode and preprocessed pictures; gives norms `[image row col]`. Darcet et al. 2024 (2309.16588,
section 2.1) find such tokens in large vision transformers, on patches that hold little, and tell them by this norm.
"""

import torch
from torch import Tensor

from attribution.prefix import block_list
from attribution.vit import ViTRegressor, head_layout, require_eval


@torch.no_grad()
def patch_token_norms(model: ViTRegressor, pixel_values: Tensor, *, batch_size: int = 16) -> Tensor:
    """L2 norm of every patch token at the output of the last block, before the final norm: float64 `[image row col]`.

    Raises `ValueError` for a model in train mode, without a list of blocks, or whose blocks do not give plain tokens.
    """
    require_eval(model)
    layout, blocks = head_layout(model), block_list(model)
    if blocks is None:
        raise ValueError(f"{type(model.backbone).__name__}: expected a model with a list of blocks")
    found: list[Tensor] = []

    def leaving(_: torch.nn.Module, __: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(f"last block: expected one tensor of tokens, got {type(output).__name__}")
        found.append(output[:, layout.num_special_tokens :].double().norm(dim=-1).cpu())

    handle = blocks[-1].register_forward_hook(leaving)
    try:
        for part in pixel_values.split(batch_size):
            model(part)
    finally:
        handle.remove()
    return torch.cat(found).unflatten(1, (layout.num_rows, layout.num_cols))
