"""Quantities that must coincide: Captum over gates, Captum at layers, attention weights, and the ablation sweep.

Captum's side is called as it comes, with hooks of its own here, not through the functions under test.
"""

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    LayerFeatureAblation,
    LayerGradientXActivation,
    Saliency,
)
from tiny_models import KINDS, tiny_batch, tiny_model

from attribution.ablation import zero_ablation
from attribution.batch import MethodSettings
from attribution.methods import METHODS
from attribution.vit import output_projections

SETTINGS = MethodSettings(steps=5)
ROUTES = ("full", "auto")


def loss_of(model):
    """(pixel_values, labels) -> loss per picture, written out."""

    def loss(pixel_values, labels):
        return ((model(pixel_values) - labels) ** 2).sum(1) / labels.shape[1]

    return loss


def gated(model, forward):
    """`forward` as a function of gates [image layer*head], which stretch the heads' channels under plain hooks."""

    def function(gates, *args):
        handles = []
        for layer, projection in enumerate(output_projections(model)):
            own = gates[:, 2 * layer : 2 * layer + 2].repeat_interleave(6, dim=1)[:, None]
            handles.append(projection.register_forward_pre_hook(lambda _, inputs, own=own: (inputs[0] * own,)))
        try:
            return forward(*args)
        finally:
            for handle in handles:
                handle.remove()

    return function


def ones():
    return torch.ones(4, 6, dtype=torch.float64, requires_grad=True)


def scores(name, model, batch):
    return METHODS[name].function(model, batch, SETTINGS)


def assert_alike(got, expected, tolerance=1e-10):
    assert got.shape == (4, 3, 2)
    expected = expected.detach().reshape(4, 3, 2)
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_gate_methods_are_stock_captum(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    loss, args = gated(model, loss_of(model)), (batch.pixel_values, batch.labels)
    assert_alike(scores("gate_saliency", model, batch), Saliency(loss).attribute(ones(), additional_forward_args=args))
    assert_alike(
        scores("gate_ixg", model, batch), -InputXGradient(loss).attribute(ones(), additional_forward_args=args)
    )
    integrated = IntegratedGradients(loss).attribute(ones(), additional_forward_args=args, n_steps=SETTINGS.steps)
    assert_alike(scores("gate_ig", model, batch), -integrated)


@pytest.mark.parametrize("kind", KINDS)
def test_composed_gate_methods_are_stock_captum_of_every_output(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    outputs = gated(model, model)
    one_step = [
        InputXGradient(outputs).attribute(ones(), target=target, additional_forward_args=(batch.pixel_values,))
        for target in range(3)
    ]
    # The blocks taken apart take their softmax in float64, transformers' ViT in float32; Captum rounds its weights.
    tolerance = 1e-5 if kind == "vit" else 1e-10
    expected = sum(moved**2 for moved in one_step) / 3
    assert_alike(scores("gate_saliency_out", model, batch), expected, tolerance)
    residuals = (model(batch.pixel_values) - batch.labels).detach()
    for name, removed, bound in (
        ("gate_ixg_out", one_step, tolerance),
        (
            "gate_ig_out",
            [
                IntegratedGradients(outputs).attribute(
                    ones(), target=target, additional_forward_args=(batch.pixel_values,), n_steps=SETTINGS.steps
                )
                for target in range(3)
            ],
            1e-6,
        ),
    ):
        changes = [
            (residuals[:, target, None] - moved) ** 2 - residuals[:, target, None] ** 2
            for target, moved in enumerate(removed)
        ]
        assert_alike(scores(name, model, batch), sum(changes) / 3, bound)


@pytest.mark.parametrize("kind", KINDS)
def test_input_times_gradient_is_the_same_at_gates_contexts_and_attention_weights(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    layers = []
    for projection in output_projections(model):
        attributed = LayerGradientXActivation(loss_of(model), projection).attribute(
            batch.pixel_values.clone().requires_grad_(),
            additional_forward_args=(batch.labels,),
            attribute_to_layer_input=True,
        )
        context = attributed[0] if isinstance(attributed, tuple) else attributed  # [image token channel]
        layers.append(-torch.stack([context[..., :6].sum((1, 2)), context[..., 6:].sum((1, 2))], dim=1))
    expected = torch.stack(layers, dim=1)
    for name in ("gate_ixg", "attention_ixg"):
        assert_alike(scores(name, model, batch), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_feature_ablation_of_gates_and_of_layers_is_the_sweep(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    gates = -FeatureAblation(gated(model, loss_of(model))).attribute(
        ones().detach(), additional_forward_args=(batch.pixel_values, batch.labels)
    )
    layers, summed = [], []
    for projection in output_projections(model):
        attributed = LayerFeatureAblation(loss_of(model), projection).attribute(
            batch.pixel_values,
            additional_forward_args=(batch.labels,),
            layer_mask=torch.tensor([0] * 6 + [1] * 6).expand(1, 1, 12),
            attribute_to_layer_input=True,
        )
        context = -(attributed[0] if isinstance(attributed, tuple) else attributed).detach()  # [image token channel]
        heads = context.unflatten(-1, (2, 6))
        assert bool((heads == heads[:, :1, :, :1]).all())  # the effect of a head at each of its elements ...
        layers.append(heads[:, 0, :, 0])  # ... so one of them is the effect, and their sum is not
        summed.append(heads.sum((1, 3)))
    by_layer = torch.stack(layers, dim=1)
    torch.testing.assert_close(gates.reshape(4, 3, 2), by_layer, atol=1e-10, rtol=0)
    for route in ROUTES:
        found = zero_ablation(model, batch, route=route).delta_loss
        # Other routes than the model's own pass take the softmax of transformers' ViT in float64.
        tolerance = 1e-5 if kind == "vit" and route != "full" else 1e-10
        torch.testing.assert_close(found, by_layer, atol=tolerance, rtol=0)
        assert float((found - torch.stack(summed, dim=1)).abs().max()) > float(found.abs().max())
