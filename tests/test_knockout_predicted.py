"""Predicted knock-out: exact where nothing but the linear lies behind a head, and close where little is hidden."""

from dataclasses import replace

import pytest
import torch
from contexts_moved import contexts_by_hooks, outputs_moved
from tiny_models import planted_batch, planted_model, tiny_batch, tiny_model

from attribution.gates import composed_loss_change
from attribution.knockout import attention_knockout
from attribution.knockout_predicted import predicted_knockout
from attribution.vit import attention_modules, head_layout

KINDS = ("dinov2", "dinov2_lora", "registers")


def regions_of(model, batch):
    layout = head_layout(model)
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(len(batch), layout.num_rows, layout.num_cols, generator=generator) < 0.3
    some[0] = False
    some[1:, 0, 0] = True
    one = torch.zeros_like(some)
    one[:, 1, 1] = True
    return {"some": some, "one": one}


def by_hooks(model, batch, mask, layer, head, renormalised, step=1e-5):
    """Composed change of the loss from the finite difference along the way to the context without the region."""
    layout, seen = head_layout(model), {}
    attention = attention_modules(model)[layer]
    handles = [
        attention.register_forward_hook(lambda _, __, output: seen.update(weights=output[1])),
        attention.v_proj.register_forward_hook(lambda _, __, output: seen.update(values=output)),
    ]
    with torch.no_grad():
        outputs = model(batch.pixel_values)
    for handle in handles:
        handle.remove()
    hidden = torch.nn.functional.pad(mask.flatten(1), (layout.num_special_tokens, 0))
    weights = seen["weights"][:, head, 0]
    left = weights.masked_fill(hidden, 0)
    if renormalised:
        left = left / left.sum(-1, keepdim=True)
    values = seen["values"].unflatten(-1, (2, 6))[:, :, head]
    shift = torch.zeros_like(contexts_by_hooks(model, batch.pixel_values)[layer])
    shift[:, 0, 6 * head : 6 * head + 6] = torch.einsum("bk,bkd->bd", left - weights, values)
    up, down = (outputs_moved(model, batch.pixel_values, layer, sign * step * shift) for sign in (1, -1))
    return composed_loss_change(outputs, batch.labels, -(up - down) / (2 * step))


@pytest.mark.parametrize("kind", KINDS)
def test_both_predictions_are_the_finite_difference(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    regions = regions_of(model, batch)
    for size in (32, 3):
        found = predicted_knockout(model, batch, regions, batch_size=size)
        assert found.regions == ("some", "one") and found.gradient.shape == (4, 2, 3, 2)
        for place, mask in enumerate(regions.values()):
            for layer in range(3):
                for head in range(2):
                    for name, got in (("renormalised", found.renormalised), ("gradient", found.gradient)):
                        expected = by_hooks(model, batch, mask, layer, head, name == "renormalised")
                        present = mask.flatten(1).any(1)
                        one = got[:, place, layer, head]
                        assert bool(one[~present].isnan().all())
                        torch.testing.assert_close(one[present], expected[present], rtol=1e-5, atol=1e-6)


def test_of_the_planted_head_it_is_the_knock_out_itself():
    """In the last block a layer norm alone lies behind the head, which a small enough region hardly moves."""
    model = planted_model()
    batch = planted_batch(model)
    mask = torch.zeros(len(batch), 2, 2, dtype=torch.bool)
    mask[:, 0, 0] = True
    exact = attention_knockout(model, batch, {"corner": mask}).delta_loss
    found = predicted_knockout(model, batch, {"corner": mask})
    # All patches of a picture are alike: what is hidden comes back by the softmax, but for what the CLS token gains.
    scale = float(exact.abs().max())
    assert float((found.renormalised - exact).abs().max()) <= 0.1 * scale
    assert float((found.gradient - exact).abs().max()) > 0.5 * scale


def test_hidden_little_by_little_the_renormalised_one_is_right():
    model = tiny_model()
    batch = tiny_batch(model)
    regions = {"one": regions_of(model, batch)["one"]}
    exact = attention_knockout(model, batch, regions).delta_loss
    found = predicted_knockout(model, batch, regions)
    small = exact.abs() < 0.2 * exact.abs().max()
    assert bool(small.any())
    better = (found.renormalised - exact).abs() < (found.gradient - exact).abs()
    assert float(better.double().mean()) > 0.6


def test_refusals():
    model = tiny_model()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match="regions: expected at least one mask"):
        predicted_knockout(model, batch, {})
    with pytest.raises(ValueError, match="region one: expected a bool mask"):
        predicted_knockout(model, replace(batch), {"one": torch.zeros(4, 4, 4)})
