"""Infidelity against Captum's own, on functions whose answer is known, and gate by gate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.metrics import infidelity
from check_evidence import batch_of, evidence_of, source_of, tiny_opened

from analysis.checks import infidelity as check
from analysis.checks.infidelity import COLUMNS, NAME, SAMPLES, infidelities, loss_changes, passes, perturbation, table
from analysis.settings import CompareSettings
from attribution.batch import MethodSettings
from attribution.gates import gated_loss
from attribution.methods import METHODS
from attribution.vit import loss_per_image, output_projections

NAMES = ("gate_ixg", "gate_saliency", "cls_entropy", "random")
SETTINGS = CompareSettings(methods=NAMES, batch_size=3, check_pictures=5, bootstrap_replicates=60)


@pytest.fixture(scope="module")
def opened():
    return tiny_opened()


@pytest.fixture(scope="module")
def source(opened):
    return source_of(opened.model)


@pytest.fixture(scope="module")
def evidence(opened, source):
    return evidence_of(check, opened, source, SETTINGS)


@pytest.mark.parametrize("name", [*NAMES, "ablation_zero"])
def test_it_is_captums_over_the_mean_squared_change(opened, source, evidence, name):
    found = evidence.read(NAME)
    scores = evidence.truth.delta_loss if name == "ablation_zero" else evidence.scores[name]
    attributions = -scores[:5]
    values, _ = infidelities(attributions, found["perturbations"], found["changes"])
    batch = batch_of(opened, source, SETTINGS, range(5))
    turned = torch.from_numpy(found["perturbations"]).double().flatten(0, 1).flatten(1)
    theirs = infidelity(
        gated_loss(opened.model),
        lambda gates: (turned, gates - turned),
        torch.ones(5, 6, dtype=torch.float64),
        torch.from_numpy(attributions).flatten(1),
        additional_forward_args=(batch.pixel_values, batch.labels),
        n_perturb_samples=SAMPLES,
        normalize=True,
    )
    before = values * (found["changes"] ** 2).mean(axis=1)
    np.testing.assert_allclose(before, theirs.numpy(), rtol=1e-8, atol=1e-12)
    assert (values > 1e-3).all()


def test_exact_for_linear_functions_and_one_for_nothing():
    rng = np.random.default_rng(0)
    turned = rng.random((4, SAMPLES, 3, 2)).astype(np.float32)
    slopes = rng.normal(size=(4, 3, 2))
    changes = (turned.astype(np.float64) * slopes[:, None]).sum(axis=(2, 3))
    for scale in (1.0, 5.0, -2.0):
        values, betas = infidelities(slopes / scale, turned, changes)
        np.testing.assert_allclose(values, 0, atol=1e-12)
        np.testing.assert_allclose(betas, scale)
    values, betas = infidelities(0 * slopes, turned, changes)
    assert values.tolist() == [1] * 4 and betas.tolist() == [0] * 4
    changes[2] = 0
    values, betas = infidelities(slopes, turned, changes)
    assert np.isnan(values).tolist() == [False, False, True, False] and np.isfinite(betas).all()


def test_it_is_what_the_best_fit_through_the_origin_leaves():
    rng = np.random.default_rng(1)
    turned = rng.random((3, SAMPLES, 3, 2)).astype(np.float32)
    attributions, changes = rng.normal(size=(3, 3, 2)), rng.normal(size=(3, SAMPLES))
    values, betas = infidelities(attributions, turned, changes)
    for picture in range(3):
        sums = (turned[picture].astype(np.float64) * attributions[picture]).sum(axis=(1, 2))
        fit, left, *_ = np.linalg.lstsq(sums[:, None], changes[picture], rcond=None)
        assert betas[picture] == pytest.approx(fit[0])
        assert values[picture] == pytest.approx(left[0] / (changes[picture] ** 2).sum())


def test_changes_are_losses_with_contexts_scaled_one_picture_at_a_time(opened, source, evidence):
    """A second derivation: columns of the output projections scaled instead of contexts."""
    found = evidence.read(NAME)
    weights = [projection.weight for projection in output_projections(opened.model)]
    before = [weight.clone() for weight in weights]
    batch = batch_of(opened, source, SETTINGS, range(5))
    try:
        for row, sample in ((0, 0), (3, 7), (4, SAMPLES - 1)):
            one = batch.select([row])
            intact = loss_per_image(opened.model(one.pixel_values), one.labels)
            for layer, weight in enumerate(weights):
                gates = 1 - torch.from_numpy(found["perturbations"][row, sample, layer]).double()
                weight.copy_(before[layer] * gates.repeat_interleave(weight.shape[1] // 2))
            changed = loss_per_image(opened.model(one.pixel_values), one.labels)
            for weight, values in zip(weights, before, strict=True):
                weight.copy_(values)
            assert found["changes"][row, sample] == pytest.approx(float(intact - changed), rel=1e-9)
    finally:
        for weight, values in zip(weights, before, strict=True):
            weight.copy_(values)


def test_perturbations_depend_on_seed_and_picture_alone(opened, source, evidence):
    found = evidence.read(NAME)["perturbations"]
    assert found.dtype == np.float32 and found.shape == (5, SAMPLES, 3, 2)
    (one,) = passes(opened, source, SETTINGS, {}, {})
    assert one.rows == tuple(range(5)) and one.forwards == 1 + SAMPLES
    alone = one.compute(batch_of(opened, source, SETTINGS, [3]), [NAME], 7)[NAME]
    np.testing.assert_array_equal(alone["perturbations"][0], found[3])
    np.testing.assert_allclose(alone["changes"][0], evidence.read(NAME)["changes"][3], rtol=1e-9, atol=1e-11)
    assert (found[0] != found[1]).any() and (perturbation(1, 3, found[3].shape) != found[3]).any()
    many = perturbation(0, 0, (200, 12, 12))
    down = many[many > 0]
    assert down.size / many.size == pytest.approx(0.25, abs=0.01)
    assert down.mean() == pytest.approx(0.5, abs=0.01) and down.max() < 1 and (many >= 0).all()


def test_a_model_in_train_mode_is_refused(opened, source):
    batch = batch_of(opened, source, SETTINGS, [0])
    opened.model.train()
    try:
        with pytest.raises(ValueError, match="eval mode"):
            loss_changes(opened.model, batch, np.zeros((1, 2, 3, 2), dtype=np.float32), batch_size=4)
    finally:
        opened.model.eval()


def test_the_table_has_medians_with_their_intervals(evidence):
    found = table(evidence)
    assert tuple(found) == COLUMNS
    assert list(found["method"]) == [*(name for name in METHODS if name in NAMES), "ablation_zero"]
    signed = found.set_index("method")["signed"]
    assert signed.to_dict() == {
        "gate_saliency": False,
        "gate_ixg": True,
        "cls_entropy": False,
        "random": False,
        "ablation_zero": True,
    }
    arrays = evidence.read(NAME)
    for line in found.itertuples():
        scores = evidence.truth.delta_loss if line.method == "ablation_zero" else evidence.scores[line.method]
        values, betas = infidelities(-scores[:5], arrays["perturbations"], arrays["changes"])
        assert line.infidelity == np.sort(values)[2] and line.beta_median == np.sort(betas)[2] and line.n == 5
        medians = [np.sort(values[rows])[2] for rows in evidence.indices(5)]
        assert (line.ci_low, line.ci_high) == pytest.approx(tuple(np.percentile(medians, (2.5, 97.5))))
        assert line.ci_low <= line.infidelity <= line.ci_high
    turned = replace(evidence, scores={name: -3 * scores for name, scores in evidence.scores.items()})
    other = table(turned).iloc[:-1]
    np.testing.assert_allclose(other["infidelity"], found["infidelity"].iloc[:-1])
    np.testing.assert_allclose(other["beta_median"], found["beta_median"].iloc[:-1] / -3)


def test_small_steps_are_what_the_gradient_says(opened, source):
    """Where gates hardly move the loss is linear: the gradient is exact, and its beta is 1."""
    batch = batch_of(opened, source, SETTINGS, range(3))
    small = 1e-4 * np.stack([perturbation(0, row, (SAMPLES, 3, 2)) for row in range(3)])
    changes = loss_changes(opened.model, batch, small, batch_size=11)
    scores = METHODS["gate_ixg"].function(opened.model, batch, MethodSettings()).numpy()
    values, betas = infidelities(-scores, small, changes)
    assert (values < 1e-5).all()
    np.testing.assert_allclose(betas, 1, rtol=1e-3)


def test_pictures_whose_loss_never_changes_are_left_out(evidence):
    arrays = {name: values.copy() for name, values in evidence.read(NAME).items()}
    arrays["changes"][1] = 0
    found = table(replace(evidence, read=lambda _: arrays))
    assert (found["n"] == 4).all() and found.notna().all(axis=None)
    arrays["changes"][:] = 0
    found = table(replace(evidence, read=lambda _: arrays))
    assert (found["n"] == 0).all() and found["infidelity"].isna().all()
