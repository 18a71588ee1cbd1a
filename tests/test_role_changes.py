"""Roles of two runs side by side, from tables written by hand."""

import json

import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from analysis.role_changes import main, role_changes, roles_by_run
from analysis.role_rules import COLUMNS
from analysis.tables import write_table

FIRST = ["chirp detector", "chirp detector", "text position prior", "diffuse", "chirp (undecided)", "polysemantic"]
SECOND = ["chirp detector", "text detector", "text detector", "chirp detector", "diffuse", "polysemantic"]


def roles(names):
    rows = []
    for head, role in enumerate(names):
        concept = {"diffuse": "", "polysemantic": "chirp;text"}.get(role, role.split()[0])
        verdict = next((one for one in ("detector", "position prior", "undecided") if one in role), "")
        rows.append({"layer": 0, "head": head, "model": "finetuned", "query": "cls", "tau": 3.0, "semanticity": "",
                     "concepts": concept, "verdict": verdict, "role": role, "n": 9})  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def run_folder(folder, names, *, finished=True, count=9, weights=None, record=None, **cells):
    folder.mkdir()
    table = roles(names).astype(object)
    for column, value in cells.items():
        table.loc[1, column] = value
    write_table(table, folder / "roles.csv")
    if finished:
        told = {
            "model": {"weights_sha256": weights or folder.name},
            "data": {"preset": "p"},
            "pictures": {"done": count, "total": count},
        }
        (folder / "manifest.json").write_text(json.dumps(told if record is None else record))
    return folder


def other_model(folder):
    table = pd.read_csv(folder / "roles.csv")
    table.assign(model="pretrained").to_csv(folder / "roles.csv", index=False)
    return folder


def half_done(folder):
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(record | {"pictures": {"done": 3, "total": 9}}))
    return folder


def written(folder, name, text="[" * 100_000):
    (folder / name).write_text(text)
    return folder


def test_changes_by_hand():
    row = role_changes({"a": roles(FIRST), "b": roles(SECOND)}).iloc[0]
    assert (row["heads"], row["confident"], row["changed"], row["changed_concept"]) == (6, 4, 3, 2)
    assert row["share_changed"] == pytest.approx(3 / 4) and row["share_changed_concept"] == pytest.approx(1 / 2)
    back = role_changes({"b": roles(SECOND), "a": roles(FIRST)}).iloc[0]
    assert (back["confident"], back["changed"], back["kappa"]) == (4, 3, pytest.approx(row["kappa"]))
    assert row["kappa"] == pytest.approx(cohen_kappa_score(FIRST, SECOND))


def test_the_same_roles_have_not_changed():
    row = role_changes({"a": roles(FIRST), "b": roles(FIRST)}).iloc[0]
    assert (row["changed"], row["changed_concept"], row["kappa"], row["kappa_concept"]) == (0, 0, 1, 1)
    nothing = role_changes({"a": roles(["diffuse"]), "b": roles(["diffuse"])}).iloc[0]
    assert nothing["confident"] == 0 and pd.isna(nothing["share_changed"])


def test_every_pair_of_runs_and_every_head():
    runs = {"a": roles(FIRST), "b": roles(SECOND), "c": roles(FIRST)}
    assert role_changes(runs)[["run_a", "run_b"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    found = roles_by_run(runs)
    assert found["role_b"].tolist() == SECOND and found["head"].tolist() == list(range(6))


def test_command(tmp_path, capsys):
    folders = [run_folder(tmp_path / name, names) for name, names in (("one", FIRST), ("two", SECOND))]
    assert main([*map(str, folders), "--output-dir", str(tmp_path / "out")]) == 0
    found = pd.read_csv(tmp_path / "out" / "role_changes.csv")
    assert (found["run_a"][0], found["run_b"][0], found["changed"][0]) == ("one", "two", 3)
    assert (
        len(pd.read_csv(tmp_path / "out" / "roles_by_run.csv")) == 6 and "role_changes" not in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: [run_folder(path / "one", FIRST)], "two or more runs"),
        (lambda path: [run_folder(path / "one", FIRST), path / "two"], "expected a finished run"),
        (
            lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST, finished=False)],
            "expected a finished run",
        ),
        (lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST[:3])], "the same heads"),
        (
            lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST, count=8)],
            "expected runs of the same num_pictures, got one 9, two 8",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST, weights="w"), run_folder(path / "two", FIRST, weights="w")],
            "one and two: the same weights over the same pictures",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", [])],
            "roles.csv: expected a row for each head, got none",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST, verdict="nonsense")],
            "roles.csv: row 3: verdict: expected detector, position prior, undecided, untested or nothing,",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST, head="x")],
            "roles.csv: row 3: head: expected a whole number from 0 on, got x",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST, tau=float("inf"))],
            "roles.csv: row 3: tau: expected a finite number",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST[:1]), other_model(run_folder(path / "two", FIRST[:1]))],
            "one and two: roles.csv: no model, query and tau in common",
        ),
        (lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST, record=[])], "got list"),
        (
            lambda path: [run_folder(path / "one", FIRST), run_folder(path / "two", FIRST, record={"data": None})],
            "manifest.json: expected the manifest of a run, model an object, got None",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), half_done(run_folder(path / "two", FIRST))],
            "pictures: expected as many done as there are, at least 1, got 3 of 9",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), written(run_folder(path / "two", FIRST), "manifest.json")],
            "two/manifest.json: expected JSON",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), written(run_folder(path / "two", FIRST), "roles.csv")],
            "two/roles.csv: missing column(s)",
        ),
        (
            lambda path: [run_folder(path / "one", FIRST), written(run_folder(path / "two", FIRST), "roles.csv", "")],
            "two/roles.csv: expected a CSV table",
        ),
    ],
)
def test_bad_input(tmp_path, capsys, make, expected):
    assert main([*map(str, make(tmp_path)), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_run_without_roles(tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "manifest.json").write_text("{}")
    assert main([str(run_folder(tmp_path / "one", FIRST)), str(bare)]) == 2
    assert "--checks roles" in capsys.readouterr().err
