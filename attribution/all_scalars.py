"""The maps of any pixel method for the loss and every output at once.

Takes a name, a model in eval mode, a batch and settings; gives `[scalar image row col]`. Knows no method but by name.
"""

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.methods import PIXEL_METHODS, run_pixel_method
from attribution.relevance_maps import OF_TARGETS
from attribution.state import restored_state
from attribution.vit import ViTRegressor, require_eval


def maps_of_all_scalars(name: str, model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Maps of a pixel method for ℓ (scalar 0) and every output, float32 `[scalar image row col]` on the CPU.

    Equal to `run_pixel_method` for each scalar, but passes are shared where they can be: one forward for all scalars of
    a gradient method, the same forwards for occlusion, one run of a method that reads no output. Raises `ValueError` as
    `run_pixel_method` does.
    """
    targets: list[int | None] = [None, *range(batch.labels.shape[1])]
    method = PIXEL_METHODS.get(name)
    if method is not None and (method.of_attention is not None or method.forwards == 0):  # reads no output
        return run_pixel_method(name, model, batch, settings).expand(len(targets), -1, -1, -1).clone()
    of_targets = None if method is None else OF_TARGETS.get(method.function)
    if of_targets is None:
        return torch.stack([run_pixel_method(name, model, batch, settings, target) for target in targets])
    require_eval(model)
    with restored_state(model):
        maps = of_targets(model, batch, settings, targets).detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(maps).all()):
        raise ValueError(f"method {name}: found NaN or infinity, expected finite numbers")
    if not bool(maps.flatten(1).any(1).all()):
        raise ValueError(f"method {name}: every number is zero")
    return maps
