"""Shapley values against enumeration of all sets of heads, Captum with the same permutations, and the axioms."""

import itertools
import math

import numpy as np
import pytest
import torch
from captum.attr import ShapleyValueSampling
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution import shapley
from attribution.batch import MethodSettings
from attribution.blocks import Block, parts_of
from attribution.contract import check_method
from attribution.gates import gated_loss
from attribution.shapley import (
    gate_shapley,
    losses_by_returns,
    losses_by_scenarios,
    permutations_of,
    shapley_values,
)
from attribution.vit import gated, loss_per_image, output_projections

SETTINGS = MethodSettings(permutations=3)


def loss_with(model, batch, present):
    """Loss [image] with these gates (0 to 5) at 1 and the others at 0, in one full pass."""
    gates = torch.tensor([[float(2 * layer + head in present) for head in range(2)] for layer in range(3)])
    with gated(model, gates), torch.no_grad():
        return loss_per_image(model(batch.pixel_values), batch.labels)


def exact_values(model, batch):
    """Σ over sets S without i of |S|! (n − |S| − 1)! / n! · (l(S) − l(S + i)), all 64 sets."""
    losses = {
        frozenset(present): loss_with(model, batch, present)
        for size in range(7)
        for present in itertools.combinations(range(6), size)
    }
    values = torch.zeros(len(batch), 6, dtype=torch.float64)
    for present, loss in losses.items():
        for gate in set(range(6)) - present:
            weight = math.factorial(len(present)) * math.factorial(5 - len(present)) / math.factorial(6)
            values[:, gate] += weight * (loss - losses[present | {gate}])
    return values.unflatten(1, (3, 2))


def orders_for(batch, seed=0, permutations=3):
    return torch.from_numpy(np.stack([permutations_of(seed, int(index), permutations, 6) for index in batch.indices]))


@pytest.mark.parametrize("kind", ["dinov2_lora"])
def test_all_permutations_give_the_exact_values(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model, 2)
    everything = torch.tensor(list(itertools.permutations(range(6)))).expand(2, -1, -1)
    expected = exact_values(model, batch)
    found = shapley_values(model, batch, everything, batch_size=200)
    torch.testing.assert_close(found, expected, atol=1e-10 * float(expected.abs().max()), rtol=0)


def test_sampled_permutations_come_close_to_the_exact_values():
    model = tiny_model()
    batch = tiny_batch(model, 2)
    expected = exact_values(model, batch)
    errors = [
        float((gate_shapley(model, batch, MethodSettings(permutations=count)) - expected).norm() / expected.norm())
        for count in (2, 150)
    ]
    assert errors[1] < 0.2 and errors[1] < errors[0] / 3


@pytest.mark.parametrize("kind", KINDS)
def test_captum_gives_the_same_from_the_same_permutations(kind):
    model = tiny_model(kind)
    if kind == "vit":
        model.set_attn_implementation("sdpa")  # transformers' eager ViT takes its softmax in float32
    batch = tiny_batch(model, 2)
    orders = orders_for(batch)
    found = gate_shapley(model, batch, SETTINGS)
    assert found.shape == (2, 3, 2) and found.dtype == torch.float64
    for image in range(2):
        sampling = ShapleyValueSampling(gated_loss(model))
        rows = orders[image].tolist()
        sampling.permutation_generator = lambda *_, rows=rows: rows
        part = batch.select([image])
        expected = -sampling.attribute(
            torch.ones(1, 6, dtype=torch.float64),
            baselines=0.0,
            additional_forward_args=(part.pixel_values, part.labels),
            n_samples=3,
            perturbations_per_eval=1,
        )
        # Captum adds up in float32.
        bound = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(found[image].flatten(), expected[0].double(), atol=bound, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_full_passes(kind):
    """Both ways through the permutations, against one full pass per step."""
    model = tiny_model(kind)
    if kind == "vit":
        model.set_attn_implementation("sdpa")
    batch = tiny_batch(model, 2)
    orders = orders_for(batch)
    expected = torch.stack(
        [
            torch.stack([loss_with(model, batch.select([image]), row[:place])[0] for place in range(7)])
            for image in range(2)
            for row in orders[image].tolist()
        ]
    ).unflatten(0, (2, 3))
    bound = 1e-10 * float(expected.max())
    parts = parts_of(model, batch.pixel_values[:1])
    assert parts is not None
    for batch_size in (4, 32):
        torch.testing.assert_close(losses_by_returns(parts, batch, orders, batch_size), expected, atol=bound, rtol=0)
        torch.testing.assert_close(losses_by_scenarios(model, batch, orders, batch_size), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("whole", [True, False])
def test_sum_over_heads_is_the_loss_of_no_heads_less_that_of_all(whole, monkeypatch):
    if not whole:
        monkeypatch.setattr(shapley, "parts_of", lambda *_: None)  # a model that cannot be taken apart
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model, 5)
    found = gate_shapley(model, batch, SETTINGS)
    expected = loss_with(model, batch, ()) - loss_with(model, batch, range(6))
    torch.testing.assert_close(found.sum((1, 2)), expected, atol=1e-10, rtol=0)
    assert float(expected.abs().min()) > 1e-3


def test_a_head_that_does_nothing_gets_nothing():
    model = tiny_model()
    batch = tiny_batch(model, 2)
    output_projections(model)[0].weight[:, 6:] = 0
    found = gate_shapley(model, batch, SETTINGS)  # nothing from any permutation
    assert float(found[:, 0, 1].abs().max()) < 1e-12 < 1e-3 < float(found[:, 0, 0].abs().min())
    wired = planted_model()
    pictures = planted_batch(wired)
    scores = gate_shapley(wired, pictures, SETTINGS)
    others = torch.ones(2, 2, dtype=torch.bool)
    others[PLANTED_HEAD] = False
    assert float(scores[:, others].abs().max()) < 1e-12 and float(scores[:, *PLANTED_HEAD].min()) > 0.1


def test_steps_reuse_the_blocks_before_the_head_that_returns(monkeypatch):
    """Rows that go through each part: a return to layer l feeds blocks l to 2 forward, and attends in those after l."""
    fed, attended = [0, 0, 0], [0, 0, 0]
    model = tiny_model()
    batch = tiny_batch(model, 2)
    parts = parts_of(model, batch.pixel_values[:1])
    numbers = {id(block.norm1): number for number, block in enumerate(parts.blocks)}

    def counted(name, counts):
        original = getattr(Block, name)

        def method(self, states):
            counts[numbers[id(self.norm1)]] += len(states)
            return original(self, states)

        monkeypatch.setattr(Block, name, method)

    counted("fed_forward", fed)
    counted("contexts", attended)
    counted("first_contexts", attended)
    losses_by_returns(parts, batch, orders_for(batch, permutations=4), batch_size=8)
    rows, heads = 8, 2
    assert fed == [2 + rows * heads * (layer + 1) for layer in range(3)]
    assert attended == [2 + rows * heads * layer for layer in range(3)]


def test_permutations_are_those_of_the_picture():
    first = permutations_of(0, 10, 4, 6)
    np.testing.assert_array_equal(first, permutations_of(0, 10, 4, 6))
    np.testing.assert_array_equal(first[:2], permutations_of(0, 10, 2, 6))
    rng = np.random.default_rng([0, 9, 10])
    np.testing.assert_array_equal(first, [rng.permutation(6) for _ in range(4)])
    assert (first != permutations_of(1, 10, 4, 6)).any() and (first != permutations_of(0, 11, 4, 6)).any()


def test_settings_count():
    model = tiny_model()
    batch = tiny_batch(model)
    found = gate_shapley(model, batch, SETTINGS)
    torch.testing.assert_close(found, shapley_values(model, batch, orders_for(batch)), atol=1e-10, rtol=1e-10)
    assert not torch.allclose(found, gate_shapley(model, batch, MethodSettings(permutations=3, seed=1)))
    assert not torch.allclose(found, gate_shapley(model, batch, MethodSettings(permutations=4)))


def test_promises_of_a_head_method():
    check_method(gate_shapley)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (torch.arange(6).expand(4, 2, 6)[:3], r"expected \[4 permutation 6\].*got \[3, 2, 6\]"),
        (torch.arange(5).expand(4, 2, 5), r"got \[4, 2, 5\]"),
        (torch.zeros(4, 0, 6, dtype=torch.int64), r"got \[4, 0, 6\]"),
        (torch.zeros(4, 2, 6, dtype=torch.int64), "each of the numbers 0 to 5 once"),
    ],
)
def test_other_orders_are_refused(orders, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        shapley_values(model, tiny_batch(model), orders)


def test_train_mode_is_refused():
    model = tiny_model().train()
    with pytest.raises(ValueError, match="eval mode"):
        gate_shapley(model, tiny_batch(model), SETTINGS)
