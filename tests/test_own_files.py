"""Output folders: a command replaces and removes what it wrote, and nothing else."""

import ast
import json
from pathlib import Path

import pytest

from analysis import figures
from analysis.own_files import (
    Outputs,
    by_command,
    by_header,
    figure_files,
    finish_writing,
    held,
    own_files,
    require_own,
    start_writing,
)

NAMES = ("a.csv", "b.csv", *figure_files(["one"]))
MARKER = ".manifest.json.writing"


def outputs(folder, command="analysis.mine", **options):
    return Outputs(folder, command, NAMES, **options)


def there(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def write(folder, *names, text="text"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_manifest_names_what_was_written_and_the_next_run_replaces_it(tmp_path):
    folder = tmp_path / "new"
    start_writing(outputs(folder))
    assert there(folder) == {MARKER}
    write(folder, "a.csv", "figures/one.png")
    write(folder, "notes.txt", "figures/other.png")
    finish_writing(outputs(folder), {"seed": 3})
    record = json.loads((folder / "manifest.json").read_text())
    assert record == {
        "command": ["python", "-m", "analysis.mine"],
        "seed": 3,
        "files": ["a.csv", "figures/one.png", "manifest.json"],
    }
    assert own_files(outputs(folder)) == {"a.csv", "figures/one.png", "manifest.json"}
    write(folder, "b.csv")  # a name that the command may write, but did not
    with pytest.raises(ValueError, match=r"b\.csv: not written by analysis\.mine; choose another folder, or move"):
        start_writing(outputs(folder))
    assert (folder / "manifest.json").exists() and (folder / "a.csv").exists()
    (folder / "b.csv").unlink()
    start_writing(outputs(folder))
    assert there(folder) == {MARKER, "notes.txt", "figures/other.png"}


def test_a_run_killed_while_it_writes_finds_its_own_again(tmp_path):
    """After every file that it leaves: the marker is there before the first and after the last."""
    write(tmp_path, "a.csv", text="old")
    with pytest.raises(ValueError, match=r"a\.csv"):
        require_own(outputs(tmp_path))
    (tmp_path / "a.csv").unlink()
    start_writing(outputs(tmp_path))
    for name in NAMES:
        write(tmp_path, name)
        require_own(outputs(tmp_path))
    write(tmp_path, ".a.csv.0000000000000007.tmp", ".a.csv.tmp", ".c.csv.7.tmp")
    start_writing(outputs(tmp_path))
    assert there(tmp_path) == {MARKER, ".a.csv.tmp", ".c.csv.7.tmp"}
    with pytest.raises(ValueError, match=rf"{MARKER}: not of analysis\.other"):
        require_own(outputs(tmp_path, "analysis.other"))


def test_a_run_killed_while_it_clears_still_knows_what_the_last_one_wrote(tmp_path, monkeypatch):
    start_writing(Outputs(tmp_path, "analysis.mine", ("gone.csv",)))
    write(tmp_path, "gone.csv")
    finish_writing(Outputs(tmp_path, "analysis.mine", ("gone.csv",)), {})
    unlink = Path.unlink

    def killed(path, **how):
        if path.name == "gone.csv":
            raise KeyboardInterrupt
        unlink(path, **how)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        start_writing(outputs(tmp_path))
    monkeypatch.undo()
    assert there(tmp_path) == {MARKER, "gone.csv"}
    start_writing(outputs(tmp_path))
    assert there(tmp_path) == {MARKER}


@pytest.mark.parametrize(
    "text", ["not JSON", "[]", "null", '{"files": ["a.csv"]}', '{"command": "analysis.mine", "files": ["a.csv"]}']
)
def test_a_manifest_that_is_none_proves_nothing(tmp_path, text):
    write(tmp_path, "a.csv")
    (tmp_path / "manifest.json").write_text(text)
    assert own_files(outputs(tmp_path)) == set()
    with pytest.raises(ValueError, match=r"manifest\.json: not written by analysis\.mine"):
        start_writing(outputs(tmp_path))
    assert there(tmp_path) == {"a.csv", "manifest.json"}


def test_an_edited_manifest_reaches_nothing_outside_the_folder(tmp_path):
    folder = tmp_path / "run"
    write(tmp_path, "secret.csv")
    write(folder, "a.csv", "deep/er/x.csv")
    names = ["../secret.csv", str(tmp_path / "secret.csv"), "deep", "", ".", 7, "a.csv", "..\\secret.csv"]
    record = {"command": ["python", "-m", "analysis.mine"], "files": names}
    (folder / "manifest.json").write_text(json.dumps(record))
    start_writing(outputs(folder))
    assert there(tmp_path) == {"secret.csv", f"run/{MARKER}", "run/deep/er/x.csv"}


def test_links_are_not_followed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "a.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"a\.csv: not written by"):
        require_own(outputs(folder))
    write(folder, "figures")
    (folder / "a.csv").unlink()
    with pytest.raises(ValueError, match=r"figures: expected a folder or nothing"):
        require_own(outputs(folder))


def test_a_linked_folder_is_not_written_through(tmp_path):
    """Whatever a manifest says of it: what lies behind the link is somebody else's. The output folder may be a link."""
    theirs, folder = tmp_path / "theirs", tmp_path / "run"
    write(theirs, "one.png")
    folder.mkdir()
    (folder / "figures").symlink_to(theirs)
    record = {"command": ["python", "-m", "analysis.mine"], "files": ["figures/one.png"]}
    (folder / "manifest.json").write_text(json.dumps(record))
    assert own_files(outputs(folder)) == {"manifest.json"}
    for command in (require_own, start_writing):
        with pytest.raises(ValueError, match=r"figures: is a link, expected a folder or nothing"):
            command(outputs(folder))
    assert (theirs / "one.png").read_text() == "text"
    (folder / "figures").unlink()
    (tmp_path / "by-name").symlink_to(folder)
    require_own(outputs(tmp_path / "by-name"))


def test_a_folder_is_held_by_one_run(tmp_path):
    with held(outputs(tmp_path / "run")):
        with pytest.raises(OSError, match="another run is under way"), held(outputs(tmp_path / "run")):
            pytest.fail("taken twice")
        start_writing(outputs(tmp_path / "run"))
        write(tmp_path / "run", "a.csv")
        finish_writing(outputs(tmp_path / "run"), {})
    assert there(tmp_path / "run") == {"a.csv", "manifest.json"}


def test_each_table_of_an_earlier_make_is_told_by_its_own_header(tmp_path):
    earlier = outputs(tmp_path, headers={"a.csv": ("x", "y"), "b.csv": ("z",)})
    write(tmp_path, "a.csv", text="x,y\n1,2\n")
    write(tmp_path, "b.csv", "figures/one.png", text="mine\n")
    assert own_files(earlier) == {"a.csv", "figures/one.png"}  # figures have no header: they go with a table
    with pytest.raises(ValueError, match=r"b\.csv: not written by"):
        start_writing(earlier)
    (tmp_path / "a.csv").write_text("mine\n")
    assert own_files(earlier) == set()


def test_an_input_is_no_output(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"run is one of the inputs, expected another folder"):
        require_own(outputs(tmp_path / "x" / ".." / "run"), [tmp_path / "other", tmp_path / "run"])


def test_results_of_an_earlier_make(tmp_path):
    command = ["python", "-m", "analysis.mine", "--seed", "2"]
    write(tmp_path, "a.csv", "notes.csv")
    (tmp_path / "manifest.json").write_text(json.dumps({"command": command}))
    assert own_files(outputs(tmp_path)) == set()
    earlier = outputs(tmp_path, earlier=lambda: by_command(tmp_path, "analysis.mine"))
    assert own_files(earlier) == {"a.csv", "manifest.json"}
    assert not by_command(tmp_path, "analysis.min") and not by_command(tmp_path, "analysis.mine", "other.json")
    (tmp_path / "a.csv").write_text("x,y,z\n1,2,3\n")
    assert not by_header(tmp_path, "a.csv", ("x", "y"))  # there was no manifest beside such tables
    (tmp_path / "manifest.json").unlink()
    assert by_header(tmp_path, "a.csv", ("x", "y")) and not by_header(tmp_path, "a.csv", ("y",))
    assert not by_header(tmp_path, "none.csv", ("x",))


def test_tables_that_stay_until_they_are_replaced(tmp_path):
    start_writing(outputs(tmp_path))
    write(tmp_path, "a.csv", text="old")
    finish_writing(outputs(tmp_path), {})
    start_writing(outputs(tmp_path), keep=True)
    write(tmp_path, "b.csv", text="new")
    assert (tmp_path / "a.csv").read_text() == "old"
    finish_writing(outputs(tmp_path), {})
    assert json.loads((tmp_path / "manifest.json").read_text())["files"] == ["a.csv", "b.csv", "manifest.json"]


def test_every_figure_that_a_run_can_draw_is_among_the_names():
    """Read off the source: the first word of each `add` and of each figure that is yielded."""
    found = []
    for name in ("figures", "league_figures", "role_figures"):
        tree = ast.parse((Path(figures.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add" and len(node.args) >= 4:
                found.append(node.args[0])
            if isinstance(node, ast.Yield):
                found.append(node.value.elts[0])
    names = [node.value for node in found if isinstance(node, ast.Constant)]
    assert len(names) == len(set(names)) > 20 and set(names) == set(figures.FIGURES)
