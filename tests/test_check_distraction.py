"""Checks that need twins, against whole forward passes with gates on toy pictures and by arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from check_evidence import computed
from scipy.stats import wilcoxon
from toy_pictures import draw_picture, edited_places, toy_model, toy_source

from analysis.checks import distraction, necessity, patching, redundancy
from analysis.checks.evidence import Evidence
from analysis.intervals import bootstrap_indices
from analysis.models import make_batch
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from attribution.ablation import zero_ablation
from attribution.contexts import contexts
from attribution.vit import gated
from data_synth.twins import without

COUNT, HEADS = 6, 4
SETTINGS = CompareSettings(curve_pictures=COUNT, distraction_pictures=COUNT)
ORDERS = {
    "ablation_zero": ((0, 2), (0, 0), (0, 3), (0, 1)),
    "looks_at_text": ((0, 1), (0, 3), (0, 0), (0, 2)),
    "looks_at_colorbar": ((0, 2), (0, 0), (0, 1), (0, 3)),
}


@pytest.fixture(scope="module")
def opened():
    return toy_model()


@pytest.fixture(scope="module")
def source():
    return toy_source(COUNT)


@pytest.fixture(scope="module")
def batch(opened, source):
    return make_batch(opened, source.draw(range(COUNT)))


@pytest.fixture(scope="module")
def truth(opened, batch):
    found = zero_ablation(opened.model, batch)
    return Truth("zero", found.delta_loss.numpy(), found.delta_target_sq.numpy(), found.intact_loss.numpy())


def pixels_without(opened, item):
    images = [draw_picture(*edited_places(without(item), row))[0] for row in range(COUNT)]
    return opened.model.preprocess(np.stack(images)).double()


def outputs(opened, pixel_values, removed=(), replacement=None):
    gates = torch.ones(1, 1, HEADS, dtype=torch.float64)
    for _, head in removed:
        gates[0, 0, head] = 0
    with torch.no_grad(), gated(opened.model, gates.expand(len(pixel_values), -1, -1), replacement):
        return opened.model(pixel_values).numpy()


def loss(predictions, batch):
    return ((predictions - batch.labels.numpy()) ** 2).mean(axis=1)


def evidence_of(check, opened, source, truth):
    passes = check.passes(opened, source, SETTINGS, {}, ORDERS)
    found = computed(opened, source, SETTINGS, passes)
    return Evidence(
        *(opened, source, SETTINGS, {}, {}, truth, ORDERS),
        lambda count: bootstrap_indices(count, 60),
        found.__getitem__,
    )


def test_distraction_is_a_paired_difference_of_effects(opened, source, batch, truth):
    found = distraction.table(evidence_of(distraction, opened, source, truth))
    assert set(found["item"]) == {"text", "title", "colorbar"}  # toy pictures show nothing else that does not matter
    for item in ("text", "colorbar"):
        twins = pixels_without(opened, item)
        for head in range(HEADS):
            effects = [
                loss(outputs(opened, pixels, [(0, head)]), batch) - loss(outputs(opened, pixels), batch)
                for pixels in (batch.pixel_values, twins)
            ]
            row = found[(found["level"] == "head") & (found["head"] == head) & (found["item"] == item)].iloc[0]
            assert row["with_var_pct"] == pytest.approx(100 * effects[0].mean(), abs=1e-9)
            assert row["without_var_pct"] == pytest.approx(100 * effects[1].mean(), abs=1e-9)
            assert row["difference_var_pct"] == pytest.approx(100 * (effects[0] - effects[1]).mean(), abs=1e-9)
            assert row["ci_low"] <= row["difference_var_pct"] <= row["ci_high"] and row["n"] == COUNT
        heads = found[(found["level"] == "head") & (found["item"] == item)]
        layer = found[(found["level"] == "layer") & (found["item"] == item)].iloc[0]
        assert layer["difference_var_pct"] == pytest.approx(heads["difference_var_pct"].mean())


def test_slope_over_depth_by_polyfit():
    values = np.random.default_rng(0).normal(size=(5, 7))
    expected = np.polyfit(np.arange(7), values.T, 1)[0]
    assert distraction.over_depth(values)[:, 0] == pytest.approx(expected)


def test_patching_by_whole_passes(opened, source, batch, truth):
    found = patching.table(evidence_of(patching, opened, source, truth)).set_index(["item", "head"])
    for item in ("text", "colorbar"):
        twins = pixels_without(opened, item)
        elsewhere = contexts(opened.model, twins)
        intact, bare = outputs(opened, batch.pixel_values), outputs(opened, twins)
        effect = intact - bare
        for head in range(HEADS):
            through = intact - outputs(opened, batch.pixel_values, [(0, head)], elsewhere)
            row = found.loc[(item, head)]
            assert row["share"] == pytest.approx((through * effect).sum() / (effect**2).sum(), abs=1e-9)
            shifts = [
                np.sqrt(((outputs(opened, pixels, [(0, head)]) - outputs(opened, pixels)) ** 2).mean())
                for pixels in (batch.pixel_values, twins)
            ]
            assert [row["shift_with"], row["shift_without"]] == pytest.approx(shifts)
            assert row["shift_ratio"] == pytest.approx(shifts[1] / shifts[0])
            assert row["twin_shift"] == pytest.approx(np.sqrt((effect**2).mean()))


def test_necessity_by_whole_passes(opened, source, batch, truth):
    found = necessity.table(evidence_of(necessity, opened, source, truth)).set_index(["item", "heads"])
    for item in ("text", "colorbar"):
        twins = pixels_without(opened, item)
        for size in (1,):  # groups of 5 and 10 would be all four heads here
            removed = ORDERS[f"looks_at_{item}"][:size]
            moved, delta = [], []
            for pixels in (batch.pixel_values, twins):
                intact, without_them = outputs(opened, pixels), outputs(opened, pixels, removed)
                moved.append(np.sqrt(((without_them - intact) ** 2).mean()))
                delta.append(100 * (loss(without_them, batch) - loss(intact, batch)))
            row = found.loc[(item, size)]
            assert [row["shift_with"], row["shift_without"]] == pytest.approx(moved)
            assert row["ratio"] == pytest.approx(moved[1] / moved[0])
            assert row["difference_var_pct"] == pytest.approx((delta[0] - delta[1]).mean(), abs=1e-9)
            assert row["names"].split() == [f"L0H{head}" for _, head in removed]
    assert set(found.index.get_level_values("heads")) == {1}


def test_what_is_to_be_read_is_no_distraction(opened, source):
    asked = replace(source, answer_regions=("colorbar", "colorbar_ticks"))
    for check in (distraction, patching, necessity):
        orders = ORDERS | {"looks_at_chirp": ORDERS["looks_at_text"]}
        [one] = check.passes(opened, asked, SETTINGS, {}, orders)
        items = one.depends_on[check.NAME].get("items", tuple(one.depends_on[check.NAME].get("groups", ())))
        assert "chirp" in items and not {"colorbar", "text"} & set(items)


def test_one_head_has_nobody_to_stand_in():
    evidence = Evidence(
        *(None, None, SETTINGS, {}, {}, None, {"ablation_zero": ((0, 0),)}),
        lambda count: bootstrap_indices(count, 40),
        lambda _: {"residuals": np.zeros((4, 2, 2))},
    )
    assert redundancy.table(evidence).empty


def test_redundancy_by_whole_passes(opened, source, batch, truth):
    found = redundancy.table(evidence_of(redundancy, opened, source, truth))
    assert len(found) == 6 and found["beyond_var_pct"].is_monotonic_decreasing
    intact = outputs(opened, batch.pixel_values)
    for _, row in found.iterrows():
        pair = [(0, int(row["head_a"])), (0, int(row["head_b"]))]
        a, b, both = (outputs(opened, batch.pixel_values, heads) for heads in (pair[:1], pair[1:], pair))
        effects = [100 * (loss(one, batch) - loss(intact, batch)) for one in (a, b, both)]
        interaction = effects[2] - effects[0] - effects[1]
        additive = 200 * ((a - intact) * (b - intact)).mean(axis=1)
        assert row["interaction_var_pct"] == pytest.approx(interaction.mean(), abs=1e-8)
        assert row["additive_var_pct"] == pytest.approx(additive.mean(), abs=1e-8)
        assert row["beyond_var_pct"] == pytest.approx((interaction - additive).mean(), abs=1e-8)
        assert row["p"] == pytest.approx(wilcoxon(interaction - additive).pvalue, rel=1e-6)
        assert row["is_backup"] == (row["beyond_ci_low"] > 0 and row["q_value"] < 0.05)
        assert row["is_shared"] == (row["beyond_ci_high"] < 0 and row["q_value"] < 0.05)


def test_additive_heads_are_no_backups():
    """Outputs that add up interact through the square of the loss alone, and nothing is left beyond that."""
    rng = np.random.default_rng(0)
    scenarios = redundancy.scenarios_of(ORDERS)
    parts = {head: rng.normal(size=(9, 2)) for head in ORDERS["ablation_zero"]}
    start = rng.normal(size=(9, 2))
    residuals = np.stack(
        [start + sum((parts[head] for head in heads), np.zeros((9, 2))) for heads in scenarios], axis=1
    )
    evidence = Evidence(
        *(None, None, SETTINGS, {}, {}, None, ORDERS),
        lambda count: bootstrap_indices(count, 40),
        lambda _: {"residuals": residuals},
    )
    found = redundancy.table(evidence)
    assert np.abs(found["beyond_var_pct"]).max() < 1e-10 and np.abs(found["interaction_var_pct"]).max() > 1
    stand_in = residuals.copy()
    stand_in[:, scenarios.index(((0, 2), (0, 0)))] += 5 * np.sign(stand_in[:, scenarios.index(((0, 2), (0, 0)))])
    found = redundancy.table(replace(evidence, read=lambda _: {"residuals": stand_in}))
    first = found.iloc[0]
    assert first["is_backup"] and (first["head_a"], first["head_b"]) == (2, 0) and found["is_backup"].sum() == 1


@pytest.mark.parametrize(("together", "kind"), [(3.0, "is_backup"), (1.0, "is_shared"), (2.0, None)])
def test_both_tails_of_pairs_are_told(together, kind):
    """Every head adds 1 to a residual of 1; two together add 3, 1, or 2, which is what adding up makes."""
    scenarios = redundancy.scenarios_of(ORDERS)
    jitter = 1 + 0.01 * np.random.default_rng(0).normal(size=(12, 1))
    moved = [{0: 0.0, 1: 1.0, 2: together}[len(heads)] for heads in scenarios]
    residuals = np.repeat((jitter * (1 + np.array(moved)))[..., None], 2, axis=2)
    evidence = Evidence(
        *(None, None, SETTINGS, {}, {}, None, ORDERS),
        lambda count: bootstrap_indices(count, 40),
        lambda _: {"residuals": residuals},
    )
    found = redundancy.table(evidence)
    # ((1 + together)^2 - 1 - 2 · 3 - 2) · 100, times the jitter squared
    expected = 100 * ((1 + together) ** 2 - 9) * (jitter**2).mean()
    np.testing.assert_allclose(found["beyond_var_pct"], expected, atol=1e-9)
    for name in ("is_backup", "is_shared"):
        assert found[name].all() if name == kind else not found[name].any()


@pytest.mark.parametrize("check", [distraction, patching, necessity])
def test_pictures_without_twins_have_no_such_check(check, opened, source, truth):
    alone = replace(source, twin=None)
    assert check.passes(opened, alone, SETTINGS, {}, ORDERS) == []
    evidence = Evidence(opened, alone, SETTINGS, {}, {}, truth, ORDERS, lambda count: None, {}.__getitem__)
    assert check.table(evidence).empty
