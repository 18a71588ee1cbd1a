"""A folder that is filled as a whole: nothing of others is written over, and what says that it is finished comes last.

Takes the names that are to be written and files in a scratch folder; gives them their final names. A marker that is
there before the first of them and goes after the last says which command fills the folder, by what name its scratch
folder is known, and the sha256 of every file that gets its name: so the next run of the command knows what a killed one
has left, and takes nothing else for it. Does not know what the files hold.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attribution.atomic_writing import remove_temporaries, write_atomically
from attribution.packaged import sha256_of_file

MARKER = ".unfinished.json"
SCRATCH = re.compile(r"\.saving-[0-9a-f]{32}")


def require_folder_name(folder: str | os.PathLike[str], option: str = "--output-dir") -> Path:
    """The folder that an option names, to be written to; `ValueError` for none, as an unset variable of a shell gives
    (a path of no name is the current folder), and for a name that is not UTF-8, which no page or model file can hold.
    """
    name = os.fspath(folder)
    if not name:
        raise ValueError(f"{option}: expected a folder, got an empty name")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{option}: {name!r} is not UTF-8, expected another name") from error
    return Path(folder)


@dataclass(frozen=True)
class Filling:
    """Who fills a folder: the command, all names that it may write there (relative to it), and which comes last."""

    command: str
    names: tuple[str, ...]
    last: str


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; empty for anything else, and where there is no file."""
    if not path.is_file():  # reading a pipe would wait for ever
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def require_free(folder: Path, filling: Filling) -> None:
    """Raise `ValueError` naming the first thing that is in the way and that no killed run of the command has left: a
    file of one of its names, a marker of another command, what is no folder where one must be. Writes nothing."""
    for above in (folder, *folder.parents):
        if os.path.lexists(above):
            _require_folder(above)
            break
    _require_own_marker(folder, filling)
    _require_folders(folder, filling)
    left = _left_in(folder, filling)
    for name in filling.names:
        if name not in left and os.path.lexists(folder / name):
            raise ValueError(f"{folder / name}: not written by this command; choose another folder, or move it away")


@contextmanager
def filled_at_once(folder: Path, filling: Filling, *, replacing: bool = False) -> Iterator[Path]:
    """A scratch folder in `folder`, whose files get their final names when the block ends, the last after all others.

    Where the block raises, nothing has changed. Files that no killed run of the command has left are `replacing`ed or
    refused as by `require_free`, also those that came while the block ran; files of other names are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _require_own_marker(folder, filling)
    _require_folders(folder, filling)
    remove_temporaries(folder, [MARKER])
    _remove_scratch(folder, filling)
    recorded = _recorded(folder, filling)
    scratch = folder / f".saving-{secrets.token_hex(16)}"
    _mark(folder, filling, scratch.name, recorded)
    begun = finished = False
    try:
        scratch.mkdir(mode=0o700)
        yield scratch
        names = [path.relative_to(scratch).as_posix() for path in sorted(scratch.rglob("*")) if path.is_file()]
        names.sort(key=lambda name: name == filling.last)
        for name in names:
            with (scratch / name).open("rb") as file:
                os.fsync(file.fileno())
            (scratch / name).chmod(0o644)  # safetensors makes files that only their owner can read
        written = {name: sha256_of_file(scratch / name) for name in names}
        if not replacing:
            require_free(folder, filling)
        begun = True
        for name in _left_in(folder, filling):  # while the marker still tells them
            (folder / name).unlink(missing_ok=True)
        _mark(folder, filling, scratch.name, written)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(scratch / name, folder / name)
        finished = True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if recorded and not begun:
            _mark(folder, filling, "", recorded)
        elif finished or not begun:
            (folder / MARKER).unlink(missing_ok=True)


def forget_killed_run(folder: Path, filling: Filling) -> None:
    """Take out marker and scratch folder of a run of the command that was killed when all its files had their names."""
    if read_record(folder / MARKER).get("command") == filling.command:
        _remove_scratch(folder, filling)
        (folder / MARKER).unlink(missing_ok=True)


def _mark(folder: Path, filling: Filling, scratch: str, files: dict[str, str]) -> None:
    record = json.dumps({"command": filling.command, "scratch": scratch, "files": files}, sort_keys=True)
    write_atomically(folder / MARKER, (record + "\n").encode())


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"{path}: expected a folder or nothing")


def _require_folders(folder: Path, filling: Filling) -> None:
    for parent in sorted({folder / parent for name in filling.names for parent in Path(name).parents}):
        if os.path.lexists(parent):
            _require_folder(parent)


def _require_own_marker(folder: Path, filling: Filling) -> None:
    path = folder / MARKER
    if os.path.lexists(path) and read_record(path).get("command") != filling.command:
        raise ValueError(f"{path}: not of {filling.command}; choose another folder, or move it away")


def _remove_scratch(folder: Path, filling: Filling) -> None:
    """The scratch folder of a killed run, by the name that nobody else can have chosen."""
    record = read_record(folder / MARKER)
    name = record.get("scratch")
    if record.get("command") == filling.command and isinstance(name, str) and SCRATCH.fullmatch(name):
        shutil.rmtree(folder / name, ignore_errors=True)


def _recorded(folder: Path, filling: Filling) -> dict[str, str]:
    """Which of its names the marker of the command says were given, and to files of which sha256."""
    record = read_record(folder / MARKER)
    files = record.get("files")
    if record.get("command") != filling.command or not isinstance(files, dict):
        return {}
    return {name: files[name] for name in filling.names if isinstance(files.get(name), str)}


def _left_in(folder: Path, filling: Filling) -> set[str]:
    """What a killed run of the command has left: files of its names that hold what it wrote."""
    return {name for name, sha256 in _recorded(folder, filling).items() if _is_file(folder / name, sha256)}


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and not path.is_symlink() and sha256_of_file(path) == sha256
