"""The checks of a run: which are asked for, in which order heads leave, and removal curves against single passes."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from analysis.checks import curves, trials
from analysis.checks.evidence import Evidence
from analysis.checks.trials import CHECKS, check_passes, chosen_checks, looking_orders, orders_of
from analysis.curve_areas import random_orders, removal_counts
from analysis.intervals import bootstrap_indices
from analysis.localization import lift
from analysis.models import OpenedModel
from analysis.pictures import PictureSource
from analysis.settings import CompareSettings
from attribution.methods import METHODS
from attribution.vit import gated, loss_per_image


@pytest.fixture
def opened():
    return OpenedModel(tiny_model("dinov2_lora"), "tiny", "0", is_control=True)


def test_which_checks_are_asked_for():
    def chosen(**changes):
        return chosen_checks(CompareSettings(**changes))

    assert chosen() == chosen(methods=("gate_ig",)) == chosen(estimate=5) == ()
    assert chosen(methods=("all",)) == chosen(checks=("all",)) == tuple(CHECKS)
    assert chosen(methods=("all",), checks=("planted", "curves")) == ("curves", "planted")
    assert chosen(methods=("all",), estimate=5) == ()
    assert chosen(methods=("all",), checks=("none",)) == ()
    assert chosen(checks=("roles",)) == ("concepts", "twins", "roles")  # what it is made of
    with pytest.raises(ValueError, match="checks: expected none alone, got none, curves"):
        chosen(checks=("none", "curves"))
    with pytest.raises(ValueError, match="checks: unknown one, expected some of curves, circuits, knockout"):
        chosen(checks=("one",))
    with pytest.raises(ValueError, match="--estimate: expected no checks, which need swept effects, got curves"):
        chosen(checks=("curves",), estimate=5)


def test_orders_are_those_of_the_mean_score():
    scores = np.random.default_rng(0).normal(size=(5, 3, 2))
    order = orders_of({"one": scores, "flat": np.ones((5, 3, 2))}, seed=1)
    mean = scores.mean(axis=0)
    assert [mean[pair] for pair in order["one"]] == sorted(mean.ravel(), reverse=True)
    assert sorted(order["flat"]) == [(layer, head) for layer in range(3) for head in range(2)]
    assert order["flat"] != tuple(sorted(order["flat"]))  # ties are not decided by the place in the model


def test_orders_by_looking_are_those_of_the_mean_lift():
    rng = np.random.default_rng(0)
    maps, labels = rng.random((5, 3, 2, 4, 4)), rng.integers(0, 12, (5, 4, 4)).astype(np.uint8)
    labels[1][labels[1] == 0] = 11  # a picture without a chirp
    order = looking_orders(maps, labels, seed=0)["looks_at_chirp"]
    expected = np.nanmean(lift(maps, labels == 0), axis=0)
    assert [expected[pair] for pair in order] == sorted(expected.ravel(), reverse=True)
    assert set(looking_orders(maps, labels, seed=0)) == {f"looks_at_{name}" for name in ("chirp", "text", "colorbar")}
    assert looking_orders(maps, None, seed=0) == {}


def test_curves_are_the_losses_without_the_heads(opened):
    model, batch = opened.model, tiny_batch(opened.model, 4)
    rng = np.random.default_rng(0)
    heads = [(layer, head) for layer in range(3) for head in range(2)]
    orders = {name: tuple(heads[place] for place in rng.permutation(6)) for name in ("one", "other")}
    source = PictureSource(4, None, {})
    settings = CompareSettings(num_pictures=4, bootstrap_replicates=50, methods=("gate_ixg",))
    one, null = curves.passes(opened, source, settings, {}, orders)
    arrays = one.compute(batch, [], 3)[curves.NAME]
    random = null.compute(batch, [], 3)[curves.RANDOM]
    drawn = random_orders(heads, seed=0)
    assert len(drawn) == 20 and len(set(drawn.values())) > 15
    assert all(sorted(order) == heads for order in drawn.values())
    assert random["losses"].shape == (4, len(curves.random_sets(orders, 0)))
    sets = curves.head_sets(orders)
    assert len(sets) == len(set(sets)) and () in sets and tuple(heads) in sets
    assert arrays["losses"].shape == (4, len(sets))
    indices = lambda count: bootstrap_indices(count, 50, seed=0)  # noqa: E731
    stored = {curves.NAME: arrays, curves.RANDOM: random}
    evidence = Evidence(opened, source, settings, {}, {}, None, orders, indices, stored.__getitem__)
    table = curves.table(evidence)
    intact = loss_per_image(model(batch.pixel_values), batch.labels)
    assert removal_counts(6) == (0, 1, 2, 4, 6)
    assert list(dict.fromkeys(table["method"])) == [*orders, *drawn]
    for name, order in (orders | {name: drawn[name] for name in ("random_0", "random_19")}).items():
        for end, leaving in (("most_first", order), ("least_first", order[::-1])):
            for count in (0, 1, 2, 4, 6):
                gates = torch.ones(3, 2, dtype=torch.float64)
                for pair in leaving[:count]:
                    gates[pair] = 0
                with gated(model, gates):
                    rise = 100 * (loss_per_image(model(batch.pixel_values), batch.labels) - intact).mean()
                row = table[(table["method"] == name) & (table["order"] == end) & (table["removed"] == count)]
                assert row["loss_rise_var_pct"].item() == pytest.approx(float(rise), abs=1e-8)
                assert row["n"].item() == 4
    another = curves.passes(opened, source, settings, {}, {"one": orders["one"][::-1]})[0]
    assert another.depends_on != one.depends_on
    # The null hangs on the seed and on no method.
    other_null = curves.passes(opened, source, settings, {}, {"one": orders["one"][::-1]})[1]
    assert other_null.depends_on == null.depends_on and other_null.rows == null.rows == one.rows
    many = {"one": tuple((layer, head) for layer in range(6) for head in range(4))}
    assert curves.random_sets(many, 0) == curves.random_sets({"other": many["one"][::-1]}, 0)
    assert curves.random_sets(many, 0) != curves.random_sets(many, 1)


def test_costs_are_known_before_the_orders_are(opened, monkeypatch):
    asked = {}

    def passes(opened, source, settings, methods, orders):
        asked.update(orders)
        return []

    for name in CHECKS:
        monkeypatch.setitem(trials.CHECKS, name, type("Check", (), {"passes": staticmethod(passes)}))
    methods = {name: METHODS[name] for name in ("gate_ixg", "random")}
    found = check_passes(opened, PictureSource(4, None, {}), CompareSettings(checks=("all",)), methods)
    looking = {f"looks_at_{region}" for region in ("chirp", "text", "colorbar")}
    assert set(found) == set(CHECKS)
    assert set(asked) == {"gate_ixg", "random", "ablation_zero", "ablation_mean"} | looking
    assert all(sorted(order) == sorted(asked["ablation_zero"]) for order in asked.values())
