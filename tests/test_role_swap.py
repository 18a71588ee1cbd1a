"""Where the heads that matter look, in two tasks, from tables written by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from analysis.role_swap import COLUMNS, EFFECT, main, swap_rows

EFFECTS = np.array([4.0, 1.0, -2.0, 0.0])


def scorecard():
    return pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], EFFECT: EFFECTS})


def lifts(values, region="chirp", query="cls"):
    rows = scorecard()[["layer", "head"]].assign(query=query, region=region, metric="lift", value=values)
    return rows


def run_folder(folder, preset, values):
    folder.mkdir()
    scorecard().to_csv(folder / "head_scorecard.csv", index=False)
    other = lifts([1.0] * 4).assign(metric="mass")
    pd.concat([lifts(values), other]).to_csv(folder / "localization.csv", index=False)
    (folder / "manifest.json").write_text(json.dumps({"data": {"preset": preset}}))
    return folder


def test_weights_by_hand():
    values = np.array([10.0, 2.0, 5.0, 1.0])
    [row] = [dict(zip(COLUMNS, row, strict=True)) for row in swap_rows("run", "default", scorecard(), lifts(values))]
    assert row["lift_of_what_matters"] == pytest.approx((4 * 10 + 1 * 2) / 5)  # a harmful head weighs nothing
    assert row["lift_of_all"] == pytest.approx(values.mean())
    assert row["ratio"] == pytest.approx(8.4 / 4.5) and row["lift_of_top_10"] == pytest.approx(4.5)
    assert row["spearman_effect_lift"] == pytest.approx(spearmanr(EFFECTS, values).statistic)
    assert (row["num_top_10_above_3"], row["heads"]) == (2, 4)


def test_heads_without_a_lift_are_left_out_and_regions_nobody_has_too():
    rows = swap_rows("run", "default", scorecard(), lifts([10.0, np.nan, 5.0, 1.0], region="frame", query="mean"))
    [row] = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    assert (row["region"], row["query"], row["heads"]) == ("frame", "mean", 3)
    assert row["lift_of_what_matters"] == pytest.approx(10.0)


def test_command(tmp_path, capsys):
    folders = [run_folder(tmp_path / name, name, [5.0, 1.0, 1.0, 1.0]) for name in ("default", "colorbar")]
    assert main([*map(str, folders), "--output-dir", str(tmp_path / "out")]) == 0
    found = pd.read_csv(tmp_path / "out" / "role_swap.csv")
    assert (tmp_path / "out" / "role_swap.png").stat().st_size > 5_000
    assert found["data"].tolist() == ["default", "colorbar"] and tuple(found.columns) == COLUMNS
    assert "lift_of_what_matters" in capsys.readouterr().out


def test_bad_input(tmp_path, capsys):
    one = run_folder(tmp_path / "one", "default", [1.0, 2.0, 3.0, 4.0])
    two = run_folder(tmp_path / "two", "default", [1.0, 2.0, 3.0, 4.0])
    assert main([str(one), str(two)]) == 2 and "different tasks" in capsys.readouterr().err
    (two / "localization.csv").unlink()
    assert main([str(one), str(two)]) == 2 and "localization.csv" in capsys.readouterr().err
    assert main([str(one), str(tmp_path / "none")]) == 2 and "finished run" in capsys.readouterr().err
