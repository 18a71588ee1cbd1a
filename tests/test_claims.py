"""Verdicts over several runs, from folders written by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.audit import TREND_COLUMNS
from analysis.checks.claims import COLUMNS as RUN_COLUMNS
from analysis.claims import MIXED, VERDICT_COLUMNS, main, markdown, over_models, read_run, released_values
from analysis.plan import CLAIMS, plan_sha256

QUANTITIES = {
    "C1": ("mean effect of layers 1-3", "sd over their heads"),
    "C2": ("effect of layer 6 over that of layers 1-3", "effect of layers 6-12 over that of layers 1-3"),
    "C3": ("share of layers 6-11 that is monosemantic for the chirp", "the same share of layers 1-5"),
    "C4": ("detectors of text, colour bar, edges or corners in layers 1-4 that do not matter",),
    "C5": ("kappa of roles between two halves of the pictures", "share of monosemantic heads that twins confirm"),
    "C6": ("slope over layers of the effect with minus without text",),
}


def write_run(folder, *, preset="default", verdicts=None, plan=None):
    folder.mkdir(parents=True)
    rows = []
    for claim, quantities in QUANTITIES.items():
        verdict = (verdicts or {}).get(claim, "supported")
        for quantity in quantities:
            row = {name: np.nan for name in RUN_COLUMNS}
            row |= {"claim": claim, "quantity": quantity, "unit": "x", "value": 0.5, "ci_low": 0.25, "ci_high": 0.75}
            row |= {"test": "" if quantity.startswith(("sd", "the same")) else "> 0", "met": "yes", "verdict": verdict}
            rows.append(row)
    pd.DataFrame(rows)[list(RUN_COLUMNS)].to_csv(folder / "claims.csv", index=False)
    layer, head = np.indices((12, 6)).reshape(2, -1)
    pd.DataFrame({"layer": layer, "head": head}).to_csv(folder / "head_scorecard.csv", index=False)
    config = {"backbone": "packaged", "synthesizer": {"preset": preset}}
    record = {"data": {"preset": preset}, "model": {"config": config}, "plan_sha256": plan or plan_sha256()}
    (folder / "manifest.json").write_text(json.dumps(record))
    return folder


def write_audit(folder):
    folder.mkdir()
    row = {name: 0.0 for name in TREND_COLUMNS} | {"configuration": "as_released", "order": "original"}
    row |= {"early_var_pct": 40.0, "early_pct": 10.0, "sixth_over_early": 2.5, "late_over_early": 4.0}
    pd.DataFrame([row]).to_csv(folder / "trend.csv", index=False)
    (folder / "manifest.json").write_text("{}")
    return folder


def test_tables_figures_and_manifest(tmp_path, capsys):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", verdicts={"C2": "not supported"})]
    runs.append(write_run(tmp_path / "three", preset="published", verdicts={"C4": "untestable"}))
    output = tmp_path / "claims"
    audit = write_audit(tmp_path / "audit")
    assert main([*map(str, runs), "--audit", str(audit), "--output-dir", str(output)]) == 0
    verdicts = pd.read_csv(output / "verdicts.csv")
    assert list(verdicts.columns) == list(VERDICT_COLUMNS) and len(verdicts) == 12
    found = verdicts.set_index(["claim", "preset"])
    assert found.loc[("C1", "default"), "verdict"] == "supported" and found.loc[("C1", "default"), "models"] == 2
    assert found.loc[("C2", "default"), "verdict"] == f"{MIXED} (1 of 2)"
    assert found.loc[("C4", "published"), "verdict"] == "untestable"
    assert "12 x 6 heads" in found.loc[("C1", "published"), "differs"]
    assert "ViT-B/16" in found.loc[("C1", "published"), "differs"]
    table = pd.read_csv(output / "claims.csv")
    assert len(table) == 3 * sum(map(len, QUANTITIES.values()))
    first = table[table["quantity"] == "mean effect of layers 1-3"]
    assert first["as_released"].tolist() == [40.0] * 3 and first["as_released_pct_of_baseline"].tolist() == [10.0] * 3
    for claim in CLAIMS:
        assert (output / "figures" / f"{claim.lower()}.png").stat().st_size > 5_000
    lines = (output / "verdicts.md").read_text().splitlines()
    assert len(lines) == 14 and all(line.count("|") == 6 for line in lines)
    assert "2 of DINOv2-small of 12 x 6 heads" in lines[2]
    assert "0.5 [0.25, 0.75], 0.5 [0.25, 0.75]" in lines[2] and lines[2].endswith("**supported** |")
    assert json.loads((output / "manifest.json").read_text())["runs"] == ["one", "two", "three"]
    assert capsys.readouterr().out.count("C2 (default, 2 model(s)): not in every model (1 of 2).") == 1


def test_what_the_released_procedure_gives(tmp_path):
    found = released_values(write_audit(tmp_path / "audit"))
    assert found["mean effect of layers 1-3"] == (40.0, 10.0)
    assert found["effect of layer 6 over that of layers 1-3"][0] == 2.5
    assert len(found) == 3  # it measures nothing of what heads look at


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["not supported", "untestable"], "not supported"),
        (["untestable", "untestable"], "untestable"),
        (["supported", "untestable", "not supported"], f"{MIXED} (1 of 3)"),
    ],
)
def test_a_verdict_needs_every_model(verdicts, expected):
    assert over_models(pd.Series(verdicts)) == expected


def test_refusals_are_one_line_and_code_2(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    other = write_run(tmp_path / "other", plan="0" * 64)
    (tmp_path / "empty").mkdir()
    without = write_run(tmp_path / "without")
    (without / "claims.csv").unlink()
    cases = {
        (str(other),): "judged by another plan",
        (str(tmp_path / "empty"),): "expected a finished run",
        (str(without),): "needs --checks claims",
        (str(run), str(run)): "folders of different names",
        (str(run), "--audit", str(tmp_path / "empty")): "expected a finished audit",
    }
    for words, told in cases.items():
        assert main([*words, "--output-dir", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert read_run(run).preset == "default"


def test_the_readme_shows_the_committed_verdicts():
    root = Path(__file__).resolve().parents[1]
    committed = (root / "results" / "claims" / "verdicts.md").read_text(encoding="utf-8")
    assert committed in (root / "README.md").read_text(encoding="utf-8")
    assert json.loads((root / "results" / "claims" / "manifest.json").read_text())["plan_sha256"] == plan_sha256()
    assert markdown(pd.read_csv(root / "results" / "claims" / "verdicts.csv")) == committed
