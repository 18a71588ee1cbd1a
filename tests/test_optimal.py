"""Optimal constants: the ridge by least squares, heads against Adam, and that no head is worse off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contexts_moved import contexts_by_hooks, of_head
from tiny_models import planted_batch, planted_model, tiny_batch, tiny_model

from attribution.ablation import mean_ablation, zero_ablation
from attribution.contexts import contexts
from attribution.optimal import optimal_context, solved
from attribution.vit import loss_per_image, output_projections


def made(kind="dinov2", seed=0):
    model = tiny_model(kind, seed=seed)
    batch = tiny_batch(model, num_images=24, seed=1)
    near = batch.pixel_values[:1] + 0.15 * (batch.pixel_values - batch.pixel_values[:1])  # a smooth neighbourhood
    with torch.no_grad():
        labels = model(near) + 0.05 * batch.labels
    batch = replace(batch, pixel_values=near, labels=labels)
    return model, batch, contexts(model, near).mean(0)


def test_the_system_is_a_ridge_regression():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=40)
    matrix, vector = torch.from_numpy(x.T @ x), torch.from_numpy(x.T @ y)
    strength = 0.1 * np.trace(x.T @ x) / 5
    stacked = np.vstack([x, np.sqrt(strength) * np.eye(5)])
    expected = np.linalg.lstsq(stacked, -np.concatenate([y, np.zeros(5)]), rcond=None)[0]
    np.testing.assert_allclose(solved(matrix, vector, 0.1).numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_lora"])
def test_no_head_is_worse_off_than_at_zero_or_at_its_mean(kind):
    model, batch, mean = made(kind)
    found = optimal_context(model, list(batch.chunks(10)), list(batch.chunks(7)), mean)
    assert found.context.shape == mean.shape and len(found.loss_change) == 8
    effects = zero_ablation(model, batch, replacement=found.context).delta_loss.mean(0)
    zero, at_mean = zero_ablation(model, batch).delta_loss.mean(0), mean_ablation(model, batch, mean).delta_loss.mean(0)
    torch.testing.assert_close(found.loss_change["zero"], zero)
    torch.testing.assert_close(found.loss_change["mean"], at_mean)
    assert bool((effects <= torch.minimum(zero, at_mean) + 1e-12).all())
    least = torch.stack(list(found.loss_change.values())).amin(0)
    torch.testing.assert_close(effects, least)
    assert bool((effects < 0.9 * torch.minimum(zero, at_mean)).any())
    for layer, row in enumerate(found.candidate):
        for head, name in enumerate(row):
            torch.testing.assert_close(found.loss_change[name][layer, head], least[layer, head])


def adam(model, batch, layer, head, start, steps=400):
    """The same constant for all tokens and pictures, by gradient descent on the exact loss."""
    width = start.shape[-1]
    constant = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([constant], lr=0.02)
    best = np.inf
    for _ in range(steps):

        def replaced(_, args, constant=constant):
            own = args[0] - of_head(args[0], head)
            full = torch.zeros(own.shape[-1], dtype=own.dtype)
            pieces = [constant if at == head else torch.zeros(width, dtype=own.dtype) for at in range(2)]
            return (own + (full + torch.cat(pieces)),)

        handle = output_projections(model)[layer].register_forward_pre_hook(replaced)
        loss = loss_per_image(model(batch.pixel_values), batch.labels).mean()
        handle.remove()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        best = min(best, float(loss.detach()))
    return best


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 0), (2, 1)])
def test_a_constant_is_nearly_as_good_as_gradient_descent_finds_it(layer, head):
    model, batch, mean = made()
    found = optimal_context(model, [batch], [batch], mean, ridges=(1e-6, 1e-3, 1e-1))
    intact = float(loss_per_image(model(batch.pixel_values), batch.labels).mean())
    constants = {name: change for name, change in found.loss_change.items() if name.startswith("constant")}
    mine = min(float(change[layer, head]) for change in constants.values())
    start = contexts_by_hooks(model, batch.pixel_values)[layer].unflatten(-1, (2, 6))[:, :, head].mean((0, 1))
    theirs = adam(model, batch, layer, head, start) - intact
    zero = float(found.loss_change["zero"][layer, head])
    # Of what a constant can save over zero it saves nine tenths: the rest is what is not linear.
    assert zero - mine >= 0.9 * (zero - theirs)


def test_a_head_that_brings_a_constant_costs_nothing():
    """Of the planted model all heads but one bring nothing; with the pictures alike, that one brings a constant."""
    model = planted_model()
    batch = planted_batch(model)
    alike = replace(batch, pixel_values=batch.pixel_values[:1].expand_as(batch.pixel_values).clone())
    with torch.no_grad():
        alike = replace(alike, labels=model(alike.pixel_values))
    mean = contexts(model, alike.pixel_values).mean(0)
    found = optimal_context(model, [alike], [alike], mean)
    assert float(found.loss_change["zero"].max()) > 1e-3
    assert float(zero_ablation(model, alike, replacement=found.context).delta_loss.mean(0).max()) <= 1e-10


def test_refusals():
    model, batch, mean = made()
    with pytest.raises(ValueError, match="expected reference pictures and pictures to judge by"):
        optimal_context(model, [], [batch], mean)
    with pytest.raises(ValueError, match=r"ridges: expected positive numbers, got \[0\.0\]"):
        optimal_context(model, [batch], [batch], mean, ridges=(0.0,))
    with pytest.raises(ValueError, match=r"mean_context: expected \[layer token head head_dim\]"):
        optimal_context(model, [batch], [batch], mean[:2])
