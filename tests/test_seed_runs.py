"""Runs that do not belong together or miss something: one line that says what, and nothing written."""

import json
import re
import shutil

import pandas as pd
import pytest
from written_runs import write_run, write_three

from analysis.seeds import main


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
        (lambda folder: (folder / "manifest.json").write_text("{"), "expected the manifest of a run"),
        (lambda folder: (folder / "agreement.csv").write_text("method,truth\n"), "missing column"),
        (lambda folder: (folder / "scores" / "ablation_zero.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda folder: change_record(folder, model={"weights_sha256": "weights 0"}), "the same weights as"),
        (lambda folder: change_record(folder, data={"sha256": "others"}), "other pictures than .* sha256 differ"),
        (lambda folder: change_record(folder, data={"preset": "published"}), "other pictures .* preset differ"),
        (lambda folder: change_record(folder, pictures={"total": 30}), "expected delta_loss"),
        (lambda folder: change_record(folder, model={"config": {"target_names": ["end"]}}), "reads"),
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
    assert "the folder of a run" in capsys.readouterr().err and (written[0] / "one" / "manifest.json").exists()
    assert main([one, two, *output, "--bootstrap-replicates", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
