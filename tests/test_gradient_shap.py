"""Expected gradients against stock Captum block by block, and against a model in which they are exact."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradientShap
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model
from torch import nn

from attribution.batch import Batch, MethodSettings
from attribution.contract import check_method
from attribution.gradient_shap import layer_gradient_shap, layer_gradient_shap_out
from attribution.prefix import block_list
from attribution.state import model_state
from attribution.vit import attention_modules, loss_per_image, output_projections

ALL = (layer_gradient_shap, layer_gradient_shap_out)


def stock(monkeypatch, model, batch, seed, target=None):
    """Captum's LayerGradientShap, one block, picture and donor at a time, with the same places: [image layer head]."""

    def loss(pixel_values, labels):
        return loss_per_image(model(pixel_values), labels)

    state = np.random.get_state()  # noqa: NPY002 (Captum draws the only baseline from the global state)
    pictures = []
    for number, index in enumerate(batch.indices.tolist()):
        alphas = np.random.default_rng([seed, 5, index]).random(batch.donor_pixel_values.shape[1])
        picture = torch.zeros(3, 2, dtype=torch.float64)
        for donor, alpha in zip(batch.donor_pixel_values[number], alphas, strict=True):
            for layer, projection in enumerate(output_projections(model)):
                with monkeypatch.context() as patch:
                    patch.setattr(np.random, "uniform", lambda low, high, size, alpha=alpha: np.full(size, alpha))
                    found = LayerGradientShap(loss if target is None else model, projection).attribute(
                        batch.pixel_values[[number]],
                        baselines=donor[None],
                        n_samples=1,
                        stdevs=0.0,
                        target=target,
                        additional_forward_args=(batch.labels[[number]],) if target is None else None,
                        attribute_to_layer_input=True,
                    )
                picture[layer] += found.detach().unflatten(-1, (2, 6)).sum((0, 1, 3)) / len(alphas)
        pictures.append(picture)
    np.random.set_state(state)  # noqa: NPY002
    return torch.stack(pictures)


def composed(model, batch, removed):
    """Mean over targets of the change of the squared residual, head by head; removed [image target layer head]."""
    residual = (model(batch.pixel_values) - batch.labels)[:, :, None, None]
    return ((residual - removed) ** 2 - residual**2).mean(1)


def far(got, expected):
    """Largest difference, relative to the largest score."""
    return float((got - expected).abs().max() / expected.abs().max())


def with_donors(batch, number):
    """The batch with this many of its donors."""
    fields = (batch.pixel_values, batch.labels, batch.indices, batch.baseline_pixel_values)
    return Batch(*fields, batch.donor_pixel_values[:, :number])


@pytest.mark.parametrize("kind", KINDS)
def test_expected_gradients_are_stock_captum_block_by_block(monkeypatch, kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    expected = -stock(monkeypatch, model, batch, seed=7)
    for size in (32, 3, 1):
        got = layer_gradient_shap(model, batch, MethodSettings(seed=7, internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= (1e-10 if kind != "vit" else 1e-6)
    assert far(layer_gradient_shap(model, batch, MethodSettings(seed=8)), expected) > 1e-3


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_expected_gradients_out_compose_stock_captum_of_each_output(monkeypatch, kind):
    model = tiny_model(kind)
    batch = with_donors(tiny_batch(model, num_images=3), 2)
    removed = torch.stack([stock(monkeypatch, model, batch, 0, target) for target in range(3)], dim=1)
    for size in (32, 2):
        got = layer_gradient_shap_out(model, batch, MethodSettings(internal_batch_size=size))
        assert got.shape == (3, 3, 2) and not got.requires_grad
        assert far(got, composed(model, batch, removed)) <= (1e-10 if kind != "vit" else 1e-6)


@pytest.mark.parametrize("working", [(0, 1), (2, 0)])
@pytest.mark.parametrize("num_donors", [1, 4])
def test_in_a_linear_model_with_one_head_it_is_what_the_donors_do(working, num_donors):
    """Uniform attention, no LayerNorm, no MLP, a linear read-out: the places on the way do not matter."""
    model = tiny_model()
    layer, head = working
    model.backbone.layernorm, model.head[1], model.head[3] = (nn.Identity().eval() for _ in range(3))
    for number, (block, attention) in enumerate(zip(block_list(model), attention_modules(model), strict=True)):
        block.norm1 = nn.Identity().eval()
        block.layer_scale2.lambda1.zero_()
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_(), projection.bias.zero_()
        kept = attention.o_proj.weight[:, 6 * head : 6 * head + 6].clone()
        attention.o_proj.weight.zero_()
        if number == layer:
            attention.o_proj.weight[:, 6 * head : 6 * head + 6] = kept
    batch = with_donors(tiny_batch(model), num_donors)
    there = torch.stack([model(donor) for donor in batch.donor_pixel_values.unbind(1)]).mean(0)
    expected = torch.zeros(4, 3, 2, dtype=torch.float64)
    expected[:, *working] = ((there - batch.labels) ** 2 - (model(batch.pixel_values) - batch.labels) ** 2).mean(1)
    assert float(expected.abs().max()) > 1e-3
    got = layer_gradient_shap_out(model, batch, MethodSettings())
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-10)


def test_places_are_drawn_per_picture_by_its_index():
    """Two pictures alike in everything but their index differ; the same index gives the same."""
    model = tiny_model()
    batch = tiny_batch(model).select([0, 0, 0])
    batch = Batch(
        batch.pixel_values,
        batch.labels,
        torch.tensor([3, 4, 3]),
        batch.baseline_pixel_values,
        batch.donor_pixel_values,
    )
    for function in ALL:
        scores = function(model, batch, MethodSettings())
        assert far(scores[2], scores[0]) < 1e-12 and far(scores[1], scores[0]) > 1e-3


@pytest.mark.parametrize("function", ALL)
def test_head_methods_keep_their_promises(function):
    check_method(function)


@pytest.mark.parametrize(("function", "backwards"), [(layer_gradient_shap, 4), (layer_gradient_shap_out, 12)])
def test_passes_and_their_size(function, backwards):
    """A forward of the picture and two per donor, a backward per scalar and donor; no larger than asked."""
    model = tiny_model()
    batch = tiny_batch(model, num_images=5)
    forward, backward = [], []

    def count(_, args, output):
        forward.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: backward.append(len(gradient)))

    handle = block_list(model)[2].register_forward_hook(count)
    function(model, batch, MethodSettings(internal_batch_size=3))
    handle.remove()
    assert forward == 9 * [3] + 9 * [2]
    assert sum(backward) == 5 * backwards


@pytest.mark.parametrize("function", ALL)
def test_planted_head_gets_everything(function):
    """Of either sign: a donor may be nearer to the label than the picture is."""
    model = planted_model()
    scores = function(model, planted_batch(model), MethodSettings())
    others = scores.clone()
    others[:, *PLANTED_HEAD] = 0
    assert bool((scores[:, *PLANTED_HEAD].abs() > 1e-3).any())
    assert float(others.abs().max()) < 1e-12


@pytest.mark.parametrize("function", ALL)
def test_batches_without_donors_are_refused(function):
    model = tiny_model()
    batch = tiny_batch(model)
    none = Batch(batch.pixel_values, batch.labels, batch.indices, batch.baseline_pixel_values)
    with pytest.raises(ValueError, match="donor_pixel_values: needed here"):
        function(model, none, MethodSettings())
    with pytest.raises(ValueError, match="at least one donor"):
        function(model, with_donors(batch, 0), MethodSettings())


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("passes", [0, 1, 2, 5])
def test_state_is_restored_after_an_error(function, passes):
    """The last block fails: at the picture, at a donor, on the way, and later."""
    model = tiny_model()
    batch = tiny_batch(model)
    calls = []

    def interrupt(module, args):
        calls.append(module)
        if len(calls) > passes:
            raise KeyboardInterrupt

    handle = output_projections(model)[2].register_forward_pre_hook(interrupt)
    before = model_state(model)
    with pytest.raises(KeyboardInterrupt):
        function(model, batch, MethodSettings(internal_batch_size=8))
    assert before.differences(model_state(model)) == []
    handle.remove()
    model.train()
    with pytest.raises(ValueError, match="eval mode"):
        function(model, batch, MethodSettings())


@pytest.mark.parametrize("function", ALL)
def test_weights_that_want_gradients_get_none(function):
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    frozen = function(model, batch, MethodSettings())
    model.requires_grad_(True)
    with torch.no_grad():
        got = function(model, batch, MethodSettings())
    assert far(got, frozen) <= 1e-12 and not got.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
