"""Head methods that know nothing: what any method must do better than.

Takes a model, a batch and settings like any head method; gives `[image layer head]` without a pass of the model.
"""

import numpy as np
import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.vit import ViTRegressor, attention_modules, num_heads_of


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
