"""Head scores by attributing the loss, or the outputs, to the gates of the heads.

Takes a model in eval mode, a batch and settings; gives `[image layer head]`. The attributed input is one vector of
gates per picture, `[image layer*head]`, all 1 = intact; pictures and labels are mere arguments. No weight gradient is
taken and the backward pass ends at the first block's gates. Does not know pixels or attention weights.

Sign: positive = removing the head raises the loss. Removing moves a gate from 1 to 0, so gradients, gradient × input
and integrated gradients of the loss are negated. The `_out` forms attribute every output instead and compose the
predicted change of the loss from them (`composed_loss_change`): the loss gradient alone sees only the part of the
change that is linear in the residual. `gate_ixg_out` and `gate_saliency_out` take the same derivatives at the contexts
the gates multiply, which is cheaper (`attribution.contributions`).
"""

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.contributions import PICTURES_PER_PASS, output_contributions
from attribution.gradient_readings import GradientReadings
from attribution.method import Extras, scores_of
from attribution.vit import ViTRegressor, attention_modules, gated, loss_per_image, num_heads_of, require_eval


def gate_saliency(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """|∂ℓ/∂g| per picture (Michel, Levy & Neubig 2019, 1905.10650, section 4.1), unsigned."""
    saliency = Saliency(gated_loss(model))
    return _by_chunks(
        model, batch, settings, lambda gates, args: saliency.attribute(gates, additional_forward_args=args)
    )


def gate_ixg(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−g·∂ℓ/∂g at g = 1 (input × gradient; Shrikumar et al. 2016, 1605.01713)."""
    ixg = InputXGradient(gated_loss(model))
    return _by_chunks(model, batch, settings, lambda gates, args: -ixg.attribute(gates, additional_forward_args=args))


def gate_ig(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the integrated gradients of ℓ, all gates 0 to all gates 1 (Sundararajan et al. 2017, 1703.01365, eq. 1)."""
    return _integrated(model, batch, settings, with_delta=False)[0]


def gate_ig_with_delta(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> tuple[Tensor, Tensor]:
    """`gate_ig` and its completeness error `[image]`, Σ IG − (ℓ(all gates 1) − ℓ(all gates 0)): two more forwards."""
    return _integrated(model, batch, settings, with_delta=True)


@scores_of(gate_ig)
def gate_ig_with_extras(
    model: ViTRegressor, batch: Batch, settings: MethodSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """`gate_ig`, and float64 `[image]` its completeness error `delta` and the `difference` ℓ(all gates 1) − ℓ(all
    gates 0) to which the attributions should sum."""
    scores, delta = gate_ig_with_delta(model, batch, settings)
    # Scores are minus the attributions: their sum is off ℓ(0) − ℓ(1) by delta.
    difference = -scores.float().double().sum(dim=(1, 2)) - delta.double()
    return scores, {"delta": delta.double(), "difference": difference}


def gate_ixg_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from g·∂ŷ_k/∂g at g = 1: one forward, one backward per target.

    The most pictures in one pass are 8, or fewer by the settings: larger passes are no faster and hold larger graphs.
    """
    batch_size = min(settings.internal_batch_size, PICTURES_PER_PASS)
    predictions, removed = output_contributions(model, batch, batch_size=batch_size)
    return composed_loss_change(predictions, batch.labels, removed)


@scores_of(gate_ixg_out)
def gate_ixg_out_of(readings: GradientReadings) -> Extras:
    """`gate_ixg_out` from what a shared pass gave, and float32 `[image layer head target]` what each head adds to each
    output (`contributions`)."""
    removed = readings.removed()
    scores = composed_loss_change(readings.predictions, readings.labels, removed)
    return scores, {"contributions": removed.permute(0, 2, 3, 1).float()}


def gate_saliency_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """mean_k a_k² with a_k = g·∂ŷ_k/∂g at g = 1: the composed loss change of a model that fits, without labels.

    Unsigned: how far the outputs move, whether or not towards the labels. Costs what `gate_ixg_out` does.
    """
    batch_size = min(settings.internal_batch_size, PICTURES_PER_PASS)
    predictions, removed = output_contributions(model, batch, batch_size=batch_size)
    return composed_loss_change(predictions, predictions, removed)


@scores_of(gate_saliency_out)
def gate_saliency_out_of(readings: GradientReadings) -> Extras:
    """`gate_saliency_out` from what a shared pass gave."""
    return composed_loss_change(readings.predictions, readings.predictions, readings.removed()), {}


def gate_ig_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from the integrated gradients of each ŷ_k: per step one forward, one backward per target."""
    nodes, weights = gauss_legendre(settings.steps)

    def attribute(gates: Tensor, args: tuple[Tensor, Tensor]) -> Tensor:
        pixel_values, labels = args
        with torch.no_grad():
            predictions = model(pixel_values)
        total = torch.zeros(())
        for node, weight in zip(nodes, weights, strict=True):
            total = total + weight * _output_gradients(model, gates * node, pixel_values)
        return composed_loss_change(predictions, labels, total)

    return _by_chunks(model, batch, settings, attribute)


def composed_loss_change(predictions: Tensor, labels: Tensor, removed: Tensor) -> Tensor:
    """Predicted change of ℓ when what adds `removed` to the outputs leaves.

    mean_k[(ŷ_k − a_k − y_k)² − (ŷ_k − y_k)²] = mean_k[a_k² − 2·(ŷ_k − y_k)·a_k].
    `predictions` and `labels` [image target]; `removed` a [image target ...] -> [image ...]. Labels equal to the
    predictions give the form that needs no labels, mean_k a_k².
    """
    residuals = (predictions - labels).reshape(*predictions.shape, *(1,) * (removed.dim() - 2))
    return (removed**2 - 2 * residuals * removed).mean(dim=1)


def gated_loss(model: ViTRegressor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function (gates [image layer*head], pixel_values, labels) -> loss [image], as Captum wants it."""

    def loss(gates: Tensor, pixel_values: Tensor, labels: Tensor) -> Tensor:
        return loss_per_image(_gated_outputs(model, gates, pixel_values), labels)

    return loss


def gauss_legendre(steps: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss–Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return [float(value) for value in (1 + nodes) / 2], [float(value) for value in weights / 2]


def _shape(model: ViTRegressor) -> tuple[int, int]:
    modules = attention_modules(model)
    return len(modules), num_heads_of(modules[0])


def _ones(model: ViTRegressor, pixel_values: Tensor) -> Tensor:
    layers, heads = _shape(model)
    ones = torch.ones(len(pixel_values), layers * heads, dtype=pixel_values.dtype, device=pixel_values.device)
    return ones.requires_grad_()


def _gated_outputs(model: ViTRegressor, gates: Tensor, pixel_values: Tensor) -> Tensor:
    with gated(model, gates.unflatten(1, _shape(model))):
        return model(pixel_values)


def _by_chunks(
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
    attribute: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor],
) -> Tensor:
    require_eval(model)
    parts = [
        attribute(_ones(model, part.pixel_values), (part.pixel_values, part.labels)).detach()
        for part in batch.chunks(settings.internal_batch_size)
    ]
    return torch.cat(parts).unflatten(1, _shape(model))


def _integrated(model: ViTRegressor, batch: Batch, settings: MethodSettings, with_delta: bool) -> tuple[Tensor, Tensor]:
    integrated = IntegratedGradients(gated_loss(model))
    deltas: list[Tensor] = []

    def attribute(gates: Tensor, args: tuple[Tensor, Tensor]) -> Tensor:
        attributed = integrated.attribute(
            gates,
            baselines=0.0,
            additional_forward_args=args,
            n_steps=settings.steps,
            method="gausslegendre",
            internal_batch_size=settings.internal_batch_size,
            return_convergence_delta=with_delta,
        )
        scores, delta = attributed if isinstance(attributed, tuple) else (attributed, gates.new_zeros(0))
        deltas.append(delta)
        return -scores

    return _by_chunks(model, batch, settings, attribute), torch.cat(deltas)


def _output_gradients(model: ViTRegressor, gates: Tensor, pixel_values: Tensor) -> Tensor:
    """∂ŷ_k/∂g `[image target layer*head]`: one forward, one backward per target."""
    gates = gates.detach().requires_grad_()
    with torch.enable_grad():
        sums = _gated_outputs(model, gates, pixel_values).sum(0).unbind()
        gradients = [torch.autograd.grad(value, gates, retain_graph=True)[0] for value in sums]
    return torch.stack(gradients, dim=1)
