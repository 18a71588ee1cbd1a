"""Edits with a known answer: what they do to the function, to the effects, and to the scores."""

import pytest
import torch
from test_knockout import FusedBackbone
from tiny_models import CONFIG, KINDS, tiny_batch, tiny_model
from torch import nn

from attribution.ablation import counterfactual_ablation, resample_ablation, zero_ablation
from attribution.batch import MethodSettings
from attribution.gates import gate_ig, gate_ixg, gate_ixg_out
from attribution.heads import attention_maps, attentions
from attribution.planted import merged_copy, permute_heads, silence_head, split_head, wired_regressor
from attribution.shapley import gate_shapley
from attribution.sweep import predictions_without
from attribution.vit import ViTRegressor, attention_modules, gated, output_projections

SETTINGS = MethodSettings(steps=4, permutations=2)
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def exact_copy(kind):
    """float64 throughout: transformers' eager ViT takes its softmax in float32."""
    model = tiny_model(kind)
    if kind == "vit":
        model.set_attn_implementation("sdpa")
    return model


def fused_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViTRegressor(FusedBackbone(), CONFIG, hidden_size=12).double().eval().requires_grad_(False)


def edits(model):
    return {
        "merged": merged_copy(model),
        "silenced": silence_head(model, 1, 0),
        "split": split_head(model, 1, 0, 1),
        "permuted": permute_heads(model, 1, [1, 0]),
    }


@pytest.mark.parametrize("kind", [*KINDS, "fused"])
def test_the_given_model_stays_as_it_is_and_the_copy_is_ready_for_use(kind):
    model = fused_model() if kind == "fused" else tiny_model(kind)
    pixel_values = tiny_batch(model).pixel_values
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predictions = model(pixel_values)
    for edited in edits(model).values():
        assert not edited.training and not any(part.training for part in edited.modules())
        assert not any(parameter.requires_grad for parameter in edited.parameters())
        assert not any("lora" in name for name in edited.state_dict())
        own = {value.data_ptr() for value in model.state_dict().values()}
        assert own.isdisjoint(value.data_ptr() for value in edited.state_dict().values())
        _, weights = attentions(edited, pixel_values, lambda weights: weights)
        assert len(weights) == len(attention_modules(model))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(pixel_values), predictions)


@pytest.mark.parametrize("kind", [*KINDS, "fused"])
def test_what_each_edit_does_to_the_function(kind):
    model = fused_model() if kind == "fused" else exact_copy(kind)
    pixel_values = tiny_batch(model).pixel_values
    edited = edits(model)
    intact = model(pixel_values)
    torch.testing.assert_close(edited["merged"](pixel_values), intact, **EXACT)
    torch.testing.assert_close(edited["permuted"](pixel_values), intact, **EXACT)
    for name, gates in (("silenced", {0: 0.0}), ("split", {1: 0.0})):
        values = torch.ones(len(attention_modules(model)), 2, dtype=torch.float64)
        for head, value in gates.items():
            values[1, head] = value
        with gated(model, values):
            expected = model(pixel_values)
        torch.testing.assert_close(edited[name](pixel_values), expected, **EXACT)
        assert float((expected - intact).abs().max()) > 1e-4


def test_lora_that_is_merged_already_is_not_merged_twice():
    model = tiny_model("dinov2_lora")
    pixel_values = tiny_batch(model).pixel_values
    expected = model(pixel_values)
    model.backbone.merge_adapter()
    torch.testing.assert_close(merged_copy(model)(pixel_values), expected, **EXACT)


@pytest.mark.parametrize("kind", [*KINDS, "fused"])
def test_a_silenced_head_has_no_effect_at_all(kind):
    model = fused_model() if kind == "fused" else exact_copy(kind)
    batch = tiny_batch(model)
    silenced = silence_head(model, 1, 0)
    gates = torch.ones(len(attention_modules(model)), 2, dtype=torch.float64)
    gates[1, 0] = 0
    with gated(silenced, gates):
        without = silenced(batch.pixel_values)
    assert torch.equal(without, silenced(batch.pixel_values))
    # The sweep's passes are of other shapes, so matrix products may round differently.
    found = zero_ablation(silenced, batch)
    assert float(found.delta_loss[:, 1, 0].abs().max()) <= 1e-13 * float(found.intact_loss.max())
    assert float(found.delta_loss[:, 1, 1].abs().min()) > 1e-6
    assert bool((gate_ixg(silenced, batch, SETTINGS)[:, 1, 0] == 0).all())


@pytest.mark.parametrize("kind", [*KINDS, "fused"])
def test_two_halves_are_alike_and_together_what_the_head_was(kind):
    model = fused_model() if kind == "fused" else exact_copy(kind)
    batch = tiny_batch(model)
    halves = split_head(model, 1, 0, 1)
    for scores in (zero_ablation(halves, batch).delta_loss, gate_ixg(halves, batch, SETTINGS)):
        scale = float(scores.abs().max())
        torch.testing.assert_close(scores[:, 1, 0], scores[:, 1, 1], atol=1e-11 * scale, rtol=0)
        assert float(scores[:, 1, 0].abs().min()) > 1e-6 * scale
    if kind != "vit":  # sdpa gives no maps
        _, weights = attentions(halves, batch.pixel_values, lambda weights: weights)
        assert torch.equal(weights[1][:, 0], weights[1][:, 1])
        _, given = attentions(model, batch.pixel_values, lambda weights: weights)
        torch.testing.assert_close(weights[1][:, 0], given[1][:, 0], **EXACT)
    without_both, _ = predictions_without(halves, batch.pixel_values, [((1, 0), (1, 1))])
    expected, _ = predictions_without(model, batch.pixel_values, [((1, 0), (1, 1))])
    torch.testing.assert_close(without_both, expected, **EXACT)


@pytest.mark.parametrize("into", [0, 2])
def test_halves_of_one_head_of_three(into):
    """The third head is left alone."""
    model = wired_regressor(noise=0.5, num_images=6)[0]
    halves = split_head(model, 1, 1, into)
    rest = 2 - into
    for given, edited in zip(_parts(model), _parts(halves), strict=True):
        assert torch.equal(given[rest], edited[rest]) and torch.equal(edited[into], edited[1])
        assert not torch.equal(given[into], edited[into])
    given, edited = (_columns(one) for one in (model, halves))
    assert torch.equal(edited[:, into], given[:, 1] / 2) and torch.equal(edited[:, 1], given[:, 1] / 2)
    assert torch.equal(edited[:, rest], given[:, rest])


def _parts(model):
    attention = attention_modules(model)[1]
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        yield from (projection.weight.unflatten(0, (3, 4)), projection.bias.unflatten(0, (3, 4)))


def _columns(model):
    return output_projections(model)[1].weight.unflatten(1, (3, 4))


def test_scores_are_permuted_with_the_heads():
    model, batch, _ = wired_regressor(noise=0.3, num_images=6)
    order = [2, 0, 1]  # not its own inverse
    permuted = permute_heads(model, 1, order)
    torch.testing.assert_close(permuted(batch.pixel_values), model(batch.pixel_values), **EXACT)
    for score in (
        lambda model: zero_ablation(model, batch).delta_loss,
        lambda model: gate_ixg(model, batch, SETTINGS),
        lambda model: attention_maps(model, batch.pixel_values).entropy["mean"],
    ):
        given, found = score(model), score(permuted)
        expected = given.clone()
        expected[:, 1] = given[:, 1, order]
        torch.testing.assert_close(found, expected, atol=1e-10 * float(given.abs().max()), rtol=0)
        assert float((expected - given).abs().max()) > 1e-6 * float(given.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_every_kind_of_model_are_permuted(kind):
    model = exact_copy(kind)
    batch = tiny_batch(model)
    permuted = permute_heads(model, 1, [1, 0])
    for score in (lambda model: zero_ablation(model, batch).delta_loss, lambda model: gate_ixg(model, batch, SETTINGS)):
        expected = score(model)
        expected[:, 1] = expected[:, 1].flip(1)
        torch.testing.assert_close(score(permuted), expected, atol=1e-10 * float(expected.abs().max()), rtol=0)


def test_the_wired_head_carries_the_answer_alone():
    model, batch, (layer, head) = wired_regressor()
    others = torch.ones(3, 3, dtype=torch.bool)
    others[layer, head] = False
    assert batch.pixel_values.shape == (16, 3, 8, 8) and batch.labels.shape == (16, 2)
    for effects in (
        zero_ablation(model, batch).delta_loss,
        counterfactual_ablation(model, batch).delta_loss,
        gate_ixg(model, batch, SETTINGS),
        gate_ixg_out(model, batch, SETTINGS),
        gate_ig(model, batch, SETTINGS),
        gate_shapley(model, batch, SETTINGS),
    ):
        assert float(effects[:, layer, head].min()) > 1e-3  # of every picture
        assert float(effects[:, others].abs().max()) < 1e-12
    resampled = resample_ablation(model, batch).delta_loss
    assert float(resampled[:, layer, head].mean()) > 0.1 and float(resampled[:, others].abs().max()) < 1e-12
    # All the head's loss goes with the answer: the labels are twice the predictions, so 4 / 1 of the loss is left.
    found = zero_ablation(model, batch)
    torch.testing.assert_close(found.delta_loss[:, layer, head], 3 * found.intact_loss, **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_wired_head_still_comes_first(seed):
    model, batch, wired = wired_regressor(noise=0.05, seed=seed)
    for scores in (
        zero_ablation(model, batch).delta_loss,
        gate_ixg(model, batch, SETTINGS),
        gate_shapley(model, batch, SETTINGS),
    ):
        assert divmod(int(scores.mean(0).argmax()), 3) == wired
        assert int((scores.mean(0) != 0).sum()) == 9


def test_the_wired_model_is_the_same_again_and_fits_other_sizes():
    state = torch.get_rng_state()
    first, second, other = (wired_regressor(noise=0.1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(value, second[0].state_dict()[name]) for name, value in first[0].state_dict().items()]
    assert all(same) and torch.equal(first[1].pixel_values, second[1].pixel_values)
    assert not torch.equal(first[1].pixel_values, other[1].pixel_values)
    model, batch, (layer, head) = wired_regressor(image_size=28, patch_size=14, num_images=7)
    assert batch.pixel_values.shape == (7, 3, 28, 28)
    assert float(zero_ablation(model, batch).delta_loss[:, layer, head].min()) > 1e-4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: silence_head(model, 3, 0), "no layer 3 head 0 in 3 layers of 2 heads"),
        (lambda model: silence_head(model, 0, -1), "no layer 0 head -1"),
        (lambda model: split_head(model, 0, 0, 2), "no layer 0 head 2"),
        (lambda model: split_head(model, 0, 1, 1), "two different heads, got head 1 twice"),
        (lambda model: permute_heads(model, -1, [0, 1]), "no layer -1"),
        (lambda model: permute_heads(model, 0, [0, 0]), "every head of layer 0 once, got \\[0, 0\\]"),
        (lambda model: permute_heads(model, 0, [0]), "every head of layer 0 once"),
    ],
)
def test_heads_that_are_not_there_are_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        edit(tiny_model("dinov2_lora"))


def test_layouts_that_are_not_known_are_refused():
    model = tiny_model()
    attention_modules(model)[1].bias_per_head = nn.Parameter(torch.zeros(2), requires_grad=False)
    for edit in (lambda: split_head(model, 1, 0, 1), lambda: permute_heads(model, 1, [1, 0])):
        with pytest.raises(ValueError, match="layer 1: the attention holds weights beside its projections"):
            edit()
    few = fused_model()
    attention_modules(few)[1].qkv = nn.Linear(12, 24)
    with pytest.raises(ValueError, match="layer 1: expected 12 rows each of query, key and value"):
        permute_heads(few, 1, [1, 0])
    wrapped = tiny_model()
    attention_modules(wrapped)[1].k_proj = nn.Sequential(nn.Linear(12, 12))
    with pytest.raises(ValueError, match="layer 1: expected query, key and value projections that are plain"):
        permute_heads(wrapped, 1, [1, 0])


@pytest.mark.parametrize("sizes", [{"image_size": 9}, {"num_images": 5}, {"patch_size": 0}])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="patches that tile the picture and at least 6 pictures"):
        wired_regressor(**sizes)
