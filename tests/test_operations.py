"""Counted operations: by hand, and against the operations torch executes."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from analysis.bench import operations
from analysis.bench.operations import Sizes, sizes_of
from attribution.ablation import zero_ablation
from attribution.batch import MethodSettings
from attribution.gates import gate_ixg

# One block is 10·(4·4·4 + 6) + 2·100·4 = 1500, one of which only the CLS row is read 70 + 2·2·10·4 = 230.
HAND = Sizes(
    num_layers=3, num_heads=2, head_dim=2, width=4, num_tokens=10, mlp_weights=6, embedding=100, readout=5
)  # fmt: skip
BUNDLED = Sizes(12, 6, 64, 384, 257, 2 * 384 * 1536, 256 * 588 * 384, 384 * 256 + 256 * 128 + 128 * 3)


def test_counts_by_hand():
    assert operations.block_macs(HAND) == 1500
    assert operations.last_block_macs(HAND) == 230
    assert operations.forward_macs(HAND) == 100 + 4500 + 5
    assert operations.backward_macs(HAND) == 3 * (700 + 1600) + 5
    assert operations.full_sweep_macs(HAND) == 7 * 4605
    assert operations.captum_sweep_macs(HAND) == 3 * 4 * 4605
    # 2 heads from block 0 (3 blocks), 1 (2 blocks), 2 (1 block), and the intact pass twice; 7 embeddings and readouts.
    assert operations.prefix_sweep_macs(HAND) == 4605 + (3 + 2 * 6) * 1500 + 7 * 105
    # Intact: 100 + 2·1500 + 230 + 5. A head's own part of a block: 2·4 + 6 = 14 a token.
    # From block 0: 10·14, one whole block, the last one. From block 1: 10·14 and the last one. From block 2: 14.
    assert operations.shared_sweep_macs(HAND) == 3335 + 2 * (140 + 1500 + 230) + 2 * (140 + 230) + 2 * 14 + 6 * 5


def test_default_model():
    """12 blocks of 6 heads over 257 tokens: how many times fewer operations than one forward per head."""
    full = operations.full_sweep_macs(BUNDLED)
    assert operations.forward_macs(BUNDLED) == 6_123_693_440
    assert full / operations.shared_sweep_macs(BUNDLED) == pytest.approx(2.315, abs=1e-3)
    assert full / operations.prefix_sweep_macs(BUNDLED) == pytest.approx(1.767, abs=1e-3)
    assert operations.captum_sweep_macs(BUNDLED) / full == pytest.approx(96 / 73)


def executed(work, batches):
    """Multiply-adds per picture that torch executes: those of 12 pictures less those of 4, by the 8 pictures."""
    aten = torch.ops.aten
    fused = aten._scaled_dot_product_flash_attention_for_cpu

    def of_attention(query, key, value, *_, out_shape=None, **__):
        images, heads, queries, size = query
        return 4 * images * heads * queries * key[2] * size

    def of_addmm_(_, left, right, *__, out_shape=None, **___):
        return 2 * left[0] * left[1] * right[1]

    counts = []
    for batch in batches:
        with FlopCounterMode(display=False, custom_mapping={fused: of_attention, aten.addmm_: of_addmm_}) as counter:
            work(batch)
        counts.append(counter.get_total_flops() / 2)
    return (counts[1] - counts[0]) / 8


@pytest.mark.parametrize("kind", ["vit", "dinov2", "registers"])
def test_counts_are_what_is_executed(kind):
    model = tiny_model(kind)
    batches = [tiny_batch(model, count) for count in (4, 12)]
    sizes = sizes_of(model)
    with torch.no_grad():
        assert executed(lambda batch: model(batch.pixel_values), batches) == operations.forward_macs(sizes)
    for route, counted in operations.SWEEPS.items():

        def sweep(batch, route=route):
            zero_ablation(model, batch, route=route)

        assert executed(sweep, batches) == counted(sizes), route


def test_backward_counts_are_what_is_executed():
    model = tiny_model()
    batches = [tiny_batch(model, count) for count in (4, 12)]
    sizes = sizes_of(model)
    found = executed(lambda batch: gate_ixg(model, batch, MethodSettings()), batches)
    expected = operations.forward_macs(sizes) + operations.backward_macs(sizes)
    # The gates enter at the first block's output projection: what lies before it needs no backward pass.
    tokens, context = sizes.num_tokens, sizes.context_width
    spared = tokens * 3 * sizes.width * context + 4 * tokens**2 * context
    assert found == expected - spared


def test_model_without_blocks_is_refused(monkeypatch):
    monkeypatch.setattr(operations, "block_list", lambda model: None)
    with pytest.raises(ValueError, match="no list of blocks, each with one attention module"):
        sizes_of(tiny_model())
