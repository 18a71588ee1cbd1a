"""The folder of a run: nothing in it that does not match, the manifest last, and what must be known said."""

import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save

from analysis import artists, run_folder
from analysis.answer import REFERENCE_FOLDER
from analysis.checks.trials import CHECKS
from analysis.explain import explain
from analysis.models import open_model
from analysis.own_files import own_files, start_writing
from analysis.pictures import open_source
from analysis.run_folder import (
    CONTROL_WARNING,
    estimate_warnings,
    outputs_of,
    own_folder,
    prepare_folder,
    with_output,
    write_results,
)
from analysis.run_tables import TABLES, with_roles
from analysis.score_entries import ENTRY
from analysis.scorecard import Truth
from analysis.settings import CompareSettings

SETTINGS = CompareSettings(
    model="tiny-random",
    methods=("cls_mass", "gate_ixg"),
    truths=("zero",),
    num_pictures=4,
    bootstrap_replicates=20,
    num_permutations=19,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Everything `write_results` takes: settings, model, pictures and what was found of them."""
    opened = open_model(SETTINGS.model, "cpu")
    names = opened.model.config.target_names
    source = open_source("default", 4, seed=0, image_size=224, patch_size=14, target_names=names)
    folder = tmp_path_factory.mktemp("scores")
    return opened, source, explain(opened, source, SETTINGS, folder, lambda *_: None)


@pytest.fixture
def figures(monkeypatch):
    """What `write_figures` was asked for; it draws nothing."""
    asked = []
    monkeypatch.setattr(run_folder, "write_figures", lambda folder, **content: asked.append((folder, content)) or [])
    return asked


def fill(folder, *, listed=True):
    """A folder as an earlier run left it, with its files in the manifest or not, and things of others in it."""
    kept = ["scores/gate_ixg.safetensors", "scores/timings.json", "notes.txt", "mine.csv", "figures/mine.pdf"]
    kept += ["figures/thesis.png", "figures/thesis.svg"]
    results = ["report.html", *(f"{name}.csv" for name in TABLES)]
    results += ["figures/roles.png", "figures/roles.svg"]
    record = {"command": ["python", "-m", "analysis.compare", "--seed", "1"]}
    if listed:
        results.append("figures/old_figure.png")
        record["files"] = ["manifest.json", *results]
    for name in (*kept, *results):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    (folder / "manifest.json").write_text(json.dumps(record))
    return set(kept)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


MARKER = ".manifest.json.writing"


@pytest.mark.parametrize("listed", [True, False])
def test_results_are_removed_and_nothing_else(tmp_path, listed):
    """Those the manifest names; where an earlier make named none, those of the names that a run writes."""
    kept = fill(tmp_path, listed=listed)
    start_writing(outputs_of(tmp_path))
    assert files(tmp_path) == kept | {MARKER}
    start_writing(outputs_of(tmp_path))  # nothing there: nothing to do
    assert files(tmp_path) == kept | {MARKER}


def test_the_manifest_leaves_first(tmp_path, monkeypatch):
    fill(tmp_path)
    left = []
    unlink = run_folder.Path.unlink
    monkeypatch.setattr(run_folder.Path, "unlink", lambda path, **how: (left.append(path.name), unlink(path, **how)))
    start_writing(outputs_of(tmp_path))
    assert left[0] == "manifest.json" and left.count("manifest.json") == 1


def test_the_committed_runs_are_recognised(tmp_path):
    """Their manifests name no files: every table and figure is the run's own, and no figure lacks among the names."""
    for name in ("reference", "published", "colorbar"):
        folder = REFERENCE_FOLDER.parent / name
        there = {path for path in files(folder) if not path.startswith("scores/")}
        if "files" not in json.loads((folder / "manifest.json").read_text()):
            assert own_files(outputs_of(folder)) == there
    start_writing(outputs_of(tmp_path))


@pytest.mark.parametrize("name", ["manifest.json", "report.html", "methods.csv", "figures/roles.svg", MARKER])
def test_what_is_not_of_a_run_is_refused_before_anything_is_computed(tmp_path, name):
    """A file of one's own, and one of another command."""
    for text in ("mine", '{"command": ["python", "-m", "analysis.seeds"], "files": ["manifest.json"]}', "[1]"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}: not (written by|of) analysis\.compare; choose another folder"):
            with own_folder(tmp_path, ["gate_ixg"]):
                pytest.fail("taken")
        assert (tmp_path / name).read_text() == text and files(tmp_path) == {name}


def test_scores_of_others_are_refused_and_ones_own_are_not(tmp_path):
    mine = tmp_path / "scores" / "gate_ixg.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"gate_ixg\.safetensors: not written by"), own_folder(tmp_path, ["gate_ixg"]):
        pytest.fail("taken")
    with own_folder(tmp_path, ["gate_ig"]):  # no such name is written
        pass
    fill(tmp_path)  # in the folder of a finished run it is a damaged one, to be computed anew
    with own_folder(tmp_path, ["gate_ixg"]):
        pass
    assert mine.exists()


FOREIGN = {
    "scores/gate_ixg.safetensors": [save({"x": np.zeros(2)}), save({"x": np.zeros(2)}, {"format": "pt"})],
    "scores/timings.json": [b"[]", b'{"mine": 1}'],
    "scores/adopted.json": [b"[]", b'{"mine": 1}', b'{"gate_ixg": {"notes": "mine"}}', b"notes"],
    "scores/gate_ixg.parts": [b"mine"],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_says_that_it_is_not_of_a_run_is_refused_in_a_finished_one_too(tmp_path, name):
    fill(tmp_path)
    there = files(tmp_path) | {name}
    for content in FOREIGN[name]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^[^\n]*{name}: (not|expected) [^\n]*$"):
            with own_folder(tmp_path, ["gate_ixg"]):
                pytest.fail("taken")
        assert (tmp_path / name).read_bytes() == content and files(tmp_path) == there
    (tmp_path / name).unlink()
    (tmp_path / name.replace(".parts", ".safetensors")).unlink(missing_ok=True)
    (tmp_path / name.replace(".parts", ".safetensors")).mkdir()
    with pytest.raises((ValueError, OSError)), own_folder(tmp_path, ["gate_ixg"]):
        pytest.fail("taken")


def test_a_score_file_of_another_form_is_a_damaged_one(tmp_path):
    path = tmp_path / "scores" / "gate_ixg.safetensors"
    path.parent.mkdir()
    path.write_bytes(save({"x": np.zeros(2)}, {ENTRY: '{"identity": "a", "pieces": [5]}'}))
    with own_folder(tmp_path, ["gate_ixg"]):
        pass


def test_two_runs_in_one_folder(tmp_path):
    with own_folder(tmp_path / "run", []):
        with pytest.raises(OSError, match=r"run: another run is under way in this folder"):
            with own_folder(tmp_path / "run", []):
                pytest.fail("taken twice")
        with own_folder(tmp_path / "other", []):
            pass
    with own_folder(tmp_path / "run", []):
        pass
    assert files(tmp_path) == set()


def test_old_results_are_gone_before_new_ones_and_the_manifest_comes_last(results, tmp_path, monkeypatch):
    kept, written = fill(tmp_path), []

    def watched(name, original):
        def call(*args, **kwargs):
            written.append((name, (tmp_path / "manifest.json").exists(), "old_figure.png" in str(files(tmp_path))))
            return original(*args, **kwargs)

        monkeypatch.setattr(run_folder, name, call)

    def drawn(folder, **_):
        folder.mkdir(exist_ok=True)
        return []

    watched("write_table", run_folder.write_table)
    watched("write_figures", drawn)
    watched("write_report", run_folder.write_report)
    watched("finish_writing", run_folder.finish_writing)
    write_results(tmp_path, SETTINGS, *results, 3)
    names = [name for name, *_ in written]
    # Nothing asks for these, or no such method is there.
    absent = {*CHECKS, "role_counts", "pixel_localization", "calibration", "differences_from_depth"}
    tables = [name for name in TABLES if name not in absent]
    assert names == ["write_table"] * len(tables) + ["write_figures", "write_report", "finish_writing"]
    assert not any(finished or stale for _, finished, stale in written)
    assert files(tmp_path) == kept | {f"{name}.csv" for name in tables} | {"manifest.json", "report.html"}
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert record["processes"] == 3 and record["pictures"] == {"done": 4, "total": 4}
    assert set(record["files"]) == {f"{name}.csv" for name in tables} | {"manifest.json", "report.html"}
    assert record["settings"]["methods"] == ["cls_mass", "gate_ixg"] and record["model"]["control"] is True
    assert len(pd.read_csv(tmp_path / "head_scorecard.csv")) == 12


@pytest.mark.parametrize("step", ["write_table", "write_figures", "write_report"])
def test_a_run_that_breaks_off_leaves_no_manifest(results, tmp_path, monkeypatch, figures, step):
    fill(tmp_path)

    def full(*_, **__):
        raise OSError("disk is full")

    monkeypatch.setattr(run_folder, step, full)
    with pytest.raises(OSError, match="disk is full"):
        write_results(tmp_path, SETTINGS, *results)
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.undo()
    with own_folder(tmp_path, ["gate_ixg"]):  # what it left is its own
        start_writing(outputs_of(tmp_path))
    assert "methods.csv" not in files(tmp_path)


def test_a_run_killed_while_it_draws_ends_with_the_bytes_of_a_whole_one(results, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    write_results(whole, SETTINGS, *results)
    save, drawn = artists.save_figure, []

    def stop(figure, stem):
        drawn.append(stem)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return save(figure, stem)

    monkeypatch.setattr(artists, "save_figure", stop)
    with pytest.raises(KeyboardInterrupt):
        write_results(killed, SETTINGS, *results)
    monkeypatch.undo()
    left = files(killed)
    assert MARKER in left and "manifest.json" not in left and len([name for name in left if "figures/" in name]) == 4
    (killed / "figures" / "mine.png").write_text("mine")
    (killed / "figures" / ".league.png.0000000000000012.tmp").write_text("half")
    with own_folder(killed, ["gate_ixg"]):
        write_results(killed, SETTINGS, *results)
    assert files(killed) == files(whole) | {"figures/mine.png"}
    for name in files(whole) - {"methods.csv"}:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_tables_that_cannot_be_made_leave_the_earlier_run(results, tmp_path, monkeypatch):
    fill(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(run_folder, "run_tables", lambda *_: (_ for _ in ()).throw(ValueError("agreement")))
    with pytest.raises(ValueError, match="agreement"):
        write_results(tmp_path, SETTINGS, *results)
    assert files(tmp_path) == before


def test_pictures_that_cannot_be_read_again_leave_the_earlier_run(results, tmp_path, monkeypatch):
    fill(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(run_folder, "_shown", lambda *_: (_ for _ in ()).throw(ValueError("picture 3")))
    with pytest.raises(ValueError, match="picture 3"):
        write_results(tmp_path, SETTINGS, *results)
    assert files(tmp_path) == before


def test_the_manifest_knows_the_table_of_claims(results, tmp_path, monkeypatch, figures):
    tables_of = run_folder.run_tables
    claims = pd.DataFrame({"claim": ["C1"], "value": [1.0]})
    monkeypatch.setattr(run_folder, "run_tables", lambda *given: tables_of(*given) | {"claims": claims})
    write_results(tmp_path, SETTINGS, *results)
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert record["claims_sha256"] == hashlib.sha256((tmp_path / "claims.csv").read_bytes()).hexdigest()
    monkeypatch.undo()


def test_what_must_be_known_stands_in_the_answer_and_on_the_page(results, tmp_path, figures):
    opened, source, explained = results
    lines = write_results(tmp_path, SETTINGS, opened, source, explained)
    assert lines[0] == CONTROL_WARNING
    assert lines[1].startswith("Indicative: 4 pictures, fewer than 128") and lines[1].endswith("ranks unstable.")
    assert lines[-1] == f"All of it: {tmp_path / 'report.html'}" and not any("estimate" in line for line in lines)
    page = (tmp_path / "report.html").read_text()
    assert "CONTROL" in page and "Indicative: 4 pictures" in page
    folder, content = figures[0]
    assert folder == tmp_path / "figures"
    assert content["note"] == "Control, random weights. 4 pictures, indicative only."
    assert len(content["images"]) == len(content["maps"]) == 4 and set(content["masks"]) >= {"chirp", "text"}


def estimated(num_swept, is_swept, r2):
    shape = np.shape(is_swept)
    effects = np.random.default_rng(0).normal(size=(4, *shape))
    swept = {"is_swept": np.array(is_swept), "r2": np.array(r2), "num_swept": num_swept}
    return Truth("zero_estimated", effects, effects[..., None].repeat(3, -1), np.ones(4), **swept)


def test_warnings_of_estimates():
    few = estimated(47, [[True, False], [False, False]], [[1.0, 0.5], [0.9, 0.1]])
    first, second = estimate_warnings([few], 100)
    # Of the heads that are estimated alone: the median of 0.5, 0.9 and 0.1.
    assert first.startswith(
        "Effects are estimates: 47 of 100 pictures were swept, the others predicted (median R² over heads: zero 0.50); "
        "swept on all pictures: of 4 heads zero 1."
    )
    assert "means alone" in first and second.startswith("Fewer than 48 pictures were swept: intervals")
    enough = estimated(48, [[False, False]], [[0.25, 0.75]])
    assert len(estimate_warnings([enough], 100)) == 1
    mean = replace(enough, kind="mean_estimated", r2=np.array([[0.5, 0.9]]))
    assert "over heads: zero 0.50, mean 0.70)" in estimate_warnings([enough, mean], 100)[0]
    everything = estimated(50, [[True, True]], [[1.0, 1.0]])
    assert (
        "(median R² over heads: zero none left); swept on all pictures: of 2 heads zero 2"
        in (estimate_warnings([everything], 100)[0])
    )
    swept = Truth("zero", few.delta_loss, few.delta_target_sq, few.intact_loss)
    assert estimate_warnings([swept], 100) == []


def test_an_estimate_says_so_wherever_its_numbers_stand(results, tmp_path, figures):
    opened, source, explained = results
    truth = explained.truth
    marks = np.zeros(truth.delta_loss.shape[1:], dtype=bool)
    guess = replace(truth, kind="zero_estimated", is_swept=marks, r2=np.full(marks.shape, 0.8), num_swept=3)
    settings = replace(SETTINGS, estimate=3)
    lines = write_results(tmp_path, settings, opened, source, replace(explained, truths=(guess,)))
    assert [line[:12] for line in lines[2:4]] == ["Effects are ", "Fewer than 4"]
    assert "(median R² over heads: zero 0.80); swept on all pictures: of 12 heads zero 0" in lines[2]
    assert figures[0][1]["note"].endswith(" Effects are estimated from a sweep of 3 of them.")
    assert "3 of 4 pictures were swept" in (tmp_path / "report.html").read_text()


def test_the_reference_is_not_compared_with_itself(results, tmp_path, figures, monkeypatch):
    opened, source, explained = results
    trained = replace(opened, is_control=False)
    compared = []
    monkeypatch.setattr(run_folder, "compare_with_reference", lambda *_: compared.append(1) or ["Compared."])
    prepare_folder(tmp_path / "a")
    lines = write_results(tmp_path / "a", SETTINGS, trained, source, explained)
    assert compared == [1] and "Compared." in lines and CONTROL_WARNING not in lines
    monkeypatch.setattr(run_folder, "REFERENCE_FOLDER", (tmp_path / "a").resolve())
    assert "Compared." not in write_results(tmp_path / "a", SETTINGS, trained, source, explained)
    assert compared == [1] and REFERENCE_FOLDER != run_folder.REFERENCE_FOLDER


def test_the_name_of_the_folder_says_what_is_in_it():
    assert with_output(SETTINGS, 4).output_dir == "results/tiny-random-default-4"
    placed = replace(SETTINGS, model="/far/my-model", data="pictures/mine/", num_pictures=900)
    assert with_output(placed, 77).output_dir == "results/my-model-mine-77"
    assert with_output(replace(SETTINGS, output_dir="here"), 4).output_dir == "here"


def test_a_folder_that_cannot_be_made_or_written_to_is_refused(tmp_path, monkeypatch):
    prepare_folder(tmp_path / "a" / "b")
    prepare_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(ValueError, match=r"--output-dir: .* is not UTF-8, expected another name"):
        prepare_folder(tmp_path / os.fsdecode(b"r\xe9sultats"))
    assert files(tmp_path) == {"file"}
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"a: no permission to write"):
        prepare_folder(tmp_path / "a")


def test_the_scorecard_names_every_role():
    scorecard = pd.DataFrame({"layer": [0, 0], "head": [0, 1], "ablation_zero_var_pct": [1.0, 2.0]})
    rows = [
        {"layer": 0, "head": head, "model": model, "query": query, "tau": tau, "role": f"{model} {query} {tau} {head}"}
        for model in ("finetuned", "pretrained")
        for query in ("cls", "mean")
        for tau in (2.0, 3.0, 5.0)
        for head in (1, 0)
    ]
    found = with_roles(scorecard, pd.DataFrame(rows).assign(evidence=0.5))
    assert found["role"].tolist() == ["finetuned cls 3.0 0", "finetuned cls 3.0 1"]
    assert found["role_evidence"].tolist() == [0.5, 0.5] and found["ablation_zero_var_pct"].tolist() == [1.0, 2.0]
