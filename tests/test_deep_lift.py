"""DeepLift against stock Captum block by block, and against what it must be in a model where it is exact."""

import pytest
import torch
from captum.attr import DeepLift, LayerDeepLift
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model
from torch import nn

from attribution.batch import Batch, MethodSettings
from attribution.contexts import contexts
from attribution.contract import check_method
from attribution.deep_lift import (
    deep_lift_completeness,
    deep_lift_completeness_out,
    layer_deep_lift,
    layer_deep_lift_out,
)
from attribution.prefix import block_list
from attribution.state import model_state
from attribution.vit import attention_modules, loss_per_image, output_projections

HEAD_METHODS = (layer_deep_lift, layer_deep_lift_out)
ALL = (*HEAD_METHODS, deep_lift_completeness, deep_lift_completeness_out)
TOLERANCE = {"vit": 1e-6}  # its softmax is float32, and stock Captum's passes hold other pictures


class Loss(nn.Module):
    """(pixel_values, labels) -> loss per picture, as a module: Captum's DeepLift takes nothing else."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels):
        return loss_per_image(self.model(pixel_values), labels)


def stock(model, batch, target=None):
    """Captum's LayerDeepLift of every block, one call each, summed per head: [image layer head]."""
    blocks = [
        LayerDeepLift(Loss(model) if target is None else model, projection).attribute(
            batch.pixel_values,
            baselines=batch.baseline_pixel_values.expand_as(batch.pixel_values),
            target=target,
            additional_forward_args=(batch.labels,) if target is None else None,
            attribute_to_layer_input=True,
        )
        for projection in output_projections(model)
    ]
    return torch.stack([block.detach().unflatten(-1, (2, 6)).sum((1, 3)) for block in blocks], dim=1)


def composed(model, batch, removed):
    """Mean over targets of the change of the squared residual, head by head; removed [image target layer head]."""
    residual = (model(batch.pixel_values) - batch.labels)[:, :, None, None]
    return ((residual - removed) ** 2 - residual**2).mean(1)


def far(got, expected):
    """Largest difference, relative to the largest score."""
    return float((got - expected).abs().max() / expected.abs().max())


def own_baselines(batch):
    """The batch with a baseline picture for each picture."""
    twins = batch.counterfactual_pixel_values
    return Batch(batch.pixel_values, batch.labels, batch.indices, twins, batch.donor_pixel_values, twins)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_deep_lift_is_stock_captum_block_by_block(kind, own):
    model = tiny_model(kind)
    batch = own_baselines(tiny_batch(model)) if own else tiny_batch(model)
    expected = -stock(model, batch)
    for size in (32, 4, 3, 1):
        got = layer_deep_lift(model, batch, MethodSettings(internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= TOLERANCE.get(kind, 1e-10)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_deep_lift_out_composes_stock_captum_of_each_output(kind, own):
    model = tiny_model(kind)
    batch = own_baselines(tiny_batch(model)) if own else tiny_batch(model)
    expected = composed(model, batch, torch.stack([stock(model, batch, target) for target in range(3)], dim=1))
    for size in (32, 3):
        got = layer_deep_lift_out(model, batch, MethodSettings(internal_batch_size=size))
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, expected) <= TOLERANCE.get(kind, 1e-10)


def test_the_rule_counts():
    """The plain gradient times the same difference is another number: ReLUs switch between baseline and picture."""
    model = tiny_model()
    batch = tiny_batch(model)
    seen = []
    handles = [
        projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad_()))
        for projection in output_projections(model)
    ]
    gradients = torch.autograd.grad(loss_per_image(model(batch.pixel_values), batch.labels).sum(), seen)
    for handle in handles:
        handle.remove()
    way = contexts(model, batch.pixel_values) - contexts(model, batch.baseline_pixel_values[None])
    plain = -(way * torch.stack(gradients, dim=1).unflatten(-1, (2, 6))).sum((2, 4))
    assert far(layer_deep_lift(model, batch, MethodSettings()), plain) > 0.01


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_completeness_is_stock_captum_of_the_pixels(kind, own):
    model = tiny_model(kind)
    batch = own_baselines(tiny_batch(model)) if own else tiny_batch(model)
    baselines = batch.baseline_pixel_values.expand_as(batch.pixel_values).clone()
    losses = [loss_per_image(model(pictures), batch.labels) for pictures in (batch.pixel_values, baselines)]
    _, expected = DeepLift(Loss(model)).attribute(
        batch.pixel_values.clone(),
        baselines=baselines,
        additional_forward_args=(batch.labels,),
        return_convergence_delta=True,
    )
    outputs = [
        DeepLift(model).attribute(
            batch.pixel_values.clone(), baselines=baselines, target=target, return_convergence_delta=True
        )[1]
        for target in range(3)
    ]
    for size in (32, 3):
        settings = MethodSettings(internal_batch_size=size)
        delta, difference = deep_lift_completeness(model, batch, settings)
        torch.testing.assert_close(difference, losses[0] - losses[1], atol=1e-6, rtol=0)
        assert delta.shape == (4,) and not delta.requires_grad
        assert far(delta, expected.detach()) <= TOLERANCE.get(kind, 1e-10)
        delta, difference = deep_lift_completeness_out(model, batch, settings)
        torch.testing.assert_close(difference, model(batch.pixel_values) - model(baselines), atol=1e-6, rtol=0)
        assert far(delta, torch.stack(outputs, dim=1).detach()) <= TOLERANCE.get(kind, 1e-10)


def linear_model(working):
    """Uniform attention, no LayerNorm, no MLP, one head alone with an output projection: only the ReLUs bend it."""
    model = tiny_model()
    model.backbone.layernorm = nn.Identity().eval()
    layer, head = working
    for number, (block, attention) in enumerate(zip(block_list(model), attention_modules(model), strict=True)):
        block.norm1 = nn.Identity().eval()
        block.layer_scale2.lambda1.zero_()
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_(), projection.bias.zero_()
        kept = attention.o_proj.weight[:, 6 * head : 6 * head + 6].clone()
        attention.o_proj.weight.zero_()
        if number == layer:
            attention.o_proj.weight[:, 6 * head : 6 * head + 6] = kept
    return model


@pytest.mark.parametrize("working", [(0, 0), (1, 1), (2, 0)])
def test_where_only_relus_bend_the_model_it_is_exact_but_for_the_square(working):
    model = linear_model(working)
    batch = tiny_batch(model)
    after, before = model(batch.pixel_values), model(batch.baseline_pixel_values[None])
    change = after - before
    assert float(change.abs().min()) > 1e-3
    expected = torch.zeros(2, 4, 3, 2, dtype=torch.float64)
    expected[0][:, *working] = -(2 * (after - batch.labels) * change).mean(1)
    expected[1][:, *working] = ((before - batch.labels) ** 2 - (after - batch.labels) ** 2).mean(1)
    for function, scores in zip(HEAD_METHODS, expected, strict=True):
        torch.testing.assert_close(function(model, batch, MethodSettings()), scores, atol=1e-11, rtol=1e-10)
    delta, difference = deep_lift_completeness(model, batch, MethodSettings())
    torch.testing.assert_close(delta, (change**2).mean(1), atol=1e-11, rtol=1e-10)
    torch.testing.assert_close(difference, -expected[1][:, *working], atol=1e-11, rtol=1e-10)
    delta, difference = deep_lift_completeness_out(model, batch, MethodSettings())
    assert float(delta.abs().max()) < 1e-11
    torch.testing.assert_close(difference, change, atol=1e-11, rtol=1e-10)


def test_a_picture_that_is_its_own_baseline_gets_nothing():
    """Every difference is zero: the rule divides by none."""
    model = tiny_model()
    batch = tiny_batch(model)
    same = Batch(batch.pixel_values, batch.labels, batch.indices, batch.pixel_values)
    for function in HEAD_METHODS:
        assert not bool(function(model, same, MethodSettings()).any())
    for function in (deep_lift_completeness, deep_lift_completeness_out):
        assert all(not bool(values.any()) for values in function(model, same, MethodSettings()))


@pytest.mark.parametrize("function", HEAD_METHODS)
def test_baselines_of_their_own_are_one_picture_at_a_time(function):
    model = tiny_model()
    batch = own_baselines(tiny_batch(model))
    expected = []
    for number in range(len(batch)):
        part = batch.select([number])
        alone = Batch(part.pixel_values, part.labels, part.indices, batch.baseline_pixel_values[number])
        expected.append(function(model, alone, MethodSettings()))
    for size in (32, 3):
        got = function(model, batch, MethodSettings(internal_batch_size=size))
        assert far(got, torch.cat(expected)) <= 1e-12


@pytest.mark.parametrize("function", HEAD_METHODS)
def test_head_methods_keep_their_promises(function):
    check_method(function)
    check_method(lambda model, batch, settings: function(model, own_baselines(batch), settings))


@pytest.mark.parametrize(("function", "backwards"), [(layer_deep_lift, 1), (layer_deep_lift_out, 3)])
@pytest.mark.parametrize("own", [False, True])
def test_passes_and_their_size(function, backwards, own):
    """One forward per picture and one per baseline picture, a backward per scalar; 8 pictures at most."""
    model = tiny_model()
    batch = tiny_batch(model, num_images=11)
    batch = own_baselines(batch) if own else batch
    forward, backward = [], []

    def count(_, args, output):
        forward.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: backward.append(len(gradient)))

    handle = block_list(model)[2].register_forward_hook(count)
    function(model, batch, MethodSettings(internal_batch_size=32))
    handle.remove()
    assert forward == ([8, 8, 3, 3] if own else [1, 8, 3])
    assert sum(backward) == 11 * backwards


@pytest.mark.parametrize("function", HEAD_METHODS)
def test_planted_head_gets_everything(function):
    model = planted_model()
    scores = function(model, planted_batch(model), MethodSettings())
    others = scores.clone()
    others[:, *PLANTED_HEAD] = 0
    assert bool((scores[:, *PLANTED_HEAD] > 1e-3).all())
    assert float(others.abs().max()) < 1e-12


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_state_is_restored_after_an_error(function, passes):
    """The last linear of the regression head fails: in the baseline's pass, in the first of pictures, in the next."""
    model = tiny_model()
    batch = tiny_batch(model)
    calls = []

    def interrupt(module, args):
        calls.append(module)
        if len(calls) > passes:
            raise KeyboardInterrupt

    handle = model.head[4].register_forward_pre_hook(interrupt)
    before, attributes = model_state(model), [set(vars(module)) for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        function(model, batch, MethodSettings(internal_batch_size=3))
    assert before.differences(model_state(model)) == []
    assert [set(vars(module)) for module in model.modules()] == attributes
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
    torch.testing.assert_close(got, frozen, atol=1e-12, rtol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not batch.pixel_values.requires_grad


@pytest.mark.parametrize("function", ALL)
def test_activations_it_cannot_follow_are_refused(function):
    model = tiny_model()
    batch = tiny_batch(model)
    model.head[1] = model.head[3]
    with pytest.raises(ValueError, match="used once and not in place"):
        function(model, batch, MethodSettings())
    model.head[1], model.head[3] = nn.ReLU().eval(), nn.ReLU(inplace=True).eval()
    with pytest.raises(ValueError, match="used once and not in place"):
        function(model, batch, MethodSettings())
