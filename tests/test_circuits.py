"""Circuits: faithfulness against plain means, its areas by scipy and by hand, the check against a gated model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from tiny_models import tiny_batch, tiny_model

from analysis import circuit_plots
from analysis.checks import circuits, curves
from analysis.checks.evidence import Evidence
from analysis.circuit_scores import circuit_table, kept_counts, log_mean
from analysis.intervals import bootstrap_indices
from analysis.models import OpenedModel
from analysis.pictures import PictureSource
from analysis.settings import CompareSettings
from attribution.gates import gated
from attribution.vit import loss_per_image


def indices(count):
    return bootstrap_indices(count, 200, seed=0)


def test_how_many_heads_are_kept():
    assert kept_counts(72) == (1, 4, 7, 14, 36, 72)
    assert kept_counts(1000) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert kept_counts(12) == (1, 2, 6, 12) and kept_counts(1) == (1,)
    with pytest.raises(ValueError, match="at least 1 head, got 0"):
        kept_counts(0)


def test_by_hand():
    """Half of the way at one head of four, all of it at two and beyond: over log 1, 2, 4 the mean is 7/8."""
    empty = np.array([5.0, 3.0])
    losses = {
        "one": np.array([[3.0, 2.0], [1.0, 1.0], [1.0, 1.0]]),
        "best": np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]),
    }
    table = circuit_table(losses, empty, (1, 2, 4), indices, ())
    one, best = (table[table["method"] == name] for name in ("one", "best"))
    assert one["faithfulness"].tolist() == [0.5, 1.0, 1.0] and one["share"].tolist() == [0.25, 0.5, 1.0]
    assert one["performance_ratio"].tolist() == pytest.approx([0.875] * 3)
    assert one["model_distance"].tolist() == pytest.approx([0.125] * 3)
    # Better than the whole model raises the ratio, and is as far from it as worse would be.
    assert best["faithfulness"].iloc[0] == pytest.approx(4 / 3)
    assert best["performance_ratio"].iloc[0] == pytest.approx(1 + 1 / 12)
    assert best["model_distance"].iloc[0] == pytest.approx(1 / 12)
    assert table["ratio_above_random"].isna().all() and set(table["n"]) == {2}


def test_intervals_are_of_resampled_pictures():
    rng = np.random.default_rng(0)
    counts, empty = (1, 4, 12), rng.gamma(3.0, size=20) + 3
    losses = {"one": np.stack([empty * 0.5, empty * 0.2, rng.gamma(1.0, size=20) * 0.1])}
    table = circuit_table(losses, empty, counts, indices, ())
    draws = []
    for rows in indices(20):
        none, kept = empty[rows].mean(), losses["one"][:, rows].mean(axis=1)
        draws.append((none - kept) / (none - kept[-1]))
    draws = np.array(draws)
    np.testing.assert_allclose(table["ci_low"], np.quantile(draws, 0.025, axis=0), atol=1e-3)
    np.testing.assert_allclose(table["ci_high"], np.quantile(draws, 0.975, axis=0), atol=1e-3)
    areas = [trapezoid(draw, np.log(counts)) / np.log(12) for draw in draws]
    low, high = np.quantile(areas, [0.025, 0.975])
    row = table.iloc[0]
    assert (row["performance_ratio_ci_low"], row["performance_ratio_ci_high"]) == pytest.approx((low, high), abs=1e-3)
    assert row["performance_ratio_ci_low"] < row["performance_ratio"] < row["performance_ratio_ci_high"]
    assert log_mean(np.array([[2.0], [3.0]]), np.array([5.0])).tolist() == [2.0, 3.0]


def test_orders_are_judged_by_random_ones():
    empty = np.ones(4) * 5
    whole = np.ones(4)
    losses = {name: np.stack([np.full(4, first), whole]) for name, first in
              (("good", 1.0), ("bad", 6.0), ("random_0", 4.0), ("random_1", 2.0), ("random_2", 5.0))}  # fmt: skip
    table = circuit_table(losses, empty, (1, 4), indices, ("random_0", "random_1", "random_2"))
    first = table.drop_duplicates("method").set_index("method")
    assert first["ratio_above_random"].tolist()[:2] == first["distance_below_random"].tolist()[:2] == [1.0, 0.0]
    assert first["ratio_above_random"][["random_0", "random_1", "random_2"]].isna().all()


@pytest.mark.parametrize(
    ("losses", "empty", "counts", "message"),
    [
        (np.ones((2, 3)), np.ones(3) * 2, (2, 1), "expected counts that rise"),
        (np.ones((2, 3)), np.ones(3) * 2, (0, 1), "expected counts that rise"),
        (np.ones((3, 3)), np.ones(3) * 2, (1, 2), r"expected finite losses \[2 3\], got \[3, 3\]"),
        (np.full((2, 3), np.nan), np.ones(3) * 2, (1, 2), "expected finite losses"),
        (np.ones((2, 3)), np.ones(3), (1, 2), "no worse without its heads"),
    ],
)
def test_refusals(losses, empty, counts, message):
    with pytest.raises(ValueError, match=message):
        circuit_table({"one": losses}, empty, counts, indices, ())


def test_the_check_is_the_gated_model():
    """Every number of the table from losses of a model whose other heads have a gate of 0."""
    model = tiny_model()
    batch = tiny_batch(model, 5)
    with torch.no_grad():  # a model that reads its pictures
        batch = replace(batch, labels=model(batch.pixel_values) + 0.1 * batch.labels)
    opened = OpenedModel(model, "tiny", "0", is_control=True)
    rng = np.random.default_rng(1)
    heads = [(layer, head) for layer in range(3) for head in range(2)]
    orders = {name: tuple(heads[place] for place in rng.permutation(6)) for name in ("one", "other")}
    settings = CompareSettings(num_pictures=5, bootstrap_replicates=50, methods=("gate_ixg",))
    source = PictureSource(5, None, {})
    passes = curves.passes(opened, source, settings, {}, orders)
    stored = {one.name: one.compute(batch, [], 3)[one.name] for one in passes}
    assert circuits.passes(opened, source, settings, {}, orders) == []

    def loss(kept):
        gates = torch.zeros(3, 2, dtype=torch.float64)
        for pair in kept:
            gates[pair] = 1
        with gated(model, gates):
            return float(loss_per_image(model(batch.pixel_values), batch.labels).mean())

    evidence = Evidence(opened, source, settings, {}, {}, None, orders, lambda n: bootstrap_indices(n, 50, seed=0),
                        stored.__getitem__)  # fmt: skip
    none, whole = loss(()), loss(heads)
    table = circuits.table(evidence)
    assert none > whole
    for name, order in orders.items():
        rows = table[table["method"] == name]
        assert rows["kept"].tolist() == list(kept_counts(6)) == [1, 3, 6]
        expected = [(none - loss(order[:count])) / (none - whole) for count in (1, 3, 6)]
        np.testing.assert_allclose(rows["faithfulness"], expected, atol=1e-8)
    assert sum(name.startswith("random_") for name in table["method"].unique()) == 20
    for draw in (circuit_plots.faithfulness_curves, circuit_plots.circuit_areas):
        figure = draw(table)
        assert figure.axes and figure.legends


def test_a_model_that_is_no_worse_without_heads_has_no_circuits(monkeypatch):
    evidence = Evidence(None, None, CompareSettings(), {}, {}, None, {"one": ((0, 0), (0, 1))}, indices, None)
    monkeypatch.setattr(curves, "losses_of_sets", lambda _: (lambda sets: np.ones((len(sets), 3)), {}))
    assert circuits.table(evidence).empty
