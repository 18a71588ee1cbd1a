"""Frozen rules against a model whose attention weights and deviations really are constants."""

from contextlib import contextmanager

import pytest
import torch
from contexts_moved import composed, contexts_by_hooks, far, slopes
from tiny_models import tiny_batch, tiny_model
from torch import nn

from attribution.batch import MethodSettings
from attribution.contract import check_method
from attribution.frozen_rules import frozen, frozen_rules, frozen_rules_out
from attribution.gates import gate_ixg
from attribution.state import model_state
from attribution.vit import attention_modules

SETTINGS = MethodSettings()


@contextmanager
def held_constant(model, pixel_values):
    """The model with the attention weights and deviations that these pictures have, whatever passes through it."""
    queries, keys, deviations, handles = {}, {}, {}, []

    def keep(store, name):
        return lambda _, args, output: store.setdefault(name, output.detach().clone())

    norms = [module for module in model.modules() if type(module) is nn.LayerNorm]
    for number, module in enumerate(attention_modules(model)):
        handles.append(module.q_proj.register_forward_hook(keep(queries, number)))
        handles.append(module.k_proj.register_forward_hook(keep(keys, number)))
    for number, norm in enumerate(norms):

        def of_norm(_, args, output, number=number, norm=norm):
            deviations[number] = (args[0].var(-1, correction=0, keepdim=True) + norm.eps).sqrt()

        handles.append(norm.register_forward_hook(of_norm))
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    handles = []
    for number, module in enumerate(attention_modules(model)):
        handles.append(module.q_proj.register_forward_hook(lambda *_, n=number: queries[n]))
        handles.append(module.k_proj.register_forward_hook(lambda *_, n=number: keys[n]))
    for number, norm in enumerate(norms):

        def fixed(_, args, output, number=number, norm=norm):
            centred = args[0] - args[0].mean(-1, keepdim=True)
            return centred / deviations[number] * norm.weight + norm.bias

        handles.append(norm.register_forward_hook(fixed))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_lora", "registers"])
def test_both_forms_are_the_finite_difference_with_constants(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    predictions, own = model(batch.pixel_values), contexts_by_hooks(model, batch.pixel_values)
    with held_constant(model, batch.pixel_values):
        assert far(model(batch.pixel_values), predictions) <= 1e-12
        removed = slopes(model, batch.pixel_values, own)
    slope = 2 * (predictions - batch.labels)[:, :, None, None] / 3
    assert far(frozen_rules(model, batch, SETTINGS), -(slope * removed).sum(1)) <= 1e-6
    assert far(frozen_rules_out(model, batch, SETTINGS), composed(predictions, batch.labels, removed)) <= 1e-6
    assert far(frozen_rules(model, batch, SETTINGS), gate_ixg(model, batch, SETTINGS)) > 1e-3


def test_outputs_are_left_alone_and_hooks_are_gone():
    model = tiny_model()
    batch = tiny_batch(model)
    before = model_state(model)
    expected = model(batch.pixel_values)
    with frozen(model):
        assert torch.equal(model(batch.pixel_values), expected)
    assert not before.differences(model_state(model))


@pytest.mark.parametrize("method", [frozen_rules, frozen_rules_out])
def test_it_keeps_the_promises_of_a_method(method):
    check_method(method)
