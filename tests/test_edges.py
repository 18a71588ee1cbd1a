"""Edges between heads against plain hooks in float64: queries, keys or values of one head formed anew, nothing else."""

import pytest
import torch
from contexts_moved import contexts_by_hooks, of_head
from tiny_models import planted_batch, planted_model, tiny_batch, tiny_model

from attribution.edges import INPUTS, estimated_edges, exact_edges
from attribution.gates import composed_loss_change
from attribution.prefix import block_list
from attribution.residual_weights import weights_to_residual
from attribution.vit import attention_modules, loss_per_image

KINDS = ("dinov2", "dinov2_lora", "registers")
PROJECTIONS = dict(zip(INPUTS, ("q_proj", "k_proj", "v_proj"), strict=True))
PAIRS = [(layer, head) for layer in range(3) for head in range(2)]


def entering(model, pixel_values):
    seen = []
    handles = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in block_list(model)]
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    return seen


def outputs_with(model, batch, sender, receiver, name, share=1.0):
    """Outputs where one head's queries (keys, values) are formed without a share of what another head added."""
    (layer, head), (later, other) = sender, receiver
    block, attention = block_list(model)[later], attention_modules(model)[later]
    context = of_head(contexts_by_hooks(model, batch.pixel_values)[layer], head)
    added = context @ weights_to_residual(model)[layer].T
    projection = getattr(attention, PROJECTIONS[name])
    with torch.no_grad():
        anew = projection(block.norm1(entering(model, batch.pixel_values)[later] - share * added))

    def changed(_, __, output):
        found = output.clone()
        found[..., 6 * other : 6 * other + 6] = anew[..., 6 * other : 6 * other + 6]
        return found

    handle = projection.register_forward_hook(changed)
    try:
        with torch.no_grad():
            return model(batch.pixel_values)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_an_edge_is_one_input_of_one_head_formed_anew(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    senders = [(0, 1), (1, 0), (0, 0), (2, 1)]
    intact = loss_per_image(model(batch.pixel_values), batch.labels)
    for size in (32, 3):
        found = exact_edges(model, batch, senders, batch_size=size)
        assert found.shape == (4, 4, 3, 2, 3) and found.dtype == torch.float64
        for number, sender in enumerate(senders):
            for receiver in PAIRS:
                for place, name in enumerate(INPUTS):
                    got = found[:, number, *receiver, place]
                    if receiver[0] <= sender[0]:
                        assert bool(got.isnan().all())
                        continue
                    expected = outputs_with(model, batch, sender, receiver, name)
                    effect = loss_per_image(expected, batch.labels) - intact
                    torch.testing.assert_close(got, effect, rtol=0, atol=1e-10 * (1 + float(effect.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_the_finite_difference_of_every_edge(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    found = estimated_edges(model, batch, batch_size=3)
    assert found.shape == (4, 3, 2, 3, 2, 3)
    outputs = model(batch.pixel_values)
    scale = float(found[~found.isnan()].abs().max())
    for sender in PAIRS:
        for receiver in PAIRS:
            for place, name in enumerate(INPUTS):
                got = found[:, *sender, *receiver, place]
                if receiver[0] <= sender[0]:
                    assert bool(got.isnan().all())
                    continue
                down, up = (outputs_with(model, batch, sender, receiver, name, share) for share in (-1e-5, 1e-5))
                removed = -((up - down) / 2e-5)
                expected = composed_loss_change(outputs, batch.labels, removed)
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * scale)


def test_where_no_later_head_does_anything_no_edge_does():
    """The planted model's one working head is in the last block, uniform attention brings it what patches hold."""
    model = planted_model()
    batch = planted_batch(model)
    found = exact_edges(model, batch, [(0, 0), (0, 1)])
    assert float(found[~found.isnan()].abs().max()) <= 1e-10


def test_a_head_that_writes_what_another_reads_has_one_edge_to_its_values():
    """Head (0, 0) writes into the channel that the planted head brings to the answer: by values, not by pattern."""
    model = planted_model()
    first = attention_modules(model)[0]
    with torch.no_grad():
        first.v_proj.weight[0, 0] = 1.0
        first.o_proj.weight[0, 0] = 0.5
    batch = planted_batch(model)
    found = exact_edges(model, batch, [(0, 0), (0, 1)])
    estimate = estimated_edges(model, batch)
    values = found[:, 0, 1, 1, INPUTS.index("values")]
    assert float(values.abs().min()) > 1e-4
    rest = found.clone()
    rest[:, 0, 1, 1, INPUTS.index("values")] = torch.nan
    assert float(rest[~rest.isnan()].abs().max()) <= 1e-10
    known = estimate[:, 0, 0, 1, 1, INPUTS.index("values")]
    assert bool((known.sign() == values.sign()).all())


def test_refusals():
    model = tiny_model()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match="senders: no layer 3 head 0 in 3 layers of 2 heads"):
        exact_edges(model, batch, [(3, 0)])
    block_list(model)[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the blocks of Dinov2Model are not known"):
        estimated_edges(model, batch)
