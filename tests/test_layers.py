"""Layer methods against stock Captum block by block, and integrated gradients against quadrature by hand."""

import numpy as np
import pytest
import torch
from captum.attr import InternalInfluence, LayerActivation, LayerConductance, LayerIntegratedGradients
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.batch import Batch, MethodSettings
from attribution.contexts import contexts
from attribution.contract import check_method
from attribution.layer_activation import layer_activation
from attribution.layers import (
    conductance_out,
    internal_influence,
    internal_influence_out,
    layer_conductance,
    layer_ig,
    layer_ig_out,
)
from attribution.methods import METHODS, cost
from attribution.prefix import block_list
from attribution.state import model_state
from attribution.vit import loss_per_image, output_projections

ALL = (layer_conductance, conductance_out, internal_influence, internal_influence_out, layer_ig, layer_ig_out)
NEW = (internal_influence_out, layer_ig_out, layer_activation)


def loss_of(model):
    """(pixel_values, labels) -> loss per picture."""

    def loss(pixel_values, labels):
        return loss_per_image(model(pixel_values), labels)

    return loss


def stock(method, model, batch, steps, target=None):
    """What one of Captum's layer methods gives for every block, one call each: [image layer token head*head_dim]."""
    blocks = []
    for projection in output_projections(model):
        attributed = method(loss_of(model) if target is None else model, projection).attribute(
            batch.pixel_values,
            baselines=batch.baseline_pixel_values.expand_as(batch.pixel_values),
            target=target,
            additional_forward_args=(batch.labels,) if target is None else None,
            n_steps=steps,
            attribute_to_layer_input=True,
        )
        blocks.append((attributed[0] if isinstance(attributed, tuple) else attributed).detach())
    return torch.stack(blocks, dim=1)


def per_head(values):
    """Sums over tokens and channels, [image layer head]."""
    return values.unflatten(-1, (2, 6)).sum((2, 4))


def far(got, expected):
    """Largest difference, relative to the largest score."""
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("steps", [1, 2, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_conductance_is_stock_captum_block_by_block(kind, steps):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    expected = -per_head(stock(LayerConductance, model, batch, steps))
    for size in (32, 9, 4, 3, 1):  # 8, 2, 1 nodes in a pass of 4 pictures, then 1 node of 3 pictures and of 1
        got = layer_conductance(model, batch, MethodSettings(steps=steps, internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= 1e-10


@pytest.mark.parametrize("steps", [1, 2, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_influence_is_stock_captum_block_by_block_times_the_context(kind, steps):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    activations = contexts(model, batch.pixel_values).flatten(-2)
    expected = -per_head(stock(InternalInfluence, model, batch, steps) * activations)
    for size in (32, 9, 4, 3, 1):
        got = internal_influence(model, batch, MethodSettings(steps=steps, internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= 1e-12 if kind != "vit" else 1e-10


def test_influence_is_quadrature_of_the_derivative_for_the_gates():
    """The derivative of the loss for a context, times that context, is what adding a little of it does."""
    model = tiny_model()
    batch = tiny_batch(model)
    got = internal_influence(model, batch, MethodSettings(steps=5))
    activations, step = contexts(model, batch.pixel_values).flatten(-2), 1e-5
    nodes, weights = np.polynomial.legendre.leggauss(5)
    expected = torch.zeros_like(got)
    for layer, projection in enumerate(output_projections(model)):
        for head in range(2):
            added = torch.zeros_like(activations[:, layer])
            added[..., 6 * head : 6 * head + 6] = step * activations[:, layer, :, 6 * head : 6 * head + 6]
            for node, weight in zip(nodes, weights, strict=True):
                picture = batch.baseline_pixel_values + (node + 1) / 2 * (
                    batch.pixel_values - batch.baseline_pixel_values
                )
                losses = []
                for sign in (1, -1):
                    handle = projection.register_forward_pre_hook(
                        lambda _, args, added=sign * added: (args[0] + added,)
                    )
                    losses.append(loss_per_image(model(picture), batch.labels))
                    handle.remove()
                expected[:, layer, head] -= weight / 2 * (losses[0] - losses[1]) / (2 * step)
    assert far(got, expected) <= 1e-7


@pytest.mark.parametrize("function", [internal_influence, internal_influence_out, layer_ig, layer_ig_out])
def test_weights_that_want_gradients_get_none(function):
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    frozen = function(model, batch, MethodSettings(steps=3))
    model.requires_grad_(True)
    with torch.no_grad():
        got = function(model, batch, MethodSettings(steps=3))
    assert far(got, frozen) <= 1e-12 and not got.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_conductance_is_the_same_in_a_model_whose_weights_want_gradients():
    model = tiny_model()
    batch = tiny_batch(model)
    frozen = layer_conductance(model, batch, MethodSettings(steps=3))
    model.requires_grad_(True)
    torch.testing.assert_close(layer_conductance(model, batch, MethodSettings(steps=3)), frozen, atol=1e-12, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def composed(model, batch, removed):
    """Mean over targets of the change of the squared residual, head by head; removed [image target layer head]."""
    residual = (model(batch.pixel_values) - batch.labels)[:, :, None, None]
    return ((residual - removed) ** 2 - residual**2).mean(1)


def test_conductance_out_composes_stock_captum_of_each_output():
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    removed = torch.stack([per_head(stock(LayerConductance, model, batch, 4, target)) for target in range(3)], dim=1)
    expected = composed(model, batch, removed)
    got = conductance_out(model, batch, MethodSettings(steps=4, internal_batch_size=7))
    torch.testing.assert_close(got, expected, atol=1e-10 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_influence_out_composes_stock_captum_of_each_output(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    activations = contexts(model, batch.pixel_values).flatten(-2)
    outputs = [stock(InternalInfluence, model, batch, 4, target) * activations for target in range(3)]
    expected = composed(model, batch, torch.stack([per_head(output) for output in outputs], dim=1))
    for size in (32, 9, 4, 3, 1):
        got = internal_influence_out(model, batch, MethodSettings(steps=4, internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_layer_ig_out_composes_stock_captum_of_each_output(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    outputs = [stock(LayerIntegratedGradients, model, batch, 4, target) for target in range(3)]
    expected = composed(model, batch, torch.stack([per_head(output) for output in outputs], dim=1))
    for size in (32, 9, 4, 3, 1):
        got = layer_ig_out(model, batch, MethodSettings(steps=4, internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= 1e-10


def test_layer_ig_out_of_a_block_with_one_head_is_what_putting_it_back_does():
    """All of a block's heads but one lose their way out: integrated gradients are complete along the block's line.

    Without the kinks of ReLUs, at which quadrature gets only three digits.
    """
    model = tiny_model()
    model.head[1], model.head[3] = torch.nn.Tanh().eval(), torch.nn.Tanh().eval()
    batch = tiny_batch(model)
    for projection in output_projections(model):
        projection.weight[:, :6] = 0
    got = layer_ig_out(model, batch, MethodSettings(steps=64))
    starts = contexts(model, batch.baseline_pixel_values[None]).flatten(-2)
    intact = loss_per_image(model(batch.pixel_values), batch.labels)
    for layer in range(3):
        back = with_contexts(model, layer, batch.pixel_values, starts[:, layer].expand(4, -1, -1))
        expected = loss_per_image(back, batch.labels) - intact
        torch.testing.assert_close(got[:, layer, 1], expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
    assert not bool(got[:, :, 0].any())


@pytest.mark.parametrize("kind", KINDS)
def test_layer_activation_is_the_norm_of_stock_captums(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    found = LayerActivation(model, output_projections(model)).attribute(
        batch.pixel_values, attribute_to_layer_input=True
    )
    expected = (torch.stack(found, dim=1).detach().unflatten(-1, (2, 6)) ** 2).sum((2, 4)).sqrt()
    for size in (32, 3, 1):
        got = layer_activation(model, batch, MethodSettings(internal_batch_size=size))
        assert got.shape == (4, 3, 2) and far(got, expected) <= (1e-12 if kind != "vit" else 1e-7)


@pytest.mark.parametrize("function", ALL)
def test_baselines_of_their_own_are_one_picture_at_a_time(function):
    model = tiny_model()
    batch = tiny_batch(model)
    twins = batch.counterfactual_pixel_values
    own = Batch(batch.pixel_values, batch.labels, batch.indices, twins)
    parts = [
        Batch(part.pixel_values, part.labels, part.indices, twin)
        for part, twin in zip(batch.chunks(1), twins, strict=True)
    ]
    expected = torch.cat([function(model, part, MethodSettings(steps=3)) for part in parts])
    for size in (32, 3):
        got = function(model, own, MethodSettings(steps=3, internal_batch_size=size))
        assert far(got, expected) <= 1e-12
    assert far(function(model, batch, MethodSettings(steps=3)), expected) > 0.01


@pytest.mark.parametrize("function", NEW)
def test_new_head_methods_keep_their_promises(function):
    check_method(function)


@pytest.mark.parametrize("function", ALL)
def test_promises_are_kept_with_a_baseline_for_each_picture(function):
    def with_own(model, batch, settings):
        own = Batch(batch.pixel_values, batch.labels, batch.indices, batch.counterfactual_pixel_values)
        return function(model, own, settings)

    check_method(with_own)


def with_contexts(model, layer, pixel_values, value):
    """Predictions with one block's contexts replaced as a whole."""
    handle = output_projections(model)[layer].register_forward_pre_hook(lambda _, args: (value,))
    try:
        return model(pixel_values)
    finally:
        handle.remove()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_layer_ig_is_stock_captum_block_by_block(kind, steps):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    expected = -per_head(stock(LayerIntegratedGradients, model, batch, steps))
    for size in (32, 9, 4, 3, 1):
        got = layer_ig(model, batch, MethodSettings(steps=steps, internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= 1e-10


class Row(torch.nn.Module):
    """Blocks in a row, but in no `nn.ModuleList`."""

    def __init__(self, blocks):
        super().__init__()
        for number, block in enumerate(blocks):
            self.add_module(f"block{number}", block)

    def __iter__(self):
        return iter(self.children())


def test_layer_ig_runs_models_without_a_list_of_blocks_as_a_whole():
    model = tiny_model()
    batch = tiny_batch(model)
    expected = layer_ig(model, batch, MethodSettings(steps=4))
    model.backbone.encoder.layer = Row(model.backbone.encoder.layer).eval()
    assert block_list(model) is None
    for size in (32, 3):
        got = layer_ig(model, batch, MethodSettings(steps=4, internal_batch_size=size))
        assert far(got, expected) <= 1e-12


@pytest.mark.parametrize(("function", "targets"), [(layer_ig, 1), (layer_ig_out, 3)])
def test_layer_ig_runs_no_more_blocks_than_it_declares(function, targets):
    """A full pass of one picture is three blocks; on the way back, from a block's contexts on."""
    model = tiny_model()
    batch = tiny_batch(model)
    settings = MethodSettings(steps=3)
    runs = {"forward": 0, "backward": 0}

    def count(_, args, output):
        runs["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: runs.update(backward=runs["backward"] + len(gradient)))

    handles = [block.mlp.register_forward_hook(count) for block in block_list(model)]
    function(model, batch, settings)
    for handle in handles:
        handle.remove()
    forwards, backwards = cost(METHODS["layer_ig"], settings, num_layers=3, num_targets=3)
    assert (forwards, backwards) == (8, 6)
    # And the baseline picture, and the trial whether a pass may start at a block: a whole one and its last block.
    assert runs["forward"] == 3 * (4 * forwards + 1) + 4
    assert runs["backward"] == 3 * 4 * backwards * targets


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


@pytest.mark.parametrize("function", ALL)
def test_planted_head_gets_everything(function):
    model = planted_model()
    scores = function(model, planted_batch(model), MethodSettings())
    others = scores.clone()
    others[:, *PLANTED_HEAD] = 0
    assert bool((scores[:, *PLANTED_HEAD] > 1e-3).all())
    assert float(others.abs().max()) < 1e-12


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("passes", [0, 1, 3])
def test_state_is_restored_after_an_error(function, passes):
    """The last block fails: at once, in the second pass, or in the fourth."""
    model = tiny_model()
    batch = tiny_batch(model)
    calls = []

    def interrupt(module, args):
        calls.append(module)
        if len(calls) > passes:
            raise KeyboardInterrupt

    handle = output_projections(model)[2].register_forward_pre_hook(interrupt)
    before, blocks = model_state(model), list(block_list(model))
    with pytest.raises(KeyboardInterrupt):
        function(model, batch, MethodSettings(internal_batch_size=8))
    assert before.differences(model_state(model)) == [] and list(block_list(model)) == blocks
    handle.remove()
    model.train()
    with pytest.raises(ValueError, match="eval mode"):
        function(model, batch, MethodSettings())
