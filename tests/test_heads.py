"""Attention maps and contexts against hand-computed numbers, loops, and transformers' own attentions."""

import math

import numpy as np
import pytest
import torch
from tiny_models import KINDS, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.batch import MethodSettings
from attribution.contexts import contexts
from attribution.heads import attention_maps, attentions, cls_mass
from attribution.state import model_state
from attribution.vit import attention_modules, head_layout


def reference_attentions(model, pixel_values):
    """Attentions [image layer head query key] as transformers reports them."""
    with torch.no_grad():
        reported = model.backbone(pixel_values, output_attentions=True).attentions
    return torch.stack(reported, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_attentions_are_those_transformers_reports_and_rows_sum_to_one(kind):
    model = tiny_model(kind)
    pixel_values = tiny_batch(model).pixel_values
    with torch.no_grad():
        predictions, layers = attentions(model, pixel_values, lambda weights: weights)
    captured = torch.stack(layers, dim=1)
    assert torch.equal(captured, reference_attentions(model, pixel_values))
    assert torch.equal(predictions, model(pixel_values))
    assert float((captured.sum(-1) - 1).abs().max()) < (1e-6 if kind == "vit" else 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_summaries_equal_explicit_loops(kind):
    model = tiny_model(kind)
    pixel_values = tiny_batch(model, 2).pixel_values
    layout = head_layout(model)
    special, cols = layout.num_special_tokens, layout.num_cols
    assert special == (5 if kind == "registers" else 1)
    maps = attention_maps(model, pixel_values)
    assert maps.cls.shape == maps.mean.shape == (2, 3, 2, 4, 4)
    weights = reference_attentions(model, pixel_values).numpy()
    for image, layer, head in np.ndindex(2, 3, 2):
        attention = weights[image, layer, head]
        patches = range(special, special + 16)
        mean_row = sum(attention[query] for query in patches) / 16
        for query, row in (("cls", attention[0]), ("mean", mean_row)):
            expected = [row[key] / sum(row[patch] for patch in patches) for key in patches]
            got = maps.maps[query][image, layer, head].flatten().tolist()
            assert got == pytest.approx(expected, abs=1e-13)
            assert sum(got) == pytest.approx(1, abs=1e-12)
            assert float(maps.special_mass[query][image, layer, head]) == pytest.approx(sum(row[:special]), abs=1e-13)
        entropies, distances = [], []
        for query in patches:
            row = attention[query, special:] / attention[query, special:].sum()
            entropies.append(-sum(value * math.log(value) for value in row))
            here = divmod(query - special, cols)
            distances.append(sum(value * math.dist(here, divmod(key, cols)) for key, value in enumerate(row)))
        assert float(maps.entropy["mean"][image, layer, head]) == pytest.approx(np.mean(entropies), abs=1e-12)
        assert float(maps.distance_patches[image, layer, head]) == pytest.approx(np.mean(distances), abs=1e-12)
        cls_map = attention[0, special:] / attention[0, special:].sum()
        expected = -sum(value * math.log(value) for value in cls_map)
        assert float(maps.entropy["cls"][image, layer, head]) == pytest.approx(expected, abs=1e-12)


def test_uniform_attention_by_hand():
    model = planted_model()
    maps = attention_maps(model, planted_batch(model).pixel_values)
    quarter = torch.full((6, 2, 2, 2, 2), 0.25, dtype=torch.float64)
    for query in ("cls", "mean"):
        torch.testing.assert_close(maps.maps[query], quarter, atol=1e-15, rtol=0)
        torch.testing.assert_close(maps.special_mass[query], torch.full((6, 2, 2), 0.2, dtype=torch.float64))
        torch.testing.assert_close(maps.entropy[query], torch.full((6, 2, 2), math.log(4), dtype=torch.float64))
    expected = (0 + 1 + 1 + math.sqrt(2)) / 4
    torch.testing.assert_close(maps.distance_patches, torch.full((6, 2, 2), expected, dtype=torch.float64))


def test_batch_size_and_choice_of_queries_change_nothing():
    model = tiny_model()
    pixel_values = tiny_batch(model, 5).pixel_values
    whole, split = attention_maps(model, pixel_values), attention_maps(model, pixel_values, batch_size=2)
    torch.testing.assert_close(split.cls, whole.cls, atol=1e-13, rtol=0)
    torch.testing.assert_close(split.distance_patches, whole.distance_patches, atol=1e-13, rtol=0)
    only_mean = attention_maps(model, pixel_values, ("mean",))
    assert torch.equal(only_mean.mean, whole.mean) and set(only_mean.maps) == {"mean"}


def test_a_query_without_mass_on_patches_gives_zero_and_no_nan():
    model = tiny_model()
    for module in attention_modules(model):  # queries and keys large enough for softmax to underflow off one key
        module.q_proj.weight.mul_(1e5)
    maps = attention_maps(model, tiny_batch(model, 2).pixel_values)
    sums = maps.cls.sum((-2, -1))
    assert torch.isfinite(maps.cls).all() and torch.isfinite(maps.entropy["cls"]).all()
    assert torch.all((sums - 1).abs().minimum(sums) < 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_are_attention_times_values(kind):
    model = tiny_model(kind)
    pixel_values = tiny_batch(model, 3).pixel_values
    values = []
    handles = [
        module.v_proj.register_forward_hook(lambda _, __, output: values.append(output.unflatten(-1, (2, 6))))
        for module in attention_modules(model)
    ]
    weights = reference_attentions(model, pixel_values)
    for handle in handles:
        handle.remove()
    expected = torch.einsum("ilhqk,ilkhd->ilqhd", weights, torch.stack(values, dim=1))
    got = contexts(model, pixel_values, batch_size=2)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_cls_mass_is_what_special_tokens_leave():
    model = tiny_model("registers")
    batch = tiny_batch(model)
    got = cls_mass(model, batch, MethodSettings(internal_batch_size=3))
    torch.testing.assert_close(got, 1 - attention_maps(model, batch.pixel_values).special_mass["cls"])


def test_refusals_are_one_line_and_leave_no_hook():
    model = tiny_model()
    batch = tiny_batch(model)
    before = model_state(model)
    with pytest.raises(ValueError, match=r"^queries: expected some of cls, mean, got patch$"):
        attention_maps(model, batch.pixel_values, ("patch",))
    model.set_attn_implementation("sdpa")
    for call in (
        lambda: attention_maps(model, batch.pixel_values),
        lambda: cls_mass(model, batch, MethodSettings()),
    ):
        with pytest.raises(
            ValueError, match=r"^layer 0: the attention implementation gives no weights, expected 'eager'$"
        ):
            call()
    assert before.differences(model_state(model)) == []
    model.train()
    for call in (lambda: attention_maps(model, batch.pixel_values), lambda: contexts(model, batch.pixel_values)):
        with pytest.raises(ValueError, match="eval mode"):
            call()


def test_contexts_leave_no_hook_when_the_model_raises():
    model = tiny_model()
    before = model_state(model)
    with pytest.raises(ValueError, match="channel dimension"):
        contexts(model, torch.zeros(1, 4, 16, 16, dtype=torch.float64))
    assert before.differences(model_state(model)) == []
