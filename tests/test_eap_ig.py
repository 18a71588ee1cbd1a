"""EAP-IG at nodes: along inputs by finite differences at every node, along activations by sums that must come out."""

from dataclasses import replace

import pytest
import torch
from contexts_moved import composed, contexts_by_hooks, far, outputs_moved, slopes
from tiny_models import tiny_batch, tiny_model

from attribution.batch import MethodSettings
from attribution.contract import check_method
from attribution.eap_ig import eap_ig_activations, eap_ig_activations_out, eap_ig_inputs, eap_ig_inputs_out
from attribution.gates import gauss_legendre
from attribution.layers import layer_ig_out

SETTINGS = MethodSettings(steps=5)


@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_along_inputs_it_is_the_mean_finite_difference_on_the_way(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    start, end = batch.counterfactual_pixel_values, batch.pixel_values
    own, there = contexts_by_hooks(model, end), contexts_by_hooks(model, start)
    moves = [z - b for z, b in zip(own, there, strict=True)]
    out, loss = 0.0, 0.0
    for node, weight in zip(*gauss_legendre(5), strict=True):
        mixed = start + node * (end - start)
        found = slopes(model, mixed, moves)
        out = out + weight * found
        loss = loss - weight * ((2 * (model(mixed) - batch.labels) / 3)[:, :, None, None] * found).sum(1)
    assert far(eap_ig_inputs_out(model, batch, SETTINGS), composed(model(end), batch.labels, out)) <= 1e-6
    assert far(eap_ig_inputs(model, batch, SETTINGS), loss) <= 1e-6


def test_along_activations_a_blocks_heads_add_up_to_what_moving_them_all_does():
    model = tiny_model()
    batch = tiny_batch(model)
    near = batch.pixel_values + 0.05 * (batch.counterfactual_pixel_values - batch.pixel_values)  # a smooth way
    batch = replace(batch, counterfactual_pixel_values=near)
    own, there = (contexts_by_hooks(model, one) for one in (batch.pixel_values, batch.counterfactual_pixel_values))
    many = MethodSettings(steps=40)
    scores = eap_ig_activations(model, batch, many).sum(-1)
    for layer, (z, b) in enumerate(zip(own, there, strict=True)):
        moved = outputs_moved(model, batch.pixel_values, layer, b - z)
        change = ((moved - batch.labels) ** 2 - (model(batch.pixel_values) - batch.labels) ** 2).mean(1)
        torch.testing.assert_close(scores[:, layer], change, atol=1e-6, rtol=1e-3)


def test_along_activations_it_is_layer_ig_from_the_counterfactual():
    model = tiny_model()
    batch = tiny_batch(model)
    other = replace(batch, baseline_pixel_values=batch.counterfactual_pixel_values)
    torch.testing.assert_close(eap_ig_activations_out(model, batch, SETTINGS), layer_ig_out(model, other, SETTINGS))
    with pytest.raises(ValueError, match="counterfactual_pixel_values: needed here"):
        eap_ig_activations(model, replace(batch, counterfactual_pixel_values=None), SETTINGS)


@pytest.mark.parametrize("method", [eap_ig_inputs, eap_ig_inputs_out, eap_ig_activations, eap_ig_activations_out])
def test_it_keeps_the_promises_of_a_method(method):
    check_method(method)
