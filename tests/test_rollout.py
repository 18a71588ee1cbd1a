"""Rollout and attention × gradient against slow loops over full matrices, and a closed form of the gradient."""

import numpy as np
import pytest
import torch
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.batch import MethodSettings
from attribution.rollout import attention_ixg, chefer, chefer_map, rollout, rollout_drop, transition
from attribution.vit import attention_modules, head_layout, loss_per_image, output_projections

SETTINGS = MethodSettings()


def attentions_of(model, pixel_values):
    """Attentions [image layer head query key] as transformers reports them."""
    with torch.no_grad():
        return torch.stack(model.backbone(pixel_values, output_attentions=True).attentions, dim=1).numpy()


def slow_matrix(attention, fusion="mean", discard_ratio=0.0, without=None):
    """Â of one picture and layer, entry by entry."""
    heads = [head for head in range(len(attention)) if head != without]
    size = attention.shape[-1]
    fused = np.zeros((size, size))
    for query, key in np.ndindex(size, size):
        values = [attention[head, query, key] for head in heads]
        fused[query, key] = {"mean": np.mean, "max": np.max, "min": np.min}[fusion](values)
    entries = sorted((fused[query, key], query, key) for query in range(size) for key in range(1, size))
    for _, query, key in entries[: int(discard_ratio * len(entries))]:
        fused[query, key] = 0
    matrix = fused / 2 + np.eye(size) / 2
    return np.array([row / row.sum() for row in matrix])


def slow_rollout(attentions, special, dropped=None, **kwargs):
    """CLS row over patches of the full product, last layer on the left; `dropped` is a (layer, head)."""
    product = np.eye(attentions.shape[-1])
    for layer, attention in enumerate(attentions):
        without = dropped[1] if dropped is not None and dropped[0] == layer else None
        product = slow_matrix(attention, without=without, **kwargs) @ product
    return product[0, special:]


def test_transition_by_hand():
    attention = torch.tensor([[[[0.9, 0.1], [0.4, 0.6]], [[0.5, 0.5], [0.2, 0.8]]]])
    mean = torch.tensor([[[0.85, 0.15], [0.15, 0.85]]])
    torch.testing.assert_close(transition(attention), mean)
    # max: [[.9 .5] [.4 .8]] -> halved with I: [[.95 .25] [.2 .9]] -> rows over 1.2 and 1.1
    expected = torch.tensor([[[0.95 / 1.2, 0.25 / 1.2], [0.2 / 1.1, 0.9 / 1.1]]])
    torch.testing.assert_close(transition(attention, "max"), expected)
    # min: [[.5 .1] [.2 .6]] -> [[.75 .05] [.1 .8]] over .8 and .9
    expected = torch.tensor([[[0.75 / 0.8, 0.05 / 0.8], [0.1 / 0.9, 0.8 / 0.9]]])
    torch.testing.assert_close(transition(attention, "min"), expected)
    # mean: [[.7 .3] [.3 .7]]; of the two entries outside column 0 the smaller, .3, goes: first row [.85 0] over .85
    expected = torch.tensor([[[1.0, 0.0], [0.15, 0.85]]])
    torch.testing.assert_close(transition(attention, discard_ratio=0.5), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fusion", "discard_ratio"), [("mean", 0.0), ("max", 0.0), ("min", 0.0), ("mean", 0.6), ("max", 0.9)]
)
def test_rollout_is_the_slow_loop(kind, fusion, discard_ratio):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    special = head_layout(model).num_special_tokens
    got = rollout(model, batch, MethodSettings(internal_batch_size=2), fusion=fusion, discard_ratio=discard_ratio)
    assert got.shape == (3, 4, 4)
    for image, attention in enumerate(attentions_of(model, batch.pixel_values)):
        expected = slow_rollout(attention, special, fusion=fusion, discard_ratio=discard_ratio)
        np.testing.assert_allclose(got[image].flatten().numpy(), expected, atol=1e-12)
    assert torch.equal(rollout(model, batch, SETTINGS), rollout(model, batch, SETTINGS, target=2))


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_drop_is_the_slow_loop(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model, 2)
    special = head_layout(model).num_special_tokens
    got = rollout_drop(model, batch, SETTINGS)
    for image, attention in enumerate(attentions_of(model, batch.pixel_values)):
        intact = slow_rollout(attention, special)
        for layer, head in np.ndindex(3, 2):
            dropped = slow_rollout(attention, special, dropped=(layer, head))
            expected = np.abs(dropped / dropped.sum() - intact / intact.sum()).sum()
            assert float(got[image, layer, head]) == pytest.approx(expected, abs=1e-6 if kind == "vit" else 1e-12)


def test_rollout_drop_of_heads_that_attend_alike_is_zero():
    model = planted_model()
    assert float(rollout_drop(model, planted_batch(model), SETTINGS).abs().max()) < 1e-12


def products_in_closed_form(model, batch, target=None):
    """A ⊙ ∇A [image layer head query key] from ∂s/∂A[q, k] = v[k]·∂s/∂z[q], since z = A v."""
    values, contexts = [], []

    def keep_context(_, args):
        contexts.append(args[0])

    handles = [m.v_proj.register_forward_hook(lambda _, __, out: values.append(out)) for m in attention_modules(model)]
    handles += [m.register_forward_pre_hook(keep_context) for m in output_projections(model)]
    predictions = model(batch.pixel_values.clone().requires_grad_())
    for handle in handles:
        handle.remove()
    scalar = -loss_per_image(predictions, batch.labels).sum() if target is None else predictions[:, target].sum()
    gradients = torch.autograd.grad(scalar, contexts)
    products = []
    attentions = torch.from_numpy(attentions_of(model, batch.pixel_values))
    for layer, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        value, gradient = (tensor.detach().unflatten(-1, (2, 6)) for tensor in (value, gradient))
        products.append(attentions[:, layer] * torch.einsum("bkhd,bqhd->bhqk", value, gradient))
    return torch.stack(products, dim=1).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_chefer_is_the_closed_form_of_the_gradient(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    expected = np.maximum(products_in_closed_form(model, batch), 0).sum((-2, -1))
    got = chefer(model, batch, MethodSettings(internal_batch_size=2)).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * expected.max())


@pytest.mark.parametrize("kind", KINDS)
def test_attention_ixg_is_the_closed_form_of_the_gradient_with_both_signs(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    expected = products_in_closed_form(model, batch).sum((-2, -1))  # of −ℓ
    got = attention_ixg(model, batch, MethodSettings(internal_batch_size=2)).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert (got < 0).any() and (got > 0).any()
    assert (got <= chefer(model, batch, SETTINGS).numpy() + 1e-9 * np.abs(expected).max()).all()


@pytest.mark.parametrize("target", [None, 0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_chefer_map_is_the_slow_loop(kind, target):
    model = tiny_model(kind)
    batch = tiny_batch(model, 2)
    special = head_layout(model).num_special_tokens
    got = chefer_map(model, batch, SETTINGS, target)
    for image, products in enumerate(products_in_closed_form(model, batch, target)):
        relevance = np.eye(products.shape[-1])
        for layer in products:
            fused = sum(np.maximum(head, 0) for head in layer) / len(layer)
            relevance = relevance + fused @ relevance
        expected = relevance[0, special:]
        np.testing.assert_allclose(got[image].flatten().numpy(), expected, rtol=0, atol=1e-9 * expected.max())


def test_chefer_of_the_planted_model_sees_only_the_planted_head():
    model = planted_model()
    scores = chefer(model, planted_batch(model), SETTINGS)
    others = scores.clone()
    others[:, *PLANTED_HEAD] = 0
    assert bool((scores[:, *PLANTED_HEAD] > 1e-3).all()) and float(others.abs().max()) == 0


def test_refusals():
    model = tiny_model()
    batch = tiny_batch(model)
    for call, words in (
        (lambda: rollout(model, batch, SETTINGS, fusion="sum"), "fusion: expected one of mean, max, min, got 'sum'"),
        (lambda: rollout(model, batch, SETTINGS, discard_ratio=1.0), "discard_ratio: expected 0 <= ratio < 1, got 1.0"),
        (lambda: chefer_map(model, batch, SETTINGS, 3), "target: expected 0 to 2, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    model.set_attn_implementation("sdpa")
    for function in (rollout, rollout_drop, chefer, chefer_map, attention_ixg):
        with pytest.raises(ValueError, match="gives no weights"):
            function(model, batch, SETTINGS)
    model.train()
    for function in (rollout, rollout_drop, chefer, chefer_map, attention_ixg):
        with pytest.raises(ValueError, match="eval mode"):
            function(model, batch, SETTINGS)
