"""What stock Captum gives, block by block: the other side of every speed comparison.

Takes a model in eval mode and a batch; gives `[image layer head]` with this project's sign (positive = removing the
head raises the loss). Each function calls Captum once per block at the input of its output projection, the way its
documentation says, and sums or picks per head. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import InternalInfluence, LayerConductance, LayerFeatureAblation, LayerIntegratedGradients
from torch import Tensor, nn

from attribution.batch import Batch
from attribution.contexts import contexts
from attribution.vit import ViTRegressor, head_layout, loss_per_image, output_projections


def captum_ablation(model: ViTRegressor, batch: Batch, *, perturbations_per_eval: int = 1) -> Tensor:
    """Zero ablation of every head by LayerFeatureAblation with one feature per head.

    Captum repeats a head's effect in each of its elements; one of them is taken, and the sign turned (Captum gives
    intact − ablated).
    """
    layout = head_layout(model)
    width = layout.num_heads * layout.head_dim
    tokens = layout.num_special_tokens + layout.num_rows * layout.num_cols
    mask = torch.arange(width, device=model.device).div(layout.head_dim, rounding_mode="floor").expand(1, tokens, width)

    def of_block(projection: nn.Module) -> Tensor:
        attributed = LayerFeatureAblation(_loss(model), projection).attribute(
            batch.pixel_values,
            layer_mask=mask,
            additional_forward_args=(batch.labels,),
            attribute_to_layer_input=True,
            perturbations_per_eval=perturbations_per_eval,
        )
        return -_tensor(attributed)[:, 0, :: layout.head_dim]

    return _by_block(model, of_block)


def captum_conductance(model: ViTRegressor, batch: Batch, steps: int) -> Tensor:
    """LayerConductance of every block, summed over tokens and the head's channels."""
    return _path_method(model, batch, steps, LayerConductance)


def captum_layer_ig(model: ViTRegressor, batch: Batch, steps: int) -> Tensor:
    """LayerIntegratedGradients of every block, summed over tokens and the head's channels."""
    return _path_method(model, batch, steps, LayerIntegratedGradients)


def captum_influence(model: ViTRegressor, batch: Batch, steps: int) -> Tensor:
    """InternalInfluence of every block times the picture's context, summed over tokens and the head's channels: the
    influence alone, summed, would depend on the basis of the channels. Seeing the contexts takes one forward more."""
    seen = contexts(model, batch.pixel_values)  # [image layer token head head_dim]
    blocks = []
    for layer, projection in enumerate(output_projections(model)):
        influence = _tensor(_attribute(model, batch, steps, InternalInfluence, projection)).detach()
        blocks.append(-(influence.view_as(seen[:, layer]) * seen[:, layer]).sum(dim=(1, 3)))
    return torch.stack(blocks, dim=1)


def _path_method(model: ViTRegressor, batch: Batch, steps: int, method: Any) -> Tensor:
    num_heads = head_layout(model).num_heads

    def of_block(projection: nn.Module) -> Tensor:
        attributed = _tensor(_attribute(model, batch, steps, method, projection)).detach()
        return -attributed.unflatten(-1, (num_heads, -1)).sum(dim=(1, 3))

    return _by_block(model, of_block)


def _attribute(model: ViTRegressor, batch: Batch, steps: int, method: Any, projection: nn.Module) -> Any:
    return method(_loss(model), projection).attribute(
        batch.pixel_values,
        baselines=batch.baseline_pixel_values.expand_as(batch.pixel_values),
        additional_forward_args=(batch.labels,),
        n_steps=steps,
        method="gausslegendre",
        attribute_to_layer_input=True,
    )


def _by_block(model: ViTRegressor, of_block: Callable[[nn.Module], Tensor]) -> Tensor:
    return torch.stack([of_block(projection) for projection in output_projections(model)], dim=1)


def _loss(model: ViTRegressor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(pixel_values: Tensor, labels: Tensor) -> Tensor:
        return loss_per_image(model(pixel_values), labels)

    return loss


def _tensor(attributed: Tensor | tuple[Tensor, ...]) -> Tensor:
    return attributed[0] if isinstance(attributed, tuple) else attributed
