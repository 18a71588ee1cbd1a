"""Direct effects against a hook on the last block's output that takes a head's own part out of the row that is read."""

import pytest
import torch
from contexts_moved import composed, contexts_by_hooks, far, of_head
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.ablation import zero_ablation
from attribution.batch import MethodSettings
from attribution.contract import check_method
from attribution.direct_effect import direct_effect, direct_effect_ixg_out
from attribution.prefix import block_list
from attribution.vit import loss_per_image, output_projections

SETTINGS = MethodSettings()


def parts_of_heads(model, pixel_values):
    """What each head adds to the first token of the residual stream `[layer][head]` -> `[image channel]`."""
    found = []
    for block, projection, contexts in zip(
        block_list(model), output_projections(model), contexts_by_hooks(model, pixel_values), strict=True
    ):
        scale = block.layer_scale1.lambda1 if hasattr(block, "layer_scale1") else 1.0
        bias = projection(torch.zeros_like(contexts[:, :1]))[:, 0]
        found.append([scale * (projection(of_head(contexts, head)[:, :1])[:, 0] - bias) for head in range(2)])
    return found


def outputs_without(model, pixel_values, part):
    def take_out(_, __, output):
        changed = output.clone()
        changed[:, 0] -= part
        return changed

    handle = block_list(model)[-1].register_forward_hook(take_out)
    try:
        return model(pixel_values)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_loss_becomes_without_the_heads_part(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    predictions = model(batch.pixel_values)
    intact = loss_per_image(predictions, batch.labels)
    exact, slope = torch.zeros(4, 3, 2).double(), torch.zeros(4, 3, 3, 2).double()
    for layer, heads in enumerate(parts_of_heads(model, batch.pixel_values)):
        for head, part in enumerate(heads):
            exact[:, layer, head] = loss_per_image(outputs_without(model, batch.pixel_values, part), batch.labels)
            up, down = (outputs_without(model, batch.pixel_values, sign * 1e-4 * part) for sign in (1, -1))
            slope[:, :, layer, head] = (down - up) / 2e-4
    tolerance = 1e-9 if kind != "vit" else 1e-4
    for size in (32, 3, 1):
        settings = MethodSettings(internal_batch_size=size)
        assert far(direct_effect(model, batch, settings), exact - intact[:, None, None]) <= tolerance
        expected = composed(predictions, batch.labels, slope)
        assert far(direct_effect_ixg_out(model, batch, settings), expected) <= max(tolerance, 1e-6)


def test_of_a_head_that_nothing_follows_it_is_the_whole_effect():
    """The wired model's one working head is in the last block, and its MLP does nothing."""
    model = planted_model()
    batch = planted_batch(model)
    whole = zero_ablation(model, batch).delta_loss
    got = direct_effect(model, batch, SETTINGS)
    torch.testing.assert_close(got, whole, atol=1e-10, rtol=1e-10)
    assert got.mean(0).argmax() == 2 * PLANTED_HEAD[0] + PLANTED_HEAD[1]


def test_it_costs_one_forward_pass():
    model = tiny_model()
    batch = tiny_batch(model)
    for method in (direct_effect, direct_effect_ixg_out):
        rows = []
        handle = block_list(model)[0].register_forward_hook(lambda _, __, output, rows=rows: rows.append(len(output)))
        method(model, batch, SETTINGS)
        handle.remove()
        assert rows == [4]


@pytest.mark.parametrize("method", [direct_effect, direct_effect_ixg_out])
def test_it_keeps_the_promises_of_a_method(method):
    check_method(method)
