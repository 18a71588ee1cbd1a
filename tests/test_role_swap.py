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


def run_folder(folder, data, values, *, count=9):
    folder.mkdir(parents=True)
    scorecard().to_csv(folder / "head_scorecard.csv", index=False)
    other = lifts([1.0] * 4).assign(metric="mass")
    pd.concat([lifts(values), other]).to_csv(folder / "localization.csv", index=False)
    record = {"data": {"folder" if "-" in data else "preset": data}, "pictures": {"done": count, "total": count}}
    (folder / "manifest.json").write_text(json.dumps(record))
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
    folders = [run_folder(tmp_path / name, name, [5.0, 1.0, 1.0, 1.0]) for name in ("with-bars", "colorbar")]
    assert main([*map(str, folders), "--output-dir", str(tmp_path / "out")]) == 0
    found = pd.read_csv(tmp_path / "out" / "role_swap.csv")
    assert (tmp_path / "out" / "role_swap.png").stat().st_size > 5_000
    assert found["data"].tolist() == ["with-bars", "colorbar"] and tuple(found.columns) == COLUMNS
    assert "lift_of_what_matters" in capsys.readouterr().out


def test_bad_input(tmp_path, capsys):
    one = run_folder(tmp_path / "one", "default", [1.0, 2.0, 3.0, 4.0])
    two = run_folder(tmp_path / "two", "default", [1.0, 2.0, 3.0, 4.0])
    assert main([str(one), str(two)]) == 2 and "different tasks" in capsys.readouterr().err
    (two / "localization.csv").unlink()
    assert main([str(one), str(two)]) == 2 and "localization.csv" in capsys.readouterr().err
    assert main([str(one), str(tmp_path / "none")]) == 2 and "finished run" in capsys.readouterr().err


def test_a_finished_result_outlives_runs_that_cannot_be_drawn(tmp_path, capsys):
    """Two folders of one name, which no figure can tell apart, and figures that fail for any other reason."""
    output = tmp_path / "out"
    good = [run_folder(tmp_path / name, name, [5.0, 1.0, 1.0, 1.0]) for name in ("with-bars", "colorbar")]
    assert main([*map(str, good), "--output-dir", str(output)]) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    same = [run_folder(tmp_path / name / "run", name, [5.0, 1.0, 1.0, 1.0]) for name in ("other-bars", "colorbars")]
    assert main([*map(str, same), "--output-dir", str(output)]) == 2
    assert "expected runs in folders of different names, got run, run" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("analysis.role_swap.role_swap_dots", lambda table: broken())
        main([*map(str, good), "--output-dir", str(output)])
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def broken():
    raise RuntimeError("no figure")


def change(folder, name, row, column, value):
    table = pd.read_csv(folder / name).astype(object)
    table.loc[row, column] = value
    table.to_csv(folder / name, index=False)


def drop_lifts(folder):
    table = pd.read_csv(folder / "localization.csv")
    table[table["metric"] != "lift"].to_csv(folder / "localization.csv", index=False)


def halve(name):
    def drop(folder):
        pd.read_csv(folder / name).drop(index=[2, 3]).to_csv(folder / name, index=False)

    return drop


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda folder: change(folder, "head_scorecard.csv", 1, EFFECT, ""),
            "head_scorecard.csv: row 3: ablation_zero",
        ),
        (lambda folder: change(folder, "head_scorecard.csv", 1, EFFECT, "inf"), "expected a finite number, got inf"),
        (lambda folder: change(folder, "head_scorecard.csv", 1, "head", 0), "head_scorecard.csv: expected one row for"),
        (
            lambda folder: change(folder, "localization.csv", 2, "value", "x"),
            "localization.csv: row 4: value: expected",
        ),
        (
            lambda folder: change(folder, "localization.csv", 2, "layer", "x"),
            "localization.csv: row 4: layer: expected",
        ),
        (drop_lifts, "localization.csv: expected rows of the metric lift"),
        (halve("localization.csv"), "localization.csv: lift, cls, chirp: expected 2 layers x 2 heads"),
        (halve("head_scorecard.csv"), "localization.csv: lift, cls, chirp: expected 1 layers x 2 heads"),
        (lambda folder: (folder / "localization.csv").write_bytes(b"\xff\xfe"), "localization.csv: expected a CSV"),
        (lambda folder: (folder / "head_scorecard.csv").write_text(""), "head_scorecard.csv: expected a CSV table"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json: expected a JSON object, got list"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "manifest.json: expected JSON"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"data": 1}'),
            "manifest of a run, data an object, got 1",
        ),
    ],
)
def test_tables_that_are_none_name_the_file(tmp_path, capsys, spoil, expected):
    folders = [run_folder(tmp_path / name, name, [5.0, 1.0, 1.0, 1.0]) for name in ("with-bars", "colorbar")]
    spoil(folders[1])
    assert main([*map(str, folders), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_other_pictures_are_told(tmp_path, capsys):
    presets = [run_folder(tmp_path / name, name, [5.0, 1.0, 1.0, 1.0]) for name in ("default", "colorbar")]
    assert main([*map(str, presets), "--output-dir", str(tmp_path / "out")]) == 2
    assert "expected runs over the same pictures, one of them by way of a folder" in capsys.readouterr().err
    fewer = run_folder(tmp_path / "with-bars", "with-bars", [5.0, 1.0, 1.0, 1.0], count=8)
    assert main([str(fewer), str(presets[1]), "--output-dir", str(tmp_path / "out")]) == 2
    assert "the same pictures, got with-bars 8, colorbar 9" in capsys.readouterr().err
