"""A folder that is filled as a whole: nothing of others is written over, and what says that it is finished comes last.

Takes the names that are to be written and files in a scratch folder; gives them their final names. A marker that is
there before the first of them and goes after the last says what a killed run has left, so that the next one knows it
for its own. Does not know what the files hold.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attribution.atomic_writing import write_atomically

MARKER = ".unfinished.json"


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


def require_free(folder: Path, names: Iterable[str]) -> None:
    """Raise `ValueError` naming the first of these files that is there and that no killed run has left."""
    left = _left_in(folder)
    for name in names:
        if name not in left and os.path.lexists(folder / name):
            raise ValueError(f"{folder / name}: not written by this command; choose another folder, or move it away")


@contextmanager
def filled_at_once(folder: Path, last: str) -> Iterator[Path]:
    """A scratch folder in `folder`, whose files get their final names when the block ends, `last` after all others.

    Where the block raises, nothing has changed. Files of other names are left alone, but for what a killed run left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".saving-*"):
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch_name:
        scratch = Path(scratch_name)
        yield scratch
        names = [path.relative_to(scratch).as_posix() for path in sorted(scratch.rglob("*")) if path.is_file()]
        names.sort(key=lambda name: name == last)
        for name in names:
            with (scratch / name).open("rb") as file:
                os.fsync(file.fileno())
            (scratch / name).chmod(0o644)  # safetensors makes files that only their owner can read
        left = _left_in(folder)
        record = json.dumps({"files": sorted({*names, *left})})
        write_atomically(folder / MARKER, (record + "\n").encode())
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(scratch / name, folder / name)
        for name in left - {*names}:
            (folder / name).unlink(missing_ok=True)
    (folder / MARKER).unlink(missing_ok=True)


def _left_in(folder: Path) -> set[str]:
    if not (folder / MARKER).is_file():  # reading a pipe would wait for ever
        return set()
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    names = {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()
    return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}
