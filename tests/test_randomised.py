"""Copies drawn anew: which tensors changed, how they are distributed, and what stays untouched."""

import itertools
import math

import pytest
import torch
from tiny_models import KINDS, tiny_batch, tiny_model
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from attribution.planted import merged_copy
from attribution.prefix import block_list
from attribution.randomised import not_finetuned, reinitialised
from attribution.state import model_state
from attribution.vit import RegressorConfig, ViTRegressor, unwrapped

CONFIG = RegressorConfig(("a", "b"), ("s", "Hz"), (0.0, 0.0), (1.0, 1.0), image_size=32)


def changed(model, copied):
    """Names of the tensors that differ from those of the model with LoRA merged."""
    before = merged_copy(model).state_dict()
    after = copied.state_dict()
    assert before.keys() == after.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def of_block(model, name):
    """Number of the block that a tensor belongs to, or None."""
    blocks = block_list(model)
    places = {id(value): number for number, block in enumerate(blocks) for value in block.parameters()}
    return places.get(id(dict(model.named_parameters())[name]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
def test_the_regression_head_and_the_last_blocks_change_and_nothing_else(kind, num_blocks):
    model = tiny_model(kind)
    copied = reinitialised(model, 0, num_blocks=num_blocks)
    names = set(copied.state_dict())
    blocks = {name: of_block(copied, name) for name in names}
    expected = {name for name in names if name.startswith("head.")}
    expected |= {name for name, block in blocks.items() if block is not None and block >= 3 - num_blocks}
    assert changed(model, copied) == expected
    assert not any("lora" in name for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_changes_where_no_number_is_given(kind):
    model = tiny_model(kind)
    copied = reinitialised(model, 0)
    assert changed(model, copied) == set(copied.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_more_blocks_are_the_same_ones_and_more(kind):
    model = tiny_model(kind)
    copies = [reinitialised(model, 5, num_blocks=count) for count in (0, 1, 2, 3, None)]
    for few, many in itertools.pairwise(copies):
        for name in changed(model, few):
            assert torch.equal(few.state_dict()[name], many.state_dict()[name])


def wide_model():
    """Large enough to see distributions; its config says 0.05 and 0.5."""
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
        initializer_range=0.05,
        layerscale_value=0.5,
        use_mask_token=True,
    )
    model = ViTRegressor(Dinov2Model(config), CONFIG)
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, 7.0)
    return model.eval().requires_grad_(False)


def test_weights_are_drawn_as_at_initialisation():
    values = reinitialised(wide_model(), 0).state_dict()
    for name, value in values.items():
        assert not bool((value == 7).any())
        if name.startswith("head."):
            weight = values[name.rpartition(".")[0] + ".weight"]
            bound = 1 / math.sqrt(weight.shape[1])
            assert float(value.abs().max()) <= bound
            if value.numel() > 1000:
                assert float(value.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        elif name.endswith("bias") or "mask_token" in name:
            assert bool((value == 0).all())
        elif "norm" in name:
            assert bool((value == 1).all())
        elif "lambda1" in name:
            assert bool((value == 0.5).all())
        else:  # linear, convolution, class token, positions
            assert float(value.std()) == pytest.approx(0.05, rel=0.25 if value.numel() < 100 else 0.05)
            assert abs(float(value.mean())) < 0.02


def test_the_model_transformers_would_initialise_is_like_it():
    """Second derivation: the spread of every tensor in a fresh transformers model and a fresh regression head."""
    model = wide_model()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fresh = ViTRegressor(Dinov2Model(unwrapped(model.backbone).config), CONFIG).state_dict()
    for name, value in reinitialised(model, 0).state_dict().items():
        if value.numel() >= 50:
            expected = float(fresh[name].std())
            assert float(value.std()) == pytest.approx(expected, rel=0.4 if value.numel() < 200 else 0.06, abs=1e-12)


@pytest.mark.parametrize("make", [reinitialised, not_finetuned])
def test_seeds_decide_and_the_global_state_plays_no_part(make):
    model = tiny_model("dinov2_lora")
    state, torch_state = model_state(model), torch.get_rng_state()
    first = make(model, 3).state_dict()
    torch.rand(5)
    second, other = make(model, 3).state_dict(), make(model, 4).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["head.0.weight"], other["head.0.weight"])
    torch.set_rng_state(torch_state)
    make(model, 0)
    assert state.differences(model_state(model)) == []


@pytest.mark.parametrize("make", [reinitialised, not_finetuned])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_given_model_stays_and_the_copy_is_ready_for_use(make, dtype):
    model = tiny_model("dinov2_lora", dtype)
    pixel_values = tiny_batch(model).pixel_values
    before, predictions = {name: value.clone() for name, value in model.state_dict().items()}, model(pixel_values)
    copied = make(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(pixel_values), predictions)
    assert not any(part.training for part in copied.modules())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert copied.dtype == dtype and bool(torch.isfinite(copied(pixel_values)).all())
    assert not torch.allclose(copied(pixel_values), predictions)
    assert copied.backbone.config._attn_implementation == "eager"


@pytest.mark.parametrize("merged", [False, True])
def test_taking_lora_off_gives_the_pretrained_backbone(merged):
    model = tiny_model("dinov2_lora")
    pixel_values = tiny_batch(model).pixel_values
    with model.backbone.disable_adapter():
        expected = model.backbone(pixel_values).last_hidden_state
    if merged:
        model.backbone.merge_adapter()
    copied = not_finetuned(model, 0)
    with torch.no_grad():
        tuned = model.backbone(pixel_values).last_hidden_state
        found = copied.backbone(pixel_values).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    assert float((tuned - expected).abs().max()) > 1e-2
    assert not any("lora" in name for name in copied.state_dict())
    head = reinitialised(model, 0, num_blocks=0).head.state_dict()
    assert all(torch.equal(value, head[name]) for name, value in copied.head.state_dict().items())


def test_no_adapters_to_take_off():
    with pytest.raises(ValueError, match="Dinov2Model: expected a backbone with adapters, there are none to take off"):
        not_finetuned(tiny_model(), 0)


@pytest.mark.parametrize("num_blocks", [-1, 4])
def test_blocks_that_are_not_there_are_refused(num_blocks):
    with pytest.raises(ValueError, match=f"num_blocks: expected 0 to 3, got {num_blocks}"):
        reinitialised(tiny_model(), 0, num_blocks=num_blocks)


def test_weights_of_unknown_beginnings_are_refused():
    model = tiny_model()
    block_list(model)[1].temperature = nn.Parameter(torch.ones(1), requires_grad=False)
    reinitialised(model, 0, num_blocks=1)
    with pytest.raises(ValueError, match="temperature of a Dinov2Layer: its initial value is not known"):
        reinitialised(model, 0, num_blocks=2)
    model = tiny_model()
    model.head[1] = nn.PReLU()
    with pytest.raises(ValueError, match="regression head 1: expected linear layers, got a PReLU"):
        reinitialised(model, 0, num_blocks=0)
