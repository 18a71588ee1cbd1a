"""What heads add to the outputs: against Captum over gates, finite differences, and the other way of computing it."""

import pytest
import torch
from captum.attr import InputXGradient
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.blocks import take_apart
from attribution.contributions import contexts_in_graph, output_contributions, summed_per_head
from attribution.prefix import block_list
from attribution.state import model_state
from attribution.vit import gated

WAYS = ("taken apart", "as it is")


def prepared(kind, way, dtype=torch.float64):
    """A tiny model; one that cannot be taken apart has an idle hook on a part that would be passed by."""
    model = tiny_model(kind, dtype)
    if way == "as it is":
        block_list(model)[1].mlp.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        assert (take_apart(model) is None) == (way == "as it is")
    return model


def gated_outputs(model):
    """(gates [image layer*head], pixel_values) -> predictions."""

    def outputs(gates, pixel_values):
        with gated(model, gates.unflatten(1, (-1, 2))):
            return model(pixel_values)

    return outputs


def far(got, expected):
    """Largest difference, relative to the largest number."""
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_contributions_are_captums_input_times_gradient_of_the_gates(kind, way):
    model = prepared(kind, way)
    batch = tiny_batch(model)
    predictions, got = output_contributions(model, batch, batch_size=3)
    assert got.shape == (4, 3, 3, 2) and got.dtype == torch.float64
    assert not got.requires_grad and not predictions.requires_grad
    method = InputXGradient(gated_outputs(model))
    expected = torch.stack(
        [
            method.attribute(
                torch.ones(4, 6, dtype=torch.float64, requires_grad=True),
                target=target,
                additional_forward_args=(batch.pixel_values,),
            ).detach()
            for target in range(3)
        ],
        dim=1,
    )
    # transformers' ViT takes its softmax in float32, its parts do not.
    tolerance = 1e-5 if kind == "vit" and way == "taken apart" else 1e-12
    assert far(got.flatten(2), expected) <= tolerance
    assert far(predictions, model(batch.pixel_values)) <= tolerance


@pytest.mark.parametrize("way", WAYS)
def test_contributions_are_the_finite_difference_of_the_outputs(way):
    model = prepared("dinov2_lora", way)
    batch = tiny_batch(model)
    _, got = output_contributions(model, batch, batch_size=32)
    step = 1e-5
    expected = torch.zeros(4, 3, 6, dtype=torch.float64)
    for head in range(6):
        gates = torch.ones(2, 4, 6, dtype=torch.float64)
        gates[0, :, head] += step
        gates[1, :, head] -= step
        up, down = (gated_outputs(model)(row, batch.pixel_values) for row in gates)
        expected[:, :, head] = (up - down) / (2 * step)
    assert far(got.flatten(2), expected) < 1e-7


@pytest.mark.parametrize("way", WAYS)
def test_batch_size_changes_nothing(way):
    model = prepared("registers", way)
    batch = tiny_batch(model, 5)
    predictions, whole = output_contributions(model, batch, batch_size=5)
    for size in (1, 2, 3, 7):
        found, part = output_contributions(model, batch, batch_size=size)
        assert far(found, predictions) <= 1e-12 and far(part, whole) <= 1e-12
        assert far(part.mean(0), whole.mean(0)) <= 1e-12


def test_planted_head_alone_adds_anything():
    model = planted_model()
    _, got = output_contributions(model, planted_batch(model), batch_size=4)
    layer, head = PLANTED_HEAD
    others = got.clone()
    others[:, :, layer, head] = 0
    assert float(others.abs().max()) < 1e-12
    # The two outputs are x - y and twice that, where x and y are what the wired channel gives.
    torch.testing.assert_close(got[:, 1, layer, head], 2 * got[:, 0, layer, head])
    assert bool((got[:, 0, layer, head].abs() > 1e-3).all())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close(kind, way):
    """A smooth regression head: where a ReLU is near its kink a rounding error decides, and the derivative jumps."""
    model = prepared(kind, way, torch.float32)
    model.head[1] = model.head[3] = torch.nn.Tanh().eval()
    batch = tiny_batch(model, 16)
    predictions, exact = output_contributions(model, batch, batch_size=16)
    found, got = output_contributions(model, batch, batch_size=5, dtype=torch.bfloat16)
    assert got.shape == exact.shape and got.dtype == found.dtype == torch.float32
    assert bool(torch.isfinite(got).all()) and bool(torch.isfinite(found).all())
    assert far(got, exact) > 1e-5, "it ran in float32"
    assert float((got - exact).norm() / exact.norm()) < 0.03
    assert float((found - predictions).norm() / predictions.norm()) < 0.03
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_around_the_call_changes_nothing():
    model = prepared("dinov2", "taken apart", torch.float32)
    batch = tiny_batch(model)
    expected = output_contributions(model, batch, batch_size=4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        got = output_contributions(model, batch, batch_size=4)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_want_gradients_get_none(way):
    model = prepared("dinov2_lora", way)
    batch = tiny_batch(model)
    _, frozen = output_contributions(model, batch, batch_size=4)
    model.requires_grad_(True)
    before = model_state(model)
    predictions, got = output_contributions(model, batch, batch_size=4)
    assert far(got, frozen) <= 1e-12 and not got.requires_grad and not predictions.requires_grad
    assert before.differences(model_state(model)) == []


def test_gradients_go_no_further_back_than_the_first_contexts():
    model = tiny_model().requires_grad_(True)
    batch, reached = tiny_batch(model), []
    for layer, block in enumerate(model.backbone.encoder.layer):
        block.attention.v_proj.register_forward_hook(
            lambda _, __, output, layer=layer: output.register_hook(lambda gradient: reached.append(layer)) and None
        )
    outputs, contexts = contexts_in_graph(model, batch.pixel_values)
    assert [context.is_leaf for context in contexts] == [True, False, False]
    torch.autograd.grad(outputs.sum(), contexts)
    assert reached == [2, 1]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_state_is_restored_after_an_error(way):
    model = prepared("dinov2", way)
    batch = tiny_batch(model)
    activation, calls = block_list(model)[2].mlp.activation_fn, []

    class Interrupting(torch.nn.Module):
        def forward(self, states):
            calls.append(len(states))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return activation(states)

    block_list(model)[2].mlp.activation_fn = Interrupting().eval()
    before = model_state(model)
    with pytest.raises(KeyboardInterrupt):
        output_contributions(model, batch, batch_size=2)
    assert len(calls) == 2 and before.differences(model_state(model)) == []


def test_refusals_name_what_was_expected():
    model = tiny_model()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match=r"dtype: expected None or torch\.bfloat16, got torch\.float16"):
        output_contributions(model, batch, batch_size=4, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"is for a float32 model, got a torch\.float64 one"):
        output_contributions(model, batch, batch_size=4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        output_contributions(model, batch, batch_size=0)
    with pytest.raises(ValueError, match="eval mode"):
        output_contributions(model.train(), batch, batch_size=4)


def test_sums_per_head_by_hand():
    context = torch.tensor([[[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 30.0, 40.0]]])  # [image token head*head_dim]
    assert torch.equal(summed_per_head(context, 2), torch.tensor([[10.0, 100.0]]))
