"""Attribution patching against finite differences by plain hooks, and where it is exact."""

from dataclasses import replace

import pytest
import torch
from contexts_moved import composed, contexts_by_hooks, far, slopes
from tiny_models import KINDS, tiny_batch, tiny_model

from attribution.ablation import counterfactual_ablation, mean_ablation, resample_ablation
from attribution.batch import MethodSettings
from attribution.contract import check_method
from attribution.gates import gate_ixg, gate_ixg_out
from attribution.patching import (
    patch_counterfactual,
    patch_counterfactual_out,
    patch_donors,
    patch_donors_out,
    patch_mean,
    patch_mean_out,
)
from attribution.prefix import block_list

SETTINGS = MethodSettings()
FORMS = {
    "mean": (patch_mean, patch_mean_out),
    "donors": (patch_donors, patch_donors_out),
    "counterfactual": (patch_counterfactual, patch_counterfactual_out),
}


def replacements(model, batch, name):
    """Contexts in place of the heads' own, one list a replacement."""
    if name == "mean":
        return [[layer.flatten(-2)[None] for layer in batch.mean_context]]
    if name == "donors":
        return [contexts_by_hooks(model, donor) for donor in batch.donor_pixel_values.unbind(1)]
    return [contexts_by_hooks(model, batch.counterfactual_pixel_values)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMS)
def test_both_forms_are_the_finite_difference(kind, name):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    predictions, own = model(batch.pixel_values), contexts_by_hooks(model, batch.pixel_values)
    slope = 2 * (predictions - batch.labels)[:, :, None, None] / 3
    loss, out = [], []
    step, tolerance = (1e-4, 1e-6) if kind != "vit" else (1e-4, 2e-3)  # the ViT's softmax is float32
    for other in replacements(model, batch, name):
        removed = slopes(model, batch.pixel_values, [z - b for z, b in zip(own, other, strict=True)], step)
        loss.append(-(slope * removed).sum(1))
        out.append(composed(predictions, batch.labels, removed))
    for method, expected in zip(FORMS[name], (loss, out), strict=True):
        got = method(model, batch, SETTINGS)
        assert got.shape == (4, 3, 2) and not got.requires_grad
        assert far(got, torch.stack(expected).mean(0)) <= tolerance
        for size in (3, 1):
            assert far(method(model, batch, MethodSettings(internal_batch_size=size)), got) <= 1e-9


def test_a_replacement_of_zero_is_gradient_times_gate():
    model = tiny_model()
    batch = tiny_batch(model)
    batch = replace(batch, mean_context=torch.zeros_like(batch.mean_context))
    assert far(patch_mean(model, batch, SETTINGS), gate_ixg(model, batch, SETTINGS)) <= 1e-10
    assert far(patch_mean_out(model, batch, SETTINGS), gate_ixg_out(model, batch, SETTINGS)) <= 1e-10


@pytest.mark.parametrize("name", FORMS)
def test_near_the_own_context_it_is_the_ablation_of_its_name(name):
    """Where what replaces a context is close to it, the linear expansion is the effect."""
    model = tiny_model()
    batch = tiny_batch(model)
    near = 1e-4
    own = torch.stack(contexts_by_hooks(model, batch.pixel_values[:1]))[:, 0].unflatten(-1, (2, 6))
    one = batch.select([0])
    one = replace(
        one,
        mean_context=own + near * (batch.mean_context - own),
        donor_pixel_values=one.pixel_values[:, None] + near * (one.donor_pixel_values - one.pixel_values[:, None]),
        counterfactual_pixel_values=one.pixel_values + near * (one.counterfactual_pixel_values - one.pixel_values),
    )
    ablation = {
        "mean": lambda: mean_ablation(model, one, one.mean_context),
        "donors": lambda: resample_ablation(model, one),
        "counterfactual": lambda: counterfactual_ablation(model, one),
    }
    for method in FORMS[name]:
        assert far(method(model, one, SETTINGS), ablation[name]().delta_loss) <= 1e-2


@pytest.mark.parametrize("method", [method for forms in FORMS.values() for method in forms])
def test_it_keeps_the_promises_of_a_method(method):
    check_method(method)


@pytest.mark.parametrize("name", FORMS)
def test_models_in_parts_and_under_hooks_agree(name):
    model = tiny_model()
    batch = tiny_batch(model)
    for method in FORMS[name]:
        got = method(model, batch, SETTINGS)
        handle = block_list(model)[0].register_forward_hook(lambda *_: None)  # then blocks are not taken apart
        other = method(model, batch, SETTINGS)
        handle.remove()
        assert far(got, other) <= 1e-10


def test_what_a_batch_lacks_is_said():
    model = tiny_model()
    batch = tiny_batch(model)
    for method, field in ((patch_mean, "mean_context"), (patch_donors, "donor_pixel_values"),
                          (patch_counterfactual_out, "counterfactual_pixel_values")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{field}: needed here"):
            method(model, replace(batch, **{field: None}), SETTINGS)
    with pytest.raises(ValueError, match="at least one donor"):
        patch_donors(model, replace(batch, donor_pixel_values=batch.donor_pixel_values[:, :0]), SETTINGS)
    with pytest.raises(ValueError, match="mean_context: expected 3 layers, got 2"):
        patch_mean(model, replace(batch, mean_context=batch.mean_context[:2]), SETTINGS)
    with pytest.raises(ValueError, match=r"mean_context: expected \[layer token head head_dim\]"):
        replace(batch, mean_context=batch.mean_context[0])
