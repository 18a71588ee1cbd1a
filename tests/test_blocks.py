"""Blocks taken apart against the blocks themselves."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_ablation import exact_model
from tiny_models import KINDS, tiny_batch, tiny_model

from attribution.blocks import take_apart
from attribution.contexts import contexts
from attribution.prefix import embedded, prefix_states
from attribution.vit import ViTRegressor, unwrapped


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_parts_put_together_are_the_model(kind):
    model = exact_model(kind, torch.float64)
    batch = tiny_batch(model)
    parts = take_apart(model)
    entering = prefix_states(model, batch.pixel_values)
    of_heads = contexts(model, batch.pixel_values)  # [image layer token head head_dim]
    states = parts.embed(batch.pixel_values)
    for layer, block in enumerate(parts.blocks):
        torch.testing.assert_close(states, entering[layer], atol=1e-12, rtol=1e-12)
        found = block.contexts(states)
        torch.testing.assert_close(found.unflatten(-1, (2, 6)), of_heads[:, layer], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(block.first_contexts(states), found[:, :1], atol=1e-12, rtol=1e-12)
        first = block.fed_forward(block.attended(states[:, :1], found[:, :1]))
        # What the heads bring adds up to what attention brings, but for the bias.
        shares = sum(block.share_of_head(head, found.unflatten(-1, (2, 6))[:, :, head]) for head in range(2))
        torch.testing.assert_close(
            states + shares + block.output_bias, block.attended(states, found), atol=1e-12, rtol=1e-12
        )
        states = block(states)
        torch.testing.assert_close(first, states[:, :1], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(parts.read(states[:, :1]), model(batch.pixel_values), atol=1e-12, rtol=1e-12)


def test_embedding_runs_no_block_and_leaves_no_hook():
    model = tiny_model()
    batch = tiny_batch(model)
    block = unwrapped(model.backbone).encoder.layer[0]
    before = len(block._forward_pre_hooks)
    ran = []
    handle = block.register_forward_hook(lambda *_: ran.append(1))
    states = embedded(model, batch.pixel_values)
    handle.remove()
    assert ran == [] and len(block._forward_pre_hooks) == before
    torch.testing.assert_close(states, prefix_states(model, batch.pixel_values)[0], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"target_modules": ["q_proj", "v_proj", "fc1", "fc2"]}, True),
        ({"target_modules": ["k_proj"], "use_rslora": True}, True),
        ({"target_modules": ["q_proj"], "use_dora": True}, False),
        ({"target_modules": ["q_proj"], "lora_bias": True}, False),
    ],
    ids=["MLP", "k", "DoRA", "bias"],
)
@torch.no_grad()
def test_adapters_are_added_to_the_weights_or_the_model_is_not_taken_apart(config, known):
    plain = tiny_model(dtype=torch.float32)
    backbone = get_peft_model(plain.backbone, LoraConfig(r=2, **config))
    model = ViTRegressor(backbone, plain.config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.35 * torch.randn(parameter.shape, generator=generator)
    model = model.double().eval()
    batch = tiny_batch(model)
    parts = take_apart(model)
    assert (parts is not None) == known
    if parts is not None:
        expected = model(batch.pixel_values)
        backbone.merge_adapter()
        for either in (parts, take_apart(model)):  # the adapters beside the weights, and merged into them
            states = either.embed(batch.pixel_values)
            for block in either.blocks:
                states = block(states)
            torch.testing.assert_close(either.read(states[:, :1]), expected, atol=1e-12, rtol=1e-12)
        backbone.unmerge_adapter()
        with backbone.disable_adapter():
            assert take_apart(model) is None
