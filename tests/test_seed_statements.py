"""Statements about layers of runs written by hand; every number again by loops and by scipy's own bootstrap."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from written_runs import HEADS, INDICES, LAYERS, MEAN, N, by_scipy, centred, numbers, profile, write_run, write_three

from analysis.seed_runs import read_runs
from analysis.seed_statements import Parts, statements_table


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, write_three(folder)


@pytest.fixture(scope="module")
def table(written):
    folder, effects = written
    return statements_table(read_runs([folder / name for name in effects]), INDICES)


@pytest.mark.parametrize("estimator", ["mean", "trimmed"])
@pytest.mark.parametrize("model", ["one", "two"])
def test_statements_by_loops(written, table, model, estimator):
    effects = written[1][model]["ablation_zero"]
    rows = (
        table.set_index(["truth", "estimator", "model", "statement"])
        .sort_index()
        .loc[("ablation_zero", estimator, model)]
    )

    def first(drawn):
        return np.mean(profile(effects, drawn, estimator)[:2])

    expected = by_scipy(lambda drawn: np.mean(profile(effects, drawn, estimator)[6:]) - first(drawn))
    assert numbers(rows.loc["last_above_first_quarter"]) == pytest.approx(expected, rel=1e-9)
    assert rows.loc["last_above_first_quarter", "holds"] == (expected[1] > 0)
    assert by_scipy(first)[1] > 0
    expected = by_scipy(lambda drawn: np.mean(profile(effects, drawn, estimator)[4:]) / first(drawn))
    assert numbers(rows.loc["second_half_to_first_quarter"]) == pytest.approx(expected, rel=1e-9)

    def depth(drawn):
        return spearmanr(profile(effects, drawn, estimator), range(LAYERS)).statistic

    expected = centred(depth(range(N)), [depth(drawn) for drawn in INDICES])
    assert numbers(rows.loc["effect_rises_with_depth"]) == pytest.approx(expected)
    largest = sorted(int(np.argmax(profile(effects, drawn, estimator))) for drawn in INDICES)
    value = int(np.argmax(profile(effects, range(N), estimator)))
    # 2.5 % of the way from the first to the last of 41 is the place 1.
    assert numbers(rows.loc["largest_layer"]) == [value, largest[1], largest[-2]]

    def share(drawn):
        heads = [[max(0, MEAN[estimator](effects[drawn, at, head])) for head in range(HEADS)] for at in range(LAYERS)]
        return sum(map(sum, heads[:2])) / sum(map(sum, heads))

    expected = centred(share(np.arange(N)), [share(drawn) for drawn in INDICES])
    expected[1] = max(0, expected[1])
    assert numbers(rows.loc["first_quarter_share"]) == pytest.approx(expected)
    assert rows.loc[["largest_layer", "first_quarter_share", "second_half_to_first_quarter"], "holds"].isna().all()


def test_a_statement_holds_only_if_it_holds_in_every_model(tmp_path):
    """Effects that rise in one model and fall in the other; a first quarter around 0 bounds no ratio."""
    write_run(tmp_path / "up", 0, kinds=("zero",))
    write_run(tmp_path / "down", 1, kinds=("zero",), falls=True)
    runs = read_runs([tmp_path / "up", tmp_path / "down"])
    up = runs[0].effects["ablation_zero"]
    up[:, :2] -= up[:, :2].mean() - 1e-3
    table = statements_table(runs, INDICES)
    table = table[table["estimator"] == "mean"].set_index(["statement", "model"])
    for name in ("last_above_first_quarter", "effect_rises_with_depth"):
        assert [table.loc[(name, model), "holds"] for model in ("up", "down", "every")] == [True, False, False]
    ratio = table.loc[("second_half_to_first_quarter", "up")]
    assert ratio["value"] > 0 and np.isnan(ratio["ci_low"]) and np.isnan(ratio["ci_high"])
    assert table.loc[("largest_layer", "every"), "holds"] is False
    assert table.loc[("largest_layer", "every"), "value"] != table.loc[("largest_layer", "every"), "value"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(12, "L0-L2 L9-L11 L6-L11"), (2, "L0 L1 L1"), (3, "L0 L2 L1-L2"), (24, "L0-L5 L18-L23 L12-L23")],
)
def test_parts_of_any_number_of_layers(layers, expected):
    parts = Parts.of(layers)
    names = [Parts.name(part) for part in (parts.first_quarter, parts.last_quarter, parts.second_half)]
    assert " ".join(names) == expected
