"""What a run computes, pass by pass, against the methods one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from analysis.estimate_cost import sweep_costs
from analysis.models import OpenedModel
from analysis.passes import (
    ATTENTION,
    BACKWARD_COST,
    PIXEL,
    attention_pass,
    chosen_methods,
    gradient_passes,
    method_passes,
    method_settings,
    of_these_pictures,
)
from analysis.pictures import PictureSource
from analysis.settings import CompareSettings
from analysis.truth_passes import TRUTH, zero_pass
from attribution.ablation import zero_ablation
from attribution.batch import MethodSettings
from attribution.contributions import output_contributions
from attribution.heads import attention_maps, cls_mass
from attribution.method import Method, cost
from attribution.methods import METHODS, PIXEL_METHODS, run_method, run_pixel_method
from attribution.vit import attention_modules, head_layout

SETTINGS = CompareSettings(methods=("all",), steps=3, pixel_steps=2, batch_size=4)
DIALS = MethodSettings(steps=3, pixel_steps=2, internal_batch_size=4)
HEADS = ("cls_mass", "cls_entropy", "max_weight", "attention_distance", "rollout_drop")
PIXELS = ("rollout", "rollout_max", "rollout_min", "rollout_discard")
EVERYTHING = [ATTENTION, *HEADS, *(PIXEL + name for name in PIXELS)]


@pytest.fixture(scope="module")
def opened():
    return OpenedModel(tiny_model("dinov2_lora"), "tiny", "0", is_control=True)


@pytest.fixture(scope="module")
def batch(opened):
    return tiny_batch(opened.model, num_images=6)


def counted(model, compute):
    """What `compute` gives, and how many pictures went through the model, forward by forward."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        return compute(), seen
    finally:
        handle.remove()


def test_the_methods_of_attention_are_those_that_need_nothing_else(opened):
    assert {name for name, method in METHODS.items() if method.of_attention} == set(HEADS)
    assert {name for name, method in PIXEL_METHODS.items() if method.of_attention} == set(PIXELS)
    assert set(attention_pass(opened, SETTINGS).depends_on) == set(EVERYTHING)


@pytest.mark.parametrize(
    "wanted", [EVERYTHING, [ATTENTION], ["cls_mass"], ["pixel_rollout"], ["rollout_drop", ATTENTION], HEADS]
)
def test_one_forward_pass_gives_what_each_method_gives(opened, batch, wanted):
    one = attention_pass(opened, SETTINGS)
    found, forwards = counted(opened.model, lambda: one.compute(batch, wanted, 4))
    assert forwards == [4, 2] and set(found) == set(wanted)
    for name in set(wanted) & set(HEADS):
        expected = run_method(name, opened.model, batch, DIALS).numpy()
        np.testing.assert_array_equal(found[name]["scores"], expected)
    if "pixel_rollout" in wanted:
        maps = run_pixel_method("rollout", opened.model, batch, DIALS)
        scaled = (maps / maps.amax(dim=(1, 2), keepdim=True)).numpy().astype(np.float16)
        np.testing.assert_array_equal(found["pixel_rollout"]["maps"], scaled)
        assert scaled.max(axis=(1, 2)).tolist() == [1.0] * 6
    if ATTENTION in wanted:
        assert_attention(found[ATTENTION], opened.model, batch)


def assert_attention(found, model, batch):
    maps = attention_maps(model, batch.pixel_values, batch_size=4)
    expected = {"attention_distance": maps.distance_patches}
    for query in ("cls", "mean"):
        expected[f"{query}_map"], expected[f"{query}_special_mass"] = maps.maps[query], maps.special_mass[query]
        expected[f"{query}_entropy"] = maps.entropy[query]
    with torch.no_grad():
        expected["predictions"] = torch.cat([model(part.pixel_values) for part in batch.chunks(4)])
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values.numpy(), err_msg=name)


def test_cls_mass_is_what_the_weights_say(opened, batch):
    """A second derivation, from the weights of one layer under a hook of its own."""
    weights, special = [], head_layout(opened.model).num_special_tokens
    handle = attention_modules(opened.model)[1].register_forward_hook(lambda _, __, output: weights.append(output[1]))
    with torch.no_grad():
        opened.model(batch.pixel_values)
    handle.remove()
    found = attention_pass(opened, SETTINGS).compute(batch, ["cls_mass"], 6)["cls_mass"]["scores"]
    expected = 1 - weights[0][:, :, 0, :special].sum(-1)
    np.testing.assert_allclose(found[:, 1], expected.numpy(), rtol=0, atol=1e-6)  # scores are float32


def test_without_methods_of_attention_the_maps_are_read_all_the_same(opened, batch):
    one = attention_pass(opened, CompareSettings(methods=("gate_ixg",)))
    assert list(one.depends_on) == [ATTENTION] and one.forwards == 1
    assert list(one.compute(batch, [ATTENTION], 6)) == [ATTENTION]


def every_pass(opened, settings):
    shared = [attention_pass(opened, settings), *gradient_passes(opened, settings)]
    return [*shared, zero_pass(opened), *method_passes(opened, settings, 8)]


def depends_on(opened, **changes):
    settings = replace(SETTINGS, **changes)
    return {name: dict(own) for one in every_pass(opened, settings) for name, own in one.depends_on.items()}


def test_every_name_is_computed_by_one_pass(opened):
    names = [name for one in every_pass(opened, SETTINGS) for name in one.depends_on]
    assert len(names) == len(set(names))
    assert set(names) == {ATTENTION, "ablation_zero", *METHODS, *(PIXEL + name for name in PIXEL_METHODS)}


def changed(opened, **changes):
    before, after = depends_on(opened), depends_on(opened, **changes)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_a_dial_changes_what_it_turns_and_nothing_else(opened):
    pixels = {PIXEL + name for name in PIXEL_METHODS}
    assert changed(opened, steps=5) == {name for name, method in METHODS.items() if method.is_path}
    assert changed(opened, pixel_steps=5) == pixels
    assert changed(opened, seed=5) == set(METHODS) | pixels
    # Of these all scores or none depend: what all share is not a pass's business.
    nothing = {"num_pictures": 7, "bootstrap_replicates": 20, "num_permutations": 20, "batch_size": 2, "device": "cuda"}
    assert changed(opened, **nothing) == set()


def other_cls_mass(model, batch, settings):
    return 2 * cls_mass(model, batch, settings)


def test_another_function_under_a_name_is_another_method(opened, monkeypatch):
    before = depends_on(opened)
    monkeypatch.setitem(METHODS, "gate_ixg", Method("gate_ixg", other_cls_mass))
    monkeypatch.setitem(PIXEL_METHODS, "rollout", Method("rollout", PIXEL_METHODS["saliency"].function))
    after = depends_on(opened)
    assert {name for name in before if before[name] != after[name]} == {"gate_ixg", "pixel_rollout"}


def test_the_truth_and_what_it_is_made_from(opened, batch):
    found = zero_pass(opened).compute(batch, ["ablation_zero"], 4)["ablation_zero"]
    swept = zero_ablation(opened.model, batch, batch_size=4)
    np.testing.assert_array_equal(found["delta_loss"], swept.delta_loss.numpy())
    np.testing.assert_array_equal(found["delta_target_sq"], swept.delta_target_sq.numpy())
    # ℓ with the change c and without, by the residual r: mean_k (r + c)² − r² = mean_k c(c + 2r).
    changes, residuals = found["output_changes"], found["residuals"][:, None, None]
    assert changes.dtype == np.float32 and changes.shape == (6, 3, 2, 3)
    scale = np.abs(found["delta_loss"]).max()
    np.testing.assert_allclose(
        (changes * (changes + 2 * residuals)).mean(axis=-1), found["delta_loss"], rtol=0, atol=1e-6 * scale
    )
    np.testing.assert_allclose((found["residuals"] ** 2).mean(axis=1), found["intact_loss"], rtol=1e-12)
    units, std = np.array(opened.model.config.label_mean), np.array(opened.model.config.label_std)
    np.testing.assert_allclose(
        found["predictions"], (found["residuals"] + batch.labels.numpy()) * std + units, rtol=1e-12
    )


def test_the_truth_of_some_heads(opened, batch):
    everything = zero_pass(opened)
    some = zero_pass(opened, "poor", [(2, 1), (0, 1)])
    full, found = everything.compute(batch, [], 4)["ablation_zero"], some.compute(batch, [], 4)["poor"]
    kept = np.zeros((3, 2), dtype=bool)
    kept[2, 1] = kept[0, 1] = True
    assert np.isnan(found["delta_loss"][:, ~kept]).all()
    np.testing.assert_allclose(found["delta_loss"][:, kept], full["delta_loss"][:, kept], rtol=0, atol=1e-12)
    assert everything.depends_on == {"ablation_zero": {}} and some.depends_on == {"poor": {"heads": [(0, 1), (2, 1)]}}
    costs = sweep_costs(3, 2)
    assert everything.forwards == pytest.approx(1 + costs.sum())
    assert some.forwards == pytest.approx(1 + costs[0, 1] + costs[2, 1])
    assert some.rows is None


def one_of(opened, name):
    return next(one for one in method_passes(opened, SETTINGS, 8) if one.name == name)


def test_one_pass_with_gradients_gives_what_each_method_gives(opened, batch):
    [one] = gradient_passes(opened, SETTINGS)
    names = [name for name, method in METHODS.items() if method.of_gradients is not None]
    assert list(one.depends_on) == names and len(names) == 8
    found, forwards = counted(opened.model, lambda: one.compute(batch, names, 4))
    # Two of one picture show that the model is made of parts; then the pictures, four donors each, the counterfactuals.
    assert forwards == [1, 1, *6 * [4], *6 * [2]]
    for name in names:
        np.testing.assert_array_equal(found[name]["scores"], run_method(name, opened.model, batch, DIALS).numpy())
        own = METHODS[name].function(opened.model, batch, DIALS).numpy()
        np.testing.assert_allclose(found[name]["scores"], own, rtol=0, atol=1e-6 * np.abs(own).max())
        assert one.needed(name) == METHODS[name].needs
    assert set(one.needs) == {"mean_context", "donor_pixel_values", "counterfactual_pixel_values"}
    some = one.compute(replace(batch, donor_pixel_values=None), ["gate_ixg_out", "patch_mean"], 6)
    assert set(some) == {"gate_ixg_out", "patch_mean"}
    assert gradient_passes(opened, CompareSettings(methods=("gate_ixg",))) == []


def test_what_lends_contexts_is_paid_once(opened):
    def forwards(*names):
        return gradient_passes(opened, CompareSettings(methods=names))[0].forwards

    backward = 3 * BACKWARD_COST
    assert forwards("gate_ixg_out") == forwards("gate_ixg_out", "gate_saliency_out") == pytest.approx(1 + backward)
    assert forwards("patch_mean", "patch_mean_out") == pytest.approx(1 + backward)
    assert forwards("patch_donors", "patch_donors_out", "gate_ixg_out") == pytest.approx(5 + backward)
    assert forwards("patch_donors", "patch_counterfactual") == pytest.approx(6 + backward)


def test_contributions_stand_beside_the_scores_that_follow_from_them(opened, batch):
    found = gradient_passes(opened, SETTINGS)[0].compute(batch, ["gate_ixg_out"], 4)["gate_ixg_out"]
    np.testing.assert_array_equal(found["scores"], run_method("gate_ixg_out", opened.model, batch, DIALS).numpy())
    predictions, contributions = output_contributions(opened.model, batch, batch_size=4)
    expected = contributions.permute(0, 2, 3, 1).numpy()
    assert found["contributions"].shape == (6, 3, 2, 3)
    np.testing.assert_allclose(found["contributions"], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    left = (predictions - batch.labels).numpy()[:, None, None]
    loss = ((left - expected) ** 2 - left**2).mean(axis=-1)
    np.testing.assert_allclose(found["scores"], loss, rtol=0, atol=1e-6 * np.abs(loss).max())


def test_integrated_gradients_tell_what_they_should_sum_to(opened, batch):
    found = one_of(opened, "gate_ig").compute(batch, [], 4)["gate_ig"]
    np.testing.assert_array_equal(found["scores"], run_method("gate_ig", opened.model, batch, DIALS).numpy())
    with torch.no_grad():
        losses = [((opened.model(batch.pixel_values) - batch.labels) ** 2).mean(1)]
    # All gates at 0: the projections are given nothing.
    from attribution.vit import output_projections

    handles = [
        projection.register_forward_pre_hook(lambda _, args: (0 * args[0],))
        for projection in output_projections(opened.model)
    ]
    with torch.no_grad():
        losses.append(((opened.model(batch.pixel_values) - batch.labels) ** 2).mean(1))
    for handle in handles:
        handle.remove()
    difference = (losses[0] - losses[1]).numpy()
    np.testing.assert_allclose(found["difference"], difference, rtol=0, atol=1e-5 * np.abs(difference).max())
    sums = -found["scores"].sum(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(sums - difference, found["delta"], rtol=0, atol=1e-5 * np.abs(difference).max())


@pytest.mark.parametrize("name", ["layer_conductance", "chefer", "random", "pixel_saliency", "pixel_chefer"])
def test_the_other_passes_hold_one_method_each(opened, batch, name):
    one = one_of(opened, name)
    found = one.compute(batch, [name], 4)
    assert list(found) == list(one.depends_on) == [name]
    bare = name.removeprefix(PIXEL)
    if bare == name:
        np.testing.assert_array_equal(found[name]["scores"], run_method(name, opened.model, batch, DIALS).numpy())
        return
    maps = run_pixel_method(bare, opened.model, batch, DIALS)
    assert found[name]["maps"].shape == (6, 4, 4) and found[name]["maps"].dtype == np.float16
    if maps.shape[-1] != 4:  # mean over the 4 x 4 pixels of a patch
        maps = maps.unflatten(2, (4, 4)).unflatten(1, (4, 4)).mean(dim=(2, 4))
    expected = (maps / maps.amax(dim=(1, 2), keepdim=True)).numpy()
    np.testing.assert_allclose(found[name]["maps"], expected, rtol=0, atol=5e-4)


def test_a_map_of_nothing_is_refused(opened, batch, monkeypatch):
    def empty_at_one(model, batch, settings, target=None):
        maps = torch.ones(len(batch), 4, 4)
        maps[3] = 0
        return maps

    monkeypatch.setitem(PIXEL_METHODS, "saliency", Method("saliency", empty_at_one))
    with pytest.raises(ValueError, match="pixel method saliency: picture 13: every number is zero"):
        one_of(opened, "pixel_saliency").compute(batch, [], 6)


def test_costs_are_those_of_the_methods(opened):
    for one in method_passes(opened, SETTINGS, 8):
        method = PIXEL_METHODS[one.name.removeprefix(PIXEL)] if one.name.startswith(PIXEL) else METHODS[one.name]
        forwards, backwards = cost(method, DIALS, num_layers=3, num_targets=3)
        assert one.forwards == pytest.approx(forwards + BACKWARD_COST * backwards), one.name
        assert one.rows is None
    assert one_of(opened, "gate_ig").forwards == pytest.approx(3 + 3 * BACKWARD_COST)


def test_expensive_methods_take_the_first_pictures_alone(opened):
    for one in method_passes(opened, replace(SETTINGS, path_pictures=5), 8):
        table = PIXEL_METHODS if one.name.startswith(PIXEL) else METHODS
        method = table[one.name.removeprefix(PIXEL)]
        assert one.rows == (tuple(range(5)) if method.is_path else None)
        assert one.needs == method.needs


def test_methods_are_chosen_by_name_and_dials_come_from_the_settings():
    assert list(chosen_methods(("chefer", "gate_ixg"))) == ["gate_ixg", "chefer"]
    assert list(chosen_methods(("chefer", "gate_ixg"), PIXEL_METHODS)) == ["chefer"]
    assert set(chosen_methods(("default", "layer_ig"))) == {*chosen_methods(("default",)), "layer_ig"}
    assert "layer_ig" in chosen_methods(("all",)) and "layer_ig" not in chosen_methods(("all", "-layer_ig"))
    assert set(chosen_methods(("all", "-layer_ig"))) == {*METHODS} - {"layer_ig"}
    with pytest.raises(ValueError, match="methods: unknown -magic, "):
        chosen_methods(("all", "-magic"))
    with pytest.raises(ValueError, match="methods: unknown magic, expected some of all, "):
        chosen_methods(("magic", "all"))
    dials = method_settings(replace(SETTINGS, seed=4, batch_size=9))
    assert dials == MethodSettings(steps=3, seed=4, internal_batch_size=9, pixel_steps=2)
    assert TRUTH == "ablation_zero"


def test_methods_that_pictures_lack_something_for_are_left_out_unless_named():
    source = PictureSource(
        3, lambda rows: None, {}, reference=lambda rows: None, num_references=3, references_are_own=True
    )
    whole = replace(source, num_references=5, references_are_own=False, counterfactual=lambda rows: None)
    assert of_these_pictures(SETTINGS, whole) is SETTINGS
    found = of_these_pictures(SETTINGS, source)
    left = set(chosen_methods(SETTINGS.methods)) - set(chosen_methods(found.methods))
    assert left == {
        *("patch_donors", "patch_donors_out", "layer_gradient_shap", "layer_gradient_shap_out"),
        *("patch_counterfactual", "patch_counterfactual_out", "eap_ig_inputs", "eap_ig_inputs_out"),
        *("eap_ig_activations", "eap_ig_activations_out"),
    }
    alone = replace(source, reference=None, num_references=0)
    assert "patch_mean" not in chosen_methods(of_these_pictures(SETTINGS, alone).methods)
    for name, words in (
        ("patch_counterfactual", "methods: patch_counterfactual: pictures of a folder have no twin"),
        ("patch_donors", "methods: patch_donors: expected at least 4 other pictures to draw donors from, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            of_these_pictures(replace(SETTINGS, methods=("default", name)), source)
