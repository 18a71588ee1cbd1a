"""Every method against the promises of a head method, bad ones against each of them, and the planted truth."""

import random
import re

import numpy as np
import pytest
import torch
from tiny_models import CONFIG, KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model

from attribution.ablation import zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.catalogue import LEFT_OUT, describe
from attribution.contexts import contexts
from attribution.contract import check_method, rotate_head_bases, tiny_regressor
from attribution.gates import gate_ixg
from attribution.method import Method, cost
from attribution.methods import METHODS, PIXEL_METHODS, run_method, run_pixel_method
from attribution.pixel_methods import NUM_PATCHES
from attribution.state import model_state
from attribution.vit import ViTRegressor, attention_modules, output_projections

SETTINGS = MethodSettings(steps=3, pixel_steps=2)
ON_PATCHES = ("occlusion", "layer_grad_cam", "rollout", "rollout_max", "rollout_min", "rollout_discard",
              "gradient_rollout", "chefer")  # fmt: skip
# Rank the planted head first for every picture, with noise and beside a decoy.
SOUND = ("gate_saliency", "gate_saliency_out", "gate_ixg", "gate_ixg_out", "gate_ig", "gate_ig_out",
         "layer_conductance", "conductance_out", "internal_influence", "internal_influence_out", "layer_ig",
         "layer_ig_out", "layer_deep_lift", "layer_deep_lift_out", "chefer", "attention_ixg", "patch_mean",
         "patch_mean_out", "patch_counterfactual", "patch_counterfactual_out", "grad_drop", "grad_drop_out",
         "eap_ig_inputs", "eap_ig_inputs_out", "eap_ig_activations", "eap_ig_activations_out", "frozen_rules",
         "frozen_rules_out", "direct_effect", "direct_effect_ixg_out")  # fmt: skip
# Rank it first on average over pictures: a picture's own score is against others, which may hold more of the thing.
ON_AVERAGE = ("layer_gradient_shap", "layer_gradient_shap_out", "patch_donors", "patch_donors_out")
# Their passes are parts of passes, or read the last row again and again; they are counted where they are tested.
COUNTED_OTHERWISE = ("layer_ig", "layer_ig_out", "eap_ig_activations", "eap_ig_activations_out", "grad_drop",
                     "grad_drop_out", "direct_effect", "direct_effect_ixg_out")  # fmt: skip
OF_KNOWN_BLOCKS = ("value_norm", "direct_effect", "direct_effect_ixg_out")
UNSOUND = {
    "layer_activation": "sees how large a context is, not what becomes of it",
    "value_norm": "sees how much a head writes, not whether it is read",
    "parameter_norm": "sees how large the weights are",
    "cls_mass": "sees where a head looks, not what it brings; here all look alike",
    "cls_entropy": "as cls_mass",
    "max_weight": "as cls_mass",
    "attention_distance": "as cls_mass",
    "rollout_drop": "as cls_mass",
    "random": "knows nothing",
    "layer_index": "knows no heads",
}


def sweep(model, batch, settings):
    """Zero ablation in the form of a head method."""
    return zero_ablation(model, batch, batch_size=settings.internal_batch_size).delta_loss


class FusedAttention(torch.nn.Module):
    """timm's layout, `qkv` and `proj`, giving attention weights beside its output."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, torch.nn.Linear(12, 36), torch.nn.Linear(12, 12)

    def forward(self, states):
        query, key, value = self.qkv(states).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / 6**0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(-2)), weights


class FusedBlock(torch.nn.Module):
    """Attention beside a residual stream."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = torch.nn.LayerNorm(12), FusedAttention()

    def forward(self, states):
        return states + self.attention(self.norm(states))[0]


class FusedBackbone(torch.nn.Module):
    """Two such blocks over 4 x 4 patches and a CLS token of zeros."""

    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.Conv2d(3, 12, 4, 4)
        self.blocks = torch.nn.ModuleList([FusedBlock(), FusedBlock()])

    def forward(self, pixel_values):
        tokens = torch.nn.functional.pad(self.patch_embed(pixel_values).flatten(2).transpose(1, 2), (0, 0, 1, 0))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def fused_model():
    model = ViTRegressor(FusedBackbone(), CONFIG, hidden_size=12)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval().requires_grad_(False)


FACTORIES = {
    "dinov2_lora": lambda: tiny_model("dinov2_lora"),
    "registers": lambda: tiny_model("registers"),
    "fused": fused_model,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    # Path methods know no tokens, and take fused projections as all do: those are for whoever has the time.
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] if kind != "dinov2_lora" and METHODS[name].is_path else [])
        for kind in FACTORIES
        for name in METHODS
    ],
)
def test_every_method_keeps_the_promises(kind, name):
    if kind == "fused" and name in OF_KNOWN_BLOCKS:  # knows no such blocks, and says so
        with pytest.raises(AssertionError, match="FusedBackbone is not known to be made of blocks of"):
            check_method(METHODS[name].function, fused_model)
        return
    check_method(METHODS[name].function, FACTORIES[kind], settings=MethodSettings(steps=2, internal_batch_size=4))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_promises_on_the_checks_own_model(name):
    check_method(METHODS[name].function, settings=MethodSettings(steps=3))


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_keeps_the_promises(kind):
    check_method(sweep, lambda: tiny_model(kind), tolerance=1e-5 if kind == "vit" else 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_rotated_bases_change_weights_and_no_output(kind):
    model = tiny_model(kind)
    pixel_values = tiny_batch(model).pixel_values
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    rotated = rotate_head_bases(model, seed=1)
    torch.testing.assert_close(
        rotated(pixel_values), model(pixel_values), atol=1e-6 if kind == "vit" else 1e-12, rtol=0
    )
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    changed = {name for name, value in rotated.state_dict().items() if not torch.equal(value, weights[name])}
    assert all("v_proj" in name or "o_proj.weight" in name for name in changed)
    assert (
        len(changed) == (4 if kind == "dinov2_lora" else 3) * 3
    )  # weight, bias (and LoRA's B) of values; weight of o_proj
    own, turned = contexts(model, pixel_values), contexts(rotated, pixel_values)
    assert float((own - turned).abs().max()) > 0.1
    torch.testing.assert_close(own.norm(dim=-1), turned.norm(dim=-1), atol=1e-6, rtol=0)


def depends_on_basis(model, batch, settings):
    return contexts(model, batch.pixel_values).sum((2, 4))


def depends_on_batch(model, batch, settings):
    scores = gate_ixg(model, batch, settings)
    return scores - scores.mean(0) + 1


def depends_on_place(model, batch, settings):
    return gate_ixg(model, batch, settings) * torch.arange(1, len(batch) + 1)[:, None, None]


def needs_two_pictures(model, batch, settings):
    if len(batch) < 2:
        raise RuntimeError("too few pictures")
    return gate_ixg(model, batch, settings)


def random_of_torch(model, batch, settings):
    return torch.rand(len(batch), 3, 2)


def random_of_numpy(model, batch, settings):
    return torch.from_numpy(np.random.rand(len(batch), 3, 2))  # noqa: NPY002


def random_of_python(model, batch, settings):
    return torch.tensor([random.random() for _ in range(len(batch) * 6)]).view(-1, 3, 2)


def leaves_train_mode(model, batch, settings):
    scores = gate_ixg(model, batch, settings)
    model.train()
    return scores


def leaves_a_hook(model, batch, settings):
    model.head.register_forward_hook(lambda *_: None)
    return gate_ixg(model, batch, settings)


def leaves_a_hook_after_an_error(model, batch, settings):
    handle = attention_modules(model)[0].register_forward_hook(lambda *_: None)
    scores = gate_ixg(model, batch, settings)
    handle.remove()
    return scores


def changes_weights(model, batch, settings):
    model.head[0].weight.data = model.head[0].weight.data * 1.0000001
    return gate_ixg(model, batch, settings)


def thaws_weights(model, batch, settings):
    model.requires_grad_(True)
    return gate_ixg(model, batch, settings)


def leaves_gradients(model, batch, settings):
    parameter = model.head[0].weight.requires_grad_(True)
    with torch.enable_grad():
        model(batch.pixel_values).sum().backward()
    parameter.requires_grad_(False)
    return gate_ixg(model, batch, settings)


def changes_the_batch(model, batch, settings):
    scores = gate_ixg(model, batch, settings)
    batch.pixel_values.mul_(1.01)
    return scores


def needs_no_grad_off(model, batch, settings):
    return gate_ixg(model, batch, settings) * (2 if torch.is_grad_enabled() else 1)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (depends_on_basis, "gauge: rotating"),
        (depends_on_batch, "picture by picture: "),
        (depends_on_place, "order: "),
        (needs_two_pictures, "picture by picture: the other pictures change nothing (RuntimeError: too few pictures)"),
        (random_of_torch, "the random state of torch"),
        (random_of_torch, "deterministic: a second run"),
        (random_of_numpy, "the random state of numpy"),
        (random_of_python, "the state of random"),
        (leaves_train_mode, "state restored (train flags changed)"),
        (leaves_a_hook, "state restored (hooks changed)"),
        (leaves_a_hook_after_an_error, "state restored after an error in pass 1 of the model (hooks changed)"),
        (changes_weights, "values of the weights"),
        (thaws_weights, "state restored (requires_grad changed)"),
        (leaves_gradients, "gradients of the weights"),
        (changes_the_batch, "the batch changed"),
        (needs_no_grad_off, "deterministic: torch.no_grad()"),
        (lambda model, batch, settings: [1.0], "shape (expected a tensor, got a list)"),
        (
            lambda model, batch, settings: torch.ones(5, 2, 3),
            "shape (expected [image layer head] = [5, 3, 2], got [5, 2, 3])",
        ),
        (lambda model, batch, settings: torch.ones(5, 3, 2, dtype=torch.int64), "dtype (expected float32 or float64"),
        (lambda model, batch, settings: torch.full((5, 3, 2), torch.nan), "finite (found NaN or infinity)"),
        (lambda model, batch, settings: torch.zeros(5, 3, 2), "not all zero"),
        (lambda model, batch, settings: torch.ones(5, 3, 2, requires_grad=True) * 2, "detached"),
        (lambda model, batch, settings: 1 / 0, "runs (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_method_that_breaks_a_promise_is_told_which(function, words):
    with pytest.raises(AssertionError, match=r"^broken promises: ") as caught:
        check_method(function)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_method_can_break_one_promise_alone():
    for function in (depends_on_basis, leaves_a_hook_after_an_error):
        with pytest.raises(AssertionError) as caught:
            check_method(function)
        assert ";" not in str(caught.value)


def test_check_refuses_a_model_that_rotation_changes():
    class Normalised(torch.nn.Module):
        """A value projection followed by something that sees its basis."""

        def __init__(self, linear):
            super().__init__()
            self.linear, self.weight, self.bias = linear, linear.weight, linear.bias

        def forward(self, tokens):
            return torch.relu(self.linear(tokens))

    def factory():
        model = tiny_model()
        module = attention_modules(model)[0]
        module.v_proj = Normalised(module.v_proj).eval()
        return model

    with pytest.raises(ValueError, match="the model itself changes"):
        check_method(gate_ixg, factory)


def decoyed_model(seed):
    """The planted model, and beside the planted head one that writes more, into a channel nobody reads."""
    model = planted_model(0.0, seed)
    layer, head = PLANTED_HEAD
    attention = attention_modules(model)[layer]
    with torch.no_grad():
        attention.v_proj.weight[4 * (1 - head), 0] = 2.0
        attention.o_proj.weight[5, 4 * (1 - head)] = 1.0
    return model


PLANTED = {
    "alone": lambda seed: planted_model(0.0, seed),
    "noisy": lambda seed: planted_model(0.02, seed),
    "beside a decoy": decoyed_model,
}


def planted_scores(function, build):
    """Scores with the planted head first, `[image head]`, larger = matters more, of five such models."""
    layer, head = PLANTED_HEAD
    for seed in range(5):
        model = build(seed)
        scores = function(model, planted_batch(model), MethodSettings(steps=8)).flatten(1)
        yield torch.cat(
            (scores[:, [2 * layer + head]], scores[:, [at for at in range(4) if at != 2 * layer + head]]), 1
        )


def leads(scores):
    """By picture: the first column is larger than every other, by more than rounding."""
    return scores[:, 0] > scores[:, 1:].amax(1) + 1e-9


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", ["the sweep", *SOUND])
def test_sound_methods_rank_the_planted_head_first(name, planted):
    function = sweep if name == "the sweep" else METHODS[name].function
    for scores in planted_scores(function, PLANTED[planted]):
        assert bool(leads(scores).all()) and bool((scores[:, 0] > 0).all())


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", ON_AVERAGE)
def test_methods_against_other_pictures_rank_the_planted_head_first_on_average(name, planted):
    for scores in planted_scores(METHODS[name].function, PLANTED[planted]):
        assert bool(leads(scores.mean(0, keepdim=True))) and float(scores[:, 0].mean()) > 0


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_methods_miss_the_planted_head(name):
    assert not METHODS[name].signed
    sign = -1 if METHODS[name].direction == "-" else 1
    missed = [
        planted
        for planted, build in PLANTED.items()
        for scores in planted_scores(METHODS[name].function, build)
        if not bool(leads(sign * scores.mean(0, keepdim=True)))
    ]
    assert "beside a decoy" in missed


def test_every_method_is_said_to_be_sound_or_not():
    assert sorted((*SOUND, *ON_AVERAGE, *UNSOUND)) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_run_method_gives_float32_on_the_cpu_and_restores_state(name):
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    before = model_state(model)
    scores = run_method(name, model, batch, SETTINGS)
    assert scores.shape == (4, 3, 2) and scores.dtype == torch.float32 and scores.device.type == "cpu"
    torch.testing.assert_close(scores, METHODS[name].function(model, batch, SETTINGS).float(), atol=0, rtol=0)
    assert before.differences(model_state(model)) == []


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("name", PIXEL_METHODS)
def test_run_pixel_method(name, target):
    model = tiny_model("dinov2_lora", torch.float32)
    batch = tiny_batch(model)
    before = model_state(model)
    maps = run_pixel_method(name, model, batch, SETTINGS, target)
    assert maps.shape == ((4, 4, 4) if name in ON_PATCHES else (4, 16, 16))
    assert maps.dtype == torch.float32 and bool((maps >= 0).all()) and bool((maps > 0).any())
    assert torch.equal(maps, run_pixel_method(name, model, batch, SETTINGS, target))
    assert before.differences(model_state(model)) == []


@pytest.fixture
def registry():
    """METHODS and PIXEL_METHODS as dictionaries that may be added to."""
    kept = dict(METHODS), dict(PIXEL_METHODS)
    yield METHODS, PIXEL_METHODS
    for table, entries in zip((METHODS, PIXEL_METHODS), kept, strict=True):
        table.clear()
        table.update(entries)


def test_a_method_is_added_in_one_line(registry):
    METHODS["mine"] = Method("mine", lambda model, batch, settings: gate_ixg(model, batch, settings) * 2)
    model = tiny_model()
    batch = tiny_batch(model)
    torch.testing.assert_close(
        run_method("mine", model, batch, SETTINGS), 2 * run_method("gate_ixg", model, batch, SETTINGS)
    )
    assert "mine" in describe()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda model, batch, settings: torch.ones(4, 2, 3),
            r"expected scores \[image layer head\] = \[4, 3, 2\], got \[4, 2, 3\]",
        ),
        (lambda model, batch, settings: torch.full((4, 3, 2), torch.inf), "found NaN or infinity"),
        (lambda model, batch, settings: torch.zeros(4, 3, 2), "every number is zero"),
        (lambda model, batch, settings: np.ones((4, 3, 2)), "expected a tensor, got a ndarray"),
    ],
)
def test_run_method_refuses_bad_scores(registry, function, words):
    METHODS["mine"] = Method("mine", function)
    model = tiny_model()
    with pytest.raises(ValueError, match=f"^method mine: {words}"):
        run_method("mine", model, tiny_batch(model), SETTINGS)


@pytest.mark.parametrize(
    ("run", "name"),
    [(run_method, name) for name, method in METHODS.items() if method.needs]
    + [(run_pixel_method, name) for name, method in PIXEL_METHODS.items() if method.needs],
)
def test_a_batch_without_what_the_method_needs_is_refused(run, name):
    model = tiny_model()
    batch = tiny_batch(model)
    lacking = Batch(batch.pixel_values, batch.labels, batch.indices, batch.baseline_pixel_values)
    fields = (METHODS if name in METHODS else PIXEL_METHODS)[name].needs
    with pytest.raises(ValueError, match=rf"^method {name}: needs {fields[0]}, which this batch does not have$"):
        run(name, model, lacking, SETTINGS)
    assert run(name, model, batch, SETTINGS).shape[0] == 4


@pytest.mark.parametrize(
    ("maps", "words"), [(torch.ones(3, 4, 4), r"expected maps \[4 row col\]"), (-torch.ones(4, 2, 2), "not negative")]
)
def test_run_pixel_method_refuses_bad_maps(registry, maps, words):
    PIXEL_METHODS["mine"] = Method("mine", lambda model, batch, settings, target: maps)
    model = tiny_model()
    with pytest.raises(ValueError, match=f"^method mine: .*{words}"):
        run_pixel_method("mine", model, tiny_batch(model), SETTINGS)


def test_run_method_restores_state_a_method_leaves_behind(registry):
    def untidy(model, batch, settings):
        torch.rand(3)
        leaves_a_hook(model, batch, settings)
        leaves_gradients(model, batch, settings)
        thaws_weights(model, batch, settings)
        leaves_train_mode(model, batch, settings)
        raise KeyboardInterrupt

    METHODS["mine"] = Method("mine", untidy)
    model = tiny_model()
    before = model_state(model)
    with pytest.raises(KeyboardInterrupt):
        run_method("mine", model, tiny_batch(model), SETTINGS)
    assert before.differences(model_state(model)) == []


def test_refusals_name_what_was_expected():
    model = tiny_model()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match="unknown method 'lrp', expected one of gate_saliency, "):
        run_method("lrp", model, batch, SETTINGS)
    with pytest.raises(ValueError, match="unknown method 'lrp', expected one of saliency, "):
        run_pixel_method("lrp", model, batch, SETTINGS)
    model.train()
    with pytest.raises(ValueError, match="eval mode"):
        run_method("layer_index", model, batch, SETTINGS)


@pytest.mark.parametrize(
    ("table", "name"),
    [(METHODS, name) for name in METHODS if name not in COUNTED_OTHERWISE]
    + [(PIXEL_METHODS, name) for name in PIXEL_METHODS],
)
def test_declared_cost_is_what_is_paid(table, name):
    """Pictures are counted into the regression head, and gradients out of every output on their way back."""
    model = tiny_model()
    batch = tiny_batch(model)
    counts = {"forward": 0, "backward": 0}

    def count(_, __, predictions):
        counts["forward"] += len(predictions)
        if predictions.requires_grad:
            predictions.register_hook(lambda gradient: counts.update(backward=counts["backward"] + len(gradient)))

    handle = model.head.register_forward_hook(count)
    table[name].function(model, batch, SETTINGS)
    handle.remove()
    declared = cost(table[name], SETTINGS, num_layers=3, num_targets=len(CONFIG.target_names))
    expected = 4 * declared[0]
    if table is METHODS and name in ("layer_deep_lift", "layer_deep_lift_out"):
        expected += 1  # the baseline picture, one for all
    if name == "occlusion":
        expected += 4 * (16 - NUM_PATCHES)  # costs are told for the default backbone's patches
    assert (counts["forward"], counts["backward"]) == (expected, 4 * declared[1])


@pytest.mark.parametrize(
    ("name", "targets"),
    [("layer_ig", 1), ("layer_ig_out", 3), ("eap_ig_activations", 1), ("eap_ig_activations_out", 3)],
)
def test_layer_ig_is_counted_in_equivalents_of_full_passes(name, targets):
    model = tiny_model()
    batch = tiny_batch(model)
    rows = []
    handles = [
        projection.register_forward_hook(lambda _, args, output: rows.append(len(output)))
        for projection in output_projections(model)
    ]
    METHODS[name].function(model, batch, SETTINGS)
    for handle in handles:
        handle.remove()
    # 3 blocks, 4 pictures; without the baseline picture where it is one for all, and one picture passed whole and from
    # the last block on, which shows that passes may start at a block.
    more = 3 if name.startswith("eap") else 2
    full_passes = ((sum(rows) - (3 if more == 2 else 0) - 4) / 3) / 4
    forwards, backwards = cost(METHODS[name], SETTINGS, num_layers=3, num_targets=3)
    assert forwards - 1 < full_passes <= forwards and backwards == targets * (forwards - more)


def test_tables_are_consistent():
    assert list(METHODS) == [method.name for method in METHODS.values()]
    assert list(PIXEL_METHODS) == [method.name for method in PIXEL_METHODS.values()]
    for method in (*METHODS.values(), *PIXEL_METHODS.values()):
        assert method.signed == (method.direction == "") and method.direction in ("", "+", "-")
        assert method.family == "control" or re.fullmatch(r"\d{4}\.\d{4,5}", method.paper)
    free = ("cls_mass", "cls_entropy", "max_weight", "attention_distance", "rollout_drop")
    cheap = ("gate_saliency", "gate_ixg", "gate_ixg_out", "gate_ig", "layer_conductance", "chefer", "grad_drop",
             "frozen_rules", "direct_effect", "direct_effect_ixg_out")  # fmt: skip
    patching = {name for name in METHODS if name.startswith("patch_")}
    controls = ("random", "layer_index", "parameter_norm")
    assert {name for name, method in METHODS.items() if method.default} == {*free, *cheap, *controls, *patching}
    paths = {name for name in METHODS if re.search("_ig|conductance|influence|shap", name)}
    assert {name for name, method in METHODS.items() if method.is_path} == paths and len(paths) == 14
    assert {name for name, method in METHODS.items() if method.approximate} == {
        "layer_deep_lift",
        "layer_deep_lift_out",
    }


def test_description_names_every_method_and_all_that_is_left_out():
    lines = describe().splitlines()
    assert max(map(len, lines)) <= 120
    for name in (*METHODS, *PIXEL_METHODS):
        assert any(line.split()[:1] == [name] for line in lines) and any(
            line.startswith(f"  {name}: ") for line in lines
        )
    for name in ("LRP", "GuidedBackprop", "Deconvolution", "KernelShap, Lime", "LayerGradCam", "FeatureAblation",
                 "ShapleyValueSampling"):  # fmt: skip
        assert any(left_out.startswith(name) for left_out in LEFT_OUT)
        assert any(line.startswith(f"  {name}") for line in lines[lines.index("Left out:") :])
    table = {line.split()[0]: line for line in reversed(lines[: lines.index("")])}  # head methods win
    assert table["layer_gradient_shap"].endswith("no       donor")
    assert table["layer_deep_lift"].endswith("no       approximate") and table["gate_ixg"].endswith("yes")
    row = next(line for line in describe(settings=MethodSettings(steps=5)).splitlines() if line.startswith("layer_ig"))
    assert row.split()[:7] == ["layer_ig", "heads", "layers", "1703.01365", "signed", "35", "33"]


def test_batch_checks_what_it_is_given():
    model = tiny_model()
    good = tiny_batch(model)
    fields = vars(good)
    for change, words in (
        ({"pixel_values": torch.zeros(4, 1, 16, 16)}, r"pixel_values: expected \[image 3 row col\]"),
        ({"pixel_values": torch.zeros(0, 3, 16, 16)}, "at least one image"),
        ({"labels": torch.zeros(3, 3)}, r"labels: expected \[4 target\], got \[3, 3\]"),
        ({"labels": torch.full((4, 3), torch.nan)}, "labels: expected finite"),
        ({"indices": [1, 2]}, r"indices: expected \[4\], got \[2\]"),
        ({"baseline_pixel_values": torch.zeros(1, 3, 16, 16)}, r"baseline_pixel_values: expected \[3, 16, 16\]"),
    ):
        with pytest.raises(ValueError, match=words):
            Batch(**{**fields, **change})
    assert Batch(**{**fields, "indices": [7, 8, 9, 10]}).indices.tolist() == [7, 8, 9, 10]
    assert [len(part) for part in good.chunks(3)] == [3, 1]
    assert good.select([3, 1]).indices.tolist() == [13, 11]
    for name in ("steps", "internal_batch_size", "pixel_steps"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            MethodSettings(**{name: 0})


def test_the_checks_own_model_is_the_same_every_time():
    one, two = tiny_regressor(), tiny_regressor()
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert one.dtype == torch.float64 and not one.training
