"""Edges of several runs side by side: totals by hand, what is refused, and files of others."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.checks.edges import COLUMNS
from analysis.edge_maps import main, totals_table


def edges(effects, estimates=None, n=4):
    """Three heads of one layer to one of the next, by queries, keys and values in turn."""
    estimates = effects if estimates is None else estimates
    rows = [
        (0, place // 3, 1, 0, ("queries", "keys", "values")[place % 3], effect, effect - 1, effect + 1, 0.0, other, n)
        for place, (effect, other) in enumerate(zip(effects, estimates, strict=True))
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    size = table["effect_var_pct"].abs()
    return table.assign(share_of_exact=size.cumsum() / size.sum())


def written(folder, table):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"settings": {}}))
    table.to_csv(folder / "edges.csv", index=False)
    return str(folder)


def test_inputs_have_the_names_of_the_check():
    from attribution.edges import INPUTS

    assert INPUTS == ("queries", "keys", "values")


def test_totals_by_hand():
    row = totals_table({"one": edges([5.0, -3.0, 1.0, 0.5, 0.25, 0.25])}).iloc[0]
    assert (row["run"], row["edges"], row["largest"], row["n"]) == ("one", 6, 2, 4)
    assert row["share_of_largest"] == pytest.approx(0.8)
    assert [row[f"share_{name}"] for name in ("queries", "keys", "values")] == pytest.approx([0.55, 0.325, 0.125])
    assert row["spearman_estimate"] == pytest.approx(1.0)
    turned = totals_table({"one": edges([3.0, 2.0, 1.0], [1.0, 2.0, 3.0])}).iloc[0]
    assert turned["spearman_estimate"] == pytest.approx(-1.0)


def test_the_command(tmp_path, capsys):
    one, other = written(tmp_path / "a", edges([3.0, 2.0, 1.0])), written(tmp_path / "b", edges([1.0, np.nan, -2.0]))
    out = tmp_path / "out"
    assert main([one, other, "--output-dir", str(out)]) == 0
    maps = pd.read_csv(out / "edge_maps.csv")
    assert maps.groupby("run")["effect_var_pct"].apply(list).to_dict() == {"a": [3.0, 2.0], "b": [-2.0, 1.0]}
    assert {path.name for path in out.iterdir()} == {
        *("edge_maps.csv", "edge_totals.csv", "edge_maps.png", "edge_maps.svg", "manifest.json"),
    }
    assert main([one, "--output-dir", str(out)]) == 0  # its own files
    others = tmp_path / "others"
    others.mkdir()
    (others / "edge_maps.csv").write_text("of another")
    capsys.readouterr()
    assert main([one, "--output-dir", str(others)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and (others / "edge_maps.csv").read_text() == "of another"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="estimate_var_pct"), "edges.csv: missing column(s) estimate_var_pct"),
        (lambda t: t.assign(input="mlp"), "edges.csv: row 2: input: expected queries, keys, values, got 'mlp'"),
        (lambda t: pd.concat([t, t]), "edges.csv: more than one row for an edge"),
        (lambda t: t.assign(effect_var_pct=np.nan), "edges.csv: effect_var_pct: expected some exact edges, got none"),
        (lambda t: t.assign(layer=0.5), "edges.csv: row 2: layer"),
    ],
)
def test_refusals(tmp_path, capsys, change, message):
    run = written(tmp_path / "a", change(edges([3.0, 2.0, 1.0])))
    assert main([run, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_runs_that_are_not_there(tmp_path, capsys):
    run = written(tmp_path / "a", edges([3.0, 2.0, 1.0]))
    for runs, message in (
        ([str(tmp_path / "none")], "expected a finished run (manifest.json)"),
        ([run, run], "expected runs in folders of different names, got a, a"),
    ):
        assert main([*runs, "--output-dir", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "a" / "edges.csv").unlink()
    assert main([run]) == 2
    assert "edges.csv: not there; the run needs --checks edges" in capsys.readouterr().err
