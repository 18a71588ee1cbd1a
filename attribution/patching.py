"""Head scores by attribution patching: what putting another context in place of a head's own does, to first order.

Takes a model in eval mode and a batch; gives `[image layer head]`. With z a head's context at the input of its output
projection and b what stands in for it, a_k = Σ (z − b)·∂ŷ_k/∂z over tokens and channels is what leaves output k when z
becomes b (Nanda 2023, attribution patching; for nodes Kramár et al. 2024, 2403.00745, eq. 4). b is the context in each
donor, or that in the counterfactual, as resample and counterfactual ablation have it: the linear expansion of these,
where `gate_ixg` is that of zero ablation (b = 0).

Sign: positive = the replacement raises the loss. The loss forms are −Σ (z − b)·∂ℓ/∂z; the `_out` forms compose the
change of the loss from a_k (`composed_loss_change`), over donors one by one, and average the composed changes.
"""

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.gates import composed_loss_change
from attribution.gradient_readings import COUNTERFACTUAL, DONORS, GradientReadings, read_gradients
from attribution.vit import ViTRegressor


def loss_change(readings: GradientReadings, removed: Tensor) -> Tensor:
    """−Σ_k ∂ℓ/∂ŷ_k · a_k, the linear part of the composed change; `[image target layer head]` -> `[image layer head]`.

    ∂ℓ/∂z = Σ_k ∂ℓ/∂ŷ_k ∂ŷ_k/∂z with ∂ℓ/∂ŷ_k = 2 (ŷ_k − y_k) / K, so no backward pass of the loss is needed.
    """
    slopes = 2 * (readings.predictions - readings.labels) / readings.labels.shape[1]
    return -torch.einsum("bk,bklh->blh", slopes, removed)


def patch_of(name: str, readings: GradientReadings) -> Tensor:
    """Loss form for the replacements of one field of the batch, averaged over them."""
    found = [loss_change(readings, readings.removed(other)) for other in readings.replacements[name]]
    return torch.stack(found).mean(0)


def patch_out_of(name: str, readings: GradientReadings) -> Tensor:
    """Composed form for the replacements of one field of the batch, averaged over them."""
    found = [
        composed_loss_change(readings.predictions, readings.labels, readings.removed(other))
        for other in readings.replacements[name]
    ]
    return torch.stack(found).mean(0)


def patch_donors(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z, b the context in a donor, averaged over donors: expands resample ablation.

    Raises as `read_gradients`.
    """
    return torch.cat([patch_of(DONORS, one) for one in read_gradients(model, batch, settings, (DONORS,))])


def patch_donors_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, donor by donor, then averaged. Raises as `read_gradients`."""
    return torch.cat([patch_out_of(DONORS, one) for one in read_gradients(model, batch, settings, (DONORS,))])


def patch_counterfactual(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z, b the context in the picture without the thing to be read: expands counterfactual ablation.

    Raises as `read_gradients`.
    """
    return torch.cat(
        [patch_of(COUNTERFACTUAL, one) for one in read_gradients(model, batch, settings, (COUNTERFACTUAL,))]
    )


def patch_counterfactual_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, b the counterfactual's context. Raises as `read_gradients`."""
    return torch.cat(
        [patch_out_of(COUNTERFACTUAL, one) for one in read_gradients(model, batch, settings, (COUNTERFACTUAL,))]
    )
