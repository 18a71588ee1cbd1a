"""Whole layers removed, against weights set to zero by hand, single effects of the truth, and arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from check_evidence import batch_of, evidence_of, source_of, tiny_opened
from scipy.stats import trim_mean, ttest_1samp

from analysis.checks import joint_removal
from analysis.checks.evidence import Evidence
from analysis.checks.joint_removal import COLUMNS, heads_of, layer_sets
from analysis.intervals import bootstrap_indices
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from attribution.vit import loss_per_image, output_projections

SETTINGS = CompareSettings(methods=("random",), curve_pictures=5, bootstrap_replicates=60)
SETS = {
    ("layer", "0"): (0,),
    ("layer", "1"): (1,),
    ("layer", "2"): (2,),
    ("group", "0-1"): (0, 1),
    ("group", "0-2"): (0, 1, 2),
    ("group", "1-2"): (1, 2),
}


def test_groups_hold_those_that_claims_are_made_of():
    found = layer_sets(12)
    groups = [name for level, name in found if level == "group"]
    assert groups == [*(f"0-{last}" for last in range(1, 12)), "5-10", "5-11"]
    assert found["group", "5-10"] == (5, 6, 7, 8, 9, 10) and found["layer", "3"] == (3,)
    assert [name for level, name in found if level == "layer"] == [str(layer) for layer in range(12)]
    assert layer_sets(3) == SETS
    assert layer_sets(1) == {("layer", "0"): (0,)}
    assert [name for level, name in layer_sets(24) if level == "group"][-2:] == ["10-22", "10-23"]
    assert heads_of((0, 2), 2) == ((0, 0), (0, 1), (2, 0), (2, 1))


@pytest.fixture(scope="module", params=["dinov2_lora", "registers"])
def made(request):
    opened = tiny_opened(request.param)
    source = source_of(opened.model)
    return opened, source, evidence_of(joint_removal, opened, source, SETTINGS)


def test_losses_are_those_without_any_output_of_the_attention(made):
    """All heads of a layer gone is an output projection whose weight is zero."""
    opened, source, evidence = made
    batch = batch_of(opened, source, SETTINGS, range(5))
    losses = evidence.read(joint_removal.NAME)["losses"]
    assert losses.shape == (5, 1 + len(SETS)) and losses.dtype == np.float64
    projections = output_projections(opened.model)
    for place, layers in enumerate([(), *SETS.values()]):
        kept = [projections[layer].weight.clone() for layer in layers]
        with torch.no_grad():
            for layer in layers:
                projections[layer].weight.zero_()
            expected = loss_per_image(opened.model(batch.pixel_values), batch.labels).numpy()
            for layer, weight in zip(layers, kept, strict=True):
                projections[layer].weight.copy_(weight)
        np.testing.assert_allclose(losses[:, place], expected, rtol=1e-10, atol=1e-10)
    assert len(np.unique(losses[0].round(8))) == 1 + len(SETS)  # each set does something of its own


def test_rows_by_arithmetic(made):
    evidence = made[2]
    losses = evidence.read(joint_removal.NAME)["losses"]
    effects = 100 * evidence.truth.delta_loss[:5]
    found = joint_removal.table(evidence)
    assert tuple(found.columns) == COLUMNS and (found["n"] == 5).all()
    assert list(zip(found["level"], found["layers"], strict=True)) == list(SETS)
    for place, (layers, (_, row)) in enumerate(zip(SETS.values(), found.iterrows(), strict=True)):
        joint = 100 * (losses[:, 1 + place] - losses[:, 0])
        single = sum(effects[:, layer, head] for layer in layers for head in range(effects.shape[2]))
        assert row["joint_var_pct"] == pytest.approx(joint.mean(), rel=1e-10)
        assert row["trimmed_var_pct"] == pytest.approx(trim_mean(joint, 0.1), rel=1e-10)
        assert row["sum_of_single_var_pct"] == pytest.approx(single.mean(), rel=1e-10)
        assert row["difference_var_pct"] == pytest.approx((joint - single).mean(), rel=1e-10)
        assert row["joint_over_sum"] == pytest.approx(joint.mean() / single.mean(), rel=1e-10)
        assert row["share_of_all_single_effects"] == pytest.approx(single.sum() / effects.sum(), rel=1e-10)
        largest = max(joint, key=abs)
        assert row["largest_picture_share"] == pytest.approx(largest / joint.sum(), rel=1e-10)
    limits = (("ci_low", "joint_var_pct", "ci_high"), ("sum_ci_low", "sum_of_single_var_pct", "sum_ci_high"),
              ("difference_ci_low", "difference_var_pct", "difference_ci_high"))  # fmt: skip
    for low, value, high in limits:
        assert (found[low] < found[value]).all() and (found[value] < found[high]).all()


def stand_in(joint, effects, replicates=300):
    """Evidence of a model of 3 layers with these effects, [image set] and [image layer head], in % of the variance."""
    losses = np.concatenate([np.ones((len(joint), 1)), 1 + joint / 100], axis=1)
    truth = Truth("zero", effects / 100, np.zeros((*effects.shape, 1)), np.ones(len(effects)))
    return Evidence(
        *(None, None, SETTINGS, {}, {}, truth, {}),
        lambda count: bootstrap_indices(count, replicates),
        lambda _: {"losses": losses},
    )


def test_intervals_are_those_of_scipy_and_the_difference_is_paired():
    rng = np.random.default_rng(0)
    effects = rng.normal(1, 5, size=(12, 3, 2))
    singles = effects.sum(axis=2)
    summed = np.stack([singles[:, list(layers)].sum(axis=1) for layers in SETS.values()], axis=1)
    joint = summed + rng.normal(3, 0.1, size=summed.shape)  # the difference is far surer than either
    found = joint_removal.table(stand_in(joint, effects))
    for place, values in enumerate(np.moveaxis(np.stack([joint, summed, joint - summed]), 2, 0)):
        for (low, high), one in zip(
            (("ci_low", "ci_high"), ("sum_ci_low", "sum_ci_high"), ("difference_ci_low", "difference_ci_high")),
            values,
            strict=True,
        ):
            expected = ttest_1samp(one, 0.0).confidence_interval(0.95)
            assert found[low][place] == pytest.approx(expected.low, rel=1e-6)
            assert found[high][place] == pytest.approx(expected.high, rel=1e-6)
    widths = found["difference_ci_high"] - found["difference_ci_low"]
    assert (widths < 0.1 * (found["ci_high"] - found["ci_low"])).all() and (found["difference_ci_low"] > 2.5).all()


def test_small_one_at_a_time_and_large_together():
    """Two heads that stand in for each other: single effects of nothing, a joint effect of 8 %."""
    effects = np.zeros((6, 3, 2))
    effects[:, 1] = 2.0
    joint = np.zeros((6, len(SETS)))
    joint[:, 0] = 8.0
    joint[2, 0] = 48.0
    found = joint_removal.table(stand_in(joint, effects)).set_index(["level", "layers"])
    first = found.loc[("layer", "0")]
    assert first["joint_var_pct"] == pytest.approx(88 / 6) and first["sum_of_single_var_pct"] == 0
    assert np.isnan(first["joint_over_sum"]) and first["share_of_all_single_effects"] == 0
    assert first["largest_picture_share"] == pytest.approx(48 / 88)
    assert found.loc[("layer", "1"), "share_of_all_single_effects"] == 1
    assert np.isnan(found.loc[("layer", "1"), "largest_picture_share"])  # of a joint effect that is 0
    nothing = joint_removal.table(stand_in(np.zeros_like(joint), np.zeros_like(effects)))
    assert nothing["share_of_all_single_effects"].isna().all() and (nothing["joint_var_pct"] == 0).all()


def test_only_the_first_pictures_and_what_they_cost(made):
    opened, source, _ = made
    (one,) = joint_removal.passes(opened, source, SETTINGS, {}, {})
    assert one.rows == tuple(range(5))
    assert one.forwards == pytest.approx(1 + (1 + 2 / 3 + 1 / 3) + (1 + 1 + 2 / 3))
    whole = replace(SETTINGS, curve_pictures=6)
    assert joint_removal.passes(opened, source, whole, {}, {})[0].rows is None
