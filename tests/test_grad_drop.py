"""GradDrop against autograd with each block's part of the residual stream detached."""

import pytest
import torch
from contexts_moved import far
from tiny_models import KINDS, tiny_batch, tiny_model

from attribution.batch import MethodSettings
from attribution.contract import check_method
from attribution.gates import composed_loss_change, gate_ixg
from attribution.grad_drop import grad_drop, grad_drop_out
from attribution.layer_gradients import context_gradients, each_output, loss_of
from attribution.method import cost
from attribution.methods import METHODS
from attribution.prefix import block_list
from attribution.vit import output_projections

SETTINGS = MethodSettings()


def with_block_dropped(model, batch, dropped, scalars):
    """Σ z·∂/∂z `[image scalar layer head]` where what a block adds to the residual stream is held constant."""

    def constant(_, args, output):
        return args[0] + (output - args[0]).detach() + 0 * output  # of the graph still, by a slope of 0

    handle = block_list(model)[dropped].register_forward_hook(constant)
    try:
        predictions, contexts, gradients = context_gradients(model, batch.pixel_values, scalars)
    finally:
        handle.remove()
    layers = [(z * g).unflatten(-1, (2, 6)).sum((2, 4)) for z, g in zip(contexts, gradients, strict=True)]
    return predictions, torch.stack(layers, dim=2).transpose(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mean_over_blocks_held_constant(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    loss, out = 0.0, 0.0
    for dropped in range(3):
        loss = loss + with_block_dropped(model, batch, dropped, loss_of(batch.labels))[1][:, 0].abs() / 2
        predictions, removed = with_block_dropped(model, batch, dropped, each_output)
        out = out + composed_loss_change(predictions, batch.labels, removed).abs() / 2
    tolerance = 1e-9 if kind != "vit" else 1e-5
    for size in (32, 3, 1):
        settings = MethodSettings(internal_batch_size=size)
        assert far(grad_drop(model, batch, settings), loss) <= tolerance
        assert far(grad_drop_out(model, batch, settings), out) <= tolerance


def test_heads_of_the_last_block_have_but_their_direct_way():
    """Nothing that is dropped lies behind them: two of three terms are the plain product."""
    model = tiny_model()
    batch = tiny_batch(model)
    got, plain = grad_drop(model, batch, SETTINGS), gate_ixg(model, batch, SETTINGS)
    assert far(got[:, -1], plain[:, -1].abs()) <= 1e-9
    assert far(got[:, 0], plain[:, 0].abs()) > 1e-3


@pytest.mark.parametrize("method", [grad_drop, grad_drop_out])
def test_it_keeps_the_promises_of_a_method(method):
    check_method(method)


@pytest.mark.parametrize(("method", "scalars"), [(grad_drop, 1), (grad_drop_out, 3)])
def test_it_costs_half_as_many_backward_passes_as_there_are_blocks(method, scalars):
    """A gradient that enters below a dropped block passes the blocks below it, and no others."""
    model = tiny_model()
    batch = tiny_batch(model)
    counts = {"forward": 0, "backward": 0}

    def count(_, __, output):
        counts["forward"] += len(output)
        output.register_hook(lambda gradient: counts.update(backward=counts["backward"] + len(gradient)))

    handles = [projection.register_forward_hook(count) for projection in output_projections(model)]
    method(model, batch, SETTINGS)
    for handle in handles:
        handle.remove()
    declared = cost(METHODS[method.__name__], SETTINGS, num_layers=3, num_targets=3)
    assert counts == {"forward": 3 * 4 * declared[0], "backward": 3 * 4 * declared[1]} and declared == (1, 2 * scalars)
