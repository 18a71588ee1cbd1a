"""Pixel maps that know no model: what any pixel method must do better than.

Takes a model, a batch and settings like any pixel method; gives `[image row col]` at the picture's own resolution
without a pass of the model, the same for every target. Edges are those of the mean over channels of the preprocessed
picture: colours are scaled channel by channel, which both filters, being linear, carry through. A picture without any
edge gets a uniform map.
"""

from collections.abc import Callable

import numpy as np
import torch
from skimage import filters
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.pixels import uniform_where_empty
from attribution.vit import ViTRegressor


def uniform(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Control: the same everywhere."""
    return torch.ones_like(batch.pixel_values[:, 0])


def sobel(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Control: size of the Sobel gradient of the grey picture."""
    return _filtered(batch, filters.sobel)


def laplace(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Control: size of the Laplacian of the grey picture, four neighbours."""
    return _filtered(batch, filters.laplace)


def _filtered(batch: Batch, of_picture: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    grey = batch.pixel_values.detach().to("cpu", torch.float64).mean(1).numpy()
    grey = grey - grey[:, :1, :1]  # neither filter sees a constant; so a flat picture's edges are 0 without rounding
    return uniform_where_empty(torch.from_numpy(np.abs(np.stack([of_picture(picture) for picture in grey]))))
