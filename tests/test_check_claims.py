"""The claims of the published study, judged on effects and roles made up so that every verdict is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, trim_mean, ttest_1samp

from analysis.checks import claims
from analysis.checks.claims import NOT_SUPPORTED, SUPPORTED, UNTESTABLE
from analysis.intervals import bootstrap_indices
from analysis.plan import CLAIMS, PLAN_FILE, plan_sha256, read_plan

COUNT, LAYERS, HEADS = 40, 12, 4
INDICES = bootstrap_indices(COUNT, 500, 0)


def effects_of(by_layer, *, noise=0.02, seed=0):
    """Effects [image layer head] in % of the label variance: a mean for each layer, exactly, in pictures that differ,
    each layer for itself, and heads that differ a little."""
    rng = np.random.default_rng(seed)
    of_pictures = rng.standard_normal((COUNT, len(by_layer), 1))
    of_heads = 0.01 * rng.standard_normal((1, len(by_layer), HEADS))
    of_pictures -= of_pictures.mean(axis=0)
    of_heads -= of_heads.mean(axis=2, keepdims=True)
    return np.asarray(by_layer, dtype=float)[None, :, None] + noise * of_pictures + of_heads


def roles_of(semanticity, concepts="", verdict=""):
    """One row a head; each argument is a value or [layer head]."""
    shape = (LAYERS, HEADS)
    layer, head = (axis.ravel() for axis in np.indices(shape))
    columns = {"semanticity": semanticity, "concepts": concepts, "verdict": verdict}
    full = {name: np.broadcast_to(np.array(value, dtype=object), shape).ravel() for name, value in columns.items()}
    return pd.DataFrame({"layer": layer, "head": head, "n": COUNT} | full).assign(role=full["concepts"])


def of(rows, claim="C1"):
    found = claims.judged(claim, rows)
    assert list(found.columns) == list(claims.COLUMNS)
    return found


def test_small_early_effects_are_supported_and_large_ones_are_not():
    small = of(claims.early_heads(effects_of([0.1] * 12), INDICES, 2.0))
    assert (small["verdict"] == SUPPORTED).all() and small["met"].tolist() == ["yes", "", ""]
    assert small["value"][0] == pytest.approx(0.1)
    assert small["value_pct_of_baseline"][0] == pytest.approx(100 * small["value"][0] / 2)
    # of a head, over the heads, of its mean over pictures
    spread = effects_of([0.1] * 12)[:, :3].mean(axis=0).std(ddof=1)
    assert small["value"][2] == pytest.approx(spread)
    of_pictures = effects_of([0.1] * 12)[:, :3].mean(axis=(1, 2))
    assert small["value"][1] == pytest.approx(trim_mean(of_pictures, 0.1))
    for mean in (0.6, -0.6):
        assert (of(claims.early_heads(effects_of([mean] * 12), INDICES, 2.0))["verdict"] == NOT_SUPPORTED).all()


def test_an_interval_across_the_margin_is_not_supported():
    effects = effects_of([0.45] * 12, noise=0.6)
    found = of(claims.early_heads(effects, INDICES, 2.0))
    assert found["ci_high"][0] > 0.5 > found["value"][0] and found["verdict"][0] == NOT_SUPPORTED
    expected = ttest_1samp(effects[:, :3].mean(axis=(1, 2)), 0.0).confidence_interval(0.9)
    assert found["ci_low"][0] == pytest.approx(expected.low) and found["ci_high"][0] == pytest.approx(expected.high)


def test_three_times_as_much():
    found = of(claims.deeper_heads(effects_of([0.4] * 3 + [0.8] * 2 + [1.2] * 7, noise=0.3), INDICES), "C2")
    assert found["verdict"].tolist() == [SUPPORTED] * 2
    assert found["value"].tolist() == pytest.approx([3.0, 3.0], abs=1e-9)
    only_sixth = of(claims.deeper_heads(effects_of([0.4] * 5 + [1.2] + [4.0] * 6, noise=0.3), INDICES), "C2")
    assert only_sixth["met"].tolist() == ["yes", "no"] and (only_sixth["verdict"] == NOT_SUPPORTED).all()
    nothing = of(claims.deeper_heads(effects_of([0.0] * 5 + [1.2] * 7, noise=0.3), INDICES), "C2")
    assert (nothing["verdict"] == UNTESTABLE).all() and nothing["why"].str.contains("cannot be told from 0").all()


def test_a_ratio_to_what_one_picture_makes_is_untestable():
    """Most early effects are small and some negative, one is huge: resamples without it have nothing to divide by."""
    effects = effects_of([0.0] * 5 + [1.2] * 7, noise=0.3)
    effects[0, :3] += 30
    assert effects[:, :3].mean() > 0.5
    found = of(claims.deeper_heads(effects, INDICES), "C2")
    assert (found["verdict"] == UNTESTABLE).all() and found["why"].str.contains("cannot be told from 0").all()


def test_models_of_fewer_layers_are_untestable():
    short = effects_of([0.1] * 2)
    for found in (claims.early_heads(short, INDICES, 1.0), claims.deeper_heads(short, INDICES)):
        assert (of(found)["verdict"] == UNTESTABLE).all() and of(found)["why"].str.contains("has 2 layers").all()
    assert of(claims.chirp_alone(roles_of("diffuse"), 2), "C3")["verdict"][0] == UNTESTABLE


def test_shares_of_chirp_heads():
    semanticity = np.full((LAYERS, HEADS), "diffuse", dtype=object)
    semanticity[5:11] = "monosemantic"
    found = of(claims.chirp_alone(roles_of(semanticity, "chirp"), LAYERS), "C3")
    assert found["value"].tolist() == [1.0, 0.0] and found["verdict"][0] == SUPPORTED
    assert found["ci_low"][0] == pytest.approx(beta.ppf(0.025, 24, 1))  # Clopper-Pearson, 24 of 24
    semanticity[:5] = "monosemantic"
    everywhere = of(claims.chirp_alone(roles_of(semanticity, "chirp"), LAYERS), "C3")
    assert everywhere["value"].tolist() == [1.0, 1.0] and everywhere["verdict"][0] == NOT_SUPPORTED
    assert of(claims.chirp_alone(roles_of(semanticity, "text"), LAYERS), "C3")["value"].tolist() == [0.0, 0.0]
    assert of(claims.chirp_alone(pd.DataFrame(), LAYERS), "C3")["verdict"][0] == UNTESTABLE


def test_irrelevant_detectors_must_be_confirmed_and_must_not_matter():
    concepts, verdict = (np.full((LAYERS, HEADS), "", dtype=object) for _ in range(2))
    concepts[1, 2], verdict[1, 2] = "text", "detector"
    concepts[2, 0], verdict[2, 0] = "edge", "untested"
    concepts[8, 0], verdict[8, 0] = "text", "detector"  # too deep to count
    roles = roles_of("monosemantic", concepts, verdict)
    found = of(claims.irrelevant_detectors(roles, effects_of([0.1] * 12), INDICES), "C4")
    assert found["value"].tolist() == [1] and found["verdict"][0] == SUPPORTED
    assert found["why"][0].startswith("2 head(s) of these layers attend to such a thing, 1 are confirmed")
    matters = of(claims.irrelevant_detectors(roles, effects_of([2.0] * 12), INDICES), "C4")
    assert matters["value"].tolist() == [0] and matters["verdict"][0] == NOT_SUPPORTED
    untested = roles_of("monosemantic", concepts, "untested")
    assert of(claims.irrelevant_detectors(untested, effects_of([0.1] * 12), INDICES), "C4")["verdict"][0] == UNTESTABLE


def test_maps_must_repeat_and_be_confirmed():
    semanticity = np.full((LAYERS, HEADS), "diffuse", dtype=object)
    semanticity[6:] = "monosemantic"
    verdict = np.where(semanticity == "monosemantic", "detector", "")
    roles = roles_of(semanticity, np.where(semanticity == "monosemantic", "chirp", ""), verdict)
    halves = pd.DataFrame({"role_a": roles["role"], "role_b": roles["role"], "n_a": 20, "n_b": 20})
    found = of(claims.maps_tell(roles, halves), "C5")
    assert found["value"].tolist() == [1.0, 1.0] and (found["verdict"] == SUPPORTED).all()
    other = halves.assign(role_b=np.where(np.arange(len(halves)) % 2, "chirp", ""))
    chance = of(claims.maps_tell(roles, other), "C5")
    assert chance["value"][0] == pytest.approx(0) and (chance["verdict"] == NOT_SUPPORTED).all()
    unconfirmed = roles.assign(verdict=np.where(roles["verdict"] == "detector", "position prior", ""))
    assert of(claims.maps_tell(unconfirmed, halves), "C5")["met"].tolist() == ["yes", "no"]
    alike = halves.assign(role_a="diffuse", role_b="diffuse")
    assert of(claims.maps_tell(roles, alike), "C5")["verdict"][0] == UNTESTABLE
    assert of(claims.maps_tell(pd.DataFrame(), pd.DataFrame()), "C5")["verdict"].tolist() == [UNTESTABLE] * 2


def test_slopes_over_depth():
    columns = {"level": "slope", "difference_var_pct": [0.2, 0.1, -0.1], "ci_low": [0.1, 0.02, -0.3]}
    table = pd.DataFrame(columns | {"item": ["text", "colorbar", "title"], "ci_high": 0.4, "n": 30})
    found = of(claims.distraction_over_depth(table), "C6")
    assert found["met"].tolist() == ["yes", "yes", ""] and (found["verdict"] == SUPPORTED).all()
    flat = table.assign(ci_low=[0.1, -0.1, 0.1])
    assert (of(claims.distraction_over_depth(flat), "C6")["verdict"] == NOT_SUPPORTED).all()
    partly = of(claims.distraction_over_depth(table[table["item"] != "colorbar"]), "C6")
    assert (partly["verdict"] == UNTESTABLE).all()
    assert (of(claims.distraction_over_depth(pd.DataFrame()), "C6")["verdict"] == UNTESTABLE).all()


def test_the_plan_has_all_claims_and_a_digest_of_its_bytes():
    assert tuple(read_plan()) == CLAIMS
    assert len(plan_sha256()) == 64 and PLAN_FILE.is_file()
    assert {"claim", "published"} <= set.intersection(*(set(entry) for entry in read_plan().values()))
