import pytest
import torch
from tiny_models import KINDS, tiny_batch, tiny_model
from torch import nn

from attribution.ablation import zero_ablation
from attribution.prefix import block_list, prefix_states, starting_at
from attribution.sweep import predictions_without
from attribution.vit import RegressorConfig, ViTRegressor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_sweep_from_prefixes_equals_full_passes(kind, dtype, bound):
    model = tiny_model(kind, dtype)
    batch = tiny_batch(model)
    fast, full = (
        zero_ablation(model, batch, batch_size=3, route="prefix" if reuse else "full") for reuse in (True, False)
    )
    scale = full.intact_loss.max()
    assert (fast.delta_loss - full.delta_loss).abs().max() <= bound * scale
    assert (fast.ablated_predictions - full.ablated_predictions).abs().max() <= bound * 10
    assert full.delta_loss.abs().max() > 1e-3


@pytest.mark.parametrize("reuse", [True, False])
def test_any_replacement_goes_through(reuse):
    model = tiny_model()
    batch = tiny_batch(model)
    generator = torch.Generator().manual_seed(3)
    replacement = torch.randn((len(batch), 3, 17, 2, 6), generator=generator, dtype=torch.float64)
    some = zero_ablation(
        model, batch, replacement=replacement, heads=[(2, 1), (0, 0)], route="prefix" if reuse else "full"
    )
    whole = zero_ablation(model, batch, replacement=replacement, route="full" if reuse else "prefix")
    for layer, head in ((2, 1), (0, 0)):
        torch.testing.assert_close(
            some.delta_loss[:, layer, head], whole.delta_loss[:, layer, head], atol=1e-10, rtol=0
        )
    assert some.delta_loss[:, 1].isnan().all()


def test_states_enter_their_blocks():
    model = tiny_model()
    batch = tiny_batch(model)
    intact = model(batch.pixel_values)
    states = prefix_states(model, batch.pixel_values, batch_size=3)
    assert len(states) == 3
    for layer, state in enumerate(states):
        with starting_at(model, layer, state):
            torch.testing.assert_close(model(batch.pixel_values), intact, atol=1e-12, rtol=0)


def test_earlier_blocks_do_not_run():
    model = tiny_model()
    batch = tiny_batch(model)
    states = prefix_states(model, batch.pixel_values)
    blocks, ran = list(block_list(model)), []
    handles = [block.register_forward_hook(lambda *_, n=number: ran.append(n)) for number, block in enumerate(blocks)]
    with starting_at(model, 2, states[2]):
        model(batch.pixel_values)
    for handle in handles:
        handle.remove()
    assert ran == [2]


def test_model_is_left_as_it_was_also_after_an_error():
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    blocks, names = list(block_list(model)), list(model.state_dict())
    states = prefix_states(model, batch.pixel_values)
    with pytest.raises(RuntimeError, match="stop"), starting_at(model, 2, states[2]):
        raise RuntimeError("stop")
    assert list(block_list(model)) == blocks and list(model.state_dict()) == names
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in blocks)


def test_blocks_that_return_tuples_are_run_whole():
    model = tiny_model()
    batch = tiny_batch(model)
    expected = zero_ablation(model, batch)
    for block in block_list(model):
        block.register_forward_hook(lambda _, __, output: (output,))
    # What follows a block takes its first part again.
    for block in list(block_list(model))[1:]:
        block.register_forward_pre_hook(
            lambda _, args: (args[0][0] if isinstance(args[0], tuple) else args[0], *args[1:])
        )
    model.backbone.layernorm.register_forward_pre_hook(
        lambda _, args: (args[0][0] if isinstance(args[0], tuple) else args[0],)
    )
    assert prefix_states(model, batch.pixel_values) is None
    torch.testing.assert_close(zero_ablation(model, batch).delta_loss, expected.delta_loss, atol=1e-10, rtol=0)


def test_models_without_a_list_of_blocks_have_no_prefix():
    model = tiny_model()
    batch = tiny_batch(model)

    class Chain(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            for number, block in enumerate(blocks):
                setattr(self, f"block{number}", block)

    assert block_list(Chain(block_list(model))) is None
    with pytest.raises(ValueError, match="start at block 3"), starting_at(model, 3, batch.pixel_values):
        pass


class ResidualOutside(torch.nn.Module):
    """Blocks that give what they add: a pass cannot start at one, for a block passed by would add its input."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Linear(12, 12)
        self.blocks = torch.nn.ModuleList([Attention() for _ in range(3)])

    def forward(self, pixel_values):
        tokens = self.stem(pixel_values.flatten(2)[:, :, :60].reshape(len(pixel_values), -1, 12))
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj = torch.nn.Linear(12, 36), torch.nn.Linear(12, 12)

    def forward(self, tokens):
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def test_no_pass_starts_at_a_block_whose_residual_is_added_outside():
    torch.manual_seed(0)
    config = RegressorConfig(("a",), ("m",), (0.0,), (1.0,), image_size=16)
    model = ViTRegressor(ResidualOutside(), config, hidden_size=12).double().eval().requires_grad_(False)
    pixel_values = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    assert prefix_states(model, pixel_values) is None
    scenarios = [(), ((0, 1),), ((2, 0),), ((1, 0), (2, 1))]
    found, route = predictions_without(model, pixel_values, scenarios)
    expected, _ = predictions_without(model, pixel_values, scenarios, route="full")
    assert route == "full" and torch.equal(found, expected)
