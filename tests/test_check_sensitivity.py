"""Path methods under other settings, against each run by hand; costs and pictures as they should be shared out."""

from dataclasses import replace

import numpy as np
import pytest
from check_evidence import batch_of, evidence_of, source_of, tiny_opened
from scipy.stats import spearmanr

from analysis.agreement import agreement_table
from analysis.checks import rerun, sensitivity
from analysis.models import preprocessed
from analysis.passes import BACKWARD_COST, chosen_methods
from analysis.settings import CompareSettings
from attribution.batch import MethodSettings
from attribution.methods import METHODS

NAMES = ("gate_ixg", "gate_ig", "conductance_out", "layer_ig", "layer_deep_lift", "layer_gradient_shap", "cls_mass")
SETTINGS = CompareSettings(methods=NAMES, steps=4, batch_size=3, check_pictures=5, bootstrap_replicates=40)
STEPPED = ("gate_ig", "conductance_out", "layer_ig")
STARTED = ("conductance_out", "layer_ig", "layer_deep_lift")
VARIANTS = {"steps_half": 2, "steps_double": 8, "baseline_black": 4, "baseline_counterfactual": 4}


@pytest.fixture(scope="module")
def opened():
    return tiny_opened()


@pytest.fixture(scope="module")
def source(opened):
    return source_of(opened.model)


@pytest.fixture(scope="module", autouse=True)
def few_passes_are_many():
    """Costly at 4 steps: conductance of the outputs with 6 forwards and 15 backwards, not layer IG with 10 and 8."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rerun, "COSTLY", 22.0)
        patched.setattr(rerun, "COSTLY_PICTURES", 3)
        patched.setattr(sensitivity, "TOP", 2)
        yield


@pytest.fixture(scope="module")
def evidence(opened, source):
    return evidence_of(sensitivity, opened, source, SETTINGS)


def costs(name, steps):
    """Forward and backward passes, written out."""
    return {
        "gate_ig": (steps, steps),
        "conductance_out": (steps + 2, 3 * (steps + 1)),
        "layer_ig": (2 + 2 * steps, 2 * steps),
        "layer_deep_lift": (1, 1),
    }[name]


def forwards(names, steps):
    return sum(costs(name, steps)[0] + BACKWARD_COST * costs(name, steps)[1] for name in names)


def test_passes_take_the_methods_that_a_variant_concerns(opened, source):
    chosen = chosen_methods(NAMES)
    passes = {one.name: one for one in sensitivity.passes(opened, source, SETTINGS, chosen, {})}
    costly = {name for name in STEPPED + STARTED if forwards([name], 4) > 22}
    assert costly == {"conductance_out"}
    expected = {}
    for variant, steps in VARIANTS.items():
        names = STEPPED if variant.startswith("steps") else STARTED
        for suffix, part, rows in (
            ("", [name for name in names if name not in costly], (0, 1, 2, 3, 4)),
            ("_costly", [name for name in names if name in costly], (0, 1, 2)),
        ):
            expected[f"check_sensitivity_{variant}{suffix}"] = (rows, forwards(part, steps))
    assert set(passes) == set(expected)
    for name, (rows, cost) in expected.items():
        assert passes[name].rows == rows and passes[name].forwards == pytest.approx(cost), name
        twins = ("counterfactual_pixel_values",) if "counterfactual" in name else ()
        assert passes[name].needs == twins
    without = sensitivity.passes(opened, replace(source, counterfactual=None), SETTINGS, chosen, {})
    assert {one.name for one in without} == {name for name in expected if "counterfactual" not in name}
    assert sensitivity.passes(opened, source, SETTINGS, chosen_methods(("gate_ixg", "cls_mass")), {}) == []


def test_every_method_that_starts_from_a_picture_is_known():
    layer_paths = {name for name, one in METHODS.items() if one.family == "layers" and one.is_path and not one.needs}
    assert set(sensitivity.BASELINE_METHODS) == layer_paths | {"layer_deep_lift", "layer_deep_lift_out"}


def by_hand(opened, source, name, variant):
    """Scores of a method, run picture by picture under a variant."""
    parts = []
    for row in range(5):
        batch = batch_of(opened, source, SETTINGS, [row])
        if variant == "baseline_black":
            size = opened.model.config.image_size
            black = preprocessed(opened, np.zeros((1, size, size, 3), dtype=np.uint8))
            batch = replace(batch, baseline_pixel_values=black[0])
        elif variant == "baseline_counterfactual":
            batch = replace(batch, baseline_pixel_values=preprocessed(opened, source.counterfactual([row]))[0])
        parts.append(METHODS[name].function(opened.model, batch, MethodSettings(steps=VARIANTS[variant])).numpy())
    return np.concatenate(parts)


def test_the_table_compares_each_variant_with_the_usual_settings(opened, source, evidence):
    table = sensitivity.table(evidence)
    assert tuple(table) == sensitivity.COLUMNS
    assert list(dict.fromkeys(table["method"])) == [name for name in METHODS if name in STEPPED + STARTED]
    pairs = {(name, variant) for variant in VARIANTS for name in (STEPPED if "steps" in variant else STARTED)}
    assert len(table) == len(pairs) and set(zip(table["method"], table["variant"], strict=True)) == pairs
    for line in table.itertuples():
        there = by_hand(opened, source, line.method, line.variant)
        count = 3 if forwards([line.method], 4) > 22 else 5
        assert line.n == count
        there, usual = there[:count], evidence.scores[line.method][:count]
        truth = evidence.truth.delta_loss[:count]
        for one, other, value in (
            (there, usual, line.spearman_with_default),
            (there, truth, line.spearman_with_truth),
            (usual, truth, line.spearman_with_truth_default),
        ):
            assert value == pytest.approx(spearmanr(one.mean(0).ravel(), other.mean(0).ravel()).statistic, abs=1e-12)
        tops = [set(np.argsort(-scores.mean(0).ravel())[:2].tolist()) for scores in (there, usual)]
        assert line.top_10_kept == len(tops[0] & tops[1]) / 2
        compared = agreement_table(
            {"m": there}, {"t": usual}, {"m": True}, evidence.indices(count), 0, num_halves=2, estimators=["mean"]
        )
        limits = compared[compared["statistic"] == "spearman"][["ci_low", "ci_high"]].to_numpy(float)[0]
        np.testing.assert_allclose((line.ci_low, line.ci_high), limits, atol=1e-12)
    moved = table[table["variant"].str.startswith("baseline")]
    assert (moved["spearman_with_default"] < 1).any()  # another start is another number


def test_stored_scores_are_those_of_the_variant(opened, source, evidence):
    for name, variant in (("layer_deep_lift", "baseline_black"), ("layer_deep_lift", "baseline_counterfactual"),
                          ("gate_ig", "steps_half")):  # fmt: skip
        stored = evidence.read(f"check_sensitivity_{variant}")[name]
        expected = by_hand(opened, source, name, variant)
        np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
        assert np.abs(stored - evidence.scores[name][:5]).max() > 1e-4 * np.abs(stored).max()


def test_the_table_is_empty_without_such_methods(evidence):
    table = sensitivity.table(replace(evidence, methods=chosen_methods(("cls_mass",))))
    assert table.empty and tuple(table) == sensitivity.COLUMNS


def test_what_scores_depend_on(opened, source):
    def depends_on(**changes):
        passes = sensitivity.passes(opened, source, replace(SETTINGS, **changes), chosen_methods(NAMES), {})
        return {name: what for one in passes for name, what in one.depends_on.items()}

    same, other = depends_on(), depends_on(steps=6)
    assert depends_on(check_pictures=2) == same and set(other) == set(same)
    assert all(other[name] != same[name] for name in same)
