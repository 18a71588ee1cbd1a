"""Head scores by attribution patching: what putting another context in place of a head's own does, to first order.

Takes a model in eval mode and a batch; gives `[image layer head]`. With z a head's context at the input of its output
projection and b what stands in for it, a_k = Σ (z − b)·∂ŷ_k/∂z over tokens and channels is what leaves output k when z
becomes b (Nanda 2023, attribution patching; for nodes Kramár et al. 2024, 2403.00745, eq. 4). b is the mean over
reference pictures, the context in each donor, or that in the counterfactual, as the ablation of the same name has it:
the linear expansion of that ablation, where `gate_ixg` is that of zero ablation (b = 0).

Sign: positive = the replacement raises the loss. The loss forms are −Σ (z − b)·∂ℓ/∂z; the `_out` forms compose the
change of the loss from a_k (`composed_loss_change`), over donors one by one, and average the composed changes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.gates import composed_loss_change
from attribution.gradient_readings import COUNTERFACTUAL, DONORS, MEAN, GradientReadings, read_gradients
from attribution.method import Extras, scores_of
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


def patch_out_of(name: str, readings: GradientReadings) -> Extras:
    """Composed form for the replacements of one field of the batch, averaged over them; beside it what leaves each
    output, ``contributions`` float32 [image layer head target], of donors [image layer head donor target]."""
    removed = [readings.removed(other) for other in readings.replacements[name]]
    found = [composed_loss_change(readings.predictions, readings.labels, one) for one in removed]
    turned = [one.permute(0, 2, 3, 1).float() for one in removed]
    return torch.stack(found).mean(0), {"contributions": torch.stack(turned, 3) if name == DONORS else turned[0]}


def patch_mean(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z with b the head's mean context: expands mean ablation. Raises as `read_gradients`."""
    return _scores(patch_mean_of, MEAN, model, batch, settings)


def patch_mean_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, b the mean context. Raises as `read_gradients`."""
    return _scores(patch_mean_out_of, MEAN, model, batch, settings)


def patch_donors(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z, b the context in a donor, averaged over donors: expands resample ablation.

    Raises as `read_gradients`.
    """
    return _scores(patch_donors_of, DONORS, model, batch, settings)


def patch_donors_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, donor by donor, then averaged. Raises as `read_gradients`."""
    return _scores(patch_donors_out_of, DONORS, model, batch, settings)


def patch_counterfactual(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ (z − b)·∂ℓ/∂z, b the context in the picture without the thing to be read: expands counterfactual ablation.

    Raises as `read_gradients`.
    """
    return _scores(patch_counterfactual_of, COUNTERFACTUAL, model, batch, settings)


def patch_counterfactual_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (z − b)·∂ŷ_k/∂z, b the counterfactual's context. Raises as `read_gradients`."""
    return _scores(patch_counterfactual_out_of, COUNTERFACTUAL, model, batch, settings)


@scores_of(patch_mean)
def patch_mean_of(readings: GradientReadings) -> Extras:
    """`patch_mean` from what a shared pass gave."""
    return patch_of(MEAN, readings), {}


@scores_of(patch_mean_out)
def patch_mean_out_of(readings: GradientReadings) -> Extras:
    """`patch_mean_out` from what a shared pass gave."""
    return patch_out_of(MEAN, readings)


@scores_of(patch_donors)
def patch_donors_of(readings: GradientReadings) -> Extras:
    """`patch_donors` from what a shared pass gave."""
    return patch_of(DONORS, readings), {}


@scores_of(patch_donors_out)
def patch_donors_out_of(readings: GradientReadings) -> Extras:
    """`patch_donors_out` from what a shared pass gave."""
    return patch_out_of(DONORS, readings)


@scores_of(patch_counterfactual)
def patch_counterfactual_of(readings: GradientReadings) -> Extras:
    """`patch_counterfactual` from what a shared pass gave."""
    return patch_of(COUNTERFACTUAL, readings), {}


@scores_of(patch_counterfactual_out)
def patch_counterfactual_out_of(readings: GradientReadings) -> Extras:
    """`patch_counterfactual_out` from what a shared pass gave."""
    return patch_out_of(COUNTERFACTUAL, readings)


def _scores(
    of: Callable[[GradientReadings], Extras],
    lent: str,
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
) -> Tensor:
    return torch.cat([of(readings)[0] for readings in read_gradients(model, batch, settings, (lent,))])
