"""Files whole or not at all, under names nobody can foresee, and through no link."""

import os
import stat
import subprocess
import sys

import pytest

from attribution import atomic_writing
from attribution.atomic_writing import remove_temporaries, replacing, write_atomically


def test_a_file_appears_whole_and_with_the_permissions_of_any_file(tmp_path):
    plain = tmp_path / "plain"
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            plain.unlink(missing_ok=True)
            plain.write_text("")
            path = write_atomically(tmp_path / "file.csv", b"new")
        finally:
            os.umask(before)
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode) == 0o666 & ~mask
    assert sorted(os.listdir(tmp_path)) == ["file.csv", "plain"]


def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("old")
    for error in (OSError("disk is full"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replacing(path) as file:
            file.write(b"half")
            raise error
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.csv"]


def test_a_link_or_a_file_under_the_temporary_name_is_left_alone(tmp_path, monkeypatch):
    """Planted under the very name, which is drawn from 10 ** 16."""
    monkeypatch.setattr(atomic_writing.secrets, "randbelow", lambda bound: 7)
    victim, planted = tmp_path / "victim", tmp_path / ".file.csv.0000000000000007.tmp"
    victim.write_text("mine")
    for plant in (
        lambda: planted.symlink_to(victim),
        lambda: planted.write_text("mine"),
        lambda: os.link(victim, planted),
    ):
        plant()
        with pytest.raises(FileExistsError):
            write_atomically(tmp_path / "file.csv", b"new")
        assert victim.read_text() == "mine" and planted.read_text() == "mine" and not (tmp_path / "file.csv").exists()
        planted.unlink()
    planted.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file.csv", b"new")
    assert not (tmp_path / "nowhere").exists()


def test_a_link_under_the_final_name_is_replaced_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "file.csv").symlink_to(tmp_path / "victim")
    write_atomically(tmp_path / "file.csv", b"new")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "file.csv").is_symlink()


def test_no_name_is_used_twice(tmp_path, monkeypatch):
    names, opened = [], os.open
    monkeypatch.setattr(atomic_writing.os, "open", lambda path, *how: (names.append(path.name), opened(path, *how))[1])
    for _ in range(50):
        write_atomically(tmp_path / "file.csv", b"")
    assert len(set(names)) == 50 and all(atomic_writing.TEMPORARY.fullmatch(name) for name in names)


def test_a_killed_process_leaves_what_can_be_told_and_removed(tmp_path):
    code = (
        "import os, sys; from attribution.atomic_writing import replacing\n"
        "with replacing(sys.argv[1]) as file:\n    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.csv")], check=False)
    (left,) = os.listdir(tmp_path)
    assert done.returncode == -9 and left.startswith(".file.csv.") and left.endswith(".tmp")
    for name in (".other.csv.12.tmp", ".file.csv.tmp", ".file.csv.x1.tmp", "file.csv.12.tmp", "file.csv"):
        (tmp_path / name).write_text("")
    remove_temporaries(tmp_path, ["file.csv", "deep/file.csv"])
    assert left not in os.listdir(tmp_path) and len(os.listdir(tmp_path)) == 5
