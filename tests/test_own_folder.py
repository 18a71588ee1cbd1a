"""A folder filled as a whole: what a killed run of the same command left is known, and nothing else is taken for it."""

import json
import os
from pathlib import Path

import pytest

from attribution import own_folder
from attribution.own_folder import MARKER, Filling, filled_at_once, forget_killed_run, require_free

MINE = Filling("attribution.mine", ("a.txt", "sub/b.txt", "last.txt"), "last.txt")


def there(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder, text="new", names=MINE.names, filling=MINE, **options):
    with filled_at_once(folder, filling, **options) as scratch:
        for name in names:
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_text(text)


def kill(monkeypatch, folder, at, text="new", names=MINE.names):
    """A run that ends as by SIGKILL when the file `at` is to get its name, or when its scratch folder is made: what
    would have tidied up does nothing any more."""
    calls = {(os, "replace"): os.replace, (Path, "mkdir"): Path.mkdir, (Path, "unlink"): Path.unlink}
    calls[own_folder.shutil, "rmtree"] = own_folder.shutil.rmtree
    dead = []

    def until_killed(call):
        def wrapper(*arguments, **how):
            is_scratch = call is calls[Path, "mkdir"] and arguments[0].name.startswith(".saving-")
            if not dead and call is os_replace and Path(arguments[1]) == folder / at:
                dead.append(at)
                raise KeyboardInterrupt
            if not dead:
                call(*arguments, **how)
            if not dead and is_scratch and at == "scratch":
                (arguments[0] / "half").write_text("half")
                dead.append(at)
                raise KeyboardInterrupt

        return wrapper

    os_replace = os.replace
    with monkeypatch.context() as patch:
        for (owner, name), call in calls.items():
            patch.setattr(owner, name, until_killed(call))
        with pytest.raises(KeyboardInterrupt):
            fill(folder, text, names)
    for path in folder.glob(f".{MARKER}.*.tmp"):  # of the tidying that did nothing
        path.unlink()


@pytest.mark.parametrize("at", ["scratch", *MINE.names])
def test_what_a_killed_run_left_is_its_own_again(tmp_path, monkeypatch, at):
    (tmp_path / "notes.txt").write_text("mine")
    kill(monkeypatch, tmp_path, at, "old")
    assert len(list(tmp_path.glob(".saving-*"))) == 1 and (tmp_path / MARKER).exists()
    require_free(tmp_path, MINE)
    fill(tmp_path, names=("sub/b.txt", "last.txt"))
    assert there(tmp_path) == {"notes.txt": "mine", "sub/b.txt": "new", "last.txt": "new"}
    assert not list(tmp_path.glob(".saving-*"))
    for left in (".saving-x", MARKER):  # and other commands may not go on there
        assert not (tmp_path / left).exists()


def test_a_run_killed_twice(tmp_path, monkeypatch):
    kill(monkeypatch, tmp_path, "last.txt", "old")
    for at in ("scratch", "a.txt", "last.txt"):
        kill(monkeypatch, tmp_path, at, "older")
        require_free(tmp_path, MINE)
    fill(tmp_path)
    assert there(tmp_path) == dict.fromkeys(MINE.names, "new") and not list(tmp_path.glob(".saving-*"))


def test_a_block_that_raises_changes_nothing(tmp_path, monkeypatch):
    kill(monkeypatch, tmp_path, "sub/b.txt", "old")
    for _ in range(2):
        with pytest.raises(OSError, match="disk is full"), filled_at_once(tmp_path, MINE) as scratch:
            (scratch / "a.txt").write_text("new")
            raise OSError("disk is full")
        require_free(tmp_path, MINE)
        assert there(tmp_path).keys() == {"a.txt", MARKER} and not list(tmp_path.glob(".saving-*"))
    with pytest.raises(OSError, match="disk is full"), filled_at_once(tmp_path / "new", MINE):
        raise OSError("disk is full")
    assert not any((tmp_path / "new").iterdir())


def test_scratch_folders_of_others_stay(tmp_path):
    notes = {f"{name}/x": "mine" for name in (".saving-notes", f".saving-{'0' * 32}", ".saving-")}
    for name, text in notes.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    fill(tmp_path)
    assert there(tmp_path) == notes | dict.fromkeys(MINE.names, "new")


@pytest.mark.parametrize("record", [{"files": ["thesis.txt"]}, {"command": "attribution.other", "files": {}}, [], "["])
def test_a_marker_of_others_is_refused(tmp_path, record):
    text = record if isinstance(record, str) else json.dumps(record)
    (tmp_path / MARKER).write_text(text * (100_000 if text == "[" else 1))
    (tmp_path / "thesis.txt").write_text("mine")
    before = there(tmp_path)
    for call in (
        require_free,
        lambda folder, filling: fill(folder),
        lambda folder, filling: fill(folder, replacing=True),
    ):
        with pytest.raises(ValueError, match=rf"{MARKER}: not of attribution\.mine; choose another folder, or move"):
            call(tmp_path, MINE)
    forget_killed_run(tmp_path, MINE)
    assert there(tmp_path) == before


def test_a_marker_that_was_edited_reaches_nothing_of_others(tmp_path):
    """Names that the command never writes, files that it did not write, a folder that is not its scratch."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "secret.txt", folder / "thesis.txt", folder / ".saving-notes"):
        path.write_text("mine")
    digest = own_folder.sha256_of_file(folder / "thesis.txt")
    names = ("thesis.txt", "../secret.txt", str(tmp_path / "secret.txt"), ".")
    for scratch in (".saving-notes", "../model", ".", None, 3):
        record = {"command": MINE.command, "scratch": scratch, "files": dict.fromkeys(names, digest)}
        (folder / MARKER).write_text(json.dumps(record))
        fill(folder, names=["last.txt"])
        (folder / "last.txt").unlink()
    assert there(tmp_path) == {"secret.txt": "mine", "model/thesis.txt": "mine", "model/.saving-notes": "mine"}


def test_a_file_put_where_a_killed_run_had_stopped_is_refused(tmp_path, monkeypatch):
    kill(monkeypatch, tmp_path, "last.txt")
    for name in ("a.txt", "last.txt"):  # in the place of one that had its name, and of one that had not
        before = (tmp_path / name).read_text() if name == "a.txt" else None
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match=rf"{name}: not written by this command"):
            require_free(tmp_path, MINE)
        with pytest.raises(ValueError, match=rf"{name}: not written by this command"):
            fill(tmp_path)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink() if before is None else (tmp_path / name).write_text(before)
    (tmp_path / "a.txt").rename(tmp_path / "elsewhere")
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"a\.txt: not written by this command"):
        require_free(tmp_path, MINE)


def test_what_is_in_the_way_of_folders(tmp_path):
    (tmp_path / "sub").write_text("mine")
    for folder in (tmp_path, tmp_path / "sub", tmp_path / "sub" / "deeper"):
        with pytest.raises(ValueError, match=r"sub: expected a folder or nothing"):
            require_free(folder, MINE)
    for replacing in (False, True):
        with pytest.raises(ValueError, match=r"sub: expected a folder or nothing"):
            fill(tmp_path, names=["a.txt"], replacing=replacing)
    assert there(tmp_path) == {"sub": "mine"}


def test_a_run_killed_when_all_had_their_names(tmp_path, monkeypatch):
    fill(tmp_path)
    scratch = tmp_path / f".saving-{'a' * 32}"
    scratch.mkdir()
    (tmp_path / MARKER).write_text(json.dumps({"command": MINE.command, "scratch": scratch.name, "files": {}}))
    forget_killed_run(tmp_path, MINE)
    assert there(tmp_path) == dict.fromkeys(MINE.names, "new") and not scratch.exists()
