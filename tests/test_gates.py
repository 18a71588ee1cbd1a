"""Gate methods against Captum's layer methods, finite differences, quadrature by hand, and the axioms."""

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerGradientXActivation
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.ablation import zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.gates import (
    composed_loss_change,
    gate_ig,
    gate_ig_out,
    gate_ig_with_delta,
    gate_ixg,
    gate_ixg_out,
    gate_saliency,
    gate_saliency_out,
    gated_loss,
    gauss_legendre,
)
from attribution.vit import gated, loss_per_image, output_projections

SETTINGS = MethodSettings()
ALL = (gate_saliency, gate_saliency_out, gate_ixg, gate_ixg_out, gate_ig, gate_ig_out)


def gated_outputs(model):
    """(gates [image layer*head], pixel_values) -> predictions."""

    def outputs(gates, pixel_values):
        with gated(model, gates.unflatten(1, (-1, 2))):
            return model(pixel_values)

    return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_ixg_is_captums_layer_gradient_x_activation_summed_per_head(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)

    def loss(pixel_values, labels):
        return loss_per_image(model(pixel_values), labels)

    got = gate_ixg(model, batch, SETTINGS)
    for layer, projection in enumerate(output_projections(model)):
        attributed = LayerGradientXActivation(loss, projection).attribute(
            batch.pixel_values.clone().requires_grad_(),
            additional_forward_args=(batch.labels,),
            attribute_to_layer_input=True,
        )
        context = attributed[0] if isinstance(attributed, tuple) else attributed
        expected = -context.unflatten(-1, (2, 6)).sum((1, 3))
        torch.testing.assert_close(got[:, layer], expected, atol=1e-10, rtol=1e-10)


def test_ixg_and_saliency_are_the_finite_difference_of_the_loss():
    model = tiny_model()
    batch = tiny_batch(model)
    loss, step = gated_loss(model), 1e-5
    expected = torch.zeros(4, 6, dtype=torch.float64)
    for head in range(6):
        gates = torch.ones(2, 4, 6, dtype=torch.float64)
        gates[0, :, head] += step
        gates[1, :, head] -= step
        up, down = (loss(row, batch.pixel_values, batch.labels) for row in gates)
        expected[:, head] = -(up - down) / (2 * step)
    scale = float(expected.abs().max())
    assert float((gate_ixg(model, batch, SETTINGS).flatten(1) - expected).abs().max()) < 1e-7 * scale
    assert float((gate_saliency(model, batch, SETTINGS).flatten(1) - expected.abs()).abs().max()) < 1e-7 * scale


def completeness_errors(smooth, steps):
    """|Σ IG − (ℓ(1) − ℓ(0))| of 48 pictures, and |ℓ(1) − ℓ(0)|; a smooth regression head has tanh for ReLU."""
    errors, changes = [], []
    for seed in range(3):
        model = tiny_model(seed=seed)
        if smooth:
            model.head[1] = model.head[3] = torch.nn.Tanh().eval()
        batch = tiny_batch(model, 16, seed)
        loss, pictures = gated_loss(model), (batch.pixel_values, batch.labels)
        intact, none = (loss(torch.full((16, 6), gate, dtype=torch.float64), *pictures) for gate in (1.0, 0.0))
        scores, delta = gate_ig_with_delta(model, batch, MethodSettings(steps=steps))
        torch.testing.assert_close(delta, -scores.sum((1, 2)) - (intact - none), atol=1e-8, rtol=0)
        errors.append(delta.abs())
        changes.append((intact - none).abs())
    return torch.cat(errors).numpy(), torch.cat(changes).numpy()


def test_ig_is_complete():
    errors, changes = completeness_errors(smooth=True, steps=64)
    assert np.median(errors / changes) <= 1e-3
    assert np.quantile(errors / changes, 0.99) <= 1e-2


def test_ig_completeness_error_shrinks_with_steps_where_relu_has_kinks_on_the_path():
    coarse, _ = completeness_errors(smooth=False, steps=16)
    fine, changes = completeness_errors(smooth=False, steps=256)
    assert np.median(fine) < np.median(coarse) / 5
    assert np.median(fine / changes) <= 5e-3


def test_ig_is_the_same_with_its_delta_and_equals_quadrature_by_hand():
    model = tiny_model()
    batch = tiny_batch(model)
    got = gate_ig(model, batch, MethodSettings(steps=5))
    torch.testing.assert_close(got, gate_ig_with_delta(model, batch, MethodSettings(steps=5))[0], atol=0, rtol=0)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    total = torch.zeros(4, 6, dtype=torch.float64)
    for node, weight in zip(nodes, weights, strict=True):
        gates = torch.full((4, 6), (node + 1) / 2, dtype=torch.float64, requires_grad=True)
        value = gated_loss(model)(gates, batch.pixel_values, batch.labels).sum()
        total -= weight / 2 * torch.autograd.grad(value, gates)[0]
    # Captum keeps its quadrature weights in float32.
    torch.testing.assert_close(got.flatten(1), total, atol=1e-6 * float(total.abs().max()), rtol=0)


def test_composed_loss_change_by_hand():
    predictions, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    removed = torch.tensor([[[1.0, 0.0], [-2.0, 3.0]]])  # [image target head]
    # head 0: ((1-1-.5)² - .5² + (2+2-4)² - 2²) / 2 ; head 1: (0 + (2-3-4)² - 2²) / 2
    torch.testing.assert_close(composed_loss_change(predictions, labels, removed), torch.tensor([[-2.0, 10.5]]))
    without_labels = composed_loss_change(predictions, predictions, removed)
    torch.testing.assert_close(without_labels, (removed**2).mean(1))


@pytest.mark.parametrize("kind", KINDS)
def test_out_forms_compose_captums_attributions_of_the_outputs(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    settings = MethodSettings(steps=4)
    predictions = model(batch.pixel_values)
    for function, attribute in (
        (gate_ixg_out, lambda gates, **kwargs: InputXGradient(gated_outputs(model)).attribute(gates, **kwargs)),
        (
            gate_ig_out,
            lambda gates, **kwargs: IntegratedGradients(gated_outputs(model)).attribute(gates, n_steps=4, **kwargs),
        ),
    ):
        expected = torch.zeros(4, 6, dtype=torch.float64)
        for target in range(3):
            gates = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
            removed = attribute(gates, target=target, additional_forward_args=(batch.pixel_values,)).detach()
            residual = (predictions - batch.labels)[:, target, None]
            expected += ((residual - removed) ** 2 - residual**2) / 3
        got = function(model, batch, settings).flatten(1)
        torch.testing.assert_close(got, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


def test_saliency_out_is_the_finite_difference_of_the_outputs_squared_and_knows_no_labels():
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    outputs, step = gated_outputs(model), 1e-5
    expected = np.zeros((4, 6))
    for head in range(6):
        gates = torch.ones(2, 4, 6, dtype=torch.float64)
        gates[0, :, head] += step
        gates[1, :, head] -= step
        up, down = (outputs(row, batch.pixel_values).numpy() for row in gates)
        for image, target in np.ndindex(4, 3):
            expected[image, head] += ((up - down)[image, target] / (2 * step)) ** 2 / 3
    got = gate_saliency_out(model, batch, SETTINGS)
    np.testing.assert_allclose(got.flatten(1).numpy(), expected, rtol=0, atol=1e-6 * expected.max())
    assert bool((got >= 0).all())
    others = Batch(batch.pixel_values, batch.labels + 3, batch.indices, batch.baseline_pixel_values)
    torch.testing.assert_close(gate_saliency_out(model, others, SETTINGS), got, atol=0, rtol=0)


def test_saliency_out_is_the_out_form_where_labels_are_the_predictions():
    model = tiny_model("registers")
    batch = tiny_batch(model)
    fitted = Batch(batch.pixel_values, model(batch.pixel_values), batch.indices, batch.baseline_pixel_values)
    expected = gate_ixg_out(model, fitted, SETTINGS)
    got = gate_saliency_out(model, batch, SETTINGS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(expected.max()))


def test_out_form_sees_what_the_gradient_of_the_loss_misses():
    model = planted_model()
    batch = planted_batch(model)
    fitted = type(batch)(batch.pixel_values, model(batch.pixel_values), batch.indices, batch.baseline_pixel_values)
    truth = zero_ablation(model, fitted).delta_loss[:, *PLANTED_HEAD]
    assert float(gate_ixg(model, fitted, SETTINGS).abs().max()) < 1e-12
    assert bool((truth > 1e-3).all())
    for function in (gate_ixg_out, gate_saliency_out, gate_ig_out):
        scores = function(model, fitted, SETTINGS)[:, *PLANTED_HEAD]
        torch.testing.assert_close(scores, truth, rtol=0.2, atol=0)


@pytest.mark.parametrize("function", ALL)
def test_internal_batch_size_changes_nothing(function):
    model = tiny_model()
    batch = tiny_batch(model, 5)
    whole = function(model, batch, MethodSettings(steps=3))
    assert whole.shape == (5, 3, 2) and not whole.requires_grad
    for size in (1, 2, 7):
        part = function(model, batch, MethodSettings(steps=3, internal_batch_size=size))
        torch.testing.assert_close(part, whole, atol=1e-10 * float(whole.abs().max()), rtol=0)


@pytest.mark.parametrize("function", ALL)
def test_train_mode_is_refused(function):
    model = tiny_model().train()
    with pytest.raises(ValueError, match="eval mode"):
        function(model, tiny_batch(model), SETTINGS)


def test_gauss_legendre_integrates_polynomials():
    for steps in (1, 2, 3, 8):
        nodes, weights = gauss_legendre(steps)
        for degree in range(2 * steps):
            integral = sum(weight * node**degree for node, weight in zip(nodes, weights, strict=True))
            assert integral == pytest.approx(1 / (degree + 1), abs=1e-14)
