"""Files that appear whole or not at all, and what a killed process leaves of them.

Takes a path and bytes; gives a file under its final name when all of it is on disk. Until then it has a name nobody can
foresee in the same folder, made anew (`O_EXCL`) and never through a link (`O_NOFOLLOW`). Does not know what is written.
"""

import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block ends and all of it is on disk.

    Its permissions are those of any new file. Where the block raises, `path` stays as it was and nothing is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**16):016d}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # before the try: what is there already is somebody else's
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file whole or not at all: a temporary name in the same folder, fsync, then `os.replace`."""
    with replacing(path) as file:
        file.write(content)
    return Path(path)


def remove_temporaries(folder: Path, names: Iterable[str]) -> None:
    """Take out what a killed process was writing under these names (relative to the folder)."""
    wanted: dict[Path, set[str]] = {}
    for name in names:
        wanted.setdefault((folder / name).parent, set()).add(Path(name).name)
    for parent, files in wanted.items():
        for path in parent.glob(".*.tmp"):
            if is_temporary(path, files):
                path.unlink(missing_ok=True)


def is_temporary(path: Path, names: Collection[str]) -> bool:
    """Whether a file is what a killed process was writing under one of these names."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and match[1] in names
