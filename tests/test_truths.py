"""The estimated truth against the sweep it stands for."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from contexts_moved import contexts_by_hooks
from tiny_models import tiny_batch, tiny_model

from analysis import truths
from analysis.compare import main, parse
from analysis.estimate import estimate_from_outputs, sample_pictures
from analysis.estimate_cost import sweep_costs
from analysis.explain import explain
from analysis.lent_contexts import with_companions
from analysis.models import make_batch, open_model
from analysis.optimal_contexts import held_optimal
from analysis.pictures import open_source
from analysis.settings import CompareSettings
from analysis.truth_passes import truth_pass
from attribution.ablation import zero_ablation
from attribution.contributions import output_contributions
from attribution.gradient_readings import COUNTERFACTUAL, DONORS, MEAN
from attribution.vit import output_projections

COUNT, SWEPT = 20, 9
ESTIMATED = ("zero", "mean", "resample", "counterfactual", "optimal")


def settings_of(tmp_path, **changes):
    values = {"model": "tiny-random", "methods": ("layer_index",), "num_pictures": COUNT, "estimate": SWEPT}
    values |= {"truths": ("zero",)}
    return CompareSettings(**values | {"output_dir": str(tmp_path)} | changes)


@pytest.fixture(scope="module")
def opened():
    return open_model("tiny-random", "cpu")


@pytest.fixture(scope="module")
def source(opened):
    names = opened.model.config.target_names
    return open_source("default", COUNT, seed=0, image_size=224, patch_size=14, target_names=names)


@pytest.fixture(scope="module")
def swept(opened, source):
    batch = make_batch(opened, source.draw(range(COUNT)))
    return batch, zero_ablation(opened.model, batch, batch_size=8)


def explained(opened, source, settings, folder):
    return explain(opened, source, settings, folder, lambda name, done: None)


def test_every_sample_estimates_and_their_mean_is_the_sweep():
    model = tiny_model()
    batch = tiny_batch(model, 7)
    full = zero_ablation(model, batch)
    contributions = output_contributions(model, batch, batch_size=7)[1].permute(0, 2, 3, 1).numpy()
    residuals = (full.intact_predictions - batch.labels).numpy()
    changes = (full.ablated_predictions - full.intact_predictions[:, None, None]).numpy()
    found = []
    for sample in combinations(range(7), 4):
        places = np.array(sample)
        loss, _ = estimate_from_outputs(changes[places], -contributions, residuals, places)
        found.append(loss.pseudo_values.mean(axis=0))
    expected = full.delta_loss.mean(dim=0).numpy()
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert np.std(found, axis=0).min() > 1e-6 * np.abs(expected).max()


def test_the_estimate_is_made_of_the_sample_and_a_prediction_for_all(tmp_path, opened, source, swept):
    settings = settings_of(tmp_path)
    truth = explained(opened, source, settings, tmp_path / "scores").truth
    batch, full = swept
    sample = sample_pictures(COUNT, SWEPT, settings.seed)
    dtype = torch.bfloat16 if truths.bfloat16_is_native(torch.device("cpu")) else None
    parts = [
        output_contributions(opened.model, part, batch_size=8, dtype=dtype)[1]
        for rows in (slice(0, 16), slice(16, 20))
        for part in [batch.select(rows)]
    ]
    contributions = torch.cat(parts).permute(0, 2, 3, 1).numpy()
    residuals = (full.intact_predictions - batch.labels.double()).numpy()
    changes = (full.ablated_predictions - full.intact_predictions[:, None, None]).numpy()
    loss, per_target = estimate_from_outputs(changes[sample], -contributions, residuals, sample)
    scale = np.abs(full.delta_loss.numpy()).max()
    np.testing.assert_allclose(truth.delta_loss, loss.pseudo_values, rtol=0, atol=1e-4 * scale)
    in_units = per_target.pseudo_values * np.array(opened.model.config.label_std) ** 2
    np.testing.assert_allclose(truth.delta_target_sq, in_units, rtol=0, atol=1e-4 * np.abs(in_units).max())
    np.testing.assert_allclose(truth.intact_loss, full.intact_loss.numpy(), rtol=1e-4)
    assert truth.name == "ablation_zero_estimated" and truth.num_swept == SWEPT and truth.is_estimated
    assert truth.r2.shape == truth.is_swept.shape == truth.delta_loss.shape[1:]
    # It is near the sweep of all pictures, and not the sweep itself.
    gap = np.abs(truth.delta_loss.mean(axis=0) - full.delta_loss.numpy().mean(axis=0)).max()
    assert 0 < gap < 0.5 * np.abs(full.delta_loss.numpy().mean(axis=0)).max()


@pytest.fixture(scope="module")
def every_sweep(opened, source):
    """Sweeps of all pictures, by kind: what estimates stand for."""
    settings = CompareSettings(model="tiny-random", num_pictures=COUNT)
    batch = make_batch(opened, source.draw(range(COUNT)))
    found = {}
    for kind in ESTIMATED:
        one = truth_pass(opened, source, settings, kind)
        given = with_companions(opened, batch, source, settings.seed, one.needs) if one.needs else batch
        found[kind] = one.compute(given, [one.name], 8)[one.name]
    return found


def test_every_truth_is_estimated_by_what_expands_it(tmp_path, opened, source, every_sweep, monkeypatch):
    """From the sweep's own changes of the outputs, and attribution patching by the replacement of the truth."""
    monkeypatch.setattr(truths, "bfloat16_is_native", lambda _: False)
    settings = settings_of(tmp_path, truths=ESTIMATED)
    found = explained(opened, source, settings, tmp_path / "scores").truths
    assert [one.kind for one in found] == [f"{kind}_estimated" for kind in ESTIMATED]
    sample = sample_pictures(COUNT, SWEPT, settings.seed)
    batch = make_batch(opened, source.draw(range(COUNT)))
    for truth, kind in zip(found, ESTIMATED, strict=True):
        sweep = every_sweep[kind]
        predicted = -first_order(opened, source, batch, kind)
        loss, per_target = estimate_from_outputs(sweep["output_changes"][sample], predicted, sweep["residuals"], sample)
        is_swept = truth.is_swept
        scale = np.abs(sweep["delta_loss"]).max()
        np.testing.assert_allclose(
            truth.delta_loss[:, ~is_swept], loss.pseudo_values[:, ~is_swept], rtol=0, atol=1e-4 * scale
        )
        np.testing.assert_allclose(
            truth.delta_loss[:, is_swept], sweep["delta_loss"][:, is_swept], rtol=0, atol=1e-5 * scale
        )
        assert per_target.pseudo_values.shape == truth.delta_target_sq.shape
        # The predictor tells something of what it expands.
        assert np.median(loss.r2) > 0.3, (kind, np.median(loss.r2))


def gradients_by_hooks(model, pixel_values):
    """∂ŷ_k/∂z `[layer][target image token head*head_dim]`: of a zero that is added to the contexts of each layer."""
    own = contexts_by_hooks(model, pixel_values)
    zeros = [torch.zeros_like(layer, requires_grad=True) for layer in own]
    handles = [
        projection.register_forward_pre_hook(lambda _, args, zero=zero: (args[0] + zero,))
        for projection, zero in zip(output_projections(model), zeros, strict=True)
    ]
    with torch.enable_grad():
        outputs = model(pixel_values).sum(0)
        rows = [torch.autograd.grad(value, zeros, retain_graph=True) for value in outputs]
    for handle in handles:
        handle.remove()
    return [torch.stack(layer) for layer in zip(*rows, strict=True)]


def first_order(opened, source, batch, kind):
    """Σ (z − b)·∂ŷ/∂z under plain hooks, `[image layer head (donor) target]`."""
    needs = {"mean": MEAN, "resample": DONORS, "counterfactual": COUNTERFACTUAL}
    model = opened.model
    gradients = gradients_by_hooks(model, batch.pixel_values)
    own = contexts_by_hooks(model, batch.pixel_values)
    if kind in needs:
        batch = with_companions(opened, batch, source, 0, [needs[kind]])
    if kind == "resample":
        lent = [contexts_by_hooks(model, one) for one in batch.donor_pixel_values.unbind(1)]
    elif kind == "counterfactual":
        lent = [contexts_by_hooks(model, batch.counterfactual_pixel_values)]
    elif kind == "mean":
        lent = [[layer.flatten(-2)[None].to(own[0]) for layer in batch.mean_context]]
    elif kind == "optimal":
        lent = [[layer.flatten(-2)[None].to(own[0]) for layer in held_optimal(opened, source)]]
    else:
        lent = [[torch.zeros_like(layer) for layer in own]]
    num_heads = 4
    found = []
    for others in lent:
        layers = []
        for layer, there in enumerate(others):
            moved = (own[layer] - there) * gradients[layer]  # [target image token head*head_dim]
            layers.append(moved.unflatten(-1, (num_heads, -1)).sum((2, 4)).permute(1, 2, 0))
        found.append(torch.stack(layers, dim=1))
    return (found[0] if kind != "resample" else torch.stack(found, dim=3)).numpy()


def test_badly_predicted_heads_are_swept_on_all_pictures(tmp_path, opened, source, swept, monkeypatch):
    poor = np.zeros((3, 4), dtype=bool)
    poor[1, 2] = poor[0, 3] = True
    monkeypatch.setattr(truths, "poor_heads", lambda estimate: poor)
    truth = explained(opened, source, settings_of(tmp_path), tmp_path / "scores").truth
    np.testing.assert_array_equal(truth.is_swept, poor)
    np.testing.assert_array_equal(truth.r2[poor], 1.0)
    expected = swept[1]
    scale = float(expected.delta_loss.abs().max())
    np.testing.assert_allclose(truth.delta_loss[:, poor], expected.delta_loss.numpy()[:, poor], atol=1e-5 * scale)
    sq = expected.delta_target_sq.numpy()
    np.testing.assert_allclose(truth.delta_target_sq[:, poor], sq[:, poor], atol=1e-5 * np.abs(sq).max())
    assert np.abs(truth.delta_loss[:, ~poor] - expected.delta_loss.numpy()[:, ~poor]).max() > 1e-4 * scale


def test_without_an_estimate_the_truth_is_the_sweep(tmp_path, opened, source, swept):
    truth = explained(opened, source, settings_of(tmp_path, estimate=None), tmp_path / "scores").truth
    expected = swept[1]
    atol = 1e-5 * float(expected.delta_loss.abs().max())
    np.testing.assert_allclose(truth.delta_loss, expected.delta_loss.numpy(), rtol=0, atol=atol)
    assert truth.name == "ablation_zero" and not truth.is_estimated


def test_every_table_says_that_effects_are_estimated(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["--model", "tiny-random", "--num-pictures", "12", "--estimate", "6", "--methods", "cls_mass,gate_ixg"]
    few = ["--bootstrap-replicates", "50", "--num-permutations", "50", "--output-dir", str(folder)]
    assert main([*arguments, *few]) == 0
    printed = capsys.readouterr().out
    assert "Effects are estimates: 6 of 12 pictures were swept" in printed
    assert "Fewer than 48 pictures were swept" in printed and "estimated zero ablation" in printed
    scorecard, agreement = (pd.read_csv(folder / f"{name}.csv") for name in ("head_scorecard", "agreement"))
    effects = [name for name in scorecard if name.startswith("ablation_")]
    kinds = ("zero", "mean", "counterfactual")
    assert {name.split("_estimated_")[0] for name in effects} == {f"ablation_{kind}" for kind in kinds}
    assert not any("trimmed" in name for name in effects)
    assert {"ablation_zero_estimated_is_swept", "ablation_zero_estimated_r2"} <= set(effects)
    assert set(agreement["truth"]) == {f"ablation_{kind}_estimated" for kind in kinds}
    assert set(agreement["estimator"]) == {"mean"}
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Effects are estimates" in report and "estimated from a sweep of 6 of them" in report


def test_what_is_asked_for_must_leave_something_to_estimate(tmp_path, capsys):
    for wrong, words in (
        ("16", "--estimate: expected from 3 to 15 of 16 pictures"),
        ("2", "expected a whole number >= 3"),
    ):
        assert main(["--model", "tiny-random", "--num-pictures", "16", "--estimate", wrong]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    settings, _ = parse(["--num-pictures", "50", "--estimate", "20"])
    assert settings.estimate == 20
    with pytest.raises(ValueError, match="--estimate: expected from 3 to 9 of 10 pictures to sweep, got 20"):
        truths.sample_of(settings, 10)


def test_the_forecast_counts_the_sample_alone(opened, source, tmp_path):
    sweep, predictor = truths.truth_passes(opened, source, settings_of(tmp_path))
    assert list(sweep.rows) == truths.sample_of(settings_of(tmp_path), COUNT) and predictor.rows is None
    assert sweep.forwards == pytest.approx(1 + sweep_costs(3, 4).sum())
