"""Attribution patching against finite differences by plain hooks, and where it is exact."""

from dataclasses import replace

import pytest
import torch
from contexts_moved import composed, contexts_by_hooks, far, slopes
from tiny_models import KINDS, tiny_batch, tiny_model

from attribution.ablation import counterfactual_ablation, resample_ablation
from attribution.batch import MethodSettings
from attribution.contract import check_method
from attribution.gates import composed_loss_change, gate_ixg, gate_ixg_out
from attribution.gradient_readings import read_gradients
from attribution.patching import (
    loss_change,
    patch_counterfactual,
    patch_counterfactual_out,
    patch_donors,
    patch_donors_out,
)
from attribution.prefix import block_list

SETTINGS = MethodSettings()
FORMS = {
    "donors": (patch_donors, patch_donors_out),
    "counterfactual": (patch_counterfactual, patch_counterfactual_out),
}


def replacements(model, batch, name):
    """Contexts in place of the heads' own, one list a replacement."""
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
    [found] = read_gradients(model, batch, SETTINGS)
    removed = found.removed()
    assert far(loss_change(found, removed), gate_ixg(model, batch, SETTINGS)) <= 1e-10
    composed_change = composed_loss_change(found.predictions, found.labels, removed)
    assert far(composed_change, gate_ixg_out(model, batch, SETTINGS)) <= 1e-10


@pytest.mark.parametrize("name", FORMS)
def test_near_the_own_context_it_is_the_ablation_of_its_name(name):
    """Where what replaces a context is close to it, the linear expansion is the effect."""
    model = tiny_model()
    batch = tiny_batch(model)
    near = 1e-4
    one = batch.select([0])
    one = replace(
        one,
        donor_pixel_values=one.pixel_values[:, None] + near * (one.donor_pixel_values - one.pixel_values[:, None]),
        counterfactual_pixel_values=one.pixel_values + near * (one.counterfactual_pixel_values - one.pixel_values),
    )
    ablation = {
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
    for method, field in (
        (patch_donors, "donor_pixel_values"),
        (patch_counterfactual_out, "counterfactual_pixel_values"),
    ):
        with pytest.raises(ValueError, match=f"{field}: needed here"):
            method(model, replace(batch, **{field: None}), SETTINGS)
    with pytest.raises(ValueError, match="at least one donor"):
        patch_donors(model, replace(batch, donor_pixel_values=batch.donor_pixel_values[:, :0]), SETTINGS)
