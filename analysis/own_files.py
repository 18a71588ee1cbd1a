"""Which files of an output folder are a command's own: they alone are ever replaced or removed.

Takes a folder, the name of the command and the names it may write there; refuses the folder before anything is computed
where one of these names is taken by something else, and leaves whatever has another name. Own is what the command's
manifest names under ``files``, and while a run writes, what its marker names: a hidden file beside the manifest that is
there before the first result and goes after the manifest has come, so that a run killed in between finds its own again.
Of results of an earlier make, whose manifest names no files, the caller says whether they are the command's: then all
names it may write are; of tables without any manifest, each is told by its own header. Does not know what is in the
files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from analysis.json_files import read_json
from analysis.report import write_atomically
from attribution.atomic_writing import remove_temporaries
from attribution.folder_lock import only_run

FILES = "files"


def by_command(folder: Path, command: str, manifest: str = "manifest.json") -> bool:
    """Whether the manifest of the folder says that it is of this command (``analysis.compare``)."""
    found = read_record(folder / manifest).get("command")
    return isinstance(found, list) and found[:3] == ["python", "-m", command]


def by_header(folder: Path, table: str, columns: Sequence[str], manifest: str = "manifest.json") -> bool:
    """Whether a table of the folder begins with these columns and there is no manifest: how results of an earlier make
    are told of commands that wrote none."""
    if not (folder / table).is_file():  # reading a pipe would wait for ever
        return False
    try:
        with open(folder / table, encoding="utf-8") as file:
            header = file.readline(10_000).rstrip("\n").split(",")
    except (OSError, UnicodeDecodeError):
        return False
    return header[: len(columns)] == list(columns) and not os.path.lexists(folder / manifest)


@dataclass(frozen=True)
class Outputs:
    """What a ``command`` may write in a ``folder``: ``names`` relative to it, the ``manifest`` among them or not.
    ``earlier`` says of results whose manifest names no files whether they are the command's. ``headers``, name of a
    table -> the columns it begins with, tell those of an earlier make that stand without a manifest, each for itself;
    what has no header (figures) goes with any of them."""

    folder: Path
    command: str
    names: tuple[str, ...]
    manifest: str = "manifest.json"
    earlier: Callable[[], bool] = field(default=lambda: False)
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def marker(self) -> Path:
        """The file that is there while results are written."""
        return self.folder / f".{self.manifest}.writing"

    @property
    def everything(self) -> tuple[str, ...]:
        """The names with that of the manifest, which comes first."""
        return (self.manifest, *(name for name in self.names if name != self.manifest))


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; empty for anything else, and where there is no file."""
    if not path.is_file():  # reading a pipe would wait for ever
        return {}
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def own_files(outputs: Outputs) -> set[str]:
    """Names of files that are there and that this command wrote."""
    named: set[str] = set()
    manifest = read_record(outputs.folder / outputs.manifest)
    if FILES not in manifest:
        named |= {*outputs.everything} if outputs.earlier() else _by_headers(outputs)
    elif by_command(outputs.folder, outputs.command, outputs.manifest):
        named |= {outputs.manifest, *_names(manifest)}
    marker = read_record(outputs.marker)
    if marker.get("command") == outputs.command:
        named |= {*_names(marker)}
    return {name for name in named if _is_below(outputs.folder, name) and _is_file(outputs.folder / name)}


def _by_headers(outputs: Outputs) -> set[str]:
    found = {
        name for name, columns in outputs.headers.items() if by_header(outputs.folder, name, columns, outputs.manifest)
    }
    return found | {name for name in outputs.names if not name.endswith(".csv")} if found else found


def require_own(outputs: Outputs, inputs: Iterable[Path] = ()) -> None:
    """ValueError naming the first file that the command would write over and that is not its own, a folder in the
    output folder that is a link to another place, or a folder of ``inputs`` that is the output folder. Writes
    nothing."""
    for given in inputs:
        if given.resolve() == outputs.folder.resolve():
            raise ValueError(f"--output-dir: {outputs.folder} is one of the inputs, expected another folder")
    if os.path.lexists(outputs.marker) and read_record(outputs.marker).get("command") != outputs.command:
        raise ValueError(f"{outputs.marker}: not of {outputs.command}; choose another folder, or move it away")
    own = own_files(outputs)
    for name in outputs.everything:
        path = outputs.folder / name
        for above in _parents(outputs.folder, name):
            if above.is_symlink():
                raise ValueError(f"{above}: is a link, expected a folder or nothing")
        if name not in own and os.path.lexists(path):
            raise ValueError(f"{path}: not written by {outputs.command}; choose another folder, or move it away")
        for above in (outputs.folder, *_parents(outputs.folder, name)):
            if os.path.lexists(above) and not above.is_dir():
                raise ValueError(f"{above}: expected a folder or nothing")


@contextmanager
def held(outputs: Outputs) -> Iterator[None]:
    """The folder made, and held against a second run for as long as the block lasts. Raises ValueError as
    :func:`require_own`, and BlockingIOError where another run is under way in it."""
    require_own(outputs)
    outputs.folder.mkdir(parents=True, exist_ok=True)
    with only_run(outputs.folder):
        yield


def start_writing(outputs: Outputs, *, keep: bool = False) -> None:
    """Make way for new results: the marker, then away with the command's own files, the manifest first: a folder
    without it is not finished. With ``keep`` they stay until they are replaced. Raises ValueError as
    :func:`require_own`."""
    require_own(outputs)
    own = own_files(outputs)
    outputs.folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(outputs.folder, {*outputs.everything, *own, outputs.marker.name})
    record = {"command": outputs.command, FILES: sorted({*outputs.everything, *own})}
    write_atomically(outputs.marker, (json.dumps(record, indent=1) + "\n").encode())
    if not keep:
        for name in sorted(own, key=lambda name: (name != outputs.manifest, name)):
            (outputs.folder / name).unlink(missing_ok=True)


def finish_writing(outputs: Outputs, record: dict[str, Any]) -> None:
    """The manifest, with the names of the files that are there; then the marker goes."""
    there = {name for name in outputs.everything if (outputs.folder / name).is_file()}
    whole = record | {FILES: sorted({*there, outputs.manifest})}
    if not isinstance(whole.get("command"), list):
        whole = {"command": ["python", "-m", outputs.command], **whole}
    write_atomically(outputs.folder / outputs.manifest, (json.dumps(whole, indent=2) + "\n").encode())
    outputs.marker.unlink(missing_ok=True)


def figure_files(stems: Iterable[str], folder: str = "figures") -> tuple[str, ...]:
    """The PNG and SVG files of figures, relative to the output folder."""
    return tuple(f"{folder}/{stem}.{kind}" if folder else f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))


def _names(record: dict[str, Any]) -> list[str]:
    found = record.get(FILES)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _is_below(folder: Path, name: str) -> bool:
    """A manifest can be edited: only names below the folder count, not by way of a link, and no folder does."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.parts == () or "\\" in name:
        return False
    return not any(above.is_symlink() for above in _parents(folder, name))


def _parents(folder: Path, name: str) -> list[Path]:
    """The folders between an output folder, which may well be a link, and a file in it."""
    return [folder / parent for parent in PurePosixPath(name).parents if parent.parts]
