"""Copies of a model that forgot: weights drawn anew block by block from the top, or the fine-tuning taken off.

Takes a model; gives a copy, in eval mode if the model is. The given model and the global random state stay untouched.
A method whose scores do not care whether the weights mean anything is no explanation (Adebayo et al. 2018, 1810.03292:
cascading randomisation). Does not know any method.

Draws are as at initialisation: weights of linear and convolution layers, class token and position embeddings from a
truncated normal of std `initializer_range` (the backbone's config; 0.02 where it has none), biases 0, norms 1 and 0,
LayerScale at the config's `layerscale_value`, register and mask tokens 0; the regression head by the rule of
`nn.Linear`. They go from the top down, so that with one seed more blocks redrawn means the same ones and more.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from attribution.planted import merged_copy
from attribution.prefix import block_list
from attribution.vit import ViTRegressor, unwrapped

_TRUNCATED = ("cls_token", "position_embeddings", "distillation_token", "pos_embed", "dist_token")
_ZERO = ("register_tokens", "mask_token", "reg_token")
_LAYER_SCALE = ("lambda1", "gamma")


@torch.no_grad()
def reinitialised(model: ViTRegressor, seed: int, *, num_blocks: int | None = None) -> ViTRegressor:
    """A copy whose regression head and last `num_blocks` blocks are drawn anew; LoRA is merged before.

    None draws everything: all blocks, the final norm and the embeddings too. Flags of training and of gradients stay.
    Raises `ValueError` for a model without a list of blocks, a number of blocks that it does not have, and a weight
    whose initial value is not known.
    """
    copied = merged_copy(model)
    blocks = block_list(copied)
    if blocks is None:
        raise ValueError(f"{type(unwrapped(model.backbone)).__name__}: expected a model with a list of blocks")
    if num_blocks is not None and not 0 <= num_blocks <= len(blocks):
        raise ValueError(f"num_blocks: expected 0 to {len(blocks)}, got {num_blocks}")
    generator = torch.Generator().manual_seed(seed)
    _redraw_regression_head(copied.head, generator)
    config = getattr(copied.backbone, "config", None)
    for block in list(blocks)[::-1][:num_blocks]:
        _redraw(block, config, generator, set())
    if num_blocks is None:
        _redraw(copied.backbone, config, generator, {id(parameter) for parameter in blocks.parameters()})
    return copied


@torch.no_grad()
def not_finetuned(model: ViTRegressor, seed: int) -> ViTRegressor:
    """A copy with LoRA taken off, hence the backbone as pretrained, and a regression head drawn anew.

    Raises `ValueError` for a model without adapters: there is nothing to take off.
    """
    copied = copy.deepcopy(model)
    backbone: Any = copied.backbone
    if not hasattr(backbone, "unload"):
        raise ValueError(f"{type(backbone).__name__}: expected a backbone with adapters, there are none to take off")
    for module in backbone.modules():
        if getattr(module, "merged", False):
            module.unmerge()
    copied.backbone = backbone.unload()
    _redraw_regression_head(copied.head, torch.Generator().manual_seed(seed))
    return copied


def _redraw_regression_head(head: nn.Module, generator: torch.Generator) -> None:
    """Weights and biases uniform within ±1 / √inputs, as `nn.Linear.reset_parameters` draws them."""
    for name, module in head.named_modules():
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for tensor in module.parameters():
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(f"regression head {name}: expected linear layers, got a {type(module).__name__}")


def _redraw(module: nn.Module, config: Any, generator: torch.Generator, kept: set[int]) -> None:
    """Draw all parameters of a module anew but for those kept (by identity)."""
    std = getattr(config, "initializer_range", 0.02)
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) in kept:
                continue
            value = _initial(part, name, parameter, config, std, generator)
            if value is None:
                raise ValueError(f"{path}.{name} of a {type(part).__name__}: its initial value is not known")
            parameter.copy_(value)


def _initial(
    part: nn.Module, name: str, parameter: Tensor, config: Any, std: float, generator: torch.Generator
) -> Tensor | None:
    if isinstance(part, nn.Linear | nn.Conv2d):
        return _truncated(parameter.shape, std, generator) if name == "weight" else torch.zeros(parameter.shape)
    if type(part).__name__.endswith("Norm") and name in ("weight", "bias"):
        return torch.full(parameter.shape, 1.0 if name == "weight" else 0.0)
    if name in _TRUNCATED:
        return _truncated(parameter.shape, std, generator)
    if name in _ZERO:
        return torch.zeros(parameter.shape)
    if name in _LAYER_SCALE and hasattr(config, "layerscale_value"):
        return torch.full(parameter.shape, float(config.layerscale_value))
    return None


def _truncated(shape: torch.Size, std: float, generator: torch.Generator) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(shape), std=std, generator=generator)
