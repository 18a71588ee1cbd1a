"""Planted truths: what each statistic is by hand, what sound methods find, and what others do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from check_evidence import batch_of, evidence_of, source_of, tiny_opened

from analysis.checks import planted
from analysis.passes import chosen_methods
from analysis.settings import CompareSettings
from attribution.ablation import zero_ablation
from attribution.batch import MethodSettings
from attribution.method import Method
from attribution.methods import METHODS
from attribution.planted import permute_heads, silence_head, split_head, wired_regressor

NAMES = (
    "gate_ixg",
    "gate_ig_out",
    "layer_ig",
    "layer_deep_lift",
    "cls_mass",
    "cls_entropy",
    "parameter_norm",
    "random",
)
SETTINGS = CompareSettings(methods=NAMES, batch_size=3, check_pictures=4)
DIALS = MethodSettings(steps=4)
PLANTS = {"silenced": "share_of_largest", "halves": "difference", "permuted": "largest_change", "wired": "rank"}


@pytest.fixture(scope="module")
def opened():
    return tiny_opened()


@pytest.fixture(scope="module")
def source(opened):
    return source_of(opened.model)


@pytest.fixture(scope="module")
def evidence(opened, source):
    return evidence_of(planted, opened, source, SETTINGS)


@pytest.fixture(scope="module")
def table(evidence):
    return planted.table(evidence)


def scores_of(name, model, batch):
    if name == "ablation_zero":
        return zero_ablation(model, batch).delta_loss.numpy()
    return METHODS[name].function(model, batch, DIALS).double().numpy()


def test_each_number_is_what_it_says(opened, source, evidence, table):
    assert tuple(table) == planted.COLUMNS
    order = evidence.orders["ablation_zero"]
    mean = evidence.truth.delta_loss.mean(axis=0)
    layer, head = np.unravel_index(mean.argmax(), mean.shape)
    into = 1 - head  # of two heads the other one
    assert planted.planted_heads(evidence.orders) == ((layer, head), into) and order[0] == (layer, head)
    model = opened.model
    silenced, halves = silence_head(model, layer, head), split_head(model, layer, head, into)
    swapped = model
    for number in range(3):
        swapped = permute_heads(swapped, number, [1, 0])
    names = [*(name for name in METHODS if name in NAMES and name != "random"), "ablation_zero"]
    assert list(dict.fromkeys(table["method"])) == names
    values = table.set_index(["method", "plant"])["value"]
    for name in names:
        shares, differences, changes, sizes = [], [], [], []
        for row in range(2):
            batch = batch_of(opened, source, SETTINGS, [row])
            without, two, intact, back = (
                np.abs(scores_of(name, edited, batch)[0]) if at < 1 else scores_of(name, edited, batch)[0]
                for at, edited in enumerate((silenced, halves, model, swapped))
            )
            shares.append(without[layer, head] / without.max())
            a, b = two[layer, head], two[layer, into]
            differences.append(abs(a - b) / max(abs(a), abs(b)))
            for number in range(3):
                changes += [abs(back[number, 1] - intact[number, 0]), abs(back[number, 0] - intact[number, 1])]
            sizes.append(np.abs(intact).max())
        bounds = {"abs": 1e-5}  # scores are float32
        assert values[name, "silenced"] == pytest.approx(np.mean(shares), **bounds)
        assert values[name, "halves"] == pytest.approx(np.mean(differences), **bounds)
        assert values[name, "permuted"] == pytest.approx(max(changes) / max(sizes), **bounds)
        wired, batch, (at_layer, at_head) = wired_regressor()
        mean = scores_of(name, wired, batch).mean(axis=0) * (-1 if name == "cls_entropy" else 1)
        there = mean[at_layer, at_head]
        tied = np.abs(mean - there) < 1e-7 * np.abs(mean).max()
        assert values[name, "wired"] == (mean[~tied] > there).sum() + (tied.sum() + 1) / 2


def test_sound_methods_pass_and_others_do_not(table):
    assert (table["ideal"] == table["plant"].map({"wired": 1.0}).fillna(0.0)).all()
    assert (table["statistic"] == table["plant"].map(PLANTS)).all()
    assert (table["n"] == table["plant"].map({"wired": 16}).fillna(2)).all()
    assert (table["passes"] == ((table["value"] - table["ideal"]).abs() <= 1e-3)).all()
    passed = table.pivot(index="method", columns="plant", values="passes")
    for name in ("ablation_zero", "gate_ixg", "gate_ig_out", "layer_ig", "layer_deep_lift", "parameter_norm"):
        assert passed.loc[name].all(), name
    for name in ("cls_mass", "cls_entropy"):  # a silenced head still looks; attention is uniform in the wired model
        assert passed.loc[name].to_dict() == {"halves": True, "permuted": True, "silenced": False, "wired": False}


def test_passes_are_of_two_pictures_with_four_steps(opened, source, evidence):
    passes = {one.name: one for one in planted.passes(opened, source, SETTINGS, evidence.methods, evidence.orders)}
    assert list(passes) == [f"check_planted_{plant}" for plant in ("intact", *PLANTS)]
    assert all(one.rows == (0, 1) for one in passes.values())
    other = replace(SETTINGS, steps=9, check_pictures=2)
    again = planted.passes(opened, source, other, evidence.methods, evidence.orders)
    assert [one.depends_on for one in again] == [one.depends_on for one in passes.values()]
    turned = {**evidence.orders, "ablation_zero": evidence.orders["ablation_zero"][::-1]}
    moved = {one.name: one for one in planted.passes(opened, source, SETTINGS, evidence.methods, turned)}
    differ = {name for name in passes if moved[name].depends_on != passes[name].depends_on}
    assert differ == {f"check_planted_{plant}" for plant in ("silenced", "halves")}
    shap = planted.passes(opened, source, SETTINGS, chosen_methods(("layer_gradient_shap",)), evidence.orders)
    assert {one.name for one in shap if one.needs == ("donor_pixel_values",)} == set(passes) - {"check_planted_wired"}


def test_a_method_that_reads_places_or_cannot_run_does_not_pass(opened, source, monkeypatch):
    def places(model, batch, settings):
        """Counts heads, and refuses a model of three of them."""
        scores = torch.arange(1.0, 7.0).reshape(3, 2).repeat(len(batch), 1, 1)
        if model.config.target_names == ("first", "second"):
            raise ValueError("not for the wired model")
        return scores

    monkeypatch.setitem(METHODS, "places", Method("places", places))
    found = evidence_of(planted, opened, source, replace(SETTINGS, methods=("places",)))
    table = planted.table(found).set_index(["method", "plant"])
    mine = table.loc["places"]
    assert not mine["passes"].any() and np.isnan(mine.loc["wired", "value"])
    assert mine.loc["permuted", "value"] == pytest.approx(1 / 6)
    (layer, head), into = planted.planted_heads(found.orders)
    one, other = 2 * layer + head + 1, 2 * layer + into + 1
    assert mine.loc["silenced", "value"] == pytest.approx(one / 6)
    assert mine.loc["halves", "value"] == pytest.approx(1 / max(one, other))
    assert table.loc["ablation_zero"]["passes"].all()


def test_a_layer_of_one_head_has_no_halves(opened):
    orders = {"ablation_zero": ((1, 0), (0, 0), (2, 0))}
    assert planted.planted_heads(orders) == ((1, 0), 0)
    assert list(planted.edits(opened.model, orders)) == ["intact", "silenced", "permuted"]


def test_a_model_that_cannot_be_edited_passes_nothing_there(opened, source, monkeypatch):
    def refuse(*_):
        raise ValueError("another layout")

    monkeypatch.setattr(planted, "split_head", refuse)
    found = evidence_of(planted, opened, source, replace(SETTINGS, methods=("gate_ixg",)))
    table = planted.table(found)
    lost = table[table["plant"] == "halves"]
    assert lost["value"].isna().all() and not lost["passes"].any() and len(lost) == 2
    assert table[table["plant"] != "halves"]["passes"].all()
