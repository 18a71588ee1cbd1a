"""Runs that do not belong together or miss something: one line that says what, and nothing written."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from written_runs import write_run, write_three

from analysis.own_files import own_files
from analysis.seed_runs import read_run, read_runs
from analysis.seeds import compare_seeds, main, outputs_of, short_answer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, write_three(folder)


def change_record(folder, **parts):
    record = json.loads((folder / "manifest.json").read_text())
    for part, values in parts.items():
        record[part] |= values
    (folder / "manifest.json").write_text(json.dumps(record))


def drop(name):
    return lambda folder: (folder / name).unlink()


def scale_effects(folder):
    table = pd.read_csv(folder / "head_scorecard.csv")
    table.assign(ablation_mean_var_pct=table["ablation_mean_var_pct"] * 1.01).to_csv(
        folder / "head_scorecard.csv", index=False
    )


def set_cell(folder, name, column, value):
    table = pd.read_csv(folder / name, dtype=str)
    rows = table["statistic"] == "spearman" if "statistic" in table else table.index == 0
    table.loc[rows, column] = value
    table.to_csv(folder / name, index=False)


def estimated(folder):
    table = pd.read_csv(folder / "head_scorecard.csv")
    table.rename(columns=lambda name: name.replace("zero_var", "zero_estimated_var")).to_csv(
        folder / "head_scorecard.csv", index=False
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("manifest.json"), "missing manifest.json"),
        (drop("head_scorecard.csv"), "missing head_scorecard.csv"),
        (drop("scores/ablation_mean.safetensors"), "expected effects per picture"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "expected the manifest of a run"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: expected JSON"),
        (lambda folder: (folder / "agreement.csv").write_text("method,truth\n"), "missing column"),
        (lambda folder: (folder / "scores" / "ablation_zero.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda folder: change_record(folder, model={"weights_sha256": "weights 0"}), "the same weights as"),
        (lambda folder: change_record(folder, data={"sha256": "others"}), "other pictures than .* sha256 differ"),
        (lambda folder: change_record(folder, data={"preset": "published"}), "other pictures .* preset differ"),
        (lambda folder: change_record(folder, pictures={"total": 30}), "expected delta_loss"),
        (lambda folder: change_record(folder, model={"config": {"target_names": ["end"]}}), "reads"),
        (
            lambda folder: (folder / "manifest.json").write_text("[" * 100_000 + "]" * 100_000),
            "manifest.json: expected JSON",
        ),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "expected a JSON object, got list"),
        (lambda folder: change_record(folder, model={"config": None}), "expected the manifest of a run .*config"),
        (lambda folder: change_record(folder, pictures={"done": 1}), "pictures: expected as many done as there are"),
        (lambda folder: set_cell(folder, "agreement.csv", "n", "inf"), r"agreement\.csv: n: expected numbers"),
        (lambda folder: set_cell(folder, "head_scorecard.csv", "head", "-1"), r"head_scorecard\.csv: row 2: head"),
        (lambda folder: set_cell(folder, "head_scorecard.csv", "layer", "7"), r"head_scorecard\.csv: expected one row"),
        (
            lambda folder: set_cell(folder, "head_scorecard.csv", "ablation_mean_var_pct", ""),
            r"head_scorecard\.csv: row 2: ablation_mean_var_pct: expected a finite number",
        ),
        (scale_effects, "scores of the same run"),
        (estimated, "expected swept effects"),
    ],
)
def test_bad_runs_are_one_line_and_exit_2(written, tmp_path, capsys, change, message):
    shutil.copytree(written[0] / "two", tmp_path / "other")
    change(tmp_path / "other")
    output = tmp_path / "out"
    assert main([str(written[0] / "one"), str(tmp_path / "other"), "--output-dir", str(output)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1
    assert not output.exists()


def test_other_bad_input(written, tmp_path, capsys):
    one, two = str(written[0] / "one"), str(written[0] / "two")
    write_run(tmp_path / "wide", 7, heads=4)
    output = ["--output-dir", str(tmp_path / "out")]
    assert main([one, *output]) == 2
    assert "at least 2 run folders" in capsys.readouterr().err
    assert main([one, one, *output]) == 2
    assert "the same weights" in capsys.readouterr().err
    assert main([one, str(tmp_path / "nowhere"), *output]) == 2
    assert "nowhere: expected a finished run" in capsys.readouterr().err
    assert main([one, str(tmp_path / "wide"), *output]) == 2
    assert "24 x 8 x 4 pictures x layers x heads, expected 24 x 8 x 3" in capsys.readouterr().err
    assert main([one, two, "--output-dir", one]) == 2
    assert (
        "one is one of the inputs, expected another folder" in capsys.readouterr().err
        and (written[0] / "one" / "manifest.json").exists()
    )
    assert main([one, two, *output, "--bootstrap-replicates", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["value", "value_cross", "noise_ceiling"])
def test_agreement_is_recomputed_and_not_believed(written, tmp_path, capsys, column):
    """A better value for one method, as an editor would write it."""
    shutil.copytree(written[0] / "two", tmp_path / "other")
    table = pd.read_csv(tmp_path / "other" / "agreement.csv")
    of_means = (table["statistic"] == "spearman") & (table["estimator"] == "mean")
    row = table[of_means & (table["method"] == "cls_entropy") & (table["truth"] == "ablation_mean_abs")].index[0]
    table.loc[row, column] += 1e-3
    table.to_csv(tmp_path / "other" / "agreement.csv", index=False)
    output = ["--output-dir", str(tmp_path / "out")]
    assert main([str(written[0] / "one"), str(tmp_path / "other"), *output]) == 2
    error = capsys.readouterr().err
    assert "agreement.csv: cls_entropy, ablation_mean_abs, spearman: expected value " in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_what_cannot_be_recomputed_is_told(written, tmp_path):
    shutil.copytree(written[0] / "two", tmp_path / "other")
    (tmp_path / "other" / "scores" / "gate_ig.safetensors").unlink()
    table = pd.read_csv(tmp_path / "other" / "agreement.csv").replace({"method": {"random": "of_my_own"}})
    table.to_csv(tmp_path / "other" / "agreement.csv", index=False)
    assert read_run(written[0] / "two").unchecked == ()
    runs = read_runs([written[0] / "one", tmp_path / "other"])
    assert runs[1].unchecked == ("gate_ig", "of_my_own")
    told = [line for line in short_answer(runs, compare_seeds(runs, 20)) if line.startswith("As their tables say")]
    assert told == ["As their tables say, for want of scores to tell it from: gate_ig, of_my_own."]


@pytest.mark.parametrize(("column", "value", "message"), [("n", "", "n: expected numbers"), ("value", "x", "chefer, ")])
def test_cells_that_are_no_numbers_are_refused(written, tmp_path, column, value, message):
    shutil.copytree(written[0] / "two", tmp_path / "other")
    table = pd.read_csv(tmp_path / "other" / "agreement.csv", dtype=str)
    table.loc[table["method"] == "chefer", column] = value
    table.to_csv(tmp_path / "other" / "agreement.csv", index=False)
    with pytest.raises(ValueError, match=rf"agreement\.csv: {message}"):
        read_run(tmp_path / "other")


NAMES = ("manifest.json", "statements.csv", "figures/seeds_ablation_zero.svg", ".manifest.json.writing")


@pytest.mark.parametrize("name", NAMES)
def test_files_of_others_are_refused_before_anything_is_read(tmp_path, capsys, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    assert main(["no-run", "none", "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{name}: not " in error and "of analysis.seeds; choose another" in error.replace("written by", "of")
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_the_committed_comparison_is_recognised():
    folder = Path(__file__).parents[1] / "results" / "seeds"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert own_files(outputs_of(folder)) == there
