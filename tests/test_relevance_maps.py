"""Occlusion, Grad-CAM and rollouts against loops, Captum and full matrices; the promises of every pixel method."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Occlusion
from tiny_models import KINDS, tiny_batch, tiny_model
from torch import nn

from attribution.all_scalars import maps_of_all_scalars
from attribution.batch import Batch, MethodSettings
from attribution.method import Method
from attribution.methods import PIXEL_METHODS, read_attention_methods, run_pixel_method
from attribution.prefix import prefix_states, starting_at
from attribution.relevance_maps import (
    gradient_rollout,
    layer_grad_cam,
    occlusion,
    occlusion_all,
    rollout_discard,
    rollout_discard_of,
    rollout_max,
    rollout_min,
)
from attribution.state import model_state
from attribution.vit import HeadLayout, attention_modules, head_layout, loss_per_image, output_projections

SETTINGS = MethodSettings(pixel_steps=2, noise_samples=2)
SCALARS = (None, 0, 1, 2)
MODEL_METHODS = (occlusion, layer_grad_cam, gradient_rollout, rollout_max, rollout_min, rollout_discard)


def scalar_of(predictions, labels, target):
    """The explained number per picture."""
    return loss_per_image(predictions, labels) if target is None else predictions[:, target]


def with_fields(batch, **changes):
    """The batch with some of its fields changed."""
    return Batch(**{**vars(batch), **changes})


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("own_baselines", [False, True])
@pytest.mark.parametrize("kind", ["dinov2_lora", "registers"])
def test_occlusion_is_one_forward_per_patch_and_picture(kind, own_baselines):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    if own_baselines:
        batch = with_fields(batch, baseline_pixel_values=batch.donor_pixel_values[:, 1])
    expected = torch.zeros(4, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        intact = [model(batch.pixel_values[[image]]) for image in range(3)]
        for image, row, col in np.ndindex(3, 4, 4):
            picture, labels, before = batch.pixel_values[[image]].clone(), batch.labels[[image]], intact[image]
            hole = (..., slice(4 * row, 4 * row + 4), slice(4 * col, 4 * col + 4))
            picture[hole] = (batch.baseline_pixel_values[image] if own_baselines else batch.baseline_pixel_values)[hole]
            after = model(picture)
            for number, target in enumerate(SCALARS):
                change = scalar_of(before, labels, target) - scalar_of(after, labels, target)
                expected[number, image, row, col] = change.abs().squeeze()
    for size in (1, 2, 5, 32):
        settings = MethodSettings(internal_batch_size=size)
        close(occlusion_all(model, batch, settings), expected)
    for number, target in enumerate(SCALARS):
        close(occlusion(model, batch, MethodSettings(internal_batch_size=7), target), expected[number])


@pytest.mark.parametrize("target", [None, 2])
def test_occlusion_is_stock_captum(target):
    model = tiny_model()
    batch = tiny_batch(model, 3)
    expected = Occlusion(lambda x, labels: scalar_of(model(x), labels, target)).attribute(
        batch.pixel_values,
        sliding_window_shapes=(3, 4, 4),
        strides=(3, 4, 4),
        baselines=batch.baseline_pixel_values[None],
        additional_forward_args=(batch.labels,),
    )
    expected = expected[:, 1, ::4, ::4].abs().double()  # Captum rounds them to float32
    close(occlusion(model, batch, SETTINGS, target), expected, 1e-6)


class Tail(nn.Module):
    """The last block and what follows, entered by patches `[image channel row col]` at a layer of their own."""

    def __init__(self, model):
        super().__init__()
        self.model, self.grid = model, nn.Identity()

    def forward(self, grid, special, pixel_values, labels, target):
        tokens = torch.cat((special, self.grid(grid).flatten(2).transpose(1, 2)), dim=1)
        with starting_at(self.model, 2, tokens):
            predictions = self.model(pixel_values)
        return -loss_per_image(predictions, labels) if target is None else predictions[:, target]


@pytest.mark.parametrize("target", SCALARS)
@pytest.mark.parametrize("kind", ["dinov2_lora", "registers"])
def test_grad_cam_is_stock_captum_on_a_grid_of_tokens(kind, target):
    model = tiny_model(kind)
    batch = tiny_batch(model, 6)
    special = head_layout(model).num_special_tokens
    states = prefix_states(model, batch.pixel_values)[-1]
    grid = states[:, special:].transpose(1, 2).unflatten(2, (4, 4)).clone().requires_grad_()
    tail = Tail(model)
    expected = (
        LayerGradCam(tail, tail.grid)
        .attribute(
            grid,
            additional_forward_args=(states[:, :special], batch.pixel_values, batch.labels, target),
            relu_attributions=True,
        )[:, 0]
        .detach()
    )
    empty = expected.flatten(1).amax(1) == 0
    assert int(empty.sum()) < 6 and float(expected.max()) > 0
    expected[empty] = 1
    close(layer_grad_cam(model, batch, MethodSettings(internal_batch_size=4), target), expected, 1e-8)


def test_grad_cam_by_hand():
    """Slopes of minus the loss at the tokens by finite differences."""
    model = tiny_model()
    batch = tiny_batch(model, 2)
    states = prefix_states(model, batch.pixel_values)[-1]
    slopes, step = torch.zeros_like(states), 1e-5

    def numbers(tokens):
        with starting_at(model, 2, tokens), torch.no_grad():
            return -loss_per_image(model(batch.pixel_values), batch.labels)

    for token, channel in np.ndindex(*states.shape[1:]):
        moved = torch.zeros_like(states)
        moved[:, token, channel] = step
        slopes[:, token, channel] = (numbers(states + moved) - numbers(states - moved)) / (2 * step)
    expected = torch.zeros(2, 16, dtype=torch.float64)
    for image in range(2):
        weights = slopes[image, 1:].mean(0)
        for patch in range(16):
            expected[image, patch] = max(0.0, float(weights @ states[image, 1 + patch]))
    assert float(expected.amax(1).min()) > 0
    close(layer_grad_cam(model, batch, SETTINGS), expected.view(2, 4, 4), 1e-6)


def test_a_picture_without_any_grad_cam_gets_a_uniform_map_and_crashes_nothing():
    model = tiny_model()
    batch = tiny_batch(model, 4)
    given = layer_grad_cam(model, batch, SETTINGS, 0)
    with torch.no_grad():
        model.head[4].weight[0] *= -1  # another sign: what was positive is clamped, and the other way round
    turned = layer_grad_cam(model, batch, SETTINGS, 0)
    assert not bool(((given > 0) & (turned > 0) & (given != 1) & (turned != 1)).any())
    assert bool(((given > 0) | (turned > 0)).all()) and bool((given == 0).any())
    with torch.no_grad():
        model.head[4].weight[0] = 0
    maps = run_pixel_method("layer_grad_cam", model, batch, SETTINGS, 0)
    assert torch.equal(maps, torch.ones(4, 4, 4))
    assert torch.equal(run_pixel_method("gradient_rollout", model, batch, SETTINGS, 0), torch.ones(4, 4, 4))


def attentions_of(model, pixel_values):
    """Attentions [image layer head query key] as transformers reports them."""
    with torch.no_grad():
        return torch.stack(model.backbone(pixel_values, output_attentions=True).attentions, dim=1)


def full_rollout(layers, special, side=4):
    """CLS row over patches of the full product of ½A + ½I with rows that sum to 1; `layers` [layer query key]."""
    product = torch.eye(layers.shape[-1], dtype=layers.dtype)
    for fused in layers:
        mixed = 0.5 * fused + 0.5 * torch.eye(len(fused), dtype=fused.dtype)
        product = torch.diag(1 / mixed.sum(1)) @ mixed @ product
    return product[0, special:].view(side, side)


def discarded(fused, ratio):
    """`[query key]` with the smallest entries outside the first column at 0, one by one."""
    kept = fused.clone()
    places = sorted(((float(fused[q, k]), q, k) for q, k in np.ndindex(*fused.shape) if k > 0), reverse=True)
    for _, query, key in places[len(places) - int(ratio * len(places)) :]:
        kept[query, key] = 0
    return kept


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_are_products_of_full_matrices(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    special = head_layout(model).num_special_tokens
    names = ["rollout_max", "rollout_min", "rollout_discard"]
    shared = read_attention_methods(model, batch, SETTINGS, pixels=names).maps
    for name, fuse in (("rollout_max", torch.amax), ("rollout_min", torch.amin), ("rollout_discard", torch.mean)):
        got = PIXEL_METHODS[name].function(model, batch, MethodSettings(internal_batch_size=2), 1)
        for image, attention in enumerate(attentions_of(model, batch.pixel_values)):
            fused = fuse(attention, 1)
            if name == "rollout_discard":
                fused = torch.stack([discarded(matrix, 0.9) for matrix in fused])
            expected = full_rollout(fused, special)
            assert float(expected.max()) > 0
            close(got[image], expected, 1e-9)
        assert torch.equal(shared[name], got.float())


def test_a_picture_whose_cls_loses_its_way_gets_a_uniform_map():
    """Of 20 weights outside the CLS column the two largest stay: here or there one of them is of the CLS query."""
    layout = HeadLayout(num_layers=2, num_heads=1, head_dim=1, num_special_tokens=1, num_rows=2, num_cols=2)
    attention = 0.02 + torch.arange(25).view(5, 5).double() / 1e4
    attention[1, 2] = attention[4, 4] = 0.9
    lost, found = attention.clone(), attention.clone()
    found[0, 3] = 0.95
    layers = [torch.stack((lost, found))[:, None]] * 2
    maps = rollout_discard_of(layers, layout)
    assert torch.equal(maps[0], torch.ones(2, 2))
    expected = full_rollout(torch.stack([discarded(found, 0.9)] * 2), 1, 2)
    assert expected.count_nonzero() == 1
    close(maps[1], expected)


def products_in_closed_form(model, batch, target):
    """A ⊙ ∇A [image layer head query key] from ∂s/∂A[q, k] = v[k]·∂s/∂z[q], since z = A v."""
    values, contexts = [], []
    handles = [m.v_proj.register_forward_hook(lambda _, __, out: values.append(out)) for m in attention_modules(model)]
    for projection in output_projections(model):
        handles.append(projection.register_forward_pre_hook(lambda _, args: contexts.append(args[0])))
    predictions = model(batch.pixel_values.clone().requires_grad_())
    for handle in handles:
        handle.remove()
    scalar = scalar_of(predictions, batch.labels, target).sum() * (-1 if target is None else 1)
    gradients = torch.autograd.grad(scalar, contexts)
    weights = attentions_of(model, batch.pixel_values)
    products = []
    for layer, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        value, gradient = (tensor.detach().unflatten(-1, (2, 6)) for tensor in (value, gradient))
        products.append(weights[:, layer] * torch.einsum("bkhd,bqhd->bhqk", value, gradient))
    return torch.stack(products, dim=1)


@pytest.mark.parametrize("target", [None, 0, 2])
@pytest.mark.parametrize("kind", ["dinov2_lora", "registers"])
def test_gradient_rollout_is_a_product_of_full_matrices(kind, target):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    special = head_layout(model).num_special_tokens
    got = gradient_rollout(model, batch, MethodSettings(internal_batch_size=2), target)
    for image, products in enumerate(products_in_closed_form(model, batch, target)):
        expected = full_rollout(products.clamp_min(0).mean(1), special)
        assert float(expected.max()) > 0
        close(got[image], expected)


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("name", PIXEL_METHODS)
def test_a_picture_s_map_knows_no_other_picture_and_no_place(name, target):
    model = tiny_model()
    batch = tiny_batch(model, 5)
    function = PIXEL_METHODS[name].function
    maps = function(model, batch, SETTINGS, target)
    assert maps.shape in ((5, 4, 4), (5, 16, 16)) and bool((maps >= 0).all()) and not maps.requires_grad
    assert torch.equal(maps, function(model, batch, SETTINGS, target))
    order = [3, 0, 4, 2, 1]
    close(function(model, batch.select(order), SETTINGS, target), maps[order], 1e-10)
    close(function(model, batch.select([2]), SETTINGS, target), maps[[2]], 1e-10)
    small = MethodSettings(pixel_steps=2, noise_samples=2, internal_batch_size=2)
    with torch.no_grad():
        close(function(model, batch, small, target), maps, 1e-10)


@pytest.mark.parametrize("name", PIXEL_METHODS)
def test_all_scalars_at_once_are_one_after_the_other(name):
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model, 3)
    before = model_state(model)
    maps = maps_of_all_scalars(name, model, batch, SETTINGS)
    assert maps.dtype == torch.float32 and len(maps) == 4
    for number, target in enumerate(SCALARS):
        close(maps[number], run_pixel_method(name, model, batch, SETTINGS, target), 1e-6)
    if PIXEL_METHODS[name].of_attention is None and PIXEL_METHODS[name].family != "control":
        assert len({tuple(row.flatten().tolist()) for row in maps}) == 4
    assert before.differences(model_state(model)) == []


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [
        ("saliency", 1, 4),
        ("integrated_gradients", 2, 8),
        ("occlusion", 17, 0),
        ("layer_grad_cam", 1, 4),
        ("gradient_rollout", 1, 4),
        ("rollout_max", 1, 0),
        ("sobel", 0, 0),
    ],
)
def test_all_scalars_share_passes(name, forwards, backwards):
    model = tiny_model()
    batch = tiny_batch(model, 3)
    counts = {"forward": 0, "backward": 0}

    def count(_, __, predictions):
        counts["forward"] += len(predictions)
        if predictions.requires_grad:
            predictions.register_hook(lambda gradient: counts.update(backward=counts["backward"] + len(gradient)))

    handle = model.head.register_forward_hook(count)
    maps_of_all_scalars(name, model, batch, SETTINGS)
    handle.remove()
    assert counts == {"forward": 3 * forwards, "backward": 3 * backwards}


@pytest.mark.parametrize("name", PIXEL_METHODS)
def test_passes_with_a_graph_hold_at_most_eight_pictures_and_others_the_settings_most(name):
    model, sizes = tiny_model(), []
    handle = model.head.register_forward_hook(lambda _, __, out: sizes.append(len(out)))
    PIXEL_METHODS[name].function(model, tiny_batch(model, 10), MethodSettings(internal_batch_size=32))
    handle.remove()
    assert max(sizes, default=0) == {"occlusion": 30, "uniform": 0, "sobel": 0, "laplace": 0}.get(name, 8)


@pytest.mark.parametrize("name", PIXEL_METHODS)
def test_model_and_batch_are_left_as_found_also_where_weights_have_gradients_and_passes_fail(name):
    class Interrupted(Exception):
        pass

    model = tiny_model().requires_grad_(True)
    batch = tiny_batch(model, 2)
    kept = {field: value.clone() for field, value in vars(batch).items()}
    before = model_state(model)
    PIXEL_METHODS[name].function(model, batch, SETTINGS)
    assert before.differences(model_state(model)) == []
    assert all(torch.equal(value, kept[field]) for field, value in vars(batch).items())

    def fail(*_):
        raise Interrupted

    handle = model.head.register_forward_hook(fail)
    before = model_state(model)
    if PIXEL_METHODS[name].family == "control":
        PIXEL_METHODS[name].function(model, batch, SETTINGS)
    else:
        with pytest.raises(Interrupted):
            PIXEL_METHODS[name].function(model, batch, SETTINGS)
    assert before.differences(model_state(model)) == []
    handle.remove()


def test_refusals(monkeypatch):
    model = tiny_model()
    batch = tiny_batch(model)
    for function in (occlusion, layer_grad_cam, gradient_rollout):
        with pytest.raises(ValueError, match="target: expected 0 to 2, got 3"):
            function(model, batch, SETTINGS, 3)
    long = torch.zeros(4, 3, 18, 16).double()
    wide = Batch(long, batch.labels, batch.indices, long[0])
    with pytest.raises(ValueError, match="expected rows and columns divisible into 4 x 4 patches, got 18 x 16"):
        occlusion(model, wide, SETTINGS)
    with pytest.raises(ValueError, match="unknown method 'lrp', expected one of saliency, "):
        maps_of_all_scalars("lrp", model, batch, SETTINGS)
    monkeypatch.setattr("attribution.relevance_maps.block_list", lambda model: None)
    with pytest.raises(ValueError, match="expected a model with a list of blocks"):
        layer_grad_cam(model, batch, SETTINGS)
    model.train()
    for function in MODEL_METHODS:
        with pytest.raises(ValueError, match="eval mode"):
            function(model, batch, SETTINGS)
    with pytest.raises(ValueError, match="eval mode"):
        maps_of_all_scalars("saliency", model, batch, SETTINGS)


def test_another_function_under_a_name_is_run_once_per_scalar(monkeypatch):
    def mine(model, batch, settings, target=None):
        return torch.full((len(batch), 4, 4), 5.0 if target is None else 1.0 + target)

    monkeypatch.setitem(PIXEL_METHODS, "saliency", Method("saliency", mine))
    model = tiny_model()
    maps = maps_of_all_scalars("saliency", model, tiny_batch(model), SETTINGS)
    assert maps.shape == (4, 4, 4, 4) and maps[:, 0, 0, 0].tolist() == [5, 1, 2, 3]


@pytest.mark.parametrize(("value", "words"), [(0.0, "every number is zero"), (float("nan"), "found NaN or infinity")])
def test_all_scalars_refuse_what_one_would(value, words):
    model = tiny_model()
    batch = tiny_batch(model)
    with torch.no_grad():
        model.head[4].weight[1] = value
    with pytest.raises(ValueError, match=f"^method saliency: {words}"):
        maps_of_all_scalars("saliency", model, batch, SETTINGS)
    with pytest.raises(ValueError, match=f"^method saliency: {words}"):
        run_pixel_method("saliency", model, batch, SETTINGS, 1)
