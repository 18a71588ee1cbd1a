"""Pixel maps by Captum's input methods, and their sum per patch.

Takes a model in eval mode, a batch with a baseline picture, and settings; gives `[image row col]` at the picture's own
resolution, not negative: the sum over the colour channels of the absolute attribution of ℓ, or of one output. Does not
know heads, and draws nothing.
"""

from collections.abc import Callable

import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.rollout import explained
from attribution.vit import HeadLayout, ViTRegressor, require_eval


def saliency(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Σ over channels of |∂ℓ/∂x| or |∂ŷ_target/∂x| (Simonyan et al. 2014, 1312.6034, section 3)."""
    method = Saliency(_explained_of_pixels(model, target))
    return _by_chunks(
        model, batch, settings, lambda part, x: method.attribute(x, additional_forward_args=(part.labels,))
    )


def integrated_gradients(
    model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None
) -> Tensor:
    """Σ over channels of |integrated gradients| from the baseline picture, `settings.pixel_steps` Gauss–Legendre nodes.

    Sundararajan et al. 2017, 1703.01365, eq. 1.
    """
    method = IntegratedGradients(_explained_of_pixels(model, target))

    def attribute(part: Batch, pixel_values: Tensor) -> Tensor:
        return method.attribute(
            pixel_values,
            baselines=part.baseline_pixel_values.expand_as(pixel_values),
            additional_forward_args=(part.labels,),
            n_steps=settings.pixel_steps,
            method="gausslegendre",
            internal_batch_size=settings.internal_batch_size,
        )

    return _by_chunks(model, batch, settings, attribute)


def to_patch_grid(pixel_map: Tensor, layout: HeadLayout) -> Tensor:
    """Σ |·| over the pixels of each patch: `[image row col]` in pixels -> `[image row col]` in patches.

    Raises `ValueError` where the map does not divide into the layout's rows and columns.
    """
    if pixel_map.dim() != 3 or pixel_map.shape[1] % layout.num_rows or pixel_map.shape[2] % layout.num_cols:
        expected = f"[image row col] divisible into {layout.num_rows} x {layout.num_cols} patches"
        raise ValueError(f"pixel map: expected {expected}, got {list(pixel_map.shape)}")
    patches = pixel_map.abs().unflatten(2, (layout.num_cols, -1)).unflatten(1, (layout.num_rows, -1))
    return patches.sum(dim=(2, 4))


def _explained_of_pixels(model: ViTRegressor, target: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(pixel_values: Tensor, labels: Tensor) -> Tensor:
        return explained(model(pixel_values), labels, target)

    return forward


def _by_chunks(
    model: ViTRegressor, batch: Batch, settings: MethodSettings, attribute: Callable[[Batch, Tensor], Tensor]
) -> Tensor:
    require_eval(model)
    parts = [
        attribute(part, part.pixel_values.detach().requires_grad_()).detach().abs().sum(1)
        for part in batch.chunks(settings.internal_batch_size)
    ]
    return torch.cat(parts)
