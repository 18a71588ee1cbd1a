"""Methods on models that forgot, against each method run by hand on each copy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from check_evidence import batch_of, computed, evidence_of, source_of, tiny_opened
from scipy.stats import spearmanr

from analysis.agreement import agreement_table
from analysis.checks import randomised, rerun
from analysis.passes import BACKWARD_COST
from analysis.settings import CompareSettings
from attribution.batch import MethodSettings
from attribution.method import Method
from attribution.methods import METHODS
from attribution.randomised import not_finetuned, reinitialised

NAMES = ("gate_ixg", "gate_ig", "layer_gradient_shap", "cls_mass", "cls_entropy", "random", "parameter_norm")
SETTINGS = CompareSettings(methods=NAMES, steps=2, batch_size=3, check_pictures=4, bootstrap_replicates=40)
COPIES = ["not_finetuned", "cascade_1", "cascade_2", "cascade_3", "reinitialised"]


@pytest.fixture(scope="module")
def opened():
    return tiny_opened()


@pytest.fixture(scope="module")
def source(opened):
    return source_of(opened.model)


@pytest.fixture(scope="module")
def evidence(opened, source):
    return evidence_of(randomised, opened, source, SETTINGS)


def by_hand(opened, copy):
    if copy == "not_finetuned":
        return not_finetuned(opened.model, SETTINGS.seed)
    count = None if copy == "reinitialised" else int(copy.removeprefix("cascade_"))
    return reinitialised(opened.model, SETTINGS.seed, num_blocks=count)


def test_each_pass_holds_every_method_on_its_copy(opened, source, evidence):
    passes = randomised.passes(opened, source, SETTINGS, evidence.methods, {})
    assert [one.name for one in passes] == [f"check_randomised_{copy}" for copy in COPIES]
    batch = batch_of(opened, source, SETTINGS, range(4))
    for copy in COPIES:
        found = evidence.read(f"check_randomised_{copy}")
        few = "cascade" in copy
        assert set(found) == set(NAMES) - {"random"} - ({"gate_ig", "layer_gradient_shap"} if few else set())
        model = by_hand(opened, copy)
        for name, scores in found.items():
            expected = METHODS[name].function(model, batch, MethodSettings(steps=2))
            np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_passes_say_what_they_cost_and_need(opened, source, evidence):
    passes = {one.name: one for one in randomised.passes(opened, source, SETTINGS, evidence.methods, {})}
    cascade, whole = passes["check_randomised_cascade_2"], passes["check_randomised_reinitialised"]
    assert cascade.rows == whole.rows == (0, 1, 2, 3)
    assert cascade.needs == () and whole.needs == ("donor_pixel_values",)
    # gate_ixg a forward and a backward, cls_mass and cls_entropy a forward, gate_ig two each, gradient SHAP 9 and 4.
    assert cascade.forwards == pytest.approx(3 + BACKWARD_COST)
    assert whole.forwards == pytest.approx(3 + 2 + 9 + BACKWARD_COST * (1 + 2 + 4))


def test_what_scores_depend_on(opened, source, evidence):
    def depends_on(methods=evidence.methods, **changes):
        passes = randomised.passes(opened, source, replace(SETTINGS, **changes), methods, {})
        return next(one for one in passes if one.name.endswith("reinitialised")).depends_on[
            "check_randomised_reinitialised"
        ]

    same = depends_on()
    assert depends_on(check_pictures=2, bootstrap_replicates=10) == same
    fewer = {name: method for name, method in evidence.methods.items() if name != "gate_ig"}
    assert all(depends_on(**change) != same for change in ({"seed": 1}, {"steps": 3}, {"methods": fewer}))

    def mine(scale):
        return lambda model, batch, settings: scale * torch.ones(len(batch), 3, 2)

    one, other, again = ({**evidence.methods, "mine": Method("mine", mine(scale))} for scale in (1, 2, 1))
    assert depends_on(one) != depends_on(other) and depends_on(one) == depends_on(again)


def test_the_table_is_spearman_over_heads_of_means_over_the_same_pictures(evidence):
    table = randomised.table(evidence)
    assert tuple(table) == randomised.COLUMNS and (table["n"] == 4).all()
    everywhere = [(name, model) for name in METHODS if name in NAMES for model in ("intact", *COPIES)]
    left_out = [("gate_ig", "cascade"), ("layer_gradient_shap", "cascade"), ("random", "")]
    expected = [pair for pair in everywhere if not any(pair[0] == a and pair[1].startswith(b) for a, b in left_out)]
    assert list(zip(table["method"], table["model"], strict=True)) == expected
    truth, indices = evidence.truth.delta_loss[:4], evidence.indices(4)
    for row in table.itertuples():
        own = evidence.scores[row.method][:4]
        sign = -1 if row.method == "cls_entropy" else 1
        there = own if row.model == "intact" else sign * evidence.read(f"check_randomised_{row.model}")[row.method]
        there = there.astype(np.float64)
        for other, value in ((truth, row.spearman_with_truth), (own, row.spearman_with_own)):
            assert value == pytest.approx(spearmanr(there.mean(0).ravel(), other.mean(0).ravel()).statistic, abs=1e-12)
        compared = agreement_table({"m": there}, {"truth": truth, "own": own}, {"m": True}, indices, 0, num_halves=2)
        limits = compared.query("statistic == 'spearman' and estimator == 'mean'").set_index("truth")
        found = (row.ci_low, row.ci_high), (row.own_ci_low, row.own_ci_high)
        for name, pair in zip(("truth", "own"), found, strict=True):
            np.testing.assert_allclose(pair, limits.loc[name, ["ci_low", "ci_high"]].to_numpy(float), atol=1e-12)
    intact = table[table["model"] == "intact"]
    np.testing.assert_allclose(intact[["spearman_with_own", "own_ci_low", "own_ci_high"]], 1)
    weights = table.query("method == 'parameter_norm' and model == 'reinitialised'")
    assert abs(weights["spearman_with_own"].item()) < 1  # the one control that has something to forget


def test_a_method_without_scores_on_a_copy_has_none_there_alone(opened, source, monkeypatch):
    def alive_at_home(model, batch, settings):
        """Zero on every other model; there not a number for picture 1."""
        at_home = model is opened.model
        scores = torch.arange(6.0).reshape(3, 2).repeat(len(batch), 1, 1) * at_home
        return scores if at_home or 3 in batch.indices else scores + 1 + torch.arange(6.0).reshape(3, 2)

    monkeypatch.setitem(METHODS, "alive", Method("alive", alive_at_home))
    settings = replace(SETTINGS, methods=("alive", "gate_ixg"), check_pictures=6)
    found = evidence_of(randomised, opened, source, settings)
    table = randomised.table(found).set_index(["method", "model"])
    for model in COPIES:  # pictures 3 to 5 went through together, and had no scores
        there = found.read(f"check_randomised_{model}")
        assert np.isnan(there["alive"][3:]).all() and np.isfinite(there["alive"][:3]).all()
        assert table.loc[("alive", model), "n"] == 3 and table.loc[("gate_ixg", model), "n"] == 6
        truth = found.truth.delta_loss[:3].mean(axis=0).ravel()
        assert table.loc[("alive", model), "spearman_with_truth"] == pytest.approx(
            spearmanr(np.arange(6), truth).statistic
        )

    monkeypatch.setitem(
        METHODS, "alive", Method("alive", lambda *args: alive_at_home(*args) * (args[0] is opened.model))
    )
    table = randomised.table(evidence_of(randomised, opened, source, settings)).set_index(["method", "model"])
    lost = table.loc[[("alive", model) for model in COPIES]]
    assert (lost["n"] == 0).all() and lost.drop(columns="n").isna().all(axis=None)
    assert table.drop(index=lost.index).notna().all(axis=None)


def test_a_copy_is_made_when_needed_and_one_is_held(opened, source, evidence, monkeypatch):
    made = []

    def counted(model, seed, *, num_blocks=None):
        made.append(num_blocks)
        return reinitialised(model, seed, num_blocks=num_blocks)

    monkeypatch.setattr(randomised, "reinitialised", counted)
    methods = {"cls_mass": evidence.methods["cls_mass"]}
    passes = randomised.passes(opened, source, SETTINGS, methods, {})
    assert made == [None]  # a trial, to know whether it can be made
    made.clear()
    computed(opened, source, replace(SETTINGS, check_pictures=6), passes)
    assert made == [1, 2, 3, None]


def test_what_cannot_be_made_is_left_out(opened, source, evidence, monkeypatch):
    plain = tiny_opened("dinov2")
    assert [copy.name for copy in randomised.copies(plain.model, 0)] == COPIES[1:]  # no adapters to take off

    def refuse(*_, **__):
        raise ValueError("weights whose initial value is not known")

    monkeypatch.setattr(randomised, "reinitialised", refuse)
    assert [copy.name for copy in randomised.copies(opened.model, 0)] == ["not_finetuned"]
    only_random = {"random": evidence.methods["random"]}
    assert randomised.passes(opened, source, SETTINGS, only_random, {}) == []
    assert randomised.table(replace(evidence, methods=only_random)).empty


def test_costly_methods_run_on_few_pictures_in_a_pass_of_their_own(opened, source, evidence, monkeypatch):
    usual = randomised.table(evidence).set_index(["method", "model"]).loc[("gate_ixg", "reinitialised")]
    cheap = SETTINGS.check_pictures
    monkeypatch.setattr(rerun, "COSTLY", 3.0)  # gate_ig takes more at two steps, gate_ixg less
    monkeypatch.setattr(rerun, "COSTLY_PICTURES", 2)
    methods = {name: evidence.methods[name] for name in ("gate_ixg", "gate_ig")}
    passes = {one.name: one for one in randomised.passes(opened, source, SETTINGS, methods, {})}
    assert passes["check_randomised_reinitialised"].rows == tuple(range(cheap))
    assert passes["check_randomised_reinitialised_costly"].rows == (0, 1)
    assert "check_randomised_cascade_1_costly" not in passes  # one-pass methods alone
    found = computed(opened, source, SETTINGS, passes.values())
    table = randomised.table(replace(evidence, methods=methods, read=found.__getitem__))
    counts = table[table["model"] == "reinitialised"].set_index("method")["n"]
    assert counts.to_dict() == {"gate_ixg": cheap, "gate_ig": 2}
    assert table.set_index(["method", "model"]).loc[("gate_ixg", "reinitialised")].equals(usual)
