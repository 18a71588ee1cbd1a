"""Head scores by DeepLift (rescale rule) through the heads' contexts, and how far it is from complete.

Takes a model in eval mode, a batch with a baseline picture, and settings; gives `[image layer head]`: multiplier at the
input of each output projection times how the context differs from the baseline picture's, summed over tokens and the
head's channels. Does not know gates or attention weights.

Sign: positive = removing the head raises the loss, hence the negated attribution of the loss.

The rule replaces the derivative of an elementwise activation module by Δoutput/Δinput between picture and baseline,
and leaves it where |Δinput| < 1e-10. In a transformer with a ReLU regression head these are the two ReLUs: GELU,
LayerNorm, the softmax and products of attention, and the square of the loss have no rule and count by their gradient at
the picture, as in Captum. The method is approximate, and `deep_lift_completeness` says by how much.

The numbers are those of Captum's LayerDeepLift. Its hooks use up a forward pass of picture and baseline per block and
per output; here each activation is made linear, with the multiplier as its slope, so that backward passes of one graph
give the multipliers of all blocks and outputs, and a baseline picture shared by all is passed once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribution.batch import Batch, MethodSettings
from attribution.contributions import PICTURES_PER_PASS, summed_per_head
from attribution.gates import composed_loss_change
from attribution.layer_gradients import Scalars, context_gradients, contexts_of, each_output, gradients_of, loss_of
from attribution.method import scores_of
from attribution.vit import ViTRegressor, attention_modules, loss_per_image, num_heads_of, require_eval

ELEMENTWISE = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
SMALLEST_DIFFERENCE = 1e-10  # of inputs, below which the derivative stands in (Captum's eps)


def layer_deep_lift(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Minus the DeepLift attribution of ℓ at every head's context (Shrikumar et al. 2017, 1704.02685, rescale rule).

    Equal to Captum's LayerDeepLift block by block, with the baseline picture as reference. The most pictures in one
    pass are 8, or fewer by the settings. Raises `ValueError` for a model in train mode, and for one that works an
    activation module in place or twice.
    """
    parts = []
    for part, reference in _passes(model, batch, settings):
        parts.append(-_attributed(model, part, reference, loss_of(part.labels))[1][:, 0])
    return torch.cat(parts)


@scores_of(layer_deep_lift)
def layer_deep_lift_with_extras(
    model: ViTRegressor, batch: Batch, settings: MethodSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """`layer_deep_lift`, and float64 `[image]` how far DeepLift to the pixels is from adding up: `delta` and
    `difference` of `deep_lift_completeness`."""
    scores = layer_deep_lift(model, batch, settings)
    delta, difference = deep_lift_completeness(model, batch, settings)
    return scores, {"delta": delta.double(), "difference": difference.double()}


def layer_deep_lift_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from the DeepLift attribution of each output: one backward per target.

    It predicts what putting a head back to its context in the baseline picture does. Raises as `layer_deep_lift`.
    """
    parts = []
    for part, reference in _passes(model, batch, settings):
        predictions, removed = _attributed(model, part, reference, each_output)
        parts.append(composed_loss_change(predictions, part.labels, removed))
    return torch.cat(parts)


def deep_lift_completeness(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> tuple[Tensor, Tensor]:
    """How far DeepLift of ℓ to the pixels is from adding up: (delta, difference), `[image]` each.

    difference = ℓ(picture) − ℓ(baseline); delta = Σ over pixels of the attribution − difference, 0 if it were complete.
    The square of the loss, which has no rule, alone gives mean_k (ŷ_k − ŷ'_k)², were all else complete: see
    `deep_lift_completeness_out` for what is missing elsewhere. The scores of one block need not add up at all, since
    the residual stream passes it by: hence the pixels. Raises as `layer_deep_lift`.
    """
    deltas, differences = [], []
    for part, reference in _passes(model, batch, settings):
        sums, predictions = _summed_over_pixels(model, part, reference, loss_of(part.labels))
        before = loss_per_image(reference.predictions.expand_as(predictions), part.labels)
        differences.append(loss_per_image(predictions, part.labels) - before)
        deltas.append(sums[:, 0] - differences[-1])
    return torch.cat(deltas), torch.cat(differences)


def deep_lift_completeness_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> tuple[Tensor, Tensor]:
    """As `deep_lift_completeness`, for each output ŷ_k instead of ℓ: (delta, difference), `[image target]` each."""
    deltas, differences = [], []
    for part, reference in _passes(model, batch, settings):
        sums, predictions = _summed_over_pixels(model, part, reference, each_output)
        differences.append(predictions - reference.predictions)
        deltas.append(sums - differences[-1])
    return torch.cat(deltas), torch.cat(differences)


@dataclass(frozen=True, eq=False)
class _Reference:
    """A pass of baseline pictures, one or one per picture: what the picture's own pass is compared with."""

    predictions: Tensor  # [image target]
    contexts: Tensor  # [image layer token channel]
    activations: dict[nn.Module, tuple[Tensor, Tensor]]  # input and output of each activation module


def _passes(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Iterator[tuple[Batch, _Reference]]:
    require_eval(model)
    shared = batch.baseline_pixel_values.dim() == 3
    reference = _reference(model, batch.baseline_pixel_values[None]) if shared else None
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        yield part, _reference(model, part.baseline_pixel_values) if reference is None else reference


def _reference(model: ViTRegressor, pixel_values: Tensor) -> _Reference:
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if module in seen or getattr(module, "inplace", False):
            raise ValueError(f"{type(module).__name__}: expected an activation module used once and not in place")
        seen[module] = (args[0].detach(), output.detach())

    handles = [module.register_forward_hook(record) for module in model.modules() if type(module) in ELEMENTWISE]
    try:
        predictions, contexts = contexts_of(model, pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return _Reference(predictions, contexts, seen)


@contextmanager
def _rescaled(reference: _Reference) -> Iterator[None]:
    """Inside the block the activation modules give what they gave, and pass gradients back by the rescale rule."""
    handles = []
    try:
        for module, (before, after) in reference.activations.items():
            handles.append(module.register_forward_hook(_rescale_hook(before, after)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rescale_hook(before: Tensor, after: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        entered = args[0]
        moved = entered.detach() - before
        small = moved.abs() < SMALLEST_DIFFERENCE
        slope = (output.detach() - after) / torch.where(small, 1.0, moved)
        return torch.where(small, output, output.detach() + slope * (entered - entered.detach()))

    return hook


def _attributed(model: ViTRegressor, batch: Batch, reference: _Reference, scalars: Scalars) -> tuple[Tensor, Tensor]:
    """Predictions `[image target]` and attributions `[image scalar layer head]`."""
    num_heads = num_heads_of(attention_modules(model)[0])
    with _rescaled(reference):
        predictions, contexts, multipliers = context_gradients(model, batch.pixel_values, scalars)
    layers = [
        summed_per_head((context - reference.contexts[:, layer]) * found, num_heads)
        for layer, (context, found) in enumerate(zip(contexts, multipliers, strict=True))
    ]
    return predictions, torch.stack(layers, dim=2).transpose(0, 1)


def _summed_over_pixels(
    model: ViTRegressor, batch: Batch, reference: _Reference, scalars: Scalars
) -> tuple[Tensor, Tensor]:
    """Attributions of the scalars to the pixels, summed over these `[image scalar]`, and predictions."""
    pixel_values = batch.pixel_values.detach().clone().requires_grad_()
    with torch.enable_grad(), _rescaled(reference):
        predictions = model(pixel_values)
        [multipliers] = gradients_of(scalars(predictions), [pixel_values])  # [scalar image 3 row col]
    sums = ((batch.pixel_values - batch.baseline_pixel_values) * multipliers).sum(dim=(2, 3, 4))
    return sums.T, predictions.detach()
