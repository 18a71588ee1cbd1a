"""Every command that writes results: others' files refused before anything is read, results of earlier makes known."""

import os
from pathlib import Path

import pandas as pd
import pytest

from analysis import (
    claims,
    compare,
    estimate_coverage,
    interval_coverage,
    published,
    quality,
    role_changes,
    role_swap,
    seeds,
)
from analysis.bench import __main__ as bench
from analysis.claims import write_claims
from analysis.own_files import Outputs, own_files, require_own
from attribution import finetune, published_checkpoint
from attribution.folder_lock import only_run

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "attribution" / "models"
# Command, its arguments (inputs that are not there), a name that it writes, and what the refusal says of it.
COMMANDS = {
    "claims": (claims, ["no-run", "--output-dir"], "verdicts.md", "analysis.claims"),
    "claims-figure": (claims, ["no-run", "--output-dir"], "figures/c3.png", "analysis.claims"),
    "claims-manifest": (claims, ["no-run", "--output-dir"], "manifest.json", "analysis.claims"),
    "role_changes": (role_changes, ["no", "run", "--output-dir"], "roles_by_run.csv", "analysis.role_changes"),
    "role_swap": (role_swap, ["no", "run", "--output-dir"], "role_swap.svg", "analysis.role_swap"),
    "quality": (quality, ["--model", "no-model", "--output-dir"], "leak.csv", "analysis.quality"),
    "estimate": (estimate_coverage, ["no-run", "--output-dir"], "estimate_cost.csv", "analysis.estimate_coverage"),
    "bench": (bench, ["--quick", "--only", "localization", "--output-dir"], "machine.json", "analysis.bench"),
    "bench-table": (bench, ["--quick", "--only", "localization", "--output-dir"], "sweep.csv", "analysis.bench"),
    "checkpoint": (published_checkpoint, ["no.safetensors", "--output-dir"], "golden.safetensors", "this command"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_files_of_others_are_refused_before_anything_is_read(tmp_path, capsys, case):
    command, arguments, name, who = COMMANDS[case]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert command.main([*arguments, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: not written by {who}; choose another folder, or move it away")
    assert error.count("\n") == 1 and path.read_text() == "mine"
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


# Command and its arguments before the folder; none of the inputs are there.
NAMED = {
    "bench": (bench, ["--quick", "--only", "localization", "--output-dir"]),
    "checkpoint": (published_checkpoint, ["no.safetensors", "--label-mean", "1,2,3", "--output-dir"]),
    "claims": (claims, ["no-run", "--output-dir"]),
    "compare": (compare, ["--model", "no-model", "--output-dir"]),
    "estimate": (estimate_coverage, ["no-run", "--output-dir"]),
    "finetune": (finetune, ["--data", "no-data", "--output-dir"]),
    "intervals": (interval_coverage, ["no-run", "--output-dir"]),
    "published": (published, ["--model", "no-model", "--output-dir"]),
    "quality": (quality, ["--model", "no-model", "--output-dir"]),
    "role_changes": (role_changes, ["no", "run", "--output-dir"]),
    "role_swap": (role_swap, ["no", "run", "--output-dir"]),
    "seeds": (seeds, ["no", "run", "--output-dir"]),
}


@pytest.mark.parametrize("case", NAMED)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "expected a folder, got an empty name"),
        (os.fsdecode(b"r\xe9sultats"), r"'r\udce9sultats' is not UTF-8, expected another name"),
    ],
    ids=["empty", "not UTF-8"],
)
def test_folders_of_no_proper_name_are_refused_before_anything_is_read(
    tmp_path, monkeypatch, capsys, case, name, expected
):
    """An unset variable of a shell would have filled the current folder."""
    command, arguments = NAMED[case]
    monkeypatch.chdir(tmp_path)
    assert command.main([*arguments, name]) == 2
    error = capsys.readouterr().err
    assert error.replace("output_dir", "--output-dir") == f"error: --output-dir: {expected}\n"
    assert not list(tmp_path.iterdir())


def test_pipes_under_the_names_of_a_command_are_refused_and_not_waited_for(tmp_path):
    outputs = role_swap.outputs_of(tmp_path)
    assert isinstance(outputs, Outputs)
    for path in (outputs.marker, tmp_path / "manifest.json", tmp_path / "role_swap.csv"):
        os.mkfifo(path)
        with pytest.raises(ValueError, match=rf"{path.name}: not (of|written by) analysis\.role_swap"):
            require_own(outputs)
        path.unlink()


@pytest.mark.parametrize("place", ["run", "audit"])
def test_verdicts_are_not_written_into_what_they_are_drawn_from(tmp_path, capsys, place):
    for name in ("run", "audit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "claims.csv").write_text(name)
    arguments = [str(tmp_path / "run"), "--audit", str(tmp_path / "audit"), "--output-dir"]
    assert claims.main([*arguments, str(tmp_path / "x" / ".." / place)]) == 2
    assert f"{place} is one of the inputs, expected another folder" in capsys.readouterr().err
    assert (tmp_path / place / "claims.csv").read_text() == place


def test_results_of_earlier_makes_are_known():
    """Committed tables whose manifests name no files, or that have none, are the commands' own; nothing else is."""
    results = ROOT / "results"
    names = ("machine", "sweep", "layers", "localization", "synthesizer", "estimate", "cost_laws")
    expected = {
        "claims": claims.outputs_of(results / "claims"),
        "role-changes": role_changes.outputs_of(results / "role-changes"),
        "role-swap": role_swap.outputs_of(results / "role-swap"),
        "bench": bench.outputs_of(results / "bench", names),
        "published-audit": published.outputs_of(results / "published-audit", [(0, 0), (11, 5)]),
        "estimate": estimate_coverage.outputs_of(results / "estimate"),
    }
    for name, outputs in expected.items():
        there = {path.relative_to(results / name).as_posix() for path in (results / name).rglob("*") if path.is_file()}
        there = {path for path in there if not path.startswith("scores/") and "/scenario_" not in path}
        if name == "estimate":  # beside a run of analysis.compare
            there = {path for path in there if path.startswith("estimate")}
        assert own_files(outputs) - {path for path in own_files(outputs) if "/scenario_" in path} == there
    tables = {"model_quality.csv", "leak.csv", "distractors.csv"}
    for name in ("default", "published"):
        assert own_files(quality.outputs_of(MODELS / name)) - {"quality.json"} == tables


def test_a_manifest_of_another_command_is_not_taken_for_a_table_s(tmp_path):
    """A table whose header is ours, in a folder that has a manifest: there were none when such tables had none."""
    header = (ROOT / "results" / "role-changes" / "role_changes.csv").read_text()
    (tmp_path / "role_changes.csv").write_text(header)
    assert own_files(role_changes.outputs_of(tmp_path)) == {"role_changes.csv"}
    (tmp_path / "manifest.json").write_text('{"command": ["python", "-m", "analysis.compare"]}')
    assert own_files(role_changes.outputs_of(tmp_path)) == set()


def test_short_commands_hold_the_folder_while_they_write(tmp_path, capsys, monkeypatch):
    """Each with its inputs taken for granted: they come to the lock before anything is cleared."""
    table = pd.DataFrame({"a": [1]})
    monkeypatch.setattr(role_changes, "_named", lambda folders: {})
    monkeypatch.setattr(role_changes, "role_changes", lambda runs: table)
    monkeypatch.setattr(role_changes, "roles_by_run", lambda runs: table)
    monkeypatch.setattr(role_swap, "role_swap_table", lambda folders: table.assign(query="cls"))
    monkeypatch.setattr(role_swap, "role_swap_dots", lambda table: None)
    monkeypatch.setattr(seeds, "read_runs", lambda folders: [])
    monkeypatch.setattr(seeds, "compare_seeds", lambda *_: {})
    monkeypatch.setattr(seeds, "draw_figures", lambda *_: {})
    monkeypatch.setattr(seeds, "_manifest", lambda *_: {})
    monkeypatch.setattr(claims, "read_run", lambda folder: None)
    monkeypatch.setattr(claims, "require_different_models", lambda folders: None)
    for name in ("claims_table", "verdicts_table", "markdown", "claim_figure"):
        monkeypatch.setattr(claims, name, lambda *_: None)
    monkeypatch.setattr(claims, "plan_sha256", lambda: "")
    monkeypatch.setattr(claims, "write_claims", lambda runs, *given: write_claims([], *given))
    monkeypatch.setattr(interval_coverage, "read_effects", lambda run: None)
    monkeypatch.setattr(estimate_coverage, "read_stored", lambda *_: None)
    with only_run(tmp_path):
        for command in (role_changes, role_swap, seeds, claims, interval_coverage, estimate_coverage):
            inputs = ["one"] if command is estimate_coverage else ["one", "two"]
            assert command.main([*inputs, "--output-dir", str(tmp_path)]) == 2, command
            assert "another run is under way in this folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
