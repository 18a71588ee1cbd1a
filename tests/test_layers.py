"""Layer methods against stock Captum block by block, and integrated gradients against quadrature by hand."""

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance, LayerIntegratedGradients
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.batch import MethodSettings
from attribution.layers import conductance_out, layer_conductance, layer_ig
from attribution.state import model_state
from attribution.vit import loss_per_image, output_projections


def loss_of(model):
    """(pixel_values, labels) -> loss per picture."""

    def loss(pixel_values, labels):
        return loss_per_image(model(pixel_values), labels)

    return loss


def stock_conductance(model, batch, steps, target=None):
    """Captum's LayerConductance of every block, summed per head: [image layer head], sign as Captum gives it."""
    baselines = batch.baseline_pixel_values.expand_as(batch.pixel_values)
    blocks = []
    for projection in output_projections(model):
        method = LayerConductance(loss_of(model) if target is None else model, projection)
        attributed = method.attribute(
            batch.pixel_values,
            baselines=baselines,
            target=target,
            additional_forward_args=(batch.labels,) if target is None else None,
            n_steps=steps,
            attribute_to_layer_input=True,
        )
        context = attributed[0] if isinstance(attributed, tuple) else attributed
        blocks.append(context.detach().unflatten(-1, (2, 6)).sum((1, 3)))
    return torch.stack(blocks, dim=1)


@pytest.mark.parametrize("steps", [1, 2, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_conductance_is_stock_captum_block_by_block(kind, steps):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    expected = -stock_conductance(model, batch, steps)
    scale = float(expected.abs().max())
    for size in (32, 9, 4, 3, 1):  # 8, 2, 1 nodes in a pass of 4 pictures, then 1 node of 3 pictures and of 1
        got = layer_conductance(model, batch, MethodSettings(steps=steps, internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert float((got - expected).abs().max()) <= 1e-10 * scale


def test_conductance_is_the_same_in_a_model_whose_weights_want_gradients():
    model = tiny_model()
    batch = tiny_batch(model)
    frozen = layer_conductance(model, batch, MethodSettings(steps=3))
    model.requires_grad_(True)
    torch.testing.assert_close(layer_conductance(model, batch, MethodSettings(steps=3)), frozen, atol=1e-12, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_conductance_out_composes_stock_captum_of_each_output():
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    residual = (model(batch.pixel_values) - batch.labels)[:, :, None, None]
    removed = torch.stack([stock_conductance(model, batch, 4, target) for target in range(3)], dim=1)
    expected = ((residual - removed) ** 2 - residual**2).mean(1)
    got = conductance_out(model, batch, MethodSettings(steps=4, internal_batch_size=7))
    torch.testing.assert_close(got, expected, atol=1e-10 * float(expected.abs().max()), rtol=0)


def with_contexts(model, layer, pixel_values, value):
    """Predictions with one block's contexts replaced as a whole."""
    handle = output_projections(model)[layer].register_forward_pre_hook(lambda _, args: (value,))
    try:
        return model(pixel_values)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_lora"])
def test_layer_ig_is_quadrature_along_each_blocks_own_line(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    got = layer_ig(model, batch, MethodSettings(steps=6, internal_batch_size=7))
    nodes, weights = np.polynomial.legendre.leggauss(6)
    for layer, projection in enumerate(output_projections(model)):
        seen = []
        handle = projection.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(batch.pixel_values)
        model(batch.baseline_pixel_values.expand_as(batch.pixel_values))
        handle.remove()
        end, start = seen
        total = torch.zeros_like(end)
        for node, weight in zip(nodes, weights, strict=True):
            value = (start + (node + 1) / 2 * (end - start)).requires_grad_()
            loss = loss_per_image(with_contexts(model, layer, batch.pixel_values, value), batch.labels).sum()
            total += weight / 2 * torch.autograd.grad(loss, value)[0]
        expected = -((end - start) * total).unflatten(-1, (2, 6)).sum((1, 3))
        torch.testing.assert_close(got[:, layer], expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


def test_captums_list_of_layers_is_another_quantity():
    model = tiny_model()
    batch = tiny_batch(model)
    with pytest.warns(UserWarning, match="Multiple layers provided"):
        method = LayerIntegratedGradients(loss_of(model), output_projections(model))
    together = method.attribute(
        batch.pixel_values,
        baselines=batch.baseline_pixel_values.expand_as(batch.pixel_values),
        additional_forward_args=(batch.labels,),
        n_steps=6,
        attribute_to_layer_input=True,
    )
    first = together[0][0] if isinstance(together[0], tuple) else together[0]
    one_by_one = layer_ig(model, batch, MethodSettings(steps=6))[:, 0]
    assert float((-first.unflatten(-1, (2, 6)).sum((1, 3)) - one_by_one).abs().max()) > 0.01 * float(
        one_by_one.abs().max()
    )


@pytest.mark.parametrize("function", [layer_conductance, conductance_out, layer_ig])
def test_planted_head_gets_everything(function):
    model = planted_model()
    scores = function(model, planted_batch(model), MethodSettings())
    others = scores.clone()
    others[:, *PLANTED_HEAD] = 0
    assert bool((scores[:, *PLANTED_HEAD] > 1e-3).all())
    assert float(others.abs().max()) < 1e-12


def test_state_is_restored_after_an_error_and_train_mode_is_refused():
    model = tiny_model()
    batch = tiny_batch(model)
    before = model_state(model)

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = output_projections(model)[2].register_forward_pre_hook(interrupt)
    for function in (layer_conductance, conductance_out, layer_ig):
        with pytest.raises(KeyboardInterrupt):
            function(model, batch, MethodSettings())
    handle.remove()
    assert before.differences(model_state(model)) == []
    model.train()
    for function in (layer_conductance, conductance_out, layer_ig):
        with pytest.raises(ValueError, match="eval mode"):
            function(model, batch, MethodSettings())
