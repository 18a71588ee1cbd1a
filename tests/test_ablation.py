"""Zero ablation against hooks, zeroed weights, Captum's two feature ablations, and a number worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from captum.attr import FeatureAblation, LayerFeatureAblation
from tiny_models import KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.ablation import (
    counterfactual_ablation,
    mean_ablation,
    mean_context,
    resample_ablation,
    zero_ablation,
)
from attribution.contexts import contexts
from attribution.gates import gated_loss
from attribution.state import model_state
from attribution.vit import loss_per_image, output_projections

HEADS = [(layer, head) for layer in range(3) for head in range(2)]
FLOAT64 = torch.float64


def exact_model(kind, dtype):
    """transformers' eager ViT takes its softmax in float32 whatever the dtype: sdpa is float64 throughout."""
    model = tiny_model(kind, dtype)
    if kind == "vit":
        model.set_attn_implementation("sdpa")
    return model


def tensors_of(result):
    return {name: value for name, value in vars(result).items() if isinstance(value, torch.Tensor)}


def with_context_replaced(model, pixel_values, layer, head, value):
    """Predictions with the head's six channels overwritten at the input of the output projection."""

    def hook(_, args):
        context = args[0].clone()
        context[..., 6 * head : 6 * head + 6] = value
        return (context,)

    handle = output_projections(model)[layer].register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            return model(pixel_values)
    finally:
        handle.remove()


def with_columns_zeroed(model, pixel_values, layer, head):
    """Predictions with the head's columns of the output projection's weight set to zero."""
    weight = output_projections(model)[layer].weight
    kept = weight.clone()
    weight[:, 6 * head : 6 * head + 6] = 0
    predictions = model(pixel_values)
    weight.copy_(kept)
    return predictions


@pytest.mark.parametrize(
    ("dtype", "bound", "route"),
    [(torch.float64, 1e-10, "full"), (torch.float64, 1e-10, "shared"), (torch.float32, 1e-6, "full")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_gate_equals_hook_equals_zeroed_columns(kind, dtype, bound, route):
    model = exact_model(kind, dtype)
    batch = tiny_batch(model)
    result = zero_ablation(model, batch, route=route)
    scale = float(result.intact_predictions.abs().max())
    for layer, head in HEADS:
        got = result.ablated_predictions[:, layer, head]
        hooked = with_context_replaced(model, batch.pixel_values, layer, head, 0.0)
        zeroed = with_columns_zeroed(model, batch.pixel_values, layer, head)
        assert float((got - hooked).abs().max()) <= bound * scale
        assert float((got - zeroed).abs().max()) <= bound * scale
        assert float((got - result.intact_predictions).abs().max()) > 1e-3 * scale
        expected = loss_per_image(zeroed.double(), batch.labels.double()) - result.intact_loss
        assert float((result.delta_loss[:, layer, head] - expected).abs().max()) <= bound * float(
            result.intact_loss.max()
        )


def test_rows_of_the_weight_are_not_heads():
    model = tiny_model()
    batch = tiny_batch(model)
    weight = output_projections(model)[0].weight
    intact, result = weight.clone(), zero_ablation(model, batch, heads=[(0, 0)])
    weight[:6] = 0
    wrong = model(batch.pixel_values)
    weight.copy_(intact)
    assert float((wrong - result.ablated_predictions[:, 0, 0]).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_captum_feature_ablation_over_gates_is_the_sweep(dtype):
    model = tiny_model("dinov2_lora", dtype)
    batch = tiny_batch(model)
    result = zero_ablation(model, batch)
    gates = torch.ones(4, 6, dtype=dtype)
    attributed = FeatureAblation(gated_loss(model)).attribute(
        gates, baselines=0.0, additional_forward_args=(batch.pixel_values, batch.labels)
    )
    bound = 1e-6 * float(result.intact_loss.max())
    assert float((result.delta_loss.flatten(1) + attributed).abs().max()) <= bound


def test_captum_layer_feature_ablation_of_one_head_is_the_sweep():
    model = tiny_model()
    batch = tiny_batch(model)
    layer, head = 1, 1
    mask = torch.zeros(1, 17, 12, dtype=torch.long)
    mask[..., 6:] = 1

    def loss(pixel_values, labels):
        return loss_per_image(model(pixel_values), labels)

    attributed = LayerFeatureAblation(loss, output_projections(model)[layer]).attribute(
        batch.pixel_values, layer_mask=mask, additional_forward_args=(batch.labels,), attribute_to_layer_input=True
    )
    expected = zero_ablation(model, batch).delta_loss[:, layer, head]
    assert attributed.shape == (4, 17, 12)
    one_element = -attributed[:, 5, 6 * head]  # Captum repeats the effect in every element: never sum it
    torch.testing.assert_close(one_element, expected, atol=1e-10, rtol=0)


def test_planted_head_by_hand():
    model = planted_model()
    batch = planted_batch(model)
    result = zero_ablation(model, batch)
    predictions = model(batch.pixel_values)
    # Labels are twice the predictions and without the head the model predicts 0: (2ŷ)² − ŷ² = 3ŷ².
    expected = torch.zeros(6, 2, 2, dtype=FLOAT64)
    expected[:, *PLANTED_HEAD] = 3 * (predictions**2).mean(1)
    torch.testing.assert_close(result.delta_loss, expected, atol=1e-12, rtol=0)
    assert float(expected.max()) > 0.01
    per_target = 3 * predictions**2 * torch.tensor([1.0, 9.0])  # label_std is 1 s and 3 Hz
    torch.testing.assert_close(result.delta_target_sq[:, *PLANTED_HEAD], per_target, atol=1e-12, rtol=0)


def test_effects_per_target_in_units_agree_with_predictions_in_units():
    model = tiny_model(dtype=torch.float32)
    batch = tiny_batch(model)
    result = zero_ablation(model, batch)
    labels = model.to_units(batch.labels)
    intact = (model.to_units(result.intact_predictions) - labels) ** 2
    for layer, head in HEADS:
        ablated = (model.to_units(result.ablated_predictions[:, layer, head]) - labels) ** 2
        torch.testing.assert_close(result.delta_target_sq[:, layer, head], ablated - intact, atol=1e-9, rtol=1e-12)
    scaled = result.delta_target_sq / torch.tensor(model.config.label_std, dtype=FLOAT64) ** 2
    torch.testing.assert_close(scaled.mean(-1), result.delta_loss, atol=1e-12, rtol=1e-12)
    assert all(value.dtype == FLOAT64 for value in tensors_of(result).values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_intact_predictions_are_the_unmodified_model_to_the_bit(dtype):
    model = tiny_model("dinov2_lora", dtype)
    batch = tiny_batch(model)
    for replacement in (None, contexts(model, batch.pixel_values)):
        result = zero_ablation(model, batch, replacement=replacement, batch_size=4, route="full")
        assert torch.equal(result.intact_predictions, model(batch.pixel_values).double())


def test_order_of_heads_and_repetition_change_nothing():
    model = tiny_model(dtype=torch.float32)
    batch = tiny_batch(model)
    first = zero_ablation(model, batch)
    for heads in (None, HEADS, HEADS[::-1], [HEADS[place] for place in (3, 0, 5, 1, 4, 2)]):
        again = zero_ablation(model, batch, heads=heads)
        for name, value in tensors_of(first).items():
            assert torch.equal(value, getattr(again, name)), name


def test_heads_not_asked_for_are_nan():
    model = tiny_model()
    batch = tiny_batch(model)
    some = zero_ablation(model, batch, heads=[(2, 1), (0, 0)])
    asked = torch.zeros(4, 3, 2, dtype=torch.bool)
    asked[:, 2, 1] = asked[:, 0, 0] = True
    assert torch.equal(torch.isfinite(some.delta_loss), asked)
    assert torch.equal(torch.isfinite(some.ablated_predictions).all(-1), asked)
    everything = zero_ablation(model, batch)
    torch.testing.assert_close(some.delta_loss[asked], everything.delta_loss[asked], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_batch_size_changes_nothing_beyond_rounding(dtype, bound):
    model = tiny_model(dtype=dtype)
    batch = tiny_batch(model, 5)
    one = zero_ablation(model, batch, batch_size=1)
    scale = float(one.intact_loss.max())
    for batch_size in (3, 32):
        other = zero_ablation(model, batch, batch_size=batch_size)
        assert float((one.delta_loss - other.delta_loss).abs().max()) <= bound * scale


def test_eager_and_sdpa_ablate_alike():
    model = tiny_model("vit")
    batch = tiny_batch(model)
    eager = zero_ablation(model, batch)
    model.set_attn_implementation("sdpa")
    sdpa = zero_ablation(model, batch)
    assert float((eager.delta_loss - sdpa.delta_loss).abs().max()) <= 1e-5 * float(eager.delta_loss.abs().max())
    assert bool((sdpa.delta_loss != 0).all())


def test_replacements():
    model = tiny_model()
    batch = tiny_batch(model)
    own = contexts(model, batch.pixel_values)  # [image layer token head head_dim]
    assert float(zero_ablation(model, batch, replacement=own).delta_loss.abs().max()) < 1e-12
    mean = own.mean(0)
    one = zero_ablation(model, batch, replacement=mean)
    per_image = zero_ablation(model, batch, replacement=mean.expand(4, -1, -1, -1, -1), batch_size=3)
    torch.testing.assert_close(one.delta_loss, per_image.delta_loss, atol=1e-12, rtol=0)
    others = own.roll(1, 0)
    rolled = zero_ablation(model, batch, replacement=others, batch_size=3)
    for layer, head in HEADS:
        for result, value in ((one, mean[layer, :, head]), (rolled, others[:, layer, :, head])):
            expected = with_context_replaced(model, batch.pixel_values, layer, head, value)
            torch.testing.assert_close(result.ablated_predictions[:, layer, head], expected, atol=1e-12, rtol=0)
    pair = zero_ablation(model, batch.select([0, 1]), replacement=others[:2], batch_size=3)
    torch.testing.assert_close(pair.delta_loss, rolled.delta_loss[:2], atol=1e-12, rtol=0)
    zeros = zero_ablation(model, batch, replacement=torch.zeros((), dtype=FLOAT64))
    torch.testing.assert_close(zeros.delta_loss, zero_ablation(model, batch).delta_loss, atol=1e-12, rtol=0)


def test_progress_counts_pictures_passed():
    model, seen = tiny_model(), []
    zero_ablation(model, tiny_batch(model), batch_size=10, progress=lambda *counts: seen.append(counts))
    done = [passed for passed, _ in seen]
    assert {total for _, total in seen} == {28}
    assert done == sorted(set(done)) and done[-1] == 28


def test_refusals():
    model = tiny_model()
    batch = tiny_batch(model)
    for arguments, words in (
        ({"heads": [(3, 0)]}, "no layer 3 head 0 in 3 layers of 2 heads"),
        ({"heads": [(0, -1)]}, "no layer 0 head -1"),
        ({"heads": [(0, 0), (0, 0)]}, "each head once"),
        ({"replacement": torch.zeros(3, 17, 2, 5)}, r"expected \[4, 3, 17, 2, 6\]"),
        ({"replacement": torch.zeros(2, 3, 17, 2, 6)}, r"expected \[4, 3, 17, 2, 6\]"),
        ({"replacement": torch.zeros(1, 1, 1, 1, 1, 1)}, "replacement: expected"),
        ({"replacement": torch.tensor(math.nan)}, "replacement: expected finite"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            zero_ablation(model, batch, **arguments)
        assert "\n" not in str(caught.value)
    model.backbone.train()
    with pytest.raises(ValueError, match="eval mode"):
        zero_ablation(model, batch)


def test_state_is_restored_also_after_an_error():
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = model_state(model)

    def interrupt(done, total):
        raise KeyboardInterrupt

    zero_ablation(model, batch, batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        zero_ablation(model, batch, batch_size=5, progress=interrupt)
    handle = model.head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        zero_ablation(model, batch)
    handle.remove()
    assert before.differences(model_state(model)) == []
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_heads_at_other_contexts_by_hooks_one_picture_and_head_at_a_time(kind):
    """Mean, resample and counterfactual ablation: each context written in by hand, picture by picture."""
    model = exact_model(kind, FLOAT64)
    batch = tiny_batch(model)
    mean = mean_context(model, batch.donor_pixel_values[:, 0].split(3))
    expected_mean = sum(contexts(model, one[None])[0] for one in batch.donor_pixel_values[:, 0]) / len(batch)
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=1e-14)
    others = {
        "mean": [[mean] for _ in range(len(batch))],
        "resample": [[contexts(model, donor[None])[0] for donor in donors] for donors in batch.donor_pixel_values],
        "counterfactual": [[contexts(model, twin[None])[0]] for twin in batch.counterfactual_pixel_values],
    }
    found = {
        "mean": mean_ablation(model, batch, mean, batch_size=3),
        "resample": resample_ablation(model, batch, batch_size=3),
        "counterfactual": counterfactual_ablation(model, batch, batch_size=3),
    }
    intact = loss_per_image(model(batch.pixel_values), batch.labels)
    for name, result in found.items():
        for image, replaced in enumerate(others[name]):
            picture, label = batch.pixel_values[image : image + 1], batch.labels[image : image + 1]
            for layer, head in HEADS:
                predictions = [
                    with_context_replaced(model, picture, layer, head, value[layer, :, head]) for value in replaced
                ]
                effects = [loss_per_image(one, label)[0] - intact[image] for one in predictions]
                assert float(result.delta_loss[image, layer, head]) == pytest.approx(
                    float(sum(effects) / len(effects)), abs=1e-9
                )
                torch.testing.assert_close(
                    result.ablated_predictions[image, layer, head], torch.cat(predictions).mean(0), rtol=0, atol=1e-10
                )
                changes = [(one - label)[0] ** 2 - (model(picture) - label)[0] ** 2 for one in predictions]
                units = torch.tensor(model.config.label_std, dtype=FLOAT64) ** 2
                torch.testing.assert_close(
                    result.delta_target_sq[image, layer, head],
                    units * sum(changes) / len(changes),
                    rtol=1e-8,
                    atol=1e-7,
                )


def test_resample_is_the_mean_over_donors_and_no_single_one_of_them():
    """Each field is the mean of four sweeps with one donor each; their order is nothing, each of them something."""
    model = exact_model("dinov2_lora", FLOAT64)
    batch = tiny_batch(model)
    donors = batch.donor_pixel_values
    whole = tensors_of(resample_ablation(model, batch))
    alone = [
        tensors_of(resample_ablation(model, replace(batch, donor_pixel_values=donors[:, number : number + 1])))
        for number in range(4)
    ]
    turned = tensors_of(resample_ablation(model, replace(batch, donor_pixel_values=donors.flip(1))))
    for name in ("delta_loss", "delta_target_sq", "ablated_predictions"):
        mean = sum(one[name] for one in alone) / 4
        torch.testing.assert_close(whole[name], mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(whole[name], turned[name], rtol=1e-10, atol=1e-12)
        scale = float(mean.abs().max())
        assert all(float((whole[name] - one[name]).abs().max()) > 1e-3 * scale for one in alone)


def test_a_head_at_its_own_context_changes_nothing():
    model = exact_model("dinov2_lora", FLOAT64)
    batch = tiny_batch(model)
    donors = batch.pixel_values[:, None].repeat(1, 2, 1, 1, 1)
    same = replace(batch, donor_pixel_values=donors, counterfactual_pixel_values=batch.pixel_values)
    for result in (resample_ablation(model, same), counterfactual_ablation(model, same)):
        assert float(result.delta_loss.abs().max()) <= 1e-12
    bare = replace(batch, donor_pixel_values=None, counterfactual_pixel_values=None)
    for sweep, name in ((resample_ablation, "donor"), (counterfactual_ablation, "counterfactual")):
        with pytest.raises(ValueError, match=f"{name}_pixel_values: needed here"):
            sweep(model, bare)
    with pytest.raises(ValueError, match="at least one picture"):
        mean_context(model, [])
