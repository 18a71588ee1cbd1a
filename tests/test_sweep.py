"""The routes of the sweep against each other, and against heads replaced by hand in one full pass per scenario."""

import pytest
import torch
from test_ablation import exact_model
from tiny_models import CONFIG, KINDS, tiny_batch, tiny_model
from torch import nn
from transformers import DeiTConfig, DeiTModel, Dinov2Config, Dinov2Model

from attribution.ablation import zero_ablation
from attribution.blocks import parts_of
from attribution.prefix import block_list
from attribution.sweep import predictions_without
from attribution.vit import ViTRegressor, output_projections

SINGLE = [(), *(((layer, head),) for layer in range(3) for head in range(2))]
# Heads of one block, of several, of the last alone, all of them, and one in no order.
TOGETHER = [((0, 0), (0, 1)), ((2, 1), (0, 1), (1, 0)), ((2, 0), (2, 1)), tuple(h for s in SINGLE for h in s), ()]


def by_hand(model, pixel_values, removed, replacement):
    """One full pass in which the channels of the removed heads are overwritten."""

    def hook_of(layer):
        def hook(_, args):
            context = args[0].clone().unflatten(-1, (2, 6))
            for head in (head for place, head in removed if place == layer):
                context[:, :, head] = 0.0 if replacement is None else replacement[:, layer, :, head]
            return (context.flatten(-2),)

        return hook

    handles = [
        projection.register_forward_pre_hook(hook_of(layer))
        for layer, projection in enumerate(output_projections(model))
    ]
    with torch.no_grad():
        predictions = model(pixel_values)
    for handle in handles:
        handle.remove()
    return predictions.double()


def random_replacement(model, batch, tokens):
    generator = torch.Generator().manual_seed(5)
    return torch.randn((len(batch), 3, tokens, 2, 6), generator=generator).to(model.dtype)


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("route", ["shared", "prefix", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_route_removes_what_it_is_told(kind, route, replaced):
    model = exact_model(kind, torch.float64)
    batch = tiny_batch(model, 5)
    values = random_replacement(model, batch, 21 if kind == "registers" else 17) if replaced else None
    scenarios = SINGLE + TOGETHER
    for batch_size in (2, 32):
        found, taken = predictions_without(
            model, batch.pixel_values, scenarios, replacement=values, batch_size=batch_size, route=route
        )
        assert taken == route and found.shape == (12, 5, 3)
        for number, removed in enumerate(scenarios):
            expected = by_hand(model, batch.pixel_values, removed, values)
            assert float((found[number] - expected).abs().max()) <= 1e-10 * float(expected.abs().max())
    intact, first = found[0], found[1]
    assert float((first - intact).abs().max()) > 1e-3


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_stays_within_the_bound(kind, replaced):
    model = tiny_model(kind, torch.float32)
    batch = tiny_batch(model)
    values = random_replacement(model, batch, 21 if kind == "registers" else 17) if replaced else None
    fast, full = (zero_ablation(model, batch, replacement=values, route=route) for route in ("shared", "full"))
    assert float((fast.delta_loss - full.delta_loss).abs().max()) <= 1e-5 * float(full.intact_loss.max())


def test_replacements_broadcast_as_in_the_gates():
    model = tiny_model()
    batch = tiny_batch(model)
    generator = torch.Generator().manual_seed(2)
    for shape in ((1, 1, 1, 1, 1), (1, 3, 1, 2, 6), (4, 1, 17, 1, 6), (1, 3, 17, 1, 1), (4, 3, 1, 2, 6)):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        shared, full = (
            predictions_without(model, batch.pixel_values, SINGLE + TOGETHER, replacement=values, route=route)[0]
            for route in ("shared", "full")
        )
        torch.testing.assert_close(shared, full, atol=1e-10, rtol=1e-10)


def build(backbone):
    model = ViTRegressor(backbone, CONFIG)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.35 * torch.randn(parameter.shape, generator=generator)
    model.set_attn_implementation("sdpa")
    return model.double().eval().requires_grad_(False)


SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: Dinov2Model(Dinov2Config(mlp_ratio=2, use_swiglu_ffn=True, **SIZES)),
        lambda: Dinov2Model(Dinov2Config(mlp_ratio=2, qkv_bias=False, **SIZES)),
        lambda: DeiTModel(DeiTConfig(intermediate_size=24, hidden_act="gelu_new", **SIZES), add_pooling_layer=False),
    ],
    ids=["gated MLP", "no bias", "DeiT"],
)
def test_other_makes_of_known_blocks(backbone):
    model = build(backbone())
    batch = tiny_batch(model)
    shared, full = (zero_ablation(model, batch, route=route) for route in ("auto", "full"))
    assert (shared.route, full.route) == ("shared", "full")
    torch.testing.assert_close(shared.delta_loss, full.delta_loss, atol=1e-10, rtol=1e-10)
    assert float(full.delta_loss.abs().max()) > 1e-3


def test_a_hook_inside_a_block_is_not_passed_by():
    model = tiny_model()
    batch = tiny_batch(model)
    plain = zero_ablation(model, batch)
    handle = block_list(model)[1].mlp.register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(ValueError, match="blocks of Dinov2Model are not known"):
        zero_ablation(model, batch, route="shared")
    hooked, full = (zero_ablation(model, batch, route=route) for route in ("auto", "full"))
    handle.remove()
    assert (plain.route, hooked.route) == ("shared", "prefix")
    torch.testing.assert_close(hooked.delta_loss, full.delta_loss, atol=1e-10, rtol=1e-10)
    assert float((plain.delta_loss - hooked.delta_loss).abs().max()) > 1e-3


def test_a_block_that_does_something_else_is_noticed():
    model = tiny_model()
    batch = tiny_batch(model)
    block = block_list(model)[0]
    forward = block.forward
    block.forward = lambda *args, **kwargs: 1.01 * forward(*args, **kwargs)
    found, full = (zero_ablation(model, batch, route=route) for route in ("auto", "full"))
    assert found.route == "prefix"
    torch.testing.assert_close(found.delta_loss, full.delta_loss, atol=1e-10, rtol=1e-10)


def test_unknown_blocks_start_at_their_block_and_unknown_models_at_the_beginning():
    model = tiny_model()
    batch = tiny_batch(model)
    expected = zero_ablation(model, batch, route="full").delta_loss

    class OwnBlock(type(block_list(model)[0])):
        pass

    for block in block_list(model):
        block.__class__ = OwnBlock
    found = zero_ablation(model, batch)
    assert found.route == "prefix"
    torch.testing.assert_close(found.delta_loss, expected, atol=1e-10, rtol=1e-10)

    class Pair(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, hidden_states, *args, **kwargs):
            return self.second(self.first(hidden_states, *args, **kwargs), *args, **kwargs)

    encoder = model.backbone.encoder
    first, second, third = encoder.layer
    encoder.layer = nn.ModuleList([Pair(first, second), third]).eval()
    found = zero_ablation(model, batch)
    assert found.route == "full"
    torch.testing.assert_close(found.delta_loss, expected, atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="no list of blocks"):
        zero_ablation(model, batch, route="prefix")
    with pytest.raises(ValueError, match="expected one of auto, shared, prefix, full, got 'fast'"):
        zero_ablation(model, batch, route="fast")


def test_scenarios_are_checked_and_heads_named_twice_removed_once():
    model = tiny_model()
    batch = tiny_batch(model)
    for pair in ((-1, 0), (3, 0), (0, 2)):
        with pytest.raises(ValueError, match=f"no layer {pair[0]} head {pair[1]} in 3 layers of 2 heads"):
            predictions_without(model, batch.pixel_values, [(pair,)])
    once, twice = predictions_without(model, batch.pixel_values, [((0, 1),), ((0, 1), (0, 1))])[0]
    assert torch.equal(once, twice)


@pytest.mark.parametrize("route", ["shared", "prefix", "full"])
def test_a_replacement_of_another_dtype_is_taken(route):
    model = tiny_model(dtype=torch.float32)
    batch = tiny_batch(model)
    values = random_replacement(model, batch, 17)
    expected = zero_ablation(model, batch, replacement=values, route=route).delta_loss
    assert torch.equal(zero_ablation(model, batch, replacement=values.double(), route=route).delta_loss, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_check_of_the_parts_finds_a_block_that_does_something_else(dtype):
    model = tiny_model(dtype=torch.float32).to(dtype)
    picture = tiny_batch(model).pixel_values[:1]
    assert parts_of(model, picture) is not None
    block = block_list(model)[0]
    forward = block.forward
    block.forward = lambda *args, **kwargs: torch.zeros_like(forward(*args, **kwargs))
    assert parts_of(model, picture) is None
