"""The table of edges: every number again, order, shares, and the figure of those that carry most."""

import numpy as np
import pandas as pd
import pytest
from check_evidence import batch_of, evidence_of, source_of, tiny_opened
from scipy.stats import ttest_1samp

from analysis.checks import edges
from analysis.checks.edges import COLUMNS, senders_of
from analysis.edge_plots import COLOURS, edge_map, largest
from analysis.settings import CompareSettings
from attribution.edges import INPUTS, estimated_edges, exact_edges

SETTINGS = CompareSettings(methods=("random",), curve_pictures=5, bootstrap_replicates=60)


@pytest.fixture(scope="module")
def made():
    opened = tiny_opened()
    source = source_of(opened.model)
    kept = edges.SENDERS
    edges.SENDERS = 3
    try:
        evidence = evidence_of(edges, opened, source, SETTINGS)
        yield opened, source, evidence, edges.table(evidence)
    finally:
        edges.SENDERS = kept


def test_every_number_of_the_table(made):
    opened, source, evidence, table = made
    batch = batch_of(opened, source, SETTINGS, range(5))
    senders = senders_of(evidence.orders)
    exact, estimated = exact_edges(opened.model, batch, senders), estimated_edges(opened.model, batch)
    assert list(table.columns) == list(COLUMNS) and (table["n"] == 5).all()
    assert len(table) == 3 * 2 * 2 * 3 and (table["layer"] > table["sender_layer"]).all()
    assert not table.duplicated(list(COLUMNS[:5])).any()
    for row in table.to_dict("records"):
        sender, receiver = (row["sender_layer"], row["sender_head"]), (row["layer"], row["head"])
        place = INPUTS.index(row["input"])
        linear = 100 * estimated[:, *sender, *receiver, place].numpy()
        assert row["estimate_var_pct"] == pytest.approx(linear.mean(), rel=1e-5, abs=1e-6)
        if sender not in senders:
            assert np.isnan(row["effect_var_pct"]) and np.isnan(row["share_of_exact"])
            continue
        effects = 100 * exact[:, senders.index(sender), *receiver, place].numpy()
        assert row["effect_var_pct"] == pytest.approx(effects.mean(), abs=1e-9)
        limits = ttest_1samp(effects, 0).confidence_interval(0.95)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(limits), abs=1e-8)


def test_the_largest_come_first_and_shares_add_up(made):
    *_, table = made
    known = table["effect_var_pct"].notna().to_numpy()
    count = int(known.sum())
    assert count and known[:count].all() and not known[count:].any()
    sizes = table["effect_var_pct"].abs().to_numpy()[:count]
    assert (np.diff(sizes) <= 0).all() and (np.diff(table["estimate_var_pct"].abs().to_numpy()[count:]) <= 0).all()
    np.testing.assert_allclose(table["share_of_exact"][:count], sizes.cumsum() / sizes.sum())


def test_the_price_counts_what_follows_each_receiver(monkeypatch):
    monkeypatch.setattr(edges, "SENDERS", 20)
    opened = tiny_opened()
    orders = {"ablation_zero": tuple((layer, head) for layer in range(3) for head in range(2))}
    [one] = edges.passes(opened, source_of(opened.model), SETTINGS, {}, orders)
    # Senders of block 0 reach blocks 1 and 2, of which 2/3 and 1/3 of a pass follow, those of block 1 the last alone.
    assert one.forwards == pytest.approx(2 + 3 * 2 * (2 * (2 / 3 + 1 / 3) + 2 * (1 / 3)) + 1.3 * 3)
    assert one.depends_on[edges.NAME]["senders"] == orders["ablation_zero"] and one.rows == tuple(range(5))


def some_edges():
    effects = [4.0, -3.0, 2.0, 0.5, 0.3, 0.2, np.nan]
    rows = [
        (0, number % 2, 1 + number % 2, number % 3, INPUTS[number % 3], value) for number, value in enumerate(effects)
    ]
    return pd.DataFrame(rows, columns=["sender_layer", "sender_head", "layer", "head", "input", "effect_var_pct"])


def test_the_figure_holds_the_edges_that_carry_most():
    table = some_edges()
    found = largest(table)
    assert found["effect_var_pct"].tolist() == [4.0, -3.0, 2.0] and found["share_of_exact"].iloc[-1] == pytest.approx(
        0.9
    )
    assert len(largest(table, 0.95)) == 4 and len(largest(pd.concat([table] * 40), 1.0)) == 60
    figure = edge_map({"one": table, "other": table.assign(effect_var_pct=2 * table["effect_var_pct"])})
    one, other = figure.axes
    assert "3 of 6 edges carry 90 %" in one.get_title() and one.get_title().startswith("one")
    assert [patch.get_linewidth() for patch in other.patches] == pytest.approx([2.5, 3.75, 5.0])
    assert [patch.get_linewidth() for patch in one.patches] == pytest.approx([1.25, 1.875, 2.5])
    assert [patch.get_linestyle() for patch in one.patches] == ["-", "--", "-"]
    assert len(figure.legends[0].get_texts()) == len(COLOURS) + 1
    with pytest.raises(ValueError, match="edges: no exact edge"):
        edge_map({"": table.assign(effect_var_pct=np.nan)})
