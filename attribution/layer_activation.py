"""Head scores from the size of the heads' contexts alone.

Takes a model in eval mode, a batch and settings; gives `[image layer head]`, unsigned. Does not know labels, losses or
gradients.
"""

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.contexts import contexts
from attribution.vit import ViTRegressor, require_eval


def layer_activation(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """L2 norm of a head's context at the input of its output projection, over tokens and channels.

    Captum's LayerActivation with its channels put together; their signed sum would depend on the basis of the head.
    """
    require_eval(model)
    parts = batch.pixel_values.split(settings.internal_batch_size)
    sizes = [contexts(model, part, batch_size=len(part)).norm(dim=(2, 4)) for part in parts]
    return torch.cat(sizes)
