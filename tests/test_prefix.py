import pytest
import torch
from tiny_models import KINDS, tiny_batch, tiny_model
from torch import nn

from attribution.ablation import zero_ablation
from attribution.prefix import block_list, prefix_states, starting_at


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
