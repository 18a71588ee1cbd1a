"""What stands between a head's context and the residual stream: one matrix per layer.

Takes a model whose blocks are known to add their attention to the residual stream; gives weights. Runs no picture.
"""

import torch
from torch import Tensor

from attribution.prefix import block_list
from attribution.vit import ViTRegressor, output_projections, unwrapped

# transformers' blocks that add their attention to the residual stream -> LayerScale on its way there, if any.
_LAYER_SCALES = {
    "ViTLayer": None,
    "DeiTLayer": None,
    "Dinov2Layer": "layer_scale1",
    "Dinov2WithRegistersLayer": "layer_scale1",
    "DINOv3ViTLayer": "layer_scale1",
}


@torch.no_grad()
def weights_to_residual(model: ViTRegressor) -> list[Tensor]:
    """Per layer `[channel head*head_dim]`, from contexts to the residual stream; LayerScale and LoRA folded in.

    Raises `ValueError` for a model whose blocks are not known, since something else might stand in between.
    """
    blocks = block_list(model)
    kinds = {type(block).__name__ for block in blocks or ()}
    if blocks is None or not kinds <= _LAYER_SCALES.keys():
        found = ", ".join(sorted(kinds - _LAYER_SCALES.keys())) or "none in a list"
        raise ValueError(
            f"{type(unwrapped(model.backbone)).__name__} is not known to be made of blocks of "
            f"{', '.join(_LAYER_SCALES)}, found {found}"
        )
    weights = []
    for block, projection in zip(blocks, output_projections(model), strict=True):
        # By what it does to each channel: whatever adapter sits on it is then in the weight.
        width = projection.in_features
        none = torch.zeros(1, width, dtype=model.dtype, device=model.device)
        weight = (projection(torch.eye(width, dtype=model.dtype, device=model.device)) - projection(none)).T
        name = _LAYER_SCALES[type(block).__name__]
        weights.append(weight if name is None else getattr(block, name).lambda1[:, None] * weight)
    return weights
